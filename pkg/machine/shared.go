package machine

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"time"

	"github.com/skerry-os/skerry/pkg/token"
)

// minLifetime of certificates leaves time to renew them.
const minLifetime = time.Minute

// Membership holds the settings of who belongs to the cluster.
type Membership struct {
	AgentToken          string `yaml:"agent-token" help:"one more secret, with which agents can join and servers cannot"`
	AgentTokenFile      string `yaml:"agent-token-file" help:"file with the agent-token, instead of agent-token"`
	NodeReplace         string `yaml:"node-replace" help:"when another machine asks for the name of a node that is dead: approve waits for skerryd node approve, always gives it"`
	NodeRemoveAfter     string `yaml:"node-remove-after" shared:"" help:"remove nodes of machines that a cloud has ended: those with a provider ID, no servers, that were not heard of for so long, as 15m (default: never)"`
	CertificateLifetime string `yaml:"certificate-lifetime" help:"how long certificates are valid, as 8760h; they are renewed after two thirds of it"`
}

// Shared are the settings that all nodes of a cluster must have in common, by name. Their fields carry the tag "shared": a node
// that joins is told them.
func (s *Server) Shared() map[string]any {
	out := map[string]any{}
	for _, f := range Fields(s) {
		if f.Shared {
			out[f.Name] = reflect.ValueOf(f.Ptr).Elem().Interface()
		}
	}
	return out
}

// Adopt takes the shared settings of a cluster, as they come out of JSON. What this version does not know it leaves.
func (s *Server) Adopt(shared map[string]any) error {
	for _, f := range Fields(s) {
		value, ok := shared[f.Name]
		if !f.Shared || !ok {
			continue
		}
		data, err := json.Marshal(value)
		if err == nil {
			err = json.Unmarshal(data, f.Ptr)
		}
		if err != nil {
			return fmt.Errorf("%s: the cluster's setting %v: %w", f.Name, value, err)
		}
	}
	return nil
}

// Differences lists the shared settings that are not as the cluster has them, for a server that joins.
func (s *Server) Differences(shared map[string]any) []Problem {
	var p problems
	theirs := *s
	if err := theirs.Adopt(shared); err != nil {
		return []Problem{{Path: []any{"server"}, Msg: err.Error()}}
	}
	ours, theirsAll := s.Shared(), theirs.Shared()
	for _, f := range Fields(s) {
		if a, b := ours[f.Name], theirsAll[f.Name]; f.Shared && !reflect.DeepEqual(a, b) {
			p.addf([]any{f.Name}, "is %v here and %v in the cluster; all servers need the same", a, b)
		}
	}
	return p.list
}

// Multiple says whether the cluster may have more than one server: their datastore is elsewhere, or in each of them.
func (s *Server) Multiple() bool {
	return s.ClusterInit || s.Server != "" || s.DatastoreEndpoint != "" && !strings.HasPrefix(s.DatastoreEndpoint, "sqlite://")
}

// minRemove is long enough for a machine to start anew.
const minRemove = 2 * time.Minute

// RemoveAfter is node-remove-after; zero is never.
func (s *Server) RemoveAfter() time.Duration {
	d, _ := time.ParseDuration(s.NodeRemoveAfter) // Problems has looked at it
	return d
}

// Lifetime is certificate-lifetime.
func (s *Server) Lifetime() time.Duration {
	d, _ := time.ParseDuration(s.CertificateLifetime) // Problems has looked at it
	return d
}

// joining checks what leads an agent to its servers.
func (p *problems) joining(a *Agent) {
	if a.TokenFile != "" && !strings.HasPrefix(a.TokenFile, "/") {
		p.addf([]any{"token-file"}, "%q is not an absolute path", a.TokenFile)
	}
	if a.LBServerPort < 1 || a.LBServerPort > 65535 {
		p.addf([]any{"lb-server-port"}, "%d is not a port; write 1 to 65535", a.LBServerPort)
	}
}

// membership checks what a server lets in.
func (p *problems) membership(s *Server) {
	if s.AgentToken != "" {
		if msg := checkToken(s.AgentToken); msg != "" {
			p.add(msg, "agent-token")
		}
	}
	if s.AgentTokenFile != "" && !strings.HasPrefix(s.AgentTokenFile, "/") {
		p.addf([]any{"agent-token-file"}, "%q is not an absolute path", s.AgentTokenFile)
	}
	if s.NodeReplace != "approve" && s.NodeReplace != "always" {
		p.addf([]any{"node-replace"}, "%q is not a policy; write approve or always", s.NodeReplace)
	}
	if d, err := time.ParseDuration(s.NodeRemoveAfter); s.NodeRemoveAfter != "" && (err != nil || d < minRemove) {
		p.addf([]any{"node-remove-after"}, "%q is not a time to wait; write minutes, as 15m, and %s or more", s.NodeRemoveAfter, minRemove)
	}
	if d, err := time.ParseDuration(s.CertificateLifetime); err != nil || d < minLifetime {
		p.addf([]any{"certificate-lifetime"}, "%q is not a lifetime; write hours, as 8760h, and %s or more", s.CertificateLifetime, minLifetime)
	}
}

// checkTokenForm looks into a token that says of which cluster it is.
func checkTokenForm(text string) string {
	t, err := token.Parse(text)
	if err != nil {
		return err.Error()
	}
	if len(t.Secret) < MinToken {
		return fmt.Sprintf("has a secret of %d characters; write at least %d", len(t.Secret), MinToken)
	}
	return ""
}
