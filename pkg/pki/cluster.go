package pki

import (
	"errors"
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

// NewCluster makes the authorities and the key that a cluster begins with, before there is a server: files below its data
// folder, by name, as Ensure and EnsureEtcd find them. They are valid from a day before from, so that machines whose clocks
// start at an earlier time than now can use them, and end as those of a server that starts now.
func NewCluster(from, now time.Time) (map[string][]byte, error) {
	etcd := EtcdAuthorities()
	out := map[string][]byte{}
	for file, name := range map[string]string{
		ServerCAFile:                       serverCAName,
		"server/tls/client-ca.pem":         clientCAName,
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
	out["server/tls/service-account.key"], err = keyPEM(key)
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
