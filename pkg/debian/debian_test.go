package debian

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

func pkg(data []byte) Package {
	sum := sha256.Sum256(data)
	return Package{Name: "nftables", Version: "1.0-1", File: "pool/main/n/nftables/nftables_1.0-1_amd64.deb", Size: int64(len(data)), SHA256: hex.EncodeToString(sum[:])}
}

func TestLockReadsBack(t *testing.T) {
	p := pkg([]byte("x"))
	p.Source, p.For = "nftables", "meta/sid"
	l := &Lock{Arches: map[string][]Package{"amd64": {p}}}
	data, err := l.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseLock("lock.yaml", data)
	if err != nil {
		t.Fatal(err)
	}
	if found, err := got.Find("amd64", "nftables"); err != nil || found != p {
		t.Errorf("%+v, %v", found, err)
	}
	for name, suite := range map[string]string{"meta": "sid", "nftables": "any"} {
		if found, err := got.Followed("amd64", name, suite); err != nil || len(found) != 1 || found[0] != p {
			t.Errorf("%s of %s: %+v, %v", name, suite, found, err)
		}
	}
	if found, err := got.Followed("amd64", "meta", "stable"); err == nil {
		t.Errorf("of another suite: %+v", found)
	}
	for arch, name := range map[string]string{"amd64": "other", "arm64": "nftables"} {
		if _, err := got.Find(arch, name); err == nil || !strings.Contains(err.Error(), "make lock") {
			t.Errorf("%s for %s: %v", name, arch, err)
		}
	}
	for old, bad := range map[string]string{
		p.SHA256: "abc", "pool/main/": "pool/../../etc/", "size: 1\n": "size: 0\n", "amd64:": "vax:", "name: nftables": "nom: nftables",
	} {
		if _, err := ParseLock("lock.yaml", bytes.Replace(data, []byte(old), []byte(bad), 1)); err == nil || !strings.Contains(err.Error(), "lock.yaml:") {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

func TestFetch(t *testing.T) {
	data := []byte("the package")
	p := pkg(data)
	var asked atomic.Int32
	mirror := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		if r.URL.Path != "/debian-security/"+p.File {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write(data)
	}))
	defer mirror.Close()
	s := &Store{Dir: t.TempDir(), Mirrors: []string{mirror.URL + "/debian/", mirror.URL + "/debian-security/"}, Retry: time.Millisecond}
	name, err := s.Fetch(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(name); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%q, %v", got, err)
	}
	before := asked.Load()
	if _, err := s.Fetch(t.Context(), p); err != nil || asked.Load() != before {
		t.Errorf("a cached package was asked for again (%v)", err)
	}
	if err := os.WriteFile(name, []byte("rotten"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Fetch(t.Context(), p); err != nil || asked.Load() == before {
		t.Errorf("a damaged cached package was taken (%v)", err)
	}
}

// What no mirror has is one clear error; what is not the locked bytes is never kept.
func TestFetchRefuses(t *testing.T) {
	data := []byte("the package")
	p := pkg(data)
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		want   string
		gone   bool
	}{
		"gone":    {http.NotFound, "nftables 1.0-1 (nftables_1.0-1_amd64.deb): is no longer on any mirror", true},
		"changed": {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("another one")) }, "the lock file says", false},
		"longer":  {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(append(data, 'x')) }, "is 12 bytes", false},
		"cut": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			_, _ = w.Write(data[:4])
		}, "unexpected EOF", false},
		"broken": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) }, "502", false},
	} {
		mirror := httptest.NewServer(c.answer)
		s := &Store{Dir: t.TempDir(), Mirrors: []string{mirror.URL + "/"}, Retry: time.Millisecond}
		_, err := s.Fetch(t.Context(), p)
		if err == nil || !strings.Contains(err.Error(), c.want) || errors.Is(err, ErrGone) != c.gone {
			t.Errorf("%s: %v", name, err)
		}
		if c.gone && !strings.Contains(err.Error(), "make lock") {
			t.Errorf("%s: says no remedy: %v", name, err)
		}
		err = filepath.WalkDir(s.Dir, func(p string, d os.DirEntry, err error) error {
			if err == nil && !d.IsDir() {
				t.Errorf("%s: left %s behind", name, p)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
		mirror.Close()
	}
	if _, err := (&Store{Dir: t.TempDir()}).Fetch(t.Context(), p); !errors.Is(err, ErrNoMirror) {
		t.Errorf("without a mirror: %v", err)
	}
}

// A mirror in mid-sync fails first and works a little later.
func TestFetchTriesAgain(t *testing.T) {
	data := []byte("the package")
	var n atomic.Int32
	mirror := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if n.Add(1) < 3 {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		_, _ = w.Write(data)
	}))
	defer mirror.Close()
	s := &Store{Dir: t.TempDir(), Mirrors: []string{mirror.URL + "/"}, Retry: time.Millisecond}
	if _, err := s.Fetch(t.Context(), pkg(data)); err != nil || n.Load() != 3 {
		t.Errorf("after %d tries: %v", n.Load(), err)
	}
	n.Store(0)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s.Dir = t.TempDir()
	if _, err := s.Fetch(ctx, pkg(data)); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
}

