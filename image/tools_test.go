package image

import (
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/skerry-os/skerry/boards"
	"github.com/skerry-os/skerry/image/imagetest"
	"github.com/skerry-os/skerry/image/releasetest"
)

// Programs that share no line with ours read the image and find what we meant. Each skips by itself where it is missing.
func TestIndependentToolsAgree(t *testing.T) {
	r := releasetest.New(t, 3<<20)
	board, err := boards.Load("x86-uefi")
	if err != nil {
		t.Fatal(err)
	}
	p, err := New(board, r.Signed, Config{Name: "node.yaml", Data: []byte(releasetest.Config)}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	img := built(t, r, p, Raw)
	part := map[string]string{}
	for _, q := range p.Partitions {
		part[q.Name] = cutOut(t, img, q.Name, q.Start, q.Size)
	}
	root := r.Signed.Manifest().Root

	t.Run("sgdisk", func(t *testing.T) {
		sgdisk := imagetest.Tool(t, "sgdisk", "gdisk")
		if out := imagetest.Run(t, sgdisk, "-v", img); !strings.Contains(out, "No problems found") {
			t.Error(out)
		}
		out := imagetest.Run(t, sgdisk, "-p", img)
		for _, q := range p.Partitions {
			if !strings.Contains(out, q.Name) {
				t.Errorf("sgdisk sees no %s:\n%s", q.Name, out)
			}
		}
	})
	t.Run("fsck.vfat", func(t *testing.T) {
		fsck := imagetest.Tool(t, "fsck.vfat", "dosfstools")
		for _, name := range []string{boards.ESP, boards.Config} {
			out := imagetest.Run(t, fsck, "-n", part[name])
			if lines := strings.Split(strings.TrimSpace(out), "\n"); len(lines) != 2 { // its version, and a count of files
				t.Errorf("%s: fsck.vfat has something to say:\n%s", name, out)
			}
		}
	})
	t.Run("mtools", func(t *testing.T) {
		mdir, mtype := imagetest.Tool(t, "mdir", "mtools"), imagetest.Tool(t, "mtype", "mtools")
		out := imagetest.Run(t, mdir, "-/", "-b", "-i", part[boards.ESP], "::")
		want := "::/EFI/BOOT/BOOTX64.EFI ::/EFI/Linux/os-a.efi ::/EFI/Linux/os-b.efi ::/loader/keys/auto/KEK.auth " +
			"::/loader/keys/auto/PK.auth ::/loader/keys/auto/db.auth ::/loader/loader.conf"
		for _, name := range strings.Fields(want) {
			if !strings.Contains(out, name+"\n") {
				t.Errorf("mdir sees no %s:\n%s", name, out)
			}
		}
		if out := imagetest.Run(t, mtype, "-i", part[boards.ESP], "::/loader/loader.conf"); out != string(loaderConf(true)) {
			t.Errorf("loader.conf: %q", out)
		}
		if out := imagetest.Run(t, mtype, "-i", part[boards.Config], "::/config.yaml"); out != releasetest.Config {
			t.Errorf("config.yaml: %q", out)
		}
	})
	t.Run("fsck.erofs", func(t *testing.T) {
		fsck := imagetest.Tool(t, "fsck.erofs", "erofs-utils")
		for _, name := range []string{"root-a", "root-b"} {
			imagetest.Run(t, fsck, "--extract", part[name])
		}
	})
	t.Run("veritysetup", func(t *testing.T) {
		veritysetup := imagetest.Tool(t, "veritysetup", "cryptsetup-bin")
		for _, name := range []string{"root-a", "root-b"} {
			imagetest.Run(t, veritysetup, "verify", "--no-superblock", "--format=1", "--hash=sha256", "--data-block-size=4096", "--hash-block-size=4096",
				"--data-blocks="+strconv.FormatInt(root.DataSize/4096, 10), "--hash-offset="+strconv.FormatInt(root.DataSize, 10), "--salt="+root.Salt, part[name], part[name], root.RootHash)
		}
	})
	t.Run("sbverify", func(t *testing.T) {
		sbverify, mcopy := imagetest.Tool(t, "sbverify", "sbsigntool"), imagetest.Tool(t, "mcopy", "mtools")
		cert := r.DBCert(t)
		for _, name := range []string{"EFI/BOOT/BOOTX64.EFI", "EFI/Linux/os-a.efi", "EFI/Linux/os-b.efi"} {
			file := filepath.Join(t.TempDir(), "x.efi")
			imagetest.Run(t, mcopy, "-i", part[boards.ESP], "::/"+name, file)
			if out := imagetest.Run(t, sbverify, "--cert", cert, file); !strings.Contains(out, "Signature verification OK") {
				t.Errorf("%s: %s", name, out)
			}
		}
	})
}

// cutOut copies a partition into a file of its own.
func cutOut(t *testing.T, img, name string, start, size int64) string {
	t.Helper()
	in, err := os.Open(img)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = in.Close() }()
	file := filepath.Join(t.TempDir(), name)
	out, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := out.Truncate(size); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 1<<20)
	for at := int64(0); at < size; at += int64(len(buf)) {
		n, err := in.ReadAt(buf[:min(int64(len(buf)), size-at)], start+at)
		if err != nil && err != io.EOF {
			t.Fatal(err)
		}
		if err := writeBlocks(out, buf[:n], at); err != nil {
			t.Fatal(err)
		}
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	return file
}
