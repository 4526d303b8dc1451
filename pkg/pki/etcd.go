package pki

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"time"

	"github.com/skerry-os/skerry/pkg/atomicfile"
)

// EtcdFiles are what a member of etcd needs. etcd has authorities of its own, so that nothing else that the cluster's
// authorities sign opens it.
type EtcdFiles struct {
	ServerCA, PeerCA     string
	ServerPair, PeerPair string // what it shows to clients and to other members
	ClientPair           string // what this server shows to other members as a client
}

// EtcdAuthorities are the files, below the data folder, that all servers of a cluster with etcd share.
func EtcdAuthorities() []string {
	return []string{"server/tls/etcd-server-ca.pem", "server/tls/etcd-peer-ca.pem"}
}

// EnsureEtcd is Ensure for the files of etcd.
func EnsureEtcd(c Config) (*EtcdFiles, error) {
	dir := filepath.Join(c.DataDir, "server", "tls")
	at := func(name string) string { return filepath.Join(dir, name) }
	f := &EtcdFiles{
		ServerCA: at("etcd-server-ca.crt"), PeerCA: at("etcd-peer-ca.crt"),
		ServerPair: at("etcd-server.pem"), PeerPair: at("etcd-peer.pem"), ClientPair: at("etcd-client.pem"),
	}
	names := EtcdAuthorities()
	serverCA, err := ensureCA(c.Now, filepath.Join(c.DataDir, names[0]), f.ServerCA, etcdServerCAName)
	if err != nil {
		return nil, err
	}
	peerCA, err := ensureCA(c.Now, filepath.Join(c.DataDir, names[1]), f.PeerCA, etcdPeerCAName)
	if err != nil {
		return nil, err
	}
	both := []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} // a member calls and is called
	for _, p := range []struct {
		name  string
		ca    *authority
		cn    string
		usage []x509.ExtKeyUsage
	}{
		{f.ServerPair, serverCA, "etcd-server", both},
		{f.PeerPair, peerCA, "etcd-peer", both},
		{f.ClientPair, serverCA, "etcd-client", both[1:]},
	} {
		if err := ensureMember(c, p.name, p.ca, p.cn, p.usage); err != nil {
			return nil, err
		}
	}
	return f, nil
}

// ensureMember makes a pair anew in the last third of its life, or when the node has another name or address.
func ensureMember(c Config, name string, ca *authority, cn string, usage []x509.ExtKeyUsage) error {
	names := c.nodeNames()
	if p, err := readPair(name); err == nil {
		roots := x509.NewCertPool()
		roots.AddCert(ca.cert)
		_, err := p.cert.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: c.Now, KeyUsages: usage[len(usage)-1:]})
		fits := err == nil && c.Now.Add(Lifetime/3).Before(p.cert.NotAfter) && bytes.Equal(p.chain, ca.chain(false)) &&
			!slices.ContainsFunc(names, func(n string) bool { return p.cert.VerifyHostname(n) != nil })
		if fits {
			return nil
		}
	}
	t := &x509.Certificate{
		Subject:     pkix.Name{CommonName: cn},
		NotBefore:   c.Now.Add(-24 * time.Hour),
		NotAfter:    c.Now.Add(Lifetime),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: usage,
	}
	for _, n := range names {
		if ip, err := netip.ParseAddr(n); err == nil {
			t.IPAddresses = append(t.IPAddresses, net.IP(ip.AsSlice()))
		} else {
			t.DNSNames = append(t.DNSNames, n)
		}
	}
	p, err := newPair(t, ca)
	if err != nil {
		return err
	}
	return atomicfile.Write(name, append(p.pem(), ca.chain(false)...), 0o600)
}
