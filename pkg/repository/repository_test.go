package repository_test

import (
	"bytes"
	"context"
	"crypto"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/skerry-os/skerry/image/imagetest"
	"github.com/skerry-os/skerry/image/releasetest"
	"github.com/skerry-os/skerry/pkg/keys"
	"github.com/skerry-os/skerry/pkg/release"
	"github.com/skerry-os/skerry/pkg/repository"
)

var now = time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

type bench struct {
	*releasetest.Bench
	t     *testing.T
	dir   string // repository
	keys  string // role keys
	roles *repository.Roles
	state string // a machine's memory
	root  []byte
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{Bench: releasetest.New(t, 1<<20), t: t, dir: filepath.Join(t.TempDir(), "repo"), keys: filepath.Join(t.TempDir(), "roles"), state: t.TempDir()}
	var err error
	b.roles, err = repository.NewRoles(b.keys, now)
	check(t, err)
	b.root, err = b.roles.Root()
	check(t, err)
	return b
}

// version makes the release another version.
func (b *bench) version(v string) {
	b.t.Helper()
	m := *b.Signed.Manifest()
	m.Version = v
	b.Sign(b.t, &m)
}

func (b *bench) publish(o repository.PublishOptions) {
	b.t.Helper()
	if o.Now.IsZero() {
		o.Now = now
	}
	_, err := repository.Publish(b.dir, b.roles, b.Signed, os.DirFS(b.Release), o)
	check(b.t, err)
}

// look is a machine's, over the wire.
func (b *bench) look(at time.Time) (*repository.Catalog, error) {
	server := httptest.NewServer(http.FileServer(http.Dir(b.dir)))
	b.t.Cleanup(server.Close)
	src, err := repository.NewSource(server.URL, server.Client())
	check(b.t, err)
	c := repository.Client{Source: src, Root: b.root, Dir: b.state, Now: at}
	return c.Look(context.Background())
}

func (b *bench) file(name string) string { return filepath.Join(b.dir, "metadata", name) }

func (b *bench) verify(manifest, sig []byte) (*release.Release, error) {
	return release.Verify(manifest, sig, b.Trusted())
}

var me = repository.Machine{Arch: "amd64", Board: "x86-uefi", Version: "1.0.0", Seed: "m"}

func TestPublishAndFetch(t *testing.T) {
	b := newBench(t)
	b.publish(repository.PublishOptions{})
	server := httptest.NewServer(http.FileServer(http.Dir(b.dir)))
	defer server.Close()
	for _, where := range []string{b.dir, server.URL + "/"} {
		src, err := repository.NewSource(where, http.DefaultClient)
		check(t, err)
		k, err := (&repository.Client{Source: src, Root: b.root, Dir: t.TempDir(), Now: now}).Look(t.Context())
		check(t, err)
		o, err := repository.Choose(k.Offers, me, now)
		check(t, err)
		p, err := k.Package(t.Context(), o, b.verify)
		check(t, err)
		if have := p.Release.Manifest().Kubernetes; have == "" || o.Kubernetes != have {
			t.Errorf("the offer has Kubernetes %q, the release %q", o.Kubernetes, have)
		}
		want, err := os.ReadFile(filepath.Join(b.Release, "root.img"))
		check(t, err)
		r, err := p.Root(t.Context(), 4096, 8192)
		check(t, err)
		got, err := io.ReadAll(r)
		check(t, errors.Join(err, r.Close()))
		if !bytes.Equal(got, want[4096:12288]) {
			t.Error("a part of the root is not what it is")
		}
		z, _, err := p.Compressed(t.Context())
		check(t, err)
		dec, err := zstd.NewReader(z)
		check(t, err)
		got, err = io.ReadAll(dec)
		check(t, err)
		dec.Close()
		if !bytes.Equal(got, want) {
			t.Error("the compressed root is another")
		}
		kernel, f, err := p.Kernel(t.Context(), "x86-uefi")
		check(t, err)
		check(t, f.Check(kernel))
		if _, _, err := p.Kernel(t.Context(), "toaster"); err == nil {
			t.Error("a kernel for a board that is not there")
		}
	}
	if _, err := repository.NewSource("ftp://x", nil); err == nil {
		t.Error("ftp was taken")
	}
}

