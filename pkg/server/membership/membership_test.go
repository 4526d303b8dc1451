package membership

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/skerry-os/skerry/pkg/enrol"
	"github.com/skerry-os/skerry/pkg/join"
	"github.com/skerry-os/skerry/pkg/pki"
	"github.com/skerry-os/skerry/pkg/server/secrets"
	"github.com/skerry-os/skerry/pkg/token"
)

const own = "the-clusters-own-token"

// bench is a server with its files, its API's objects and the real TLS of its certificate.
type bench struct {
	*Members
	t      *testing.T
	client kubernetes.Interface
	addr   string
	lose   atomic.Int32 // so many answers get lost
}

func newBench(t *testing.T, lifetime time.Duration, change func(*Config)) *bench {
	t.Helper()
	dir := t.TempDir()
	ip := netip.MustParseAddr("192.0.2.1")
	files := start(t, dir)
	cfg := Config{DataDir: dir, NodeName: "s1", Machine: join.Machine{ID: "machine-s1"}, Addresses: []netip.Addr{ip}, Port: 6443, Files: files, Lifetime: lifetime,
		Token: own, AgentToken: "a-token-for-agents", Settings: map[string]any{"cluster-domain": "cluster.local"},
		Services: []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16")}, Alone: "only one server here", Replace: Approve}
	if change != nil {
		change(&cfg)
	}
	b := &bench{Members: New(cfg), t: t, client: fake.NewClientset()}
	b.Members.client = b.client
	show := func(*tls.ClientHelloInfo) (*tls.Config, error) {
		pair, err := tls.LoadX509KeyPair(files.APIServerPair, files.APIServerPair)
		return &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequestClientCert, MinVersion: tls.VersionTLS13}, err
	}
	handler := b.Handler()
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if b.lose.Add(-1) >= 0 {
			handler.ServeHTTP(httptest.NewRecorder(), r)
			panic(http.ErrAbortHandler)
		}
		handler.ServeHTTP(w, r)
	}))
	s.TLS = &tls.Config{GetConfigForClient: show}
	s.StartTLS()
	t.Cleanup(s.Close)
	b.addr = s.Listener.Addr().String()
	return b
}

// start makes a server's files, as its start does.
func start(t *testing.T, dir string) *pki.Files {
	t.Helper()
	files, err := pki.Ensure(pki.Config{DataDir: dir, NodeName: "s1", NodeIPs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, ServiceIP: netip.MustParseAddr("10.43.0.1"),
		Domain: "cluster.local", Port: 6443, Now: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := secrets.Ensure(dir, own, files.ServerCA); err != nil {
		t.Fatal(err)
	}
	return files
}

// node is a machine that wants to be one.
func (b *bench) node(name, machine, token string) enrol.Config {
	return enrol.Config{DataDir: b.t.TempDir(), Server: "https://" + b.addr, Token: token, NodeName: name, Machine: join.Machine{ID: machine, Description: "at its address"},
		Addresses: func(map[string]any) ([]netip.Addr, error) { return []netip.Addr{netip.MustParseAddr("192.0.2.7")}, nil },
		Tell:      func(string) {}}
}

// refused lets a node try once and returns why not.
func (b *bench) refused(c enrol.Config) string {
	b.t.Helper()
	ctx, cancel := context.WithCancel(b.t.Context())
	defer cancel()
	c.Tell = func(string) { cancel() }
	s, err := enrol.Ensure(ctx, c)
	if err == nil {
		b.t.Errorf("%s joined: %v", c.NodeName, s.Node)
		return ""
	}
	if _, err := os.Stat(enrol.File(c.DataDir)); err == nil {
		b.t.Error("a refused node keeps something")
	}
	return err.Error()
}

func (b *bench) joins(c enrol.Config) *enrol.State {
	b.t.Helper()
	s, err := enrol.Ensure(b.t.Context(), c)
	if err != nil {
		b.t.Fatal(err)
	}
	return s
}

func (b *bench) heardOf(node string, when time.Time) {
	b.t.Helper()
	at := metav1.NewMicroTime(when)
	api := b.client.CoordinationV1().Leases(corev1.NamespaceNodeLease)
	_ = api.Delete(b.t.Context(), node, metav1.DeleteOptions{})
	_, err := api.Create(b.t.Context(), &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: node}, Spec: coordinationv1.LeaseSpec{RenewTime: &at}}, metav1.CreateOptions{})
	if err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) pinned(secret string) string {
	b.t.Helper()
	ca, err := os.ReadFile(b.cfg.Files.ServerCA)
	if err != nil {
		b.t.Fatal(err)
	}
	return token.Token{Pin: token.Pin(ca), User: "server", Secret: secret}.String()
}

