package etcd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"golang.org/x/sys/unix"

	"github.com/skerry-os/skerry/pkg/datastore"
	"github.com/skerry-os/skerry/pkg/supervise"
)

// small puts the data of a server that has not started on a disk of its own.
func (s *server) small(mib int) (fill func(left int64), free func()) {
	s.t.Helper()
	if os.Geteuid() != 0 {
		s.t.Skip("needs root to mount a small disk")
	}
	if err := os.MkdirAll(s.store.Dir, 0o700); err != nil {
		s.t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", s.store.Dir, "tmpfs", 0, fmt.Sprintf("size=%dm", mib)); err != nil {
		s.t.Skipf("cannot mount here: %v", err)
	}
	s.t.Cleanup(func() { _ = unix.Unmount(s.store.Dir, unix.MNT_DETACH) })
	filler := filepath.Join(s.store.Dir, "filler")
	return func(left int64) {
			s.t.Helper()
			f, err := os.OpenFile(filler, os.O_CREATE|os.O_WRONLY, 0o600)
			if err != nil {
				s.t.Fatal(err)
			}
			defer f.Close()
			for err = unix.ENOSPC; errors.Is(err, unix.ENOSPC); { // the member takes some, too
				var st unix.Statfs_t
				var had unix.Stat_t
				if err := errors.Join(unix.Statfs(s.store.Dir, &st), unix.Fstat(int(f.Fd()), &had)); err != nil {
					s.t.Fatal(err)
				}
				more := int64(st.Bavail)*int64(st.Bsize) - left //nolint:unconvert // 32 bits on ARM
				if more <= 0 {
					return
				}
				err = unix.Fallocate(int(f.Fd()), 0, had.Size, more)
			}
			if err != nil {
				s.t.Fatal(err)
			}
		}, func() {
			s.t.Helper()
			if err := os.Remove(filler); err != nil {
				s.t.Fatal(err)
			}
		}
}

// saw waits for an event.
func saw(t *testing.T, told *events, reason string) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if told.has(reason) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s is not told", reason)
		}
	}
}

type events struct {
	sync.Mutex
	all []string
}

func (e *events) tell(ev datastore.Event) {
	e.Lock()
	defer e.Unlock()
	e.all = append(e.all, ev.Reason)
}

// has also forgets what came before.
func (e *events) has(reason string) bool {
	e.Lock()
	defer e.Unlock()
	for i, r := range e.all {
		if r == reason {
			e.all = e.all[i+1:]
			return true
		}
	}
	return false
}

// A disk that fills stops writes and nothing else: the member stays, what is stored can be read and deleted, and writes go on when
// there is room, also when the server is started anew then.
func TestFullDisk(t *testing.T) {
	s := newServer(t, 1, nil)
	fill, free := s.small(512)
	var told events
	s.store.Tell, s.store.disk.Tell = told.tell, told.tell
	s.store.hurry = 20
	s.start().ready()
	s.put("/k/before", "x")
	refused := func() {
		t.Helper()
		eventually(t, func(ctx context.Context) error {
			_, err := s.client().Put(ctx, "/k/full", "x")
			if !errors.Is(err, rpctypes.ErrNoSpace) {
				return fmt.Errorf("a write on a full disk: %w", err)
			}
			return nil
		})
		if r, err := s.client().Get(t.Context(), "/k/before"); err != nil || len(r.Kvs) != 1 {
			t.Errorf("reading: %v, %v", r, err)
		}
		if _, err := s.client().Delete(t.Context(), "/k/gone"); err != nil {
			t.Errorf("deleting: %v", err)
		}
	}
	fill(4 << 20)
	saw(t, &told, datastore.ReasonDiskFull)
	refused()
	free()
	saw(t, &told, datastore.ReasonDiskOK)
	s.put("/k/after", "x")

	fill(4 << 20)
	refused()
	s.end()
	free()
	s.start().ready()
	s.put("/k/at-last", "x")
	if told.has(ReasonNoSpace) {
		t.Error("a full disk was taken for a full file")
	}
	s.end()
}

// Where the disk fills faster than anybody looks, etcd cannot go on. The process does: it is told to start everything anew, and that
// start waits for room. What was answered is there.
func TestDiskFillsAtOnce(t *testing.T) {
	s := newServer(t, 7, nil) // what is left of it keeps its ports
	fill, _ := s.small(512)
	var told events
	s.store.Tell, s.store.disk.Tell = told.tell, told.tell
	s.start().ready()
	fill(0)
	if err := os.Remove(filepath.Join(s.store.Dir, "reserve")); err == nil {
		fill(0)
	}
	stored := 0
	for i := 0; i < 1000; i++ {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		_, err := s.client().Put(ctx, fmt.Sprintf("/k/%d", i), strings.Repeat("x", 500<<10))
		cancel()
		if err != nil {
			break
		}
		stored++
	}
	var err error
	select {
	case err = <-s.out:
		s.stop = nil
	case <-time.After(2 * time.Minute):
		t.Fatal("it goes on")
	}
	if !errors.Is(err, supervise.ErrAgain) || !strings.Contains(err.Error(), "no space left") {
		t.Fatalf("it ends with %v", err)
	}
	saw(t, &told, datastore.ReasonDiskFull)
	t.Logf("%d writes were answered", stored)
}

// A start on a full disk waits, says why, and goes on when there is room.
func TestStartOnAFullDisk(t *testing.T) {
	s := newServer(t, 1, nil)
	fill, free := s.small(512)
	var told events
	s.store.disk.Tell = told.tell
	fill(0)
	s.start()
	saw(t, &told, datastore.ReasonDiskFull)
	select {
	case <-s.up:
		t.Error("it has started")
	case err := <-s.out:
		s.stop = nil
		t.Fatalf("it ends: %v", err)
	default:
	}
	free()
	s.ready()
	s.put("/k", "x")
	s.end()
}
