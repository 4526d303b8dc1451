package etcd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/skerry-os/skerry/pkg/datastore"
)

// refuses waits until writes are refused for want of room.
func (s *server) refuses() {
	s.t.Helper()
	eventually(s.t, func(ctx context.Context) error {
		if _, err := s.client().Put(ctx, "/k/full", "x"); !errors.Is(err, rpctypes.ErrNoSpace) {
			return fmt.Errorf("a write on a full disk: %w", err)
		}
		return nil
	})
}

// One full disk of three: that member leaves the storing to the others, and its server goes on with theirs, also if it starts so. When
// they cannot do without it, it is a member again; when there is room, too. A second full disk stops the writes and nothing else.
func TestAside(t *testing.T) {
	t.Parallel() // it waits for elections
	a := newServer(t, 11, nil)
	fill, free := a.small(512)
	var told events
	a.store.Tell, a.store.disk.Tell = told.tell, told.tell
	a.store.hurry = 20
	a.start().ready()
	b := newServer(t, 12, a)
	fillB, freeB := b.small(512)
	b.store.hurry = 20
	b.start().ready()
	c := newServer(t, 13, a).start().ready()
	eventually(t, func(context.Context) error {
		if n := a.store.knows(); len(n.URLs) != 2 || n.ID != a.store.ID() {
			return fmt.Errorf("%s: %+v", a.store.neighboursFile(), n)
		}
		return nil
	})

	fill(20 << 20)
	saw(t, &told, ReasonAside)
	for i, s := range []*server{a, b, c} {
		s.put(fmt.Sprintf("/k/aside-%d", i), "x")
		if got := a.get(fmt.Sprintf("/k/aside-%d", i)); got != "x" {
			t.Errorf("through the one that stands aside: %q", got)
		}
	}
	if info, err := os.Stat(a.store.socket()); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v", info, err)
	}
	if names, err := a.store.Members(t.Context()); err != nil || len(names) != 3 {
		t.Errorf("members: %v, %v", names, err)
	}

	// The second disk fills: two of three have no room, so nobody stores. The first is a member again; all can be read.
	fillB(20 << 20)
	b.refuses()
	c.refuses()
	if got := c.get("/k/aside-0"); got != "x" {
		t.Errorf("read: %q", got)
	}
	freeB()
	b.put("/k/room", "x")

	// One of the others ends: the two that are left must be this one and the third.
	b.end()
	saw(t, &told, ReasonBack)
	c.refuses()
	b.start().ready()
	saw(t, &told, ReasonAside)
	a.put("/k/again", "x")

	// It starts on a full disk.
	a.end()
	fill(20 << 20)
	a.start().ready()
	saw(t, &told, ReasonAside)
	a.put("/k/started", "x")

	// With room it is needed, and there.
	free()
	saw(t, &told, datastore.ReasonDiskOK)
	saw(t, &told, ReasonBack)
	b.end()
	a.put("/k/without-b", "x") // so it counts
	if got := c.get("/k/without-b"); got != "x" {
		t.Errorf("read: %q", got)
	}
	c.end()
	a.end()
}

// Nobody stands aside for the members of another cluster: after a reset or a restore, of one that removed this server, or alone.
func TestNotAside(t *testing.T) {
	t.Parallel()
	a := newServer(t, 14, nil).start().ready()
	b := newServer(t, 15, a).start().ready()
	n := neighbours{ID: b.store.ID(), URLs: []string{a.store.clientURL()}}
	if names, err := b.store.stored(t.Context(), n); err != nil || !slices.Equal(names, []string{a.store.Name}) {
		t.Errorf("the others are %v, %v", names, err)
	}
	n.ID++
	if _, err := b.store.stored(t.Context(), n); err == nil {
		t.Error("a member that they do not know may use them")
	}
	if _, err := a.store.stored(t.Context(), neighbours{ID: a.store.ID()}); err == nil {
		t.Error("nobody can store")
	}
	for _, c := range []struct {
		name string
		*server
		end func() error
	}{
		{"restored", a, func() error {
			file := a.base() + "/snapshot"
			if _, err := a.store.Snapshot(t.Context(), file); err != nil {
				return err
			}
			a.end()
			_, err := a.store.Restore(t.Context(), file)
			return err
		}},
		{"reset", b, func() error {
			b.end()
			b.store.Reset = true
			b.start()
			err := <-b.out
			b.stop = nil
			if errors.Is(err, ErrReset) {
				return nil
			}
			return fmt.Errorf("a reset ends with %w", err)
		}},
	} {
		if err := os.WriteFile(c.store.neighboursFile(), []byte(`{"id": 1, "urls": ["https://127.0.88.253:2379"]}`), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := c.end(); err != nil {
			t.Fatal(err)
		}
		if known := c.store.knows(); len(known.URLs) != 0 {
			t.Errorf("%s, it knows %+v", c.name, known)
		}
	}
	known := func() {
		t.Helper()
		if err := os.WriteFile(a.store.neighboursFile(), []byte(`{"id": 1, "urls": ["https://127.0.88.253:2379"]}`), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if known(); !a.store.belongs() {
		t.Error("a member of several is alone")
	}
	if err := os.Mkdir(a.store.restored(), 0o700); err != nil { // staged, and the plug was pulled
		t.Fatal(err)
	}
	if a.store.belongs() {
		t.Error("a restore that is staged goes on with the others")
	}
	if err := os.Remove(a.store.restored()); err != nil {
		t.Fatal(err)
	}
	for _, damaged := range []string{"", "{", `{"id": "x"}`, "\x00\x00"} {
		if err := os.WriteFile(a.store.neighboursFile(), []byte(damaged), 0o600); err != nil {
			t.Fatal(err)
		}
		if n := a.store.knows(); len(n.URLs) != 0 {
			t.Errorf("%q: %+v", damaged, n)
		}
	}
}
