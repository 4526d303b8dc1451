package server

import (
	"fmt"
	"net/http"
	"strings"

	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/user"

	"github.com/skerry-os/skerry/pkg/pki"
)

// remaining refuses nodes that were removed from the cluster. Kubernetes has no word for it: to it a certificate is good until it
// ends.
type remaining struct {
	authenticator.Request
	removed func(node string) bool
}

func (a remaining) AuthenticateRequest(r *http.Request) (*authenticator.Response, bool, error) {
	resp, ok, err := a.Request.AuthenticateRequest(r)
	if err != nil || !ok {
		return resp, ok, err
	}
	if node := nodeOf(resp.User); node != "" && a.removed(node) {
		return nil, false, fmt.Errorf("node %s was removed from the cluster", node)
	}
	return resp, true, nil
}

// nodeOf is the name of the node whose certificate a user showed; "" for other users.
func nodeOf(u user.Info) string {
	if name, ok := strings.CutPrefix(u.GetName(), pki.NodeUser); ok {
		return name
	}
	for _, group := range u.GetGroups() {
		if name, ok := strings.CutPrefix(group, pki.NodeGroup); ok {
			return name
		}
	}
	return ""
}
