package server

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/user"
)

// Whatever certificate a removed node shows is refused; nobody else's is.
func TestRemainingNodes(t *testing.T) {
	for _, c := range []struct {
		who user.DefaultInfo
		in  bool
	}{
		{user.DefaultInfo{Name: "system:node:gone", Groups: []string{"system:nodes"}}, false},
		{user.DefaultInfo{Name: "system:kube-proxy", Groups: []string{"skerry.io:node:gone", "system:authenticated"}}, false},
		{user.DefaultInfo{Name: "system:node:here", Groups: []string{"system:nodes"}}, true},
		{user.DefaultInfo{Name: "system:kube-proxy", Groups: []string{"skerry.io:node:here"}}, true},
		{user.DefaultInfo{Name: "system:kube-proxy"}, true},
		{user.DefaultInfo{Name: "gone"}, true},
		{user.DefaultInfo{Name: "somebody", Groups: []string{"gone"}}, true},
	} {
		a := remaining{authenticator.RequestFunc(func(*http.Request) (*authenticator.Response, bool, error) {
			return &authenticator.Response{User: &c.who}, true, nil
		}), func(node string) bool { return node == "gone" }}
		resp, in, err := a.AuthenticateRequest(httptest.NewRequest(http.MethodGet, "/api", nil))
		if in != c.in || (err == nil) != c.in || (resp != nil) != c.in {
			t.Errorf("%v: %v %v %v", c.who, resp, in, err)
		}
	}
	a := remaining{authenticator.RequestFunc(func(*http.Request) (*authenticator.Response, bool, error) { return nil, false, nil }), nil}
	if resp, in, err := a.AuthenticateRequest(httptest.NewRequest(http.MethodGet, "/api", nil)); resp != nil || in || err != nil {
		t.Errorf("one who shows nothing: %v %v %v", resp, in, err)
	}
}
