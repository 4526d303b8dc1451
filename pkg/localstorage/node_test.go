package localstorage

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

const (
	one = "pvc-11111111-1111-1111-1111-111111111111_ns_one"
	two = "pvc-22222222-2222-2222-2222-222222222222_ns_two"
)

func newStore(t *testing.T) *store {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return &store{root: filepath.Join(dir, "deep", "storage"), failed: map[string]failure{}, finished: make(chan struct{}, 1)}
}

// settled asks until nothing is being emptied.
func (s *store) settled(asked request) report {
	for {
		r := s.fulfil(asked)
		if s.emptying == "" {
			return r
		}
		<-s.finished
	}
}

func exists(name string) bool {
	_, err := os.Lstat(name)
	return !errors.Is(err, fs.ErrNotExist)
}

func TestMakeAndRemove(t *testing.T) {
	s := newStore(t)
	if r := s.fulfil(request{}); len(r.Made) != 0 || exists(s.root) {
		t.Errorf("asked for nothing: %+v, and made its folder: %v", r, exists(s.root))
	}
	defer syscall.Umask(syscall.Umask(0o077))
	for range 2 {
		if r := s.settled(request{Make: []string{one, two}}); !slices.Equal(r.Made, []string{one, two}) || r.Root != s.root || len(r.Failed) != 0 {
			t.Fatalf("%+v", r)
		}
	}
	for name, mode := range map[string]fs.FileMode{s.root: 0o700, filepath.Join(s.root, one): 0o777} {
		if info, err := os.Stat(name); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v; want %v", name, info.Mode(), err, mode)
		}
	}
	// What a pod may leave: files it cannot write, folders it cannot read, links out of the volume.
	outside := filepath.Join(filepath.Dir(s.root), "outside")
	inside := filepath.Join(s.root, one, "a")
	for _, err := range []error{
		os.MkdirAll(filepath.Join(inside, "b"), 0o700), os.WriteFile(filepath.Join(inside, "b", "f"), []byte("x"), 0o000), os.Chmod(filepath.Join(inside, "b"), 0o500),
		os.Mkdir(outside, 0o700), os.WriteFile(filepath.Join(outside, "kept"), nil, 0o600),
		os.Symlink(outside, filepath.Join(inside, "link")), os.Symlink("../../../outside/kept", filepath.Join(s.root, one, "link")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	asked := request{Make: []string{two}, Remove: []string{one}}
	r := s.settled(asked)
	if len(r.Removed) == 0 {
		r = s.settled(asked)
	}
	if os.Geteuid() == 0 && (!slices.Equal(r.Removed, []string{one}) || !slices.Equal(r.Made, []string{two}) || len(r.Failed) != 0) {
		t.Errorf("%+v", r)
	}
	if !exists(filepath.Join(outside, "kept")) {
		t.Error("removed through a link")
	}
	if r := s.settled(asked); os.Geteuid() == 0 && !slices.Equal(r.Removed, []string{one}) {
		t.Errorf("the second time: %+v", r)
	}
	if entries, err := os.ReadDir(s.root); os.Geteuid() == 0 && (err != nil || len(entries) != 1 || entries[0].Name() != two) {
		t.Errorf("left are %v, %v", entries, err)
	}
}

// Power may fail after every step: the next start ends what was begun.
func TestHalfDone(t *testing.T) {
	s := newStore(t)
	for _, dir := range []string{".new-" + one, removedPrefix + two + "/rest"} {
		if err := os.MkdirAll(filepath.Join(s.root, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	asked := request{Make: []string{one}, Remove: []string{two}}
	s.settled(asked)
	r := s.settled(asked)
	if !slices.Equal(r.Made, []string{one}) || !slices.Equal(r.Removed, []string{two}) {
		t.Errorf("%+v", r)
	}
	if entries, err := os.ReadDir(s.root); err != nil || len(entries) != 1 {
		t.Errorf("left are %v, %v", entries, err)
	}
}

// Whatever stands in a request, nothing but folders of volumes is touched.
func TestRefusesOtherNames(t *testing.T) {
	s := newStore(t)
	victim := filepath.Join(filepath.Dir(s.root), "pvc-victim")
	if err := os.MkdirAll(victim, 0o700); err != nil {
		t.Fatal(err)
	}
	names := []string{"../pvc-victim", "pvc-/../../pvc-victim", "", ".", "..", "etc", removedPrefix + one, "pvc-" + strings.Repeat("x", 300), victim}
	for _, name := range names {
		r := s.settled(request{Make: []string{name}})
		if r.Failed[name] == "" || len(r.Made) > 0 {
			t.Errorf("make %q: %+v", name, r)
		}
		r = s.settled(request{Remove: []string{name}})
		if r.Failed[name] == "" || len(r.Removed) > 0 {
			t.Errorf("remove %q: %+v", name, r)
		}
	}
	// A link with the name of a volume goes, not what it leads to.
	if err := os.Symlink(victim, filepath.Join(s.root, one)); err != nil {
		t.Fatal(err)
	}
	if r := s.settled(request{Make: []string{one}}); r.Failed[one] == "" {
		t.Errorf("a link as a volume: %+v", r)
	}
	s.settled(request{Remove: []string{one}})
	if r := s.settled(request{Remove: []string{one}}); !slices.Equal(r.Removed, []string{one}) {
		t.Errorf("%+v", r)
	}
	if !exists(victim) {
		t.Error("what the link led to is gone")
	}
}

func TestMountedIsKept(t *testing.T) {
	s := newStore(t)
	at := filepath.Join(s.root, one, "with blank")
	if err := os.MkdirAll(at, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", at, "tmpfs", 0, ""); err != nil {
		t.Skip("mounting: ", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(at, 0) })
	if err := os.WriteFile(filepath.Join(at, "kept"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if r := s.settled(request{Remove: []string{one}}); !strings.Contains(r.Failed[one], "with blank is mounted") || !exists(filepath.Join(at, "kept")) {
		t.Errorf("%+v", r)
	}
	if err := syscall.Unmount(at, 0); err != nil {
		t.Fatal(err)
	}
	s.settled(request{Remove: []string{one}})
	if r := s.settled(request{Remove: []string{one}}); !slices.Equal(r.Removed, []string{one}) {
		t.Errorf("after unmounting: %+v", r)
	}
}

func TestNoRoom(t *testing.T) {
	s := newStore(t)
	if err := os.MkdirAll(filepath.Dir(s.root), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.root, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if r := s.settled(request{Make: []string{one}, Remove: []string{two}}); r.Failed[one] == "" || r.Failed[two] == "" || len(r.Made)+len(r.Removed) > 0 {
		t.Errorf("%+v", r)
	}
}