// Whoever holds the web server, and not the keys, gets nothing past a machine that has looked once.
func TestAttacks(t *testing.T) {
	copyOf := func(t *testing.T, dir string) string {
		t.Helper()
		to := filepath.Join(t.TempDir(), "copy")
		check(t, os.CopyFS(to, os.DirFS(dir)))
		return to
	}
	refused := func(t *testing.T, b *bench, at time.Time) {
		t.Helper()
		if _, err := b.look(at); !errors.Is(err, repository.ErrUntrusted) {
			t.Errorf("got %v", err)
		}
	}
	grown := func(t *testing.T) (*bench, string) { // a repository of two days, and a copy of the first day
		t.Helper()
		b := newBench(t)
		b.publish(repository.PublishOptions{})
		old := copyOf(t, b.dir)
		b.version("1.3.0")
		b.publish(repository.PublishOptions{Now: now.Add(time.Hour)})
		_, err := b.look(now)
		check(t, err)
		return b, old
	}
	t.Run("expired (freeze)", func(t *testing.T) {
		b, _ := grown(t)
		refused(t, b, now.Add(31*24*time.Hour))
	})
	t.Run("replayed", func(t *testing.T) {
		b, old := grown(t)
		b.dir = old
		refused(t, b, now)
	})
	t.Run("an old snapshot under a new timestamp", func(t *testing.T) {
		b, _ := grown(t)
		data, err := os.ReadFile(b.file("1.snapshot.json"))
		check(t, err)
		check(t, os.WriteFile(b.file("2.snapshot.json"), data, 0o644))
		b.state = t.TempDir()
		refused(t, b, now)
	})
	t.Run("targets of another day", func(t *testing.T) {
		b, _ := grown(t)
		data, err := os.ReadFile(b.file("1.targets.json"))
		check(t, err)
		check(t, os.WriteFile(b.file("2.targets.json"), data, 0o644))
		b.state = t.TempDir()
		refused(t, b, now)
	})
	t.Run("the newest of one day and the oldest of another (mix and match)", func(t *testing.T) {
		b, old := grown(t)
		for _, name := range []string{"1.snapshot.json", "1.targets.json"} {
			data, err := os.ReadFile(filepath.Join(old, "metadata", name))
			check(t, err)
			check(t, os.WriteFile(b.file(strings.Replace(name, "1.", "2.", 1)), data, 0o644))
		}
		b.state = t.TempDir() // what a machine saw it does not ask for again
		refused(t, b, now)
	})
	t.Run("oversized", func(t *testing.T) {
		b, _ := grown(t)
		check(t, os.WriteFile(b.file("timestamp.json"), bytes.Repeat([]byte(" "), 1<<20), 0o644))
		refused(t, b, now)
	})
	t.Run("endless", func(t *testing.T) {
		b, _ := grown(t)
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			for {
				if _, err := w.Write(make([]byte, 64<<10)); err != nil {
					return
				}
			}
		}))
		defer server.Close()
		src, err := repository.NewSource(server.URL, http.DefaultClient)
		check(t, err)
		if _, err := (&repository.Client{Source: src, Root: b.root, Dir: b.state, Now: now}).Look(t.Context()); !errors.Is(err, repository.ErrUntrusted) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("signed by others", func(t *testing.T) {
		b, _ := grown(t)
		other := newBench(t)
		other.publish(repository.PublishOptions{})
		b.dir = other.dir
		refused(t, b, now)
		b.state = t.TempDir()
		refused(t, b, now)
	})
	t.Run("one byte of the targets", func(t *testing.T) {
		b, _ := grown(t)
		data, err := os.ReadFile(b.file("2.targets.json"))
		check(t, err)
		check(t, os.WriteFile(b.file("2.targets.json"), bytes.Replace(data, []byte("1.3.0"), []byte("1.3.1"), 1), 0o644))
		b.state = t.TempDir()
		refused(t, b, now)
	})
	t.Run("another manifest", func(t *testing.T) {
		b, _ := grown(t)
		check(t, filepath.WalkDir(filepath.Join(b.dir, "targets"), func(name string, _ fs.DirEntry, err error) error {
			if strings.HasSuffix(name, ".manifest.json") {
				return os.WriteFile(name, []byte("{}"), 0o644)
			}
			return err
		}))
		k, err := b.look(now)
		check(t, err)
		if _, err := k.Package(t.Context(), k.Offers[0], b.verify); !errors.Is(err, repository.ErrUntrusted) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("not there", func(t *testing.T) {
		b, _ := grown(t)
		b.dir = t.TempDir()
		if _, err := b.look(now); !errors.Is(err, repository.ErrUnreachable) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("a release key that is not trusted", func(t *testing.T) {
		b, _ := grown(t)
		k, err := b.look(now)
		check(t, err)
		_, err = k.Package(t.Context(), k.Offers[0], func(manifest, sig []byte) (*release.Release, error) { return release.Verify(manifest, sig, nil) })
		if !errors.Is(err, release.ErrUntrusted) {
			t.Errorf("got %v", err)
		}
	})
}

// A machine that was baked with the first root follows every rotation; the old keys are worth nothing then.
func TestRotation(t *testing.T) {
	b := newBench(t)
	b.publish(repository.PublishOptions{})
	stolen := filepath.Join(t.TempDir(), "stolen")
	check(t, os.CopyFS(stolen, os.DirFS(b.keys)))
	for _, role := range repository.RoleNames {
		check(t, os.Chmod(filepath.Join(stolen, role+".key"), 0o600))
	}
	for _, role := range repository.RoleNames {
		check(t, b.roles.Rotate(role, keys.Source{}, now))
	}
	var err error
	b.roles, err = repository.LoadRoles(b.keys, nil)
	check(t, err)
	check(t, repository.Refresh(b.dir, b.roles, repository.PublishOptions{Now: now}))
	_, err = b.look(now)
	check(t, err)
	thief, err := repository.LoadRoles(stolen, nil)
	check(t, err)
	check(t, repository.Refresh(b.dir, thief, repository.PublishOptions{Now: now}))
	if _, err := b.look(now); !errors.Is(err, repository.ErrUntrusted) {
		t.Errorf("keys that were rotated away still count: %v", err)
	}
	if err := b.roles.Rotate("king", keys.Source{}, now); err == nil {
		t.Error("a role that there is not")
	}
}

func TestSignWith(t *testing.T) {
	b := newBench(t)
	// The other side: a program of another make that alone has the key.
	elsewhere := t.TempDir()
	check(t, os.Rename(filepath.Join(b.keys, "targets.key"), filepath.Join(elsewhere, "targets.key")))
	script := filepath.Join(elsewhere, "sign")
	check(t, os.WriteFile(script, []byte("#!/bin/sh\nset -e\ncat >\"$0.in\"\nopenssl pkeyutl -sign -rawin -inkey \"$(dirname \"$0\")/$1.key\" -in \"$0.in\" | od -An -tx1 -v | tr -d ' \\n'\n"), 0o755))
	roles, err := repository.LoadRoles(b.keys, nil)
	check(t, err)
	if _, err := repository.Publish(b.dir, roles, b.Signed, os.DirFS(b.Release), repository.PublishOptions{Now: now}); err == nil || !strings.Contains(err.Error(), "--sign-with") {
		t.Errorf("without the key: %v", err)
	}
	b.roles, err = repository.LoadRoles(b.keys, []string{script})
	check(t, err)
	b.publish(repository.PublishOptions{})
	_, err = b.look(now)
	check(t, err)
	// A root key that is there and its successor: the old one goes by its own name to the end.
	check(t, os.Rename(filepath.Join(b.keys, "root.key"), filepath.Join(elsewhere, "root.key")))
	b.roles, err = repository.LoadRoles(b.keys, []string{script})
	check(t, err)
	next, err := keys.Source{}.MakePublic(elsewhere, "root-2")
	check(t, err)
	check(t, b.roles.Rotate("root", keys.Source{Public: map[string]crypto.PublicKey{"root": next.Public()}, Label: "root-2", Sign: []string{script}}, now))
	check(t, b.roles.Rotate("snapshot", keys.Source{Sign: []string{script}}, now))
	b.publish(repository.PublishOptions{})
	_, err = b.look(now)
	check(t, err)
	if left, _ := filepath.Glob(filepath.Join(b.keys, "root*.key")); len(left) > 0 {
		t.Errorf("the root key is in the folder: %v", left)
	}
	check(t, os.WriteFile(script, []byte("#!/bin/sh\necho 00\n"), 0o755))
	if _, err := repository.Publish(b.dir, b.roles, b.Signed, os.DirFS(b.Release), repository.PublishOptions{Now: now}); err == nil {
		t.Error("a signature that is none was published")
	}
}

func TestSameVersionOtherContent(t *testing.T) {
	b := newBench(t)
	b.publish(repository.PublishOptions{})
	b.publish(repository.PublishOptions{Stone: true}) // the same content: only the notice changes
	m := *b.Signed.Manifest()
	m.Kubernetes = "v1.99.0"
	b.Sign(t, &m)
	if _, err := repository.Publish(b.dir, b.roles, b.Signed, os.DirFS(b.Release), repository.PublishOptions{Now: now}); err == nil {
		t.Error("one version with two contents")
	}
}

func TestChoose(t *testing.T) {
	offer := func(v string, change ...func(*repository.Notice)) repository.Offer {
		n := repository.Notice{Version: v, Arch: "amd64", Boards: []string{"x86-uefi"}, Channel: "stable", Published: now}
		for _, f := range change {
			f(&n)
		}
		return repository.Offer{Notice: n}
	}
	stone := func(n *repository.Notice) { n.Stone = true }
	minimum := func(v string) func(*repository.Notice) { return func(n *repository.Notice) { n.Minimum = v } }
	later := func(n *repository.Notice) { n.Waves = []repository.Wave{{After: time.Hour, Percent: 100}} }
	for _, tt := range []struct {
		name   string
		offers []repository.Offer
		change func(*repository.Machine)
		want   string
	}{
		{"newest", []repository.Offer{offer("1.1.0"), offer("1.3.0"), offer("1.2.0")}, nil, "1.3.0"},
		{"never older", []repository.Offer{offer("0.9.0"), offer("1.0.0")}, nil, ""},
		{"stone first", []repository.Offer{offer("1.1.0"), offer("1.2.0", stone), offer("1.3.0")}, nil, "1.2.0"},
		{"behind the stone", []repository.Offer{offer("1.2.0", stone), offer("1.3.0")}, func(m *repository.Machine) { m.Version = "1.2.0" }, "1.3.0"},
		{"minimum", []repository.Offer{offer("1.1.0"), offer("1.3.0", minimum("1.1.0"))}, nil, "1.1.0"},
		{"failed", []repository.Offer{offer("1.1.0"), offer("1.3.0")}, func(m *repository.Machine) { m.Failed = map[string]bool{"1.3.0": true} }, "1.1.0"},
		{"forced", []repository.Offer{offer("1.3.0")}, func(m *repository.Machine) { m.Failed = map[string]bool{"1.3.0": true}; m.Force = true }, "1.3.0"},
		{"another channel", []repository.Offer{offer("1.3.0", func(n *repository.Notice) { n.Channel = "beta" })}, nil, ""},
		{"another board", []repository.Offer{offer("1.3.0", func(n *repository.Notice) { n.Boards = []string{"rpi4"} })}, nil, ""},
		{"another arch", []repository.Offer{offer("1.3.0", func(n *repository.Notice) { n.Arch = "arm64" })}, nil, ""},
		{"wave to come", []repository.Offer{offer("1.3.0", later)}, nil, ""},
	} {
		m := me
		if tt.change != nil {
			tt.change(&m)
		}
		got, err := repository.Choose(tt.offers, m, now)
		if got.Version != tt.want || (tt.want == "") != errors.Is(err, repository.ErrUpToDate) {
			t.Errorf("%s: %q, %v", tt.name, got.Version, err)
		}
	}
	if got, err := repository.Choose([]repository.Offer{offer("1.3.0", later)}, me, now.Add(time.Hour)); err != nil || got.Version != "1.3.0" {
		t.Errorf("the wave has come: %v", err)
	}
	// A tenth of many machines is in a wave of ten percent.
	first := offer("1.3.0", func(n *repository.Notice) {
		n.Waves = []repository.Wave{{Percent: 10}, {After: time.Hour, Percent: 100}}
	})
	in := 0
	for i := range 2000 {
		m := me
		m.Seed = strings.Repeat("x", i)
		if _, err := repository.Choose([]repository.Offer{first}, m, now); err == nil {
			in++
		}
	}
	if in < 140 || in > 260 {
		t.Errorf("%d of 2000 machines are in the first tenth", in)
	}
}

// A stick with the folder on it is a source like any other.
func TestStick(t *testing.T) {
	b := newBench(t)
	b.publish(repository.PublishOptions{})
	img := filepath.Join(t.TempDir(), "stick")
	f, err := os.Create(img)
	check(t, err)
	check(t, errors.Join(f.Truncate(64<<20), f.Close()))
	imagetest.Run(t, imagetest.Tool(t, "mkfs.vfat", "dosfstools"), "-F", "32", img)
	mcopy := imagetest.Tool(t, "mcopy", "mtools")
	if _, err := repository.NewStick("empty", open(t, img), 64<<20); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an empty stick: %v", err)
	}
	imagetest.Run(t, mcopy, "-s", "-i", img, b.dir, "::/skerry")
	src, err := repository.NewStick("stick", open(t, img), 64<<20)
	check(t, err)
	k, err := (&repository.Client{Source: src, Root: b.root, Dir: t.TempDir(), Now: now}).Look(t.Context())
	check(t, err)
	p, err := k.Package(t.Context(), k.Offers[0], b.verify)
	check(t, err)
	r, err := p.Root(t.Context(), 8192, 40960)
	check(t, err)
	got, err := io.ReadAll(r)
	check(t, err)
	want, err := os.ReadFile(filepath.Join(b.Release, "root.img"))
	check(t, err)
	if !bytes.Equal(got, want[8192:8192+40960]) {
		t.Error("a part of the root is not what it is")
	}
}

func open(t *testing.T, name string) *os.File {
	t.Helper()
	f, err := os.Open(name)
	check(t, err)
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// Patches are made from the newest releases of the channel that may go over to the new one, as many as was said, and from what the
// repository still has.
func TestPatchesOf(t *testing.T) {
	b := newBench(t)
	var files []string
	publish := func(v string, o repository.PublishOptions) map[string]bool {
		t.Helper()
		b.Bench = b.Relinked(t, v)
		sum := b.Signed.Manifest().Root.SHA256
		files = append(files, filepath.Join(b.dir, "targets", "amd64", v, sum+".root.img"))
		var said []string
		o.Say = func(line string) { said = append(said, line) }
		b.publish(o)
		found, err := filepath.Glob(filepath.Join(b.dir, "targets", "amd64", v, "*.patch"))
		check(t, err)
		if (len(found) > 0) != strings.Contains(strings.Join(said, "\n"), "patches from release ") {
			t.Errorf("%d patches: says %q", len(found), said)
		}
		out := map[string]bool{}
		for _, name := range found {
			_, name, _ = strings.Cut(filepath.Base(name), ".")
			out[name] = true
		}
		return out
	}
	digest := func(n int) string { return filepath.Base(files[n])[:16] }
	want := func(got map[string]bool, roots ...int) {
		t.Helper()
		if len(got) != 2*len(roots) {
			t.Errorf("%d patches: %v; want %d of roots and as many of kernels", len(got), got, len(roots))
		}
		for _, n := range roots {
			if !got["root.img."+digest(n)+".patch"] {
				t.Errorf("none from release %d: %v", n, got)
			}
		}
	}
	want(publish("1.0.0", repository.PublishOptions{Patches: 3}))
	want(publish("1.1.0", repository.PublishOptions{}))
	want(publish("1.2.0", repository.PublishOptions{Patches: 3}), 0, 1)
	want(publish("1.3.0", repository.PublishOptions{Patches: 2}), 1, 2)
	want(publish("1.4.0", repository.PublishOptions{Patches: 3, Minimum: "1.3.0"}), 3)
	want(publish("1.5.0", repository.PublishOptions{Patches: 3, Channel: "edge"}))
	check(t, os.Remove(files[4]))
	if got := publish("1.6.0", repository.PublishOptions{Patches: 2}); got["root.img."+digest(4)+".patch"] || !got["root.img."+digest(3)+".patch"] {
		t.Errorf("after one root was deleted: %v", got)
	}
	check(t, os.WriteFile(files[3], []byte("something else"), 0o644))
	b.Bench = b.Relinked(t, "1.7.0")
	if _, err := repository.Publish(b.dir, b.roles, b.Signed, os.DirFS(b.Release), repository.PublishOptions{Now: now, Patches: 4}); err == nil || !strings.Contains(err.Error(), "root.img: is damaged") {
		t.Errorf("from a damaged root: %v", err)
	}
}
