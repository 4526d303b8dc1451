package update_test

import (
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/skerry-os/skerry/pkg/repository"
	"github.com/skerry-os/skerry/pkg/slot"
)

// serve makes the source a web server that answers as f says.
func (b *bench) serve(f func(w http.ResponseWriter, r *http.Request, files http.Handler)) {
	b.t.Helper()
	files := http.FileServer(http.Dir(b.repo))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { f(w, r, files) }))
	b.t.Cleanup(server.Close)
	var err error
	b.src, err = repository.NewSource(server.URL, server.Client())
	check(b.t, err)
}

// A release whose every block differs by some bytes travels as a patch of root and kernel image. A patch that is damaged, missing,
// or for another release costs what blocks cost, and nothing else; a connection that breaks costs nothing.
func TestPatchesTravel(t *testing.T) {
	is := func(r *http.Request, kind string) bool {
		return strings.Contains(r.URL.Path, kind) && strings.HasSuffix(r.URL.Path, ".patch")
	}
	all := func(w http.ResponseWriter, r *http.Request, files http.Handler) { files.ServeHTTP(w, r) }
	damaged := func(kind string) func(http.ResponseWriter, *http.Request, http.Handler) {
		return func(w http.ResponseWriter, r *http.Request, files http.Handler) {
			if is(r, kind) && !strings.HasPrefix(r.Header.Get("Range"), "bytes=0-") {
				r.Header.Set("Range", "bytes=24-") // what came before
			}
			files.ServeHTTP(w, r)
		}
	}
	missing := func(kind string) func(http.ResponseWriter, *http.Request, http.Handler) {
		return func(w http.ResponseWriter, r *http.Request, files http.Handler) {
			if is(r, kind) {
				http.NotFound(w, r)
				return
			}
			files.ServeHTTP(w, r)
		}
	}
	breaks := 0
	for name, c := range map[string]struct {
		answer        func(http.ResponseWriter, *http.Request, http.Handler)
		root, kernel  bool // travel as patches
		another, none bool // the machine runs a release that the repository does not have; no patches were made
	}{
		"all is well":        {answer: all, root: true, kernel: true},
		"the root's damaged": {answer: damaged("root.img"), kernel: true},
		"the kernel's":       {answer: damaged(".efi"), root: true},
		"the root's missing": {answer: missing("root.img"), kernel: true},
		"the kernel's, too":  {answer: missing(""), root: false},
		"of another release": {answer: all, another: true},
		"none were made":     {answer: all, none: true},
		"the connection goes": {answer: func(w http.ResponseWriter, r *http.Request, files http.Handler) {
			if is(r, "") && r.Header.Get("Range") != "" && !strings.HasPrefix(r.Header.Get("Range"), "bytes=0-") {
				if breaks++; breaks == 1 {
					panic(http.ErrAbortHandler)
				}
			}
			files.ServeHTTP(w, r)
		}, root: true, kernel: true},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			if !c.another {
				b.put(b.one)
			}
			next := b.one.Relinked(t, "1.1.0")
			if c.none {
				_, err := repository.Publish(b.repo, b.roles, next.Signed, os.DirFS(next.Release), repository.PublishOptions{Now: now})
				check(t, err)
			} else {
				b.put(next)
			}
			b.serve(c.answer)
			check(t, b.apply())
			booted := b.boot()
			b.runs(booted, slot.B, true, "1.1.0")
			r, err := b.store.Load()
			check(t, err)
			m := next.Signed.Manifest()
			least, most := int64(0), int64(40_000)
			if !c.root {
				least, most = least+m.Root.Size*8/10, most+m.Root.Size*11/10+40_000
			}
			if kernel := m.Boards["x86-uefi"].Boot.Size; !c.kernel {
				least, most = least+kernel, most+kernel+20_000
			}
			if r.Fetched < least || r.Fetched > most {
				t.Errorf("%d bytes travelled of %d; want %d to %d", r.Fetched, r.Whole, least, most)
			}
		})
	}
}
