package pki

import (
	"os"
	"path/filepath"
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
	if err := os.MkdirAll(dir, 0o700); err != nil { // a snapshot may be restored before anything else is there
		return nil, err
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
	for _, p := range []struct {
		name string
		ca   *authority
		leaf leaf
	}{
		{f.ServerPair, serverCA, leaf{cn: "etcd-server", server: true, client: true}},
		{f.PeerPair, peerCA, leaf{cn: "etcd-peer", server: true, client: true}}, // a member calls and is called
		{f.ClientPair, serverCA, leaf{cn: "etcd-client", client: true}},
	} {
		p.leaf.sans, p.leaf.life = c.nodeNames(), c.lifetime()
		if _, err := ensureLeaf(c.Now, p.name, p.ca, p.leaf); err != nil {
			return nil, err
		}
	}
	return f, nil
}
