// Package join carries the cluster's secrets over a network that nobody trusts yet. A desk tool or a new node knows one
// thing, a token; it has no certificate to check the server's against. So both sides prove that they know the token, and
// neither says it. A token that names the cluster's CA is checked against the certificate as well.
//
// The proof is bound to the TLS connection it travels on: each side sends an HMAC, keyed with the token's secret, of a word
// of its own and keying material exported from that connection (RFC 5705, RFC 9266's idea). A relay that ends TLS in the
// middle has two connections with two different keying materials, so a proof heard on one is worthless on the other. The
// client takes no byte of the answer before it has checked the server's proof.
//
// What a listener with a forged server gets from a bare token is one HMAC to try guesses against, off line. That is why a
// token has at least 16 characters and skerryd makes longer ones. A pinned token gives it nothing.
//
// A node that has joined asks again with its own certificate, even after that has expired; the key has not. It needs no token
// ever again.
//
// One TLS 1.3 connection, one HTTP/1.1 request. The package knows nothing of Kubernetes.
package join

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"time"
)

// The paths on the Kubernetes API port.
const (
	KubeconfigPath = "/v1-skerry/kubeconfig"
	Path           = "/v1-skerry/join"
)

// Request is what a node says of itself.
type Request struct {
	Node      string            `json:"node"`
	Machine   Machine           `json:"machine"`
	Addresses []string          `json:"addresses"`
	Time      time.Time         `json:"time"`             // the node's clock
	Keys      map[string][]byte `json:"keys,omitempty"`   // public, by use; see pkg/pki
	Server    bool              `json:"server,omitempty"` // it wants to be one
	Look      bool              `json:"look,omitempty"`   // it is a node, and wants to know what has changed; the answer has no certificates
}

// Machine tells machines apart that have the same name.
type Machine struct {
	ID          string `json:"id"`
	Description string `json:"description,omitempty"` // for a person: make, model, address
}

// Answer is what a node needs to be one of the cluster.
type Answer struct {
	Certificates map[string][]byte `json:"certificates"` // PEM, by use
	ServerCA     []byte            `json:"serverCA"`
	ClientCA     []byte            `json:"clientCA"`
	Settings     map[string]any    `json:"settings"`        // those that all nodes share
	Servers      []string          `json:"servers"`         // host:port
	Files        map[string][]byte `json:"files,omitempty"` // for a server: what all of them share, below the data folder
}

const (
	proofHeader   = "Skerry-Proof"
	waitHeader    = "Skerry-Wait" // beside a refusal: asking again later may help
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
