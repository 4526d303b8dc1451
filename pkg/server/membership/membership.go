// Package membership is the servers' side of who belongs to the cluster: the tokens that let machines in, which machine has
// which node name, and what a new node or server is given. What it knows is in Secrets of kube-system, so that every server
// knows the same.
package membership

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/skerry-os/skerry/pkg/enrol"
	"github.com/skerry-os/skerry/pkg/join"
	"github.com/skerry-os/skerry/pkg/pki"
	"github.com/skerry-os/skerry/pkg/server/secrets"
)

// Config says of which cluster and server.
type Config struct {
	DataDir    string
	NodeName   string
	Machine    join.Machine
	Addresses  []netip.Addr
	Port       int
	Files      *pki.Files
	Lifetime   time.Duration // of certificates; 0 is pki.Lifetime
	Token      string        // of the settings, for as long as nothing is known of the datastore
	AgentToken string        // lets agents join only; "" for none
	Settings   map[string]any
	Services   []netip.Prefix // no node may have an address in them
	Alone      string         // why no other server can join; "" if one can
	Replace    string         // "always": a dead machine's name is given to the next; else a person approves
}

// Members is made by New.
type Members struct {
	cfg Config

	mu      sync.Mutex
	client  kubernetes.Interface
	told    map[string]time.Time // refusals that there are events of
	expiry  map[string]time.Time // and what ends
	removed map[string]bool      // nodes, by name
}

// New makes a Members.
func New(cfg Config) *Members { return &Members{cfg: cfg, removed: map[string]bool{}} }

// Client talks to the API that a kubeconfig leads to.
func Client(kubeconfig string) (kubernetes.Interface, error) {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, err
	}
	config.ContentType, config.AcceptContentTypes = "application/vnd.kubernetes.protobuf", "application/vnd.kubernetes.protobuf,application/json"
	return kubernetes.NewForConfig(config)
}

func (m *Members) api() (kubernetes.Interface, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.client == nil {
		c, err := Client(m.cfg.Files.Admin)
		if err != nil {
			return nil, err
		}
		m.client = c
	}
	return m.client, nil
}

// Handler answers join requests.
func (m *Members) Handler() http.Handler {
	return &join.Server{
		Secrets:    m.secrets,
		Kubeconfig: func() ([]byte, error) { return pki.Embed(m.cfg.Files.Admin) },
		Admit:      m.admit,
		ClientCA:   m.clientCA,
		NodeUser:   pki.NodeUser,
		Refused:    m.refused,
	}
}

func (m *Members) clientCA() (*x509.CertPool, error) {
	data, err := os.ReadFile(m.cfg.Files.ClientCA)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(data) {
		return nil, fmt.Errorf("%s: holds no certificate", m.cfg.Files.ClientCA)
	}
	return roots, nil
}

// secrets are all that open the cluster now.
func (m *Members) secrets(ctx context.Context) ([]join.Secret, error) {
	client, err := m.api()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	all, err := readSecrets(ctx, client, time.Now())
	if err != nil {
		// While the datastore is not there, the file's token is what this server knows. It lets nobody join: that needs the datastore.
		slog.Debug("tokens cannot be read", "err", err)
	}
	if !slices.ContainsFunc(all, func(s join.Secret) bool { return s.ID == serverToken }) {
		all = append(all, join.Secret{ID: serverToken, Text: m.fileToken(), Server: true})
	}
	all = append(all, m.pending(all)...)
	if m.cfg.AgentToken != "" {
		all = append(all, join.Secret{ID: "agent", Text: m.cfg.AgentToken})
	}
	return all, nil
}

func (m *Members) fileToken() string {
	if t, err := secrets.ReadToken(m.cfg.DataDir); err == nil {
		return t
	}
	return m.cfg.Token
}

// admit decides about a machine that has proven to know a token, or to be a node already.
func (m *Members) admit(ctx context.Context, c join.Caller, r join.Request) (*join.Answer, error) {
	client, err := m.api()
	if err != nil {
		return nil, err
	}
	if c.Secret != nil && c.Secret.Node != "" && c.Secret.Node != r.Node {
		return nil, refuse(http.StatusForbidden, false, "the token %s is for node %s and this is %q: it is another machine's card, or the host name was changed", c.Secret.ID, c.Secret.Node, r.Node)
	}
	if r.Server {
		if c.Secret == nil || !c.Secret.Server {
			return nil, refuse(http.StatusForbidden, false, "this token lets agents join; a server needs the token in server/node-token of the first server's data folder")
		}
		if m.cfg.Alone != "" {
			return nil, refuse(http.StatusConflict, false, "%s", m.cfg.Alone)
		}
	}
	if r.Look {
		return m.look(ctx, client, c)
	}
	ips, err := m.checkAddresses(ctx, client, r)
	if err != nil {
		return nil, err
	}
	if c.Secret != nil {
		if err := m.stored(ctx, client, c.Secret.ID); err != nil {
			return nil, err
		}
		if err := unspent(ctx, client, c.Secret.ID, r); err != nil {
			return nil, err
		}
	}
	if err := m.claim(ctx, client, c, r); err != nil {
		return nil, err
	}
	a, err := m.news(ctx, client)
	if err != nil {
		return nil, err
	}
	if r.Server {
		if a.Files, err = m.shared(); err != nil {
			return nil, err
		}
	} else if a.Certificates, err = m.cfg.Files.SignNode(time.Now(), m.cfg.Lifetime, r.Node, ips, r.Keys); err != nil {
		return nil, refuse(http.StatusBadRequest, false, "%v", err)
	}
	// A single-use token is spent when all else is well, and by one.
	if c.Secret != nil {
		if err := spend(ctx, client, c.Secret.ID, r); err != nil {
			return nil, err
		}
	}
	slog.Info("node admitted", "node", r.Node, "machine", describe(r.Machine), "from", c.Remote, "server", r.Server, "by", how(c))
	return a, nil
}

