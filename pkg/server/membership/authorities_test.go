package membership

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skerry-os/skerry/pkg/enrol"
	"github.com/skerry-os/skerry/pkg/supervise"
)

// restart is what a server does with authorities that it has taken up.
func (b *bench) restart() {
	b.t.Helper()
	start(b.t, b.cfg.DataDir)
	if ok, _ := b.register(b.t.Context(), b.client); !ok {
		b.t.Fatal("not registered")
	}
	if again, err := b.followAuthorities(b.t.Context(), b.client); again || err != nil {
		b.t.Fatalf("starts again and again: %v %v", again, err)
	}
}

func (b *bench) follows() {
	b.t.Helper()
	if again, err := b.followAuthorities(b.t.Context(), b.client); !again || err != nil {
		b.t.Fatalf("the new authorities are not taken up: %v %v", again, err)
	}
}

// keeps runs a node until it wants to start anew, and says why it did.
func (b *bench) keeps(c enrol.Config, s *enrol.State) string {
	b.t.Helper()
	err := enrol.Keep(b.t.Context(), c, s, func() []string { return []string{b.addr} }, func(*enrol.State) error { return nil })
	if !errors.Is(err, supervise.ErrAgain) {
		b.t.Fatalf("the node goes on: %v", err)
	}
	return err.Error()
}

