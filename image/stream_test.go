package image_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skerry-os/skerry/boards"
	"github.com/skerry-os/skerry/image"
	"github.com/skerry-os/skerry/image/releasetest"
)

func TestAStreamHasTheBytesOfTheImage(t *testing.T) {
	b := releasetest.New(t, 1<<20)
	board, err := boards.Load("x86-uefi")
	if err != nil {
		t.Fatal(err)
	}
	p, err := image.New(board, b.Signed, image.Config{Name: "n", Data: []byte(releasetest.Config)}, image.Options{})
	if err != nil {
		t.Fatal(err)
	}
	files := os.DirFS(b.Release)
	name := filepath.Join(t.TempDir(), "x.img")
	if err := image.Create(t.Context(), p, files, name, image.Raw); err != nil {
		t.Fatal(err)
	}
	want, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer want.Close() //nolint:errcheck // only read
	s := image.NewStream(p, files)
	if _, err := io.CopyN(io.Discard, s, 300<<20); err != nil { // into the first root
		t.Fatal(err)
	}
	if _, err := s.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	x, y := make([]byte, 1<<20), make([]byte, 1<<20)
	for at := int64(0); at < p.Size; at += int64(len(x)) {
		if _, err := io.ReadFull(want, x); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(s, y); err != nil || !bytes.Equal(x, y) {
			t.Fatalf("from byte %d: %v", at, err)
		}
	}
	if n, err := s.Read(x); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("behind the end: %d, %v", n, err)
	}
	if _, err := s.Seek(5, io.SeekStart); err == nil {
		t.Error("seeks into the middle")
	}
	root := filepath.Join(b.Release, "root.img")
	data, err := os.ReadFile(root)
	if err != nil {
		t.Fatal(err)
	}
	for says, bad := range map[string][]byte{"sha256 is": append(bytes.Clone(data[:len(data)-1]), data[len(data)-1]^1), "before the manifest says": data[:len(data)-9]} {
		if err := os.WriteFile(root, bad, 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, image.NewStream(p, files)); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", says, err)
		}
	}
}
