package seed

import (
	"bytes"
	"fmt"

	"github.com/skerry-os/skerry/pkg/token"
)

// Manifest gives the tokens as Secrets in YAML, for kubectl apply: a cluster that runs already learns those of nodes that were added
// to its fleet later. It is what skerryd token create --node makes.
func Manifest(tokens []Token) []byte {
	var b bytes.Buffer
	for _, t := range tokens {
		id := token.ID(t.Secret)
		fmt.Fprintf(&b, `---
apiVersion: v1
kind: Secret
type: bootstrap.kubernetes.io/token
metadata: {name: bootstrap-token-%[1]s, namespace: kube-system}
stringData: {token-id: %[1]q, token-secret: %[2]q, description: of the fleet, skerry-node: %[3]q, skerry-server: "%[4]v"}
`, id, t.Secret[len(id)+1:], t.Node, t.Server)
	}
	return b.Bytes()
}
