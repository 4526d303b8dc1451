// Package pki makes and keeps the keys and certificates of a cluster: three authorities, the key that signs service-account
// tokens, what each component shows to the others, and the kubeconfigs made from them. Everything is made on the server's
// first start, checked at every later one and while it runs; a certificate in the last third of its life, or one that no longer
// fits, is made anew. The components read the files again when they change, so nothing restarts.
//
// A certificate and its key are one PEM file, so that a power cut cannot leave one without the other. Every file is 0600.
// The package knows nothing of Kubernetes but names.
package pki

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/skerry-os/skerry/pkg/atomicfile"
)

const (
	// Lifetime of a certificate; an authority lives ten times as long.
	Lifetime = 365 * 24 * time.Hour

	// renewShare is the share of its life at whose beginning a certificate is made anew: a third, four months of a year's.
	renewShare = 3

	// Backdate covers clocks that run behind the server's.
	Backdate = 24 * time.Hour
)

// Config says for which cluster and node.
type Config struct {
	DataDir   string
	NodeName  string
	NodeIPs   []netip.Addr
	ServiceIP netip.Addr    // of the service "kubernetes", the first of the service network
	Domain    string        // cluster.local
	Port      int           // of the API
	SANs      []string      // more names and addresses of the API
	Lifetime  time.Duration // of certificates; 0 is Lifetime
	Etcd      bool          // this server has a member of etcd
	Now       time.Time
}

// lifetime is the setting or the default.
func (c Config) lifetime() time.Duration {
	if c.Lifetime > 0 {
		return c.Lifetime
	}
	return Lifetime
}

// Margin is the shortest rest of life that a certificate may have before it is made anew.
func Margin(lifetime time.Duration) time.Duration { return lifetime / renewShare }

// Files are the paths of everything Ensure has made. Those named …CA are certificates alone, safe to hand out; those named
// …Pair hold a certificate and its key; the others are kubeconfigs.
type Files struct {
	ServerCA, ClientCA, RequestHeaderCA string
	ServerCAPair, ClientCAPair          string

	ServiceAccountKey string // private; its public half verifies tokens

	APIServerPair        string // what the API shows
	APIServerKubeletPair string // what the API shows to kubelets
	AuthProxyPair        string // what the API shows to aggregated APIs
	KubeletPair          string // what this node's kubelet shows

	Admin, ControllerManager, Scheduler, Kubelet, KubeProxy string
}

// Ensure makes what is missing and renews what no longer fits. Authorities and the service-account key are never replaced:
// one that cannot be read is an error, because everything that was ever signed hangs on it. Rotate makes new ones.
func Ensure(c Config) (*Files, error) {
	tlsDir := filepath.Join(c.DataDir, "server", "tls")
	credDir := filepath.Join(c.DataDir, "server", "cred")
	agentDir := filepath.Join(c.DataDir, "agent")
	for _, d := range []string{tlsDir, credDir} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, err
		}
	}
	// A container with users of its own must be able to pass through to its files.
	if err := os.MkdirAll(agentDir, 0o711); err != nil {
		return nil, err
	}
	f := &Files{
		ServerCA:             filepath.Join(agentDir, "server-ca.crt"),
		ClientCA:             filepath.Join(agentDir, "client-ca.crt"),
		RequestHeaderCA:      filepath.Join(tlsDir, "request-header-ca.crt"),
		ServerCAPair:         filepath.Join(tlsDir, "server-ca.pem"),
		ClientCAPair:         filepath.Join(tlsDir, "client-ca.pem"),
		ServiceAccountKey:    filepath.Join(tlsDir, "service-account.key"),
		APIServerPair:        filepath.Join(tlsDir, "kube-apiserver.pem"),
		APIServerKubeletPair: filepath.Join(tlsDir, "kube-apiserver-kubelet.pem"),
		AuthProxyPair:        filepath.Join(tlsDir, "auth-proxy.pem"),
		KubeletPair:          filepath.Join(agentDir, "kubelet.pem"),
		Admin:                filepath.Join(credDir, "admin.kubeconfig"),
		ControllerManager:    filepath.Join(credDir, "controller-manager.kubeconfig"),
		Scheduler:            filepath.Join(credDir, "scheduler.kubeconfig"),
		Kubelet:              filepath.Join(agentDir, "kubelet.kubeconfig"),
		KubeProxy:            filepath.Join(agentDir, "kube-proxy.kubeconfig"),
	}

	serverCA, err := ensureCA(c.Now, f.ServerCAPair, f.ServerCA, serverCAName)
	if err != nil {
		return nil, err
	}
	clientCA, err := ensureCA(c.Now, f.ClientCAPair, f.ClientCA, clientCAName)
	if err != nil {
		return nil, err
	}
	headerCA, err := ensureCA(c.Now, filepath.Join(tlsDir, "request-header-ca.pem"), f.RequestHeaderCA, headerCAName)
	if err != nil {
		return nil, err
	}
	if err := ensureKey(f.ServiceAccountKey); err != nil {
		return nil, err
	}

	pairs := []struct {
		name string
		ca   *authority
		leaf leaf
	}{
		{f.APIServerPair, serverCA, leaf{cn: "kube-apiserver", server: true, sans: c.apiNames()}},
		{f.KubeletPair, serverCA, leaf{cn: "system:node:" + c.NodeName, org: "system:nodes", server: true, sans: c.nodeNames()}},
		{f.APIServerKubeletPair, clientCA, leaf{cn: "kube-apiserver", org: "skerry:kubelet-clients"}},
		{f.AuthProxyPair, headerCA, leaf{cn: AuthProxyName}},
	}
	for _, p := range pairs {
		p.leaf.life = c.lifetime()
		if _, err := ensureLeaf(c.Now, p.name, p.ca, p.leaf); err != nil {
			return nil, err
		}
	}

	configs := []struct {
		name string
		leaf leaf
	}{
		{f.Admin, leaf{cn: "system:admin", org: "system:masters"}},
		{f.ControllerManager, leaf{cn: "system:kube-controller-manager"}},
		{f.Scheduler, leaf{cn: "system:kube-scheduler"}},
		{f.Kubelet, leaf{cn: "system:node:" + c.NodeName, org: "system:nodes"}},
		{f.KubeProxy, leaf{cn: "system:kube-proxy"}},
	}
	server := fmt.Sprintf("https://127.0.0.1:%d", c.Port)
	for _, k := range configs {
		k.leaf.life = c.lifetime()
		if _, err := ensureLeaf(c.Now, pairOf(k.name), clientCA, k.leaf); err != nil {
			return nil, err
		}
		if err := writeKubeconfig(k.name, server, f.ServerCA); err != nil {
			return nil, err
		}
	}
	if c.Etcd {
		if _, err := EnsureEtcd(c); err != nil {
			return nil, err
		}
	}
	return f, nil
}