// A rotation from its beginning to its end, with a node that runs, one that is off, and one that is left behind.
func TestAuthoritiesRotate(t *testing.T) {
	b := newBench(t, 0, nil)
	ctx := t.Context()
	if ok, _ := b.register(ctx, b.client); !ok {
		t.Fatal("not registered")
	}
	oldToken := b.pinned(own)
	on, off, lost := b.node("on", "m-on", own), b.node("off", "m-off", own), b.node("lost", "m-lost", own)
	stateOn := b.joins(on)
	b.joins(off)
	b.joins(lost)
	if err := FinishRotation(ctx, b.client, true); err == nil || !strings.Contains(err.Error(), "no rotation is under way") {
		t.Errorf("finishing what has not begun: %v", err)
	}

	if err := RotateAuthorities(ctx, b.client, b.cfg.DataDir, time.Now().Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	err := RotateAuthorities(ctx, b.client, b.cfg.DataDir, time.Now())
	if err == nil || !strings.Contains(err.Error(), "is not finished") {
		t.Errorf("beginning twice: %v", err)
	}
	b.follows()
	b.restart()
	if b.pinned(own) == oldToken {
		t.Error("new tokens name the old authority")
	}

	want(t, b.keeps(on, stateOn), "the cluster's authorities have changed")
	now, err := enrol.Load(on.DataDir)
	if err != nil || string(now.ServerCA) == string(stateOn.ServerCA) {
		t.Fatalf("the node has the old authority: %v", err)
	}
	// Old and new tokens open.
	b.joins(b.node("late", "m-late", oldToken))
	b.joins(b.node("later", "m-later", b.pinned(own)))

	at, err := ReadRotation(ctx, b.client)
	if err != nil || !at.Open || strings.Join(at.Behind, " ") != "lost off" {
		t.Errorf("behind: %+v %v", at, err)
	}
	if err := FinishRotation(ctx, b.client, false); err == nil || !strings.Contains(err.Error(), "lost, off: still with certificates of the old authority") {
		t.Errorf("finishing over nodes that are behind: %v", err)
	}
	// The one that was off is back, without a token.
	off.Token = ""
	b.joins(off)
	if at, err = ReadRotation(ctx, b.client); err != nil || strings.Join(at.Behind, " ") != "lost" {
		t.Errorf("behind: %+v %v", at, err)
	}
	if err := FinishRotation(ctx, b.client, true); err != nil {
		t.Fatal(err)
	}
	b.follows()
	b.restart()
	want(t, b.keeps(on, now), "the cluster's authorities have changed")
	if now, err = enrol.Load(on.DataDir); err != nil || strings.Count(string(now.ServerCA), "BEGIN") != 1 {
		t.Errorf("the node trusts the old authority: %v", err)
	}
	if _, err := enrol.Renew(ctx, on, now, []string{b.addr}); err != nil {
		t.Error(err)
	}
	want(t, b.refused(b.node("n", "m", oldToken)), "has had a new CA since")
	lostState, err := enrol.Load(lost.DataDir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := enrol.Renew(ctx, lost, lostState, []string{b.addr}); err == nil {
		t.Error("the old authority still opens")
	}
	if err := os.Remove(enrol.File(lost.DataDir)); err != nil {
		t.Fatal(err)
	}
	lost.Token = b.pinned(own)
	b.joins(lost)
	if err := RotateAuthorities(ctx, b.client, b.cfg.DataDir, time.Now().Add(2*time.Second)); err != nil {
		t.Errorf("a second rotation: %v", err)
	}
	events, err := b.client.CoreV1().Events("default").List(ctx, metav1.ListOptions{})
	if err != nil || len(events.Items) != 2 || events.Items[0].Reason != "AuthoritiesRotated" {
		t.Errorf("events: %v %v", events, err)
	}
}

// Servers take the new authorities up one after the other, and one that crashes in its turn holds the others up for minutes only.
func TestServersTakeTurns(t *testing.T) {
	first := newBench(t, 0, nil)
	second := newBench(t, 0, nil)
	second.cfg.NodeName, second.Members.client, second.client = "s2", first.client, first.client
	if err := os.RemoveAll(filepath.Join(second.cfg.DataDir, "server", "tls")); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(filepath.Join(second.cfg.DataDir, "server", "tls"), os.DirFS(filepath.Join(first.cfg.DataDir, "server", "tls"))); err != nil {
		t.Fatal(err)
	}
	start(t, second.cfg.DataDir)
	node := first.node("n", "m", own)
	state := first.joins(node)
	if err := RotateAuthorities(t.Context(), first.client, first.cfg.DataDir, time.Now().Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	first.follows()
	waited := make(chan bool, 1)
	go func() {
		again, err := second.followAuthorities(t.Context(), second.client)
		waited <- again && err == nil
	}()
	start(t, first.cfg.DataDir)
	// A server that has not heard of it takes a node that has, and the node stays with the newer.
	now, err := enrol.Renew(t.Context(), node, state, []string{first.addr})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := enrol.Renew(t.Context(), node, now, []string{second.addr}); err != nil {
		t.Errorf("at the server that has not followed: %v", err)
	}
	select {
	case <-waited:
		t.Fatal("two servers start anew at once")
	case <-time.After(time.Second):
	}
	first.restart()
	if !<-waited {
		t.Error("the second server does not follow")
	}
	// One that never came back from its turn.
	s, err := readAuthorities(t.Context(), first.client)
	if err != nil {
		t.Fatal(err)
	}
	s.Annotations[turnKey] = "s9 " + time.Now().Add(-turnLimit).UTC().Format(timeLayout)
	if _, err := first.client.CoreV1().Secrets(kubeSystem).Update(t.Context(), s, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(second.cfg.DataDir, "server/tls/client-ca.before.crt")); err != nil {
		t.Fatal(err)
	}
	second.follows()
}

// What the servers were told anew reaches the nodes that run, and those that start.
func TestSettingsAreFollowed(t *testing.T) {
	b := newBench(t, 0, nil)
	c, d := b.node("n", "m", own), b.node("o", "m2", own)
	s := b.joins(c)
	b.joins(d)
	b.cfg.Settings = map[string]any{"cluster-domain": "other.local", "disable": []string{"ingress"}}
	want(t, b.keeps(c, s), `cluster-domain was "cluster.local" and is "other.local"`, `disable was null and is ["ingress"]`)
	now, err := enrol.Load(c.DataDir)
	if err != nil || now.Settings["cluster-domain"] != "other.local" {
		t.Errorf("kept: %v %v", now, err)
	}
	if now := b.joins(d); now.Settings["cluster-domain"] != "other.local" {
		t.Errorf("at the start: %v", now.Settings)
	}
	// A setting that this version does not know is none.
	c.Known = func(shared map[string]any) (map[string]any, error) {
		return map[string]any{"cluster-domain": shared["cluster-domain"]}, nil
	}
	b.cfg.Settings = map[string]any{"cluster-domain": "other.local", "of-the-future": true}
	if got := b.joins(c); got.Settings["of-the-future"] != nil {
		t.Errorf("taken: %v", got.Settings)
	}
	// A server that does not answer changes nothing, and holds nobody up.
	d.Server = "https://127.0.0.1:1"
	now.Servers = []string{"127.0.0.1:1"}
	if got, err := enrol.Ensure(t.Context(), d); err != nil || got.Node != "o" {
		t.Errorf("with no server: %v %v", got, err)
	}
}

// A node that was removed ends, whether it starts, or runs and nobody has shown it that its Node is gone; every server hears of it,
// and again when it has joined anew.
func TestRemovedNodesEnd(t *testing.T) {
	b := newBench(t, 0, nil)
	c := b.node("o", "m", own)
	s := b.joins(c)
	stop, err := b.followRemoved(t.Context(), b.client)
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	heard := func(want bool) {
		t.Helper()
		for end := time.Now().Add(time.Minute); b.Removed("o") != want; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("the server never hears that removed is %v", want)
			}
		}
	}
	heard(false)
	if err := RemoveNode(t.Context(), b.client, "o"); err != nil {
		t.Fatal(err)
	}
	heard(true)
	if b.Removed("s1") {
		t.Error("another node is taken for removed")
	}
	const says = "node o was removed from the cluster"
	if _, err := enrol.Ensure(t.Context(), c); err == nil || !strings.Contains(err.Error(), says) {
		t.Errorf("it starts: %v", err)
	}
	err = enrol.Keep(t.Context(), c, s, func() []string { return []string{b.addr} }, func(*enrol.State) error { return nil })
	if err == nil || errors.Is(err, supervise.ErrAgain) || !strings.Contains(err.Error(), says) {
		t.Errorf("it runs on: %v", err)
	}
	if err := os.Remove(enrol.File(c.DataDir)); err != nil {
		t.Fatal(err)
	}
	b.joins(c)
	heard(false)
}
