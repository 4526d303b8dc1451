package pki

import (
	"encoding/base64"
	"errors"
	"fmt"
	"time"
)

// The names of the authorities.
const (
	serverCAName     = "skerry-server-ca"
	clientCAName     = "skerry-client-ca"
	headerCAName     = "skerry-request-header-ca"
	etcdServerCAName = "skerry-etcd-server-ca"
	etcdPeerCAName   = "skerry-etcd-peer-ca"
)

// ServerCAFile is the authority, below the data folder, that a token's pin names.
const ServerCAFile = "server/tls/server-ca.pem"

// ServerCABeforeFile is there beside it during a rotation.
const ServerCABeforeFile = "server/tls/server-ca.before.crt"

// ServiceAccountKeyFile is the key that signs service-account tokens. It is never replaced.
const ServiceAccountKeyFile = "server/tls/service-account.key"

const clientCAFile = "server/tls/client-ca.pem"

// NewCluster makes the authorities and the key that a cluster begins with, before there is a server: files below its data
// folder, by name, as Ensure and EnsureEtcd find them. They are valid from a day before from, so that machines whose clocks
// start at an earlier time than now can use them, and end as those of a server that starts now.
func NewCluster(from, now time.Time) (map[string][]byte, error) {
	etcd := EtcdAuthorities()
	out := map[string][]byte{}
	for file, name := range map[string]string{
		ServerCAFile:                       serverCAName,
		clientCAFile:                       clientCAName,
		"server/tls/request-header-ca.pem": headerCAName,
		etcd[0]:                            etcdServerCAName,
		etcd[1]:                            etcdPeerCAName,
	} {
		p, err := newAuthority(from, now, name)
		if err != nil {
			return nil, err
		}
		out[file] = p.pem()
	}
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	out[ServiceAccountKeyFile], err = keyPEM(key)
	return out, err
}

// Certificate is the first certificate of a PEM file with a key in it, alone, as others may have it.
func Certificate(pair []byte) ([]byte, error) {
	b := find(pair, "CERTIFICATE")
	if b == nil {
		return nil, errors.New("holds no certificate")
	}
	return encode(b.Type, b.Bytes), nil
}

// Administrator makes a kubeconfig for whoever administrates the cluster that files are of (see NewCluster); its certificate is
// good for Lifetime.
func Administrator(files map[string][]byte, cluster, server string, now time.Time) ([]byte, error) {
	ca, err := parsePair(files[clientCAFile], files[clientCAFile])
	if err != nil {
		return nil, fmt.Errorf("%s: %w", clientCAFile, err)
	}
	t := leaf{cn: "system:admin", org: "system:masters", life: Lifetime}.template(now)
	t.NotBefore = ca.cert.NotBefore // the server's clock may be behind
	p, err := newPair(t, &authority{pair: ca})
	if err != nil {
		return nil, err
	}
	serverCA, err := Certificate(files[ServerCAFile])
	if err != nil {
		return nil, fmt.Errorf("%s: %w", ServerCAFile, err)
	}
	k := newKubeconfig()
	k.Clusters[0].Name, k.Users[0].Name, k.Contexts[0].Name, k.CurrentContext = cluster, cluster, cluster, cluster
	k.Contexts[0].Context.Cluster, k.Contexts[0].Context.User = cluster, cluster
	text := base64.StdEncoding.EncodeToString
	k.Clusters[0].Cluster.Server, k.Clusters[0].Cluster.CAData = server, text(serverCA)
	k.Users[0].User.CertData, k.Users[0].User.KeyData = text(p.certPEM()), text(p.keyPEM())
	return k.text()
}
