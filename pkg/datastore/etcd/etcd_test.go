package etcd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/skerry-os/skerry/pkg/datastore"
	"github.com/skerry-os/skerry/pkg/pki"
)

// server is one of several on this host, each at an address of its own.
type server struct {
	t     *testing.T
	store *Store
	stop  context.CancelFunc
	out   chan error
	up    chan struct{}
}

// newServer shares the authorities of first, as a join does.
func newServer(t *testing.T, n int, first *server) *server {
	t.Helper()
	base, err := os.MkdirTemp("", "sk") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(base) })
	if err := os.MkdirAll(filepath.Join(base, "server/tls"), 0o700); err != nil {
		t.Fatal(err)
	}
	c := Config{Dir: filepath.Join(base, "server/db"), Name: fmt.Sprintf("node-%d", n), IP: netip.AddrFrom4([4]byte{127, 0, 88, byte(n)})}
	if first != nil {
		c.Join = []string{"127.0.88.254", first.store.IP.String()} // nobody answers at the first
		for _, f := range pki.EtcdAuthorities() {
			data, err := os.ReadFile(filepath.Join(first.base(), f))
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(base, f), data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	f, err := pki.EnsureEtcd(pki.Config{DataDir: base, NodeName: c.Name, NodeIPs: []netip.Addr{c.IP}, Now: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	c.TLS = TLS(*f)
	s := &server{t: t, store: New(c)}
	t.Cleanup(func() {
		if s.stop != nil {
			s.stop()
			if err := <-s.out; err != nil {
				t.Log(err)
			}
		}
	})
	return s
}

func (s *server) base() string { return filepath.Dir(filepath.Dir(s.store.Dir)) }

func (s *server) start() *server {
	s.t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(s.t.Context()))
	s.stop, s.out, s.up = cancel, make(chan error, 1), make(chan struct{})
	up := s.up
	go func() { s.out <- s.store.Run(ctx, sync.OnceFunc(func() { close(up) })) }()
	return s
}

func (s *server) ready() *server {
	s.t.Helper()
	select {
	case <-s.up:
	case err := <-s.out:
		s.stop = nil
		s.t.Fatalf("%s: %v", s.store.Name, err)
	case <-time.After(time.Minute):
		s.t.Fatalf("%s is not ready", s.store.Name)
	}
	return s
}

func (s *server) end() {
	s.t.Helper()
	s.stop()
	if err := <-s.out; err != nil {
		s.t.Errorf("%s: %v", s.store.Name, err)
	}
	s.stop = nil
}

func (s *server) client() *clientv3.Client {
	s.t.Helper()
	c, err := s.store.Client()
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = c.Close() })
	return c
}

func (s *server) put(key, value string) {
	s.t.Helper()
	eventually(s.t, func(ctx context.Context) error {
		_, err := s.client().Put(ctx, key, value)
		return err
	})
}

func (s *server) get(key string) (value string) {
	s.t.Helper()
	eventually(s.t, func(ctx context.Context) error {
		r, err := s.client().Get(ctx, key)
		if err == nil && len(r.Kvs) == 1 {
			value = string(r.Kvs[0].Value)
		}
		return err
	})
	return value
}

func eventually(t *testing.T, f func(context.Context) error) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		err := f(ctx)
		cancel()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// Three servers become one cluster; it goes on when one is away, takes it back, forgets one that was removed, survives the loss
