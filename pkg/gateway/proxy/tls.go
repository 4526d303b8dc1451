package proxy

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
)

// nameTable is what a TLS port does for a server name: the certificates of the first site that has it.
type nameTable struct {
	listener     *Listener
	certificates []*tls.Certificate
	routes       hostMap[*TLSRoute]
	hasRoutes    bool
}

// addNames collects server names of all sites.
func (t *table) addNames() {
	for i := range t.Sites {
		for j := range t.Sites[i].Listeners {
			l := &t.Sites[i].Listeners[j]
			n := &nameTable{listener: l}
			others := map[string]*nameTable{}
			for _, c := range l.Certificates {
				if c.Hostname == "" || c.Hostname == l.Hostname {
					n.certificates = append(n.certificates, c.Pair)
					continue
				}
				if others[c.Hostname] == nil {
					others[c.Hostname] = &nameTable{listener: l}
				}
				others[c.Hostname].certificates = append(others[c.Hostname].certificates, c.Pair)
			}
			for k := range l.TLSRoutes {
				r := &l.TLSRoutes[k]
				r.turn = &turn{}
				n.hasRoutes, t.streams = true, true
				for _, h := range r.Hostnames {
					if _, taken := n.routes.get(h); !taken {
						n.routes.set(h, r)
					}
				}
			}
			if had, taken := t.names.get(l.Hostname); !taken || (len(had.certificates) == 0 && !had.hasRoutes) {
				t.names.set(l.Hostname, n)
			}
			for h, o := range others {
				if _, taken := t.names.get(h); !taken {
					t.names.set(h, o)
				}
			}
		}
	}
}

// name is what belongs to a server name.
func (t *table) name(sni string) (n *nameTable) {
	t.names.find(sni, func(v *nameTable, _ int) bool { n = v; return true })
	return n
}

var errNoName = errors.New("no listener has this server name")

func (p *port) tlsConfig() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: []string{"h2", "http/1.1"},
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			n := p.table.Load().name(hostOf(hello.ServerName))
			if n == nil {
				return nil, errNoName
			}
			c := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}, GetCertificate: func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
				return n.certificate(h)
			}}
			n.listener.ClientCA.demand(c)
			return c, nil
		},
	}
}

// certificate is the best one for a client: that of the name, of a kind it knows.
func (n *nameTable) certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	for _, c := range n.certificates {
		if hello.SupportsCertificate(c) == nil {
			return c, nil
		}
	}
	if len(n.certificates) == 0 {
		return nil, fmt.Errorf("listener %s: has no certificate", n.listener.Name)
	}
	return n.certificates[0], nil
}

func (ca *ClientCA) demand(c *tls.Config) {
	switch {
	case ca == nil:
	case ca.Optional:
		c.ClientAuth = tls.RequestClientCert
	default:
		c.ClientAuth, c.ClientCAs = tls.RequireAndVerifyClientCert, ca.Pool
		if c.ClientCAs == nil {
			c.ClientCAs = x509.NewCertPool()
		}
	}
}