// deb builds a package file around one tar.
func deb(t testing.TB, member string, pack func(io.Writer) (io.WriteCloser, error), entries ...tar.Header) []byte {
	t.Helper()
	var data bytes.Buffer
	z, err := pack(&data)
	if err != nil {
		t.Fatal(err)
	}
	tw := tar.NewWriter(z)
	for _, h := range entries {
		body := ""
		if h.Typeflag == tar.TypeReg {
			body = "content of " + h.Name
			h.Size = int64(len(body))
		}
		if err := tw.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(tw, body); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(tw.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	out := bytes.NewBufferString("!<arch>\n")
	add := func(name string, b []byte) {
		fmt.Fprintf(out, "%-16s%-12d%-6d%-6d%-8o%-10d`\n", name, 0, 0, 0, 0o100644, len(b))
		out.Write(b)
		if len(b)%2 == 1 {
			out.WriteByte('\n')
		}
	}
	add("debian-binary", []byte("2.0\n"))
	add("control.tar.xz", []byte("odd"))
	add(member, data.Bytes())
	return out.Bytes()
}

func packXZ(w io.Writer) (io.WriteCloser, error)   { return xz.NewWriter(w) }
func packZstd(w io.Writer) (io.WriteCloser, error) { return zstd.NewWriter(w) }

// extractInGo is Extract on a host without dpkg-deb.
func extractInGo(data []byte, dir string) error {
	r, err := dataMember(bufio.NewReader(bytes.NewReader(data)))
	if err != nil {
		return err
	}
	return extractTar(r, dir)
}

func TestExtract(t *testing.T) {
	entries := []tar.Header{
		{Typeflag: tar.TypeDir, Name: "./", Mode: 0o755},
		{Typeflag: tar.TypeDir, Name: "./usr/sbin/", Mode: 0o755},
		{Typeflag: tar.TypeReg, Name: "./usr/sbin/nft", Mode: 0o4755, Uid: 7},
		{Typeflag: tar.TypeSymlink, Name: "./usr/sbin/link", Linkname: "/etc/passwd"},
		{Typeflag: tar.TypeLink, Name: "./usr/sbin/hard", Linkname: "./usr/sbin/nft"},
	}
	for member, pack := range map[string]func(io.Writer) (io.WriteCloser, error){"data.tar.xz": packXZ, "data.tar.zst": packZstd} {
		dir := t.TempDir()
		if err := extractInGo(deb(t, member, pack, entries...), dir); err != nil {
			t.Fatalf("%s: %v", member, err)
		}
		st, err := os.Lstat(filepath.Join(dir, "usr/sbin/nft"))
		if err != nil || st.Mode() != 0o755 {
			t.Errorf("%s: nft is %v, %v: set-id bits must go", member, st, err)
		}
		if to, err := os.Readlink(filepath.Join(dir, "usr/sbin/link")); err != nil || to != "/etc/passwd" {
			t.Errorf("%s: link leads to %q, %v", member, to, err)
		}
		if got, err := os.ReadFile(filepath.Join(dir, "usr/sbin/hard")); err != nil || string(got) != "content of ./usr/sbin/nft" {
			t.Errorf("%s: hard link holds %q, %v", member, got, err)
		}
	}
}

// A package cannot write outside its folder, whatever its names and links say.
func TestExtractStaysInside(t *testing.T) {
	for name, entries := range map[string][]tar.Header{
		"through a link":   {{Typeflag: tar.TypeSymlink, Name: "out", Linkname: ".."}, {Typeflag: tar.TypeReg, Name: "out/x", Mode: 0o644}},
		"absolute link":    {{Typeflag: tar.TypeSymlink, Name: "out", Linkname: "/tmp"}, {Typeflag: tar.TypeReg, Name: "out/x-skerry", Mode: 0o644}},
		"hard link to out": {{Typeflag: tar.TypeSymlink, Name: "out", Linkname: "/etc"}, {Typeflag: tar.TypeLink, Name: "h", Linkname: "out/hostname"}},
		"device":           {{Typeflag: tar.TypeChar, Name: "null", Devmajor: 1, Devminor: 3}},
	} {
		dir := filepath.Join(t.TempDir(), "in")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := extractInGo(deb(t, "data.tar.xz", packXZ, entries...), dir); err == nil {
			t.Errorf("%s: was unpacked", name)
		}
		if left, err := os.ReadDir(filepath.Dir(dir)); err != nil || len(left) != 1 {
			t.Errorf("%s: wrote outside: %v, %v", name, left, err)
		}
	}
	dots := deb(t, "data.tar.xz", packXZ, tar.Header{Typeflag: tar.TypeReg, Name: "../../x", Mode: 0o644})
	dir := t.TempDir()
	if err := extractInGo(dots, dir); err != nil {
		t.Error(err)
	} else if _, err := os.Stat(filepath.Join(dir, "x")); err != nil {
		t.Errorf("dots were not cut off: %v", err)
	}
}

// dpkg-deb, where it is, unpacks to the same.
func TestDpkgDebAgrees(t *testing.T) {
	tool, err := exec.LookPath("dpkg-deb")
	if err != nil {
		t.Skip("dpkg-deb is not installed")
	}
	src := t.TempDir()
	for name, data := range map[string]string{"DEBIAN/control": "Package: x\nVersion: 1\nArchitecture: all\nMaintainer: x <x@x>\nDescription: x\n", "usr/share/x/a": "a", "usr/bin/b": "b"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(src, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(src, name), []byte(data), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(t.TempDir(), "x.deb")
	if out, err := exec.Command(tool, "--root-owner-group", "-b", src, file).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	with, without := t.TempDir(), t.TempDir()
	if err := Extract(t.Context(), file, with); err != nil {
		t.Fatal(err)
	}
	if err := extractInGo(data, without); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("diff", "-r", with, without).CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	if err := os.WriteFile(file, data[:len(data)/2], 0o644); err != nil {
		t.Fatal(err)
	}
	if err := Extract(t.Context(), file, t.TempDir()); err == nil {
		t.Error("half a package was unpacked")
	}
}

func TestUnpackOnce(t *testing.T) {
	data := deb(t, "data.tar.xz", packXZ, tar.Header{Typeflag: tar.TypeReg, Name: "./a", Mode: 0o644})
	p := pkg(data)
	s := &Store{Dir: t.TempDir()}
	if err := os.MkdirAll(filepath.Dir(s.file(p)), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.file(p), data, 0o644); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", "/nonexistent") // also without dpkg-deb
	dir, err := s.Unpack(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "a")); err != nil || string(got) != "content of ./a" {
		t.Errorf("%q, %v", got, err)
	}
	if err := os.Remove(s.file(p)); err != nil {
		t.Fatal(err)
	}
	if again, err := s.Unpack(t.Context(), p); err != nil || again != dir {
		t.Errorf("second time: %s, %v", again, err)
	}
}

func TestMirrorsOfAPerson(t *testing.T) {
	m := NewMirrors([]string{"http://m.example/debian", "http://m.example/debian-security/"})
	if strings.Join(m.All(), " ") != "http://m.example/debian/ http://m.example/debian-security/" || len(m.Security) != 1 {
		t.Errorf("%+v", m)
	}
}

func TestSummaryPicksErrors(t *testing.T) {
	for said, want := range map[string]string{
		"W: old\nE: Failed to fetch x\n   size\nE: Some index files failed\n": "Failed to fetch x; Some index files failed",
		"1\n2\n3\n4\n5\n": "2; 3; 4; 5",
		"":                "",
	} {
		if got := summary(said); got != want {
			t.Errorf("%q: %q", said, got)
		}
	}
}

func TestWantIsChecked(t *testing.T) {
	if _, err := ParseWant("w.yaml", []byte("suite: s\ncomponents: [main]\narches: [amd64]\npackages: [{name: a}, {name: b, suite: s-backports}]\n")); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{"suite: s\n", "suite: s\ncomponents: [main]\narches: [vax]\npackages: [{name: a}]\n"} {
		if _, err := ParseWant("w.yaml", []byte(bad)); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func FuzzExtract(f *testing.F) {
	f.Add(deb(f, "data.tar.zst", packZstd, tar.Header{Typeflag: tar.TypeReg, Name: "./a", Mode: 0o644}))
	f.Fuzz(func(t *testing.T, data []byte) { _ = extractInGo(data, t.TempDir()) })
}