// of two by a reset, and comes back from a snapshot.
func TestCluster(t *testing.T) {
	a := newServer(t, 1, nil).start().ready()
	a.put("/registry/a", "one")
	b := newServer(t, 2, a).start().ready()
	c := newServer(t, 3, a).start().ready()
	if got := c.get("/registry/a"); got != "one" {
		t.Errorf("the third server has %q", got)
	}
	if names, err := b.store.Members(t.Context()); err != nil || len(names) != 3 {
		t.Errorf("members: %v, %v", names, err)
	}
	if info, err := os.Stat(a.store.socket()); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v", info, err)
	}
	stranger := New(a.store.Config)
	stranger.TLS.ClientPair = stranger.TLS.PeerPair // signed by the authority that is for members among themselves
	if c, err := stranger.others(b.store.clientURL()); err == nil {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		if r, err := c.Get(ctx, "/registry/a"); err == nil {
			t.Errorf("a stranger reads %v", r)
		}
		cancel()
		_ = c.Close()
	}

	c.end()
	a.put("/registry/a", "two")
	c.start().ready()
	if got := c.get("/registry/a"); got != "two" {
		t.Errorf("back again, the third server has %q", got)
	}

	// The machine is replaced: a new disk, the same name and address.
	c.end()
	again := newServer(t, 3, a)
	told := make(chan datastore.Event, 100)
	again.store.Tell = func(e datastore.Event) { told <- e }
	again.start().ready()
	if names, err := a.store.Members(t.Context()); err != nil || len(names) != 3 {
		t.Errorf("members with a replaced one: %v, %v", names, err)
	}

	// A node by its name that named the member of the old disk is deleted.
	if was := c.store.ID(); was == 0 || was == again.store.ID() {
		t.Errorf("members have the numbers %x and %x", was, again.store.ID())
	}
	eventually(t, func(ctx context.Context) error { return a.store.Remove(ctx, "node-3", c.store.ID()) })
	if names, err := a.store.Members(t.Context()); err != nil || len(names) != 3 {
		t.Errorf("members after the old one was removed once more: %v, %v", names, err)
	}

	// Its node is deleted.
	// etcd removes nobody until the others have been together for some seconds.
	eventually(t, func(ctx context.Context) error { return a.store.Remove(ctx, "node-3", again.store.ID()) })
	select {
	case err := <-again.out:
		again.stop = nil
		if err == nil || !strings.Contains(err.Error(), "was removed from the cluster") {
			t.Errorf("the removed server: %v", err)
		}
		if e := <-told; e.Reason != ReasonRemoved || !e.Warning {
			t.Errorf("told: %+v", e)
		}
		if known := again.store.knows(); len(known.URLs) > 0 {
			t.Errorf("removed, it knows %+v", known)
		}
	case <-time.After(time.Minute):
		t.Fatal("the removed server goes on")
	}
	again.start().ready() // it still knows whom to join
	again.end()
	// etcd removes nobody until the others have been together for some seconds.
	eventually(t, func(ctx context.Context) error { return a.store.Remove(ctx, "node-3", again.store.ID()) })

	file := filepath.Join(t.TempDir(), "snapshot")
	rev, err := a.store.Snapshot(t.Context(), file)
	if err != nil {
		t.Fatal(err)
	}
	if size, err := a.store.Size(t.Context()); err != nil || size == 0 {
		t.Errorf("size: %d, %v", size, err)
	}
	if err := a.store.Check(t.Context()); err != nil {
		t.Error(err)
	}
	a.put("/registry/b", "later")
	a.end()
	b.stop() // alone it cannot even stop properly
	if err := <-b.out; err != nil {
		t.Log(err)
	}
	b.stop = nil

	// Half of the servers are lost: the other one is alone and waits, until it is told to forget them.
	a.start()
	select {
	case <-a.up:
		t.Fatal("one of two servers works alone")
	case err := <-a.out:
		t.Fatal(err)
	case <-time.After(3 * time.Second):
	}
	a.stop()
	if err := <-a.out; err != nil {
		t.Log(err)
	}
	a.store.Reset = true
	if err := a.store.Run(t.Context(), func() {}); !errors.Is(err, ErrReset) {
		t.Fatalf("reset: %v", err)
	}
	a.store.Reset = false
	a.start().ready()
	if got := a.get("/registry/b"); got != "later" {
		t.Errorf("after a reset: %q", got)
	}
	// The other one was lost after all only for a while. It is told, keeps its data aside, and joins as a new one.
	b.start()
	select {
	case <-b.up:
		t.Fatal("a server that was forgotten works")
	case err := <-b.out:
		if b.stop = nil; err == nil || !strings.Contains(err.Error(), "removed from the cluster; it joins again when it starts with --server") {
			t.Fatalf("a server that was forgotten: %v", err)
		}
	case <-time.After(time.Minute):
		t.Fatal("a server that was forgotten is not told")
	}
	b.start().ready()
	if got := b.get("/registry/b"); got != "later" {
		t.Errorf("at the one that joined again: %q", got)
	}
	eventually(t, func(ctx context.Context) error { return a.store.Remove(ctx, b.store.Name, b.store.ID()) })
	if err := <-b.out; err == nil {
		t.Error("a member that was removed ends as if it had been asked to")
	}
	b.stop = nil
	a.end()

	aside, err := a.store.Restore(t.Context(), file)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(aside, "member")); err != nil {
		t.Error(err)
	}
	a.start().ready()
	if one, two := a.get("/registry/a"), a.get("/registry/b"); one != "two" || two != "" {
		t.Errorf("restored: %q, %q", one, two)
	}
	r, err := a.client().Get(t.Context(), "/registry/a")
	if err != nil || r.Header.Revision < int64(rev)+datastore.RevisionGap {
		t.Errorf("restored at revision %v (%v), the snapshot had %d", r.Header, err, rev)
	}
}