// look answers a node that wants to know what has changed.
func (m *Members) look(ctx context.Context, client kubernetes.Interface, c join.Caller) (*join.Answer, error) {
	if c.Node == "" {
		return nil, refuse(http.StatusForbidden, false, "who looks shows the certificate of a node")
	}
	err := change(ctx, client, c.Node, func(r *Record, _ bool) (bool, error) {
		if r.Removed {
			return false, errRemoved(c.Node)
		}
		return false, nil
	})
	if err != nil {
		return nil, err
	}
	return m.news(ctx, client)
}

// news are what all nodes share.
func (m *Members) news(ctx context.Context, client kubernetes.Interface) (a *join.Answer, err error) {
	a = &join.Answer{Settings: m.cfg.Settings}
	if a.Servers, err = m.servers(ctx, client); err != nil {
		return nil, err
	}
	if a.ServerCA, err = os.ReadFile(m.cfg.Files.ServerCA); err != nil {
		return nil, err
	}
	a.ClientCA, err = os.ReadFile(m.cfg.Files.ClientCA)
	return a, err
}

func how(c join.Caller) string {
	if c.Secret != nil {
		return "token " + c.Secret.ID
	}
	return "certificate"
}

// shared reads what another server must have.
func (m *Members) shared() (map[string][]byte, error) {
	out := map[string][]byte{}
	for _, name := range pki.Shared() {
		data, err := os.ReadFile(filepath.Join(m.cfg.DataDir, name))
		if errors.Is(err, os.ErrNotExist) {
			continue // of a datastore that this cluster does not have
		}
		if err != nil {
			return nil, err
		}
		out[name] = data
	}
	return out, nil
}

// checkAddresses refuses a node addresses that are not its own to have: it will show a certificate for them.
func (m *Members) checkAddresses(ctx context.Context, client kubernetes.Interface, r join.Request) ([]netip.Addr, error) {
	var ips []netip.Addr
	for _, text := range r.Addresses {
		ip, err := netip.ParseAddr(text)
		if err != nil || !ip.IsGlobalUnicast() {
			return nil, refuse(http.StatusBadRequest, false, "%q is no address that a node can have", text)
		}
		if slices.ContainsFunc(m.cfg.Services, func(p netip.Prefix) bool { return p.Contains(ip) }) {
			return nil, refuse(http.StatusBadRequest, false, "%s is in the network of services; give the node another address", ip)
		}
		ips = append(ips, ip)
	}
	if len(ips) == 0 {
		return nil, refuse(http.StatusBadRequest, false, "the node names no address of its own")
	}
	nodes, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{ResourceVersion: "0"})
	if err != nil {
		return nil, fmt.Errorf("the API is not ready: %w", err)
	}
	for _, n := range nodes.Items {
		if n.Name == r.Node {
			continue
		}
		for _, a := range n.Status.Addresses {
			ip, err := netip.ParseAddr(a.Address)
			if err != nil || !slices.Contains(ips, ip) {
				continue
			}
			alive, err := isAlive(ctx, client, n.Name)
			if err != nil {
				return nil, err
			}
			if alive {
				return nil, refuse(http.StatusConflict, true, "%s is the address of node %s, which is alive; give one of them another", ip, n.Name)
			}
		}
	}
	return ips, nil
}

// servers are where the API is.
func (m *Members) servers(ctx context.Context, client kubernetes.Interface) ([]string, error) {
	list, err := client.DiscoveryV1().EndpointSlices(metav1.NamespaceDefault).List(ctx, metav1.ListOptions{LabelSelector: enrol.OfKubernetes})
	if err != nil {
		return nil, fmt.Errorf("the API is not ready: %w", err)
	}
	var all []*discoveryv1.EndpointSlice
	for i := range list.Items {
		all = append(all, &list.Items[i])
	}
	if out := enrol.Servers(all); len(out) > 0 {
		return out, nil
	}
	var out []string
	for _, ip := range m.cfg.Addresses {
		out = append(out, net.JoinHostPort(ip.String(), strconv.Itoa(m.cfg.Port)))
	}
	return out, nil
}

func refuse(status int, wait bool, format string, a ...any) error {
	return &join.Refusal{Status: status, Wait: wait, Message: fmt.Sprintf(format, a...)}
}
