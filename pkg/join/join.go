// Package join carries the cluster's secrets over a network that nobody trusts yet. A desk tool or a new node knows one
// thing, the cluster token; it has no certificate to check the server's against. So both sides prove that they know the
// token, and neither says it.
//
// The proof is bound to the TLS connection it travels on: each side sends an HMAC, keyed with the token, of a word of its
// own and keying material exported from that connection (RFC 5705, RFC 9266's idea). A relay that ends TLS in the middle
// has two connections with two different keying materials, so a proof heard on one is worthless on the other. The client
// takes no byte of the answer before it has checked the server's proof.
//
// What a listener with a forged server gets is one HMAC to try guesses against, off line. That is why a token has at
// least 16 characters and `skerry` makes longer ones.
//
// One TLS 1.3 connection, one HTTP/1.1 request. The package knows nothing of Kubernetes.
package join

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"fmt"
)

// KubeconfigPath is where Handler is mounted on the Kubernetes API port.
const KubeconfigPath = "/v1-skerry/kubeconfig"

const (
	proofHeader   = "Skerry-Proof"
	exporterLabel = "EXPORTER-skerry-join-v1"

	// Each direction has a word of its own: a proof sent back to where it came from proves nothing.
	clientWord = "skerry join client v1"
	serverWord = "skerry join server v1"
)

// proof is what one side sends: HMAC-SHA256 keyed with the token, in hexadecimal.
func proof(token, word string, cs *tls.ConnectionState) (string, error) {
	if token == "" {
		return "", fmt.Errorf("the cluster token is empty, and an empty token proves nothing; set cluster.token in the node config")
	}
	if cs == nil || cs.Version < tls.VersionTLS13 {
		return "", fmt.Errorf("the connection is not TLS 1.3, which the proof of the token needs")
	}
	ekm, err := cs.ExportKeyingMaterial(exporterLabel, nil, 32)
	if err != nil {
		return "", err
	}
	mac := hmac.New(sha256.New, []byte(token))
	mac.Write([]byte(word))
	mac.Write(ekm)
	return hex.EncodeToString(mac.Sum(nil)), nil
}

// equal compares two proofs without telling by its time how much of them agrees.
func equal(a, b string) bool { return hmac.Equal([]byte(a), []byte(b)) }