// AuthProxyName is whom aggregated APIs must expect behind the request-header authority.
const AuthProxyName = "system:auth-proxy"

// apiNames are the names and addresses under which the API is called: from this node, from other nodes, from pods.
func (c Config) apiNames() []string {
	names := []string{
		"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc." + c.Domain,
		c.ServiceIP.String(),
	}
	return append(append(names, c.nodeNames()...), c.SANs...)
}

func (c Config) nodeNames() []string {
	names := []string{"localhost", "127.0.0.1", "::1", c.NodeName}
	for _, ip := range c.NodeIPs {
		names = append(names, ip.String())
	}
	return names
}

func ensureCA(now time.Time, pairFile, certFile, name string) (*authority, error) {
	p, err := readPair(pairFile)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if p, err = newAuthority(now, now, name); err != nil {
			return nil, err
		}
		if err := atomicfile.Write(pairFile, p.pem(), 0o600); err != nil {
			return nil, err
		}
	case err != nil:
		return nil, fmt.Errorf("%w; restore it from a backup: every certificate of the cluster hangs on it", err)
	case !p.cert.IsCA:
		return nil, fmt.Errorf("%s: is not the certificate of an authority", pairFile)
	case now.After(p.cert.NotAfter):
		return nil, fmt.Errorf("%s: expired on %s, or the clock is wrong", pairFile, p.cert.NotAfter.Format(time.DateOnly))
	}
	a, err := withPredecessor(p, beforeOf(pairFile))
	if err != nil {
		return nil, err
	}
	return a, writeIfChanged(certFile, a.trusted())
}

// newAuthority is valid from a day before from, for ten lifetimes after now.
func newAuthority(from, now time.Time, name string) (*pair, error) {
	return newPair(&x509.Certificate{
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             from.Add(-Backdate),
		NotAfter:              now.Add(10 * Lifetime),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}, nil)
}

func ensureKey(name string) error {
	data, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		key, err := newKey()
		if err != nil {
			return err
		}
		block, err := keyPEM(key)
		if err != nil {
			return err
		}
		return atomicfile.Write(name, block, 0o600)
	}
	if err != nil {
		return err
	}
	if _, err := parseKey(data); err != nil {
		return fmt.Errorf("%s: %w; restore it from a backup: every service-account token hangs on it", name, err)
	}
	return nil
}

// leaf is what a certificate must say.
type leaf struct {
	cn, org        string
	server, client bool // neither is a client
	sans           []string
	life           time.Duration
}

func (l leaf) template(now time.Time) *x509.Certificate {
	t := &x509.Certificate{
		Subject:     pkix.Name{CommonName: l.cn},
		NotBefore:   now.Add(-Backdate),
		NotAfter:    now.Add(l.life),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if l.org != "" {
		t.Subject.Organization = []string{l.org}
	}
	if l.server {
		t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		if l.client {
			t.ExtKeyUsage = append(t.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
		}
	}
	for _, s := range l.sans {
		if ip, err := netip.ParseAddr(s); err == nil {
			t.IPAddresses = append(t.IPAddresses, net.IP(ip.AsSlice()))
		} else {
			t.DNSNames = append(t.DNSNames, s)
		}
	}
	return t
}

// fits reports whether p still does what l wants, signed by ca, for long enough.
func (l leaf) fits(now time.Time, p *pair, ca *authority) bool {
	want := l.template(now)
	usage := want.ExtKeyUsage[len(want.ExtKeyUsage)-1]
	roots := x509.NewCertPool()
	roots.AddCert(ca.cert)
	_, err := p.cert.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{usage}})
	if err != nil || now.Add(Margin(l.life)).After(p.cert.NotAfter) || p.cert.Subject.String() != want.Subject.String() {
		return false
	}
	for _, s := range l.sans {
		if p.cert.VerifyHostname(s) != nil {
			return false
		}
	}
	return true
}

func ensureLeaf(now time.Time, name string, ca *authority, l leaf) (*pair, error) {
	// A pair that cannot be read is as good as none: it is made from the authority at no loss.
	chain := ca.chain(l.server && !l.client)
	if p, err := readPair(name); err == nil && l.fits(now, p, ca) && bytes.Equal(p.chain, chain) {
		return p, nil
	}
	p, err := newPair(l.template(now), ca)
	if err != nil {
		return nil, err
	}
	return p, atomicfile.Write(name, append(p.pem(), chain...), 0o600)
}

func writeIfChanged(name string, data []byte) error {
	if old, err := os.ReadFile(name); err == nil && string(old) == string(data) {
		return os.Chmod(name, 0o600)
	}
	return atomicfile.Write(name, data, 0o600)
}

func encode(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}