func want(t *testing.T, got string, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if !strings.Contains(got, p) {
			t.Errorf("%q lacks %q", got, p)
		}
	}
}

func TestEveryKindOfTokenOpens(t *testing.T) {
	b := newBench(t, 0, nil)
	made, err := CreateToken(t.Context(), b.client, Token{Description: "for a test"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	for name, token := range map[string]string{"bare": own, "pinned": b.pinned(own), "agents": "a-token-for-agents", "made": made.Secret} {
		s := b.joins(b.node("n-"+name, "machine-"+name, token))
		if s.Settings["cluster-domain"] != "cluster.local" || len(s.Servers) != 1 || s.Servers[0] != "192.0.2.1:6443" {
			t.Errorf("%s: told %v, %v", name, s.Settings, s.Servers)
		}
	}
}

func TestOtherTokensDoNot(t *testing.T) {
	b := newBench(t, 0, nil)
	want(t, b.refused(b.node("n", "m", "another-clusters-token")), "the token is not this cluster's", "skerryd token create")
	foreign := token.Token{Pin: strings.Repeat("0", 64), User: "server", Secret: own}.String()
	want(t, b.refused(b.node("n", "m", foreign)), "another cluster than the token")

	old, err := CreateToken(t.Context(), b.client, Token{}, time.Nanosecond)
	if err != nil {
		t.Fatal(err)
	}
	for time.Now().Before(old.Expires.Add(time.Millisecond)) {
	}
	want(t, b.refused(b.node("n", "m", old.Secret)), "expired on", old.ID)
	once, err := CreateToken(t.Context(), b.client, Token{SingleUse: true}, 0)
	if err != nil {
		t.Fatal(err)
	}
	b.joins(b.node("n", "m", once.Secret))
	want(t, b.refused(b.node("o", "o", once.Secret)), "was for one node and another has used it")
	want(t, b.refused(b.node("n", "m", once.Secret)), "was for one node and another has used it") // the same machine, says who has the token
	if all, err := Records(t.Context(), b.client); err != nil || len(all) != 1 {
		t.Errorf("a used token has left its mark: %+v %v", all, err)
	}
	if err := DeleteToken(t.Context(), b.client, old.Secret); err != nil {
		t.Error(err)
	}
	if err := DeleteToken(t.Context(), b.client, old.ID); err == nil {
		t.Error("a token was deleted twice")
	}
}

// An answer may get lost: the node that it was for asks again with the same key, and is let in, whichever kind its token is. Nobody
// else is by that, and it is not when it comes too late.
func TestALostAnswer(t *testing.T) {
	b := newBench(t, 0, nil)
	made := func(t0 Token) string {
		made, err := CreateToken(t.Context(), b.client, t0, 0)
		if err != nil {
			t.Fatal(err)
		}
		return made.Secret
	}
	for name, secret := range map[string]string{"own": own, "agents": "a-token-for-agents", "made": made(Token{}), "once": made(Token{SingleUse: true}), "node": made(Token{Node: "n-node"})} {
		b.lose.Store(2)
		c := b.node("n-"+name, "m-"+name, secret)
		tries := 0
		c.Tell = func(string) { tries++ }
		b.joins(c)
		if tries != 2 {
			t.Errorf("%s: joined after %d lost answers", name, tries)
		}
		events, err := b.client.CoreV1().Events("default").List(t.Context(), metav1.ListOptions{})
		if err != nil || len(events.Items) != 0 {
			t.Errorf("%s: %v, %v", name, events.Items, err)
		}
	}
	secret := made(Token{SingleUse: true})
	c := b.node("late", "m-late", secret)
	b.lose.Store(1)
	c.Tell = func(string) {
		s, err := b.client.CoreV1().Secrets(kubeSystem).Get(t.Context(), madePrefix+secret[:6], metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		s.Data[keySpent] = []byte(time.Now().Add(-2 * lostAnswer).UTC().Format(timeLayout))
		if _, err := b.client.CoreV1().Secrets(kubeSystem).Update(t.Context(), s, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := enrol.Ensure(t.Context(), c); err == nil || !strings.Contains(err.Error(), "another has used it") {
		t.Errorf("much later: %v", err)
	}
	all, err := ListTokens(t.Context(), b.client, time.Now().Add(kept+time.Hour))
	if err != nil || slices.ContainsFunc(all, func(t Token) bool { return t.SingleUse }) {
		t.Errorf("used tokens are kept for good: %+v %v", all, err)
	}
}

// A server that was removed does not come back by itself, neither while it runs nor when it starts again; with a token it does. One
// that is alone stays: nobody could take it in.
func TestARemovedServer(t *testing.T) {
	b := newBench(t, 0, func(c *Config) { c.Alone = "" })
	register := func(what string, ok bool) {
		t.Helper()
		if done, err := b.register(t.Context(), b.client); done != ok || (err == nil) != ok {
			t.Errorf("%s: %v, %v", what, done, err)
		}
	}
	register("at first", true)
	if err := RemoveNode(t.Context(), b.client, "s1"); err != nil {
		t.Fatal(err)
	}
	register("alone", true)
	other := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "s2", Labels: map[string]string{"node-role.kubernetes.io/control-plane": "true"}}}
	if _, err := b.client.CoreV1().Nodes().Create(t.Context(), other, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := RemoveNode(t.Context(), b.client, "s1"); err != nil {
		t.Fatal(err)
	}
	b.heardOf("s2", time.Now())
	register("with another server", false)
	if all, err := Records(t.Context(), b.client); err != nil || len(all) != 1 || !all[0].Removed {
		t.Errorf("the record: %+v, %v", all, err)
	}
	ended := make(chan error, 1)
	go func() { ended <- b.Service().Run(t.Context(), func() {}) }()
	select {
	case err := <-ended:
		want(t, fmt.Sprint(err), "s1 was removed", "--server")
	case <-time.After(time.Minute):
		t.Fatal("it runs on")
	}
	c := b.node("s1", "machine-s1", own)
	if err := enrol.JoinServer(t.Context(), c, func(map[string]any) error { return nil }); err != nil {
		t.Fatal(err)
	}
	register("after it joined again", true)
}

// A copy of a machine that is alive has its id, too.
func TestACopyOfAMachine(t *testing.T) {
	b := newBench(t, 0, nil)
	b.joins(b.node("n", "same", own))
	b.heardOf("n", time.Now())
	c := b.node("n", "same", own)
	c.Machine.Description = "at another address"
	want(t, b.refused(c), "node n is alive", "at its address", "at another address", "/etc/machine-id")
	b.joins(b.node("n", "same", own)) // with a new disk
	b.heardOf("n", time.Now().Add(-time.Hour))
	b.joins(c) // it was moved
}

// An unreachable server, a clock that is wrong: waiting may help, and the message says what to do.
func TestWhatWaitingMayHelp(t *testing.T) {
	b := newBench(t, 0, nil)
	c := b.node("n", "m", own)
	c.Server = "https://127.0.0.1:1"
	want(t, b.refused(c), "127.0.0.1:1", "does not answer")
	_, err := join.Join(t.Context(), b.addr, token.Token{Secret: own}, join.Request{Node: "n", Time: time.Unix(0, 0)})
	var no *join.Refusal
	if !errors.As(err, &no) || !no.Wait {
		t.Fatalf("a clock in 1970: %v", err)
	}
	want(t, err.Error(), "1970-01-01", "set the wrong one")
}

func TestRotationOverlaps(t *testing.T) {
	b := newBench(t, 0, nil)
	joined := b.node("n", "m", own)
	state := b.joins(joined)
	if err := Rotate(t.Context(), b.client, own, "the-new-token-of-all", time.Hour); err != nil {
		t.Fatal(err)
	}
	b.joins(b.node("old", "old", own))
	b.joins(b.node("new", "new", "the-new-token-of-all"))
	if err := Rotate(t.Context(), b.client, own, "the-newest-token-of-all", 0); err != nil {
		t.Fatal(err)
	}
	want(t, b.refused(b.node("o", "o", "the-new-token-of-all")), "the token is not this cluster's")
	want(t, b.refused(b.node("o", "o", own)), "the token is not this cluster's")
	if !b.followToken(t.Context(), b.client) || b.fileToken() != "the-newest-token-of-all" {
		t.Errorf("the server's file says %q", b.fileToken())
	}
	// The node of before the rotations needs no token.
	joined.Token = ""
	if _, err := enrol.Renew(t.Context(), joined, state, []string{b.addr}); err != nil {
		t.Error(err)
	}
}

// A node that was off until its certificates ended comes back by itself; a stranger with an ended certificate does not.
func TestEndedCertificatesRenew(t *testing.T) {
	b := newBench(t, time.Nanosecond, nil)
	c := b.node("n", "m", own)
	first := b.joins(c)
	if time.Now().Before(first.Until()) {
		t.Fatal("the certificates have not ended")
	}
	b.cfg.Lifetime = time.Hour
	c.Token = ""
	again := b.joins(c)
	if time.Now().After(again.Until()) || again.Node != "n" {
		t.Errorf("valid until %s", again.Until())
	}
	other := newBench(t, time.Hour, nil)
	if _, err := enrol.Renew(t.Context(), c, again, []string{other.addr}); err == nil {
		t.Error("another cluster renewed it")
	}
	if err := RemoveNode(t.Context(), b.client, "n"); err != nil {
		t.Fatal(err)
	}
	_, err := enrol.Renew(t.Context(), c, again, []string{b.addr})
	if err == nil {
		t.Fatal("a removed node was renewed")
	}
	want(t, err.Error(), "was removed")
	c.NodeName = "s1"
	if _, err := enrol.Renew(t.Context(), c, again, []string{b.addr}); err == nil {
		t.Error("a node was renewed under another name")
	}
}

func TestANameBelongsToAMachine(t *testing.T) {
	b := newBench(t, 0, nil)
	b.joins(b.node("n", "first", own))
	b.heardOf("n", time.Now())
	b.joins(b.node("n", "first", own)) // the same machine, with a new disk
	want(t, b.refused(b.node("n", "second", own)), "first (at its address), which is alive", "second (at its address)", "--node-name")
	b.heardOf("n", time.Now().Add(-time.Hour))
	want(t, b.refused(b.node("n", "second", own)), "first", "second", "skerryd node approve n")
	events, err := b.client.CoreV1().Events("default").List(t.Context(), metav1.ListOptions{})
	if err != nil || len(events.Items) == 0 || events.Items[0].Reason != "DuplicateNode" {
		t.Errorf("events: %v %v", events, err)
	}
	if _, err := ApproveNode(t.Context(), b.client, "n"); err != nil {
		t.Fatal(err)
	}
	want(t, b.refused(b.node("n", "third", own)), "skerryd node approve n") // approved was the second
	if _, err := ApproveNode(t.Context(), b.client, "n"); err != nil {
		t.Fatal(err)
	}
	b.joins(b.node("n", "third", own))
	events, err = b.client.CoreV1().Events("default").List(t.Context(), metav1.ListOptions{})
	if err != nil || !slices.ContainsFunc(events.Items, func(e corev1.Event) bool {
		return e.Reason == "NodeReplaced" && strings.Contains(e.Message, "third") && strings.Contains(e.Message, "first")
	}) {
		t.Errorf("events: %v %v", events, err)
	}
	want(t, b.refused(b.node("n", "first", own)), "third", "skerryd node approve n")
	if _, err := ApproveNode(t.Context(), b.client, "nobody"); err == nil {
		t.Error("a node that never joined was approved")
	}
	b.cfg.Replace = Always
	b.joins(b.node("n", "fourth", own))
	if ok, err := b.register(t.Context(), b.client); !ok {
		t.Fatal("the server has no entry", err)
	}
	b.heardOf("s1", time.Now())
	want(t, b.refused(b.node("s1", "first", own)), "machine-s1, which is alive")
	all, err := Records(t.Context(), b.client)
	if err != nil || len(all) != 2 || all[0].Machine.ID != "fourth" {
		t.Errorf("records: %+v %v", all, err)
	}
}

// A node gets no certificate for what is not its own.
func TestWhatANodeCannotBe(t *testing.T) {
	b := newBench(t, 0, nil)
	for _, name := range []string{"kubernetes", "localhost", "kubernetes.default"} {
		want(t, b.refused(b.node(name, "m", own)), "cannot be the name of a node")
	}
	_, err := b.client.CoreV1().Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "s1"},
		Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.0.2.1"}}}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	b.heardOf("s1", time.Now())
	for ip, why := range map[string]string{"192.0.2.1": "address of node s1", "10.43.0.1": "network of services", "127.0.0.1": "no address that a node can have"} {
		c := b.node("n", "m", own)
		c.Addresses = func(map[string]any) ([]netip.Addr, error) { return []netip.Addr{netip.MustParseAddr(ip)}, nil }
		want(t, b.refused(c), why)
	}
}

func TestServersJoin(t *testing.T) {
	b := newBench(t, 0, nil)
	c := b.node("s2", "m2", own)
	none := func(map[string]any) error { return nil }
	err := enrol.JoinServer(t.Context(), c, none)
	if err == nil || !strings.Contains(err.Error(), "only one server here") {
		t.Fatalf("joining a cluster of one: %v", err)
	}
	b.cfg.Alone = ""
	c.Token = "a-token-for-agents"
	if err := enrol.JoinServer(t.Context(), c, none); err == nil || !strings.Contains(err.Error(), "lets agents join") {
		t.Errorf("a server with a token for agents: %v", err)
	}
	c.Token = b.pinned(own)
	differs := errors.New("differs")
	if err := enrol.JoinServer(t.Context(), c, func(map[string]any) error { return differs }); !errors.Is(err, differs) || enrol.Joined(c.DataDir) {
		t.Errorf("other settings: %v", err)
	}
	if err := enrol.JoinServer(t.Context(), c, none); err != nil {
		t.Fatal(err)
	}
	for _, name := range pki.Shared() {
		theirs, err := os.ReadFile(filepath.Join(b.cfg.DataDir, name))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		mine, err2 := os.ReadFile(filepath.Join(c.DataDir, name))
		if err != nil || err2 != nil || !slices.Equal(mine, theirs) {
			t.Errorf("%s: %v %v, or it differs", name, err, err2)
		}
	}
	info, err := os.Stat(filepath.Join(c.DataDir, "server", "encryption.yaml"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key of secrets: %v %v", info, err)
	}
}

// The API is not there yet: the kubeconfig is served already, nobody joins, and both are told to come back.
func TestBeforeTheAPIIsReady(t *testing.T) {
	b := newBench(t, 0, nil)
	down := fake.NewClientset()
	down.PrependReactor("*", "*", func(clienttesting.Action) (bool, runtime.Object, error) { return true, nil, errors.New("no API") })
	b.Members.client = down
	if _, err := join.FetchKubeconfig(t.Context(), b.addr, own); err != nil {
		t.Error(err)
	}
	_, err := join.Join(t.Context(), b.addr, token.Token{Secret: own}, join.Request{Node: "n", Time: time.Now(), Addresses: []string{"192.0.2.9"}, Machine: join.Machine{ID: "m"}})
	var no *join.Refusal
	if !errors.As(err, &no) || !no.Wait || no.Status != http.StatusServiceUnavailable {
		t.Errorf("joining: %v", err)
	}
}
