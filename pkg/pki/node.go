package pki

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// The certificates of a node without a control plane. The node makes the keys, a server signs what belongs to them.
const (
	KubeletClient  = "kubelet-client"
	KubeletServing = "kubelet-serving"
	KubeProxy      = "kube-proxy"
)

// NodeKey is a private key of a node, and its public half as a server takes it.
type NodeKey struct {
	Private []byte // PEM
	Public  []byte // DER
}

// NewNodeKeys makes the keys of a node.
func NewNodeKeys() (map[string]NodeKey, error) {
	keys := map[string]NodeKey{}
	for _, use := range []string{KubeletClient, KubeletServing, KubeProxy} {
		key, err := newKey()
		if err != nil {
			return nil, err
		}
		private, err := keyPEM(key)
		if err != nil {
			return nil, err
		}
		public, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
		if err != nil {
			return nil, err
		}
		keys[use] = NodeKey{Private: private, Public: public}
	}
	return keys, nil
}

// SignNode makes a node's certificates (PEM) for its public keys. Whose they are and what they allow is this side's word alone.
func (f *Files) SignNode(now time.Time, lifetime time.Duration, name string, ips []netip.Addr, public map[string][]byte) (map[string][]byte, error) {
	c := Config{NodeName: name, NodeIPs: ips, Lifetime: lifetime}
	serverCA, err := readAuthority(f.ServerCAPair)
	if err != nil {
		return nil, err
	}
	clientCA, err := readAuthority(f.ClientCAPair)
	if err != nil {
		return nil, err
	}
	out := map[string][]byte{}
	for use, l := range map[string]leaf{
		KubeletClient:  {cn: NodeUser + name, org: "system:nodes"},
		KubeletServing: {cn: NodeUser + name, org: "system:nodes", server: true, sans: c.ownNames()},
		KubeProxy:      {cn: "system:kube-proxy", org: NodeGroup + name},
	} {
		parsed, err := x509.ParsePKIXPublicKey(public[use])
		key, ok := parsed.(*ecdsa.PublicKey)
		if err != nil || !ok {
			return nil, fmt.Errorf("%s: the node's public key is not an ECDSA key", use)
		}
		ca := clientCA
		if l.server {
			ca = serverCA
		}
		l.life = c.lifetime()
		der, err := x509.CreateCertificate(rand.Reader, l.template(now), ca.cert, key, ca.key)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", use, err)
		}
		out[use] = append(encode("CERTIFICATE", der), ca.chain(l.server)...)
	}
	return out, nil
}

// ownNames leave out those that every machine has: with them a node could pose as the API on another node's own address.
func (c Config) ownNames() []string {
	names := []string{c.NodeName}
	for _, ip := range c.NodeIPs {
		names = append(names, ip.String())
	}
	return names
}

// NodeUser begins the name that a node's certificates carry.
const NodeUser = "system:node:"

// NodeGroup begins the name of a group that says whose a certificate is where the user's name does not.
const NodeGroup = "skerry.io:node:"

// NodeFiles writes what a node without a control plane has, and gives the paths. pairs are certificates with their keys. What
// is there already stays as it is, so that nobody reads it again in vain.
func NodeFiles(dataDir, server string, serverCA, clientCA []byte, pairs map[string][]byte) (*Files, error) {
	dir := filepath.Join(dataDir, "agent")
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, err
	}
	f := &Files{
		ServerCA:    filepath.Join(dir, "server-ca.crt"),
		ClientCA:    filepath.Join(dir, "client-ca.crt"),
		KubeletPair: filepath.Join(dir, "kubelet.pem"),
		Kubelet:     filepath.Join(dir, "kubelet.kubeconfig"),
		KubeProxy:   filepath.Join(dir, "kube-proxy.kubeconfig"),
	}
	for _, w := range []struct {
		name string
		data []byte
	}{
		{f.ServerCA, serverCA}, {f.ClientCA, clientCA}, {f.KubeletPair, pairs[KubeletServing]},
		{pairOf(f.Kubelet), pairs[KubeletClient]}, {pairOf(f.KubeProxy), pairs[KubeProxy]},
	} {
		if len(w.data) == 0 {
			return nil, fmt.Errorf("%s: there is nothing to write into it", w.name)
		}
		if err := writeIfChanged(w.name, w.data); err != nil {
			return nil, err
		}
	}
	return f, errors.Join(writeKubeconfig(f.Kubelet, server, f.ServerCA), writeKubeconfig(f.KubeProxy, server, f.ServerCA))
}

// Shared are the files that all servers of a cluster have in common, below the data folder: one that joins must bring them
// before it makes anything itself.
func Shared() []string {
	out := []string{ServiceAccountKeyFile, "server/encryption.yaml", "server/token"}
	for _, name := range authorities() {
		out = append(out, name, beforeOf(name))
	}
	return out
}

// Status is what can be said of one certificate.
type Status struct {
	File    string    `json:"file"`
	Subject string    `json:"subject"`
	CA      bool      `json:"ca"`
	From    time.Time `json:"notBefore"`
	Until   time.Time `json:"notAfter"`
}

// List tells of every certificate below the data folder, those that expire first in front.
func List(dataDir string) ([]Status, error) {
	var out []Status
	for _, sub := range []string{"server/tls", "server/cred", "agent"} {
		for _, pattern := range []string{"*.pem", "*.crt", "*/*.crt"} {
			names, err := filepath.Glob(filepath.Join(dataDir, sub, pattern))
			if err != nil {
				return nil, err
			}
			for _, name := range names {
				data, err := os.ReadFile(name)
				if errors.Is(err, fs.ErrNotExist) {
					continue
				}
				if err != nil {
					return nil, err
				}
				b := find(data, "CERTIFICATE")
				if b == nil {
					continue
				}
				cert, err := x509.ParseCertificate(b.Bytes)
				if err != nil {
					return nil, fmt.Errorf("%s: %w", name, err)
				}
				out = append(out, Status{File: name, Subject: cert.Subject.String(), CA: cert.IsCA, From: cert.NotBefore, Until: cert.NotAfter})
			}
		}
	}
	slices.SortFunc(out, func(a, b Status) int { return a.Until.Compare(b.Until) })
	return out, nil
}

// Expire takes a server's certificates away, so that Ensure makes them anew; authorities and what a kubelet shows stay until
// then. It returns how many there were.
func Expire(dataDir string) (int, error) {
	n := 0
	for _, pattern := range []string{
		"server/tls/kube-apiserver*.pem", "server/tls/auth-proxy.pem",
		"server/tls/etcd-server.pem", "server/tls/etcd-peer.pem", "server/tls/etcd-client.pem",
		"server/cred/*-client.pem", "agent/*-client.pem", "agent/kubelet.pem",
	} {
		names, err := filepath.Glob(filepath.Join(dataDir, pattern))
		if err != nil {
			return n, err
		}
		for _, name := range names {
			// What uses the file goes on with what it has read.
			if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return n, err
			}
			n++
		}
	}
	return n, nil
}