// A member that is alone leads before its clock of elections has moved once: when it makes its cluster, when it starts again, and
// after its other was removed.
func TestAloneItLeadsAtOnce(t *testing.T) {
	a := newServer(t, 1, nil)
	a.store.beat, a.store.elect = 10*time.Second, 50*time.Second // etcd takes no more
	at := func(when string) {
		t.Helper()
		began := time.Now()
		a.start().ready()
		took := time.Since(began).Round(time.Millisecond)
		if took >= a.store.beat {
			t.Errorf("%s it waited for an election: %v", when, took)
		}
		t.Logf("%s it leads after %v", when, took)
	}
	at("new")
	a.put("/registry/a", "one")
	a.end()
	at("with a log")
	b := newServer(t, 2, a)
	b.store.beat, b.store.elect = a.store.beat, a.store.elect
	b.start().ready()
	eventually(t, func(ctx context.Context) error { return a.store.Remove(ctx, b.store.Name, b.store.ID()) })
	if err := <-b.out; err == nil {
		t.Error("a member that was removed ends as if it had been asked to")
	}
	b.stop = nil
	a.end()
	at("with its other removed")
	if got := a.get("/registry/a"); got != "one" {
		t.Errorf("it has %q", got)
	}
}

// A server that has SQLite takes its data along to etcd, with later revisions, and keeps the file.
func TestConvert(t *testing.T) {
	s := newServer(t, 9, nil)
	lite, err := datastore.Open(datastore.Config{Dir: s.store.Dir})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	up, out := make(chan struct{}), make(chan error, 1)
	go func() { out <- lite.Run(ctx, func() { close(up) }) }()
	select {
	case <-up:
	case err := <-out:
		t.Fatal(err)
	}
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{lite.Endpoint()}, DialTimeout: 10 * time.Second, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close() //nolint:errcheck // the test is over
	lease, err := client.Grant(ctx, 3600)
	if err != nil {
		t.Fatal(err)
	}
	var last int64
	for i := range 250 {
		key := fmt.Sprintf("/registry/%03d", i)
		var options []clientv3.OpOption
		if i == 7 {
			options = append(options, clientv3.WithLease(lease.ID))
		}
		r, err := client.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", 0)).Then(clientv3.OpPut(key, strings.Repeat("v", i), options...)).Commit()
		if err != nil || !r.Succeeded {
			t.Fatal(err)
		}
		last = r.Header.Revision
	}
	cancel()
	if err := <-out; err != nil {
		t.Fatal(err)
	}

	s.start().ready()
	r, err := s.client().Get(t.Context(), "/registry/", clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, kv := range r.Kvs {
		if string(kv.Key) == "/registry/health" {
			continue
		}
		if want := fmt.Sprintf("/registry/%03d", n); string(kv.Key) != want || len(kv.Value) != n || (kv.Lease != 0) != (n == 7) {
			t.Errorf("%s: %d bytes, lease %d; want %s", kv.Key, len(kv.Value), kv.Lease, want)
		}
		n++
	}
	if n != 250 || r.Header.Revision <= last {
		t.Errorf("%d objects at revision %d, SQLite had %d", n, r.Header.Revision, last)
	}
	s.end()
	if _, err := os.Stat(filepath.Join(s.store.Dir, "state.db.moved")); err != nil {
		t.Error(err)
	}
	if left, _ := filepath.Glob(filepath.Join(s.store.Dir, "move-*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// A member shows a certificate that was renewed from the next connection on, without a restart, to clients and to other members.
func TestRenewedCertificates(t *testing.T) {
	s := newServer(t, 1, nil).start().ready()
	serial := func(port int, pair string) string {
		t.Helper()
		own, err := tls.LoadX509KeyPair(pair, pair)
		if err != nil {
			t.Fatal(err)
		}
		c, err := tls.Dial("tcp", fmt.Sprintf("%s:%d", s.store.IP, port), &tls.Config{
			InsecureSkipVerify: true, Certificates: []tls.Certificate{own}, NextProtos: []string{"h2"},
		})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close() //nolint:errcheck // only looked at
		return c.ConnectionState().PeerCertificates[0].SerialNumber.String()
	}
	client, peer := serial(ClientPort, s.store.TLS.ClientPair), serial(PeerPort, s.store.TLS.PeerPair)
	if _, err := pki.Expire(s.base()); err != nil {
		t.Fatal(err)
	}
	if _, err := pki.EnsureEtcd(pki.Config{DataDir: s.base(), NodeName: s.store.Name, NodeIPs: []netip.Addr{s.store.IP}, Now: time.Now()}); err != nil {
		t.Fatal(err)
	}
	if serial(ClientPort, s.store.TLS.ClientPair) == client {
		t.Error("clients are shown the old certificate")
	}
	if serial(PeerPort, s.store.TLS.PeerPair) == peer {
		t.Error("other members are shown the old certificate")
	}
	newServer(t, 2, s).start().ready() // joins with certificates of after the renewal
}
