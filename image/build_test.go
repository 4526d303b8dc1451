package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skerry-os/skerry/boards"
	"github.com/skerry-os/skerry/image/cloud"
	"github.com/skerry-os/skerry/image/imagetest"
	"github.com/skerry-os/skerry/image/releasetest"
	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/release"
	"github.com/skerry-os/skerry/pkg/size"
)

// testBoard is x86-uefi cut down, so that tests which read a whole disk over and over are quick.
func testBoard(t testing.TB) *boards.Board {
	t.Helper()
	b, err := boards.Load("x86-uefi")
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range b.Disk.Partitions {
		b.Disk.Partitions[i].Size = map[string]size.Bytes{boards.ESP: 36, boards.Root: 6, boards.Config: 35, boards.Data: 4}[p.Name] * size.MiB
	}
	return b
}

func newPlan(t testing.TB, r *releasetest.Bench, o Options) *Plan {
	t.Helper()
	p, err := New(testBoard(t), r.Signed, Config{Name: "node.yaml", Data: []byte(releasetest.Config)}, o)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// built gives a disk of the plan, as a file.
func built(t testing.TB, r *releasetest.Bench, p *Plan, format Format) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "x."+string(format))
	if err := Create(t.Context(), p, os.DirFS(r.Release), name, format); err != nil {
		t.Fatal(err)
	}
	return name
}

func asJSON(t testing.TB, v any) string {
	t.Helper()
	b, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// Reading an image back gives the plan it was built from, in every format and with every option.
func TestInspectEqualsPlan(t *testing.T) {
	r := releasetest.New(t, 3<<20)
	for _, o := range []Options{{}, {NoSecureBoot: true}, {Size: 200 * size.MiB}} {
		p := newPlan(t, r, o)
		for _, format := range cloud.Formats {
			if format == cloud.TarGz {
				continue // it is unpacked first
			}
			data, n := open(t, built(t, r, p, format))
			got, err := Inspect(t.Context(), data, n, r.Trusted())
			if err != nil || asJSON(t, got) != asJSON(t, p) {
				t.Errorf("%+v as %s: %v\n%s\nwant\n%s", o, format, err, asJSON(t, got), asJSON(t, p))
			}
		}
	}
}

// An image of a debug release says so, whoever asks for it: from the plan and from the disk.
func TestDebugReleaseIsNamed(t *testing.T) {
	r := releasetest.New(t, 3<<20)
	says := func(p *Plan) bool {
		var out strings.Builder
		if err := p.Print(&out); err != nil {
			t.Fatal(err)
		}
		return strings.Contains(out.String(), machine.DebugNotice)
	}
	if says(newPlan(t, r, Options{})) {
		t.Error("a release without a shell is called a debug release")
	}
	m := *r.Signed.Manifest()
	m.Debug = true
	r.Sign(t, &m)
	p := newPlan(t, r, Options{})
	data, n := open(t, built(t, r, p, cloud.Raw))
	got, err := Inspect(t.Context(), data, n, r.Trusted())
	if err != nil || !says(p) || !says(got) || asJSON(t, got) != asJSON(t, p) {
		t.Errorf("%v\n%s\nwant\n%s", err, asJSON(t, got), asJSON(t, p))
	}
}

type readerAt interface {
	ReadAt([]byte, int64) (int, error)
}

func open(t testing.TB, name string) (readerAt, int64) {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	d, err := cloud.Open(f)
	if err != nil {
		t.Fatal(err)
	}
	if d != nil {
		return d, d.Size()
	}
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return f, st.Size()
}

func TestSameInputsSameBytes(t *testing.T) {
	r := releasetest.New(t, 1<<20)
	for _, format := range cloud.Formats {
		a, err := os.ReadFile(built(t, r, newPlan(t, r, Options{}), format))
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(built(t, r, newPlan(t, r, Options{}), format))
		if err != nil || !bytes.Equal(a, b) {
			t.Errorf("%s: two builds differ (%v)", format, err)
		}
	}
}

// Two machines with one release are two disks: nothing that must be unique is the same on both.
func TestOtherConfigOtherIDs(t *testing.T) {
	r := releasetest.New(t, 1<<20)
	a := newPlan(t, r, Options{})
	b, err := New(testBoard(t), r.Signed, Config{Name: "node.yaml", Data: []byte(strings.Replace(releasetest.Config, "north-1", "north-2", 1))}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{a.GUID.String(): true}
	if seen[b.GUID.String()] {
		t.Error("two disks have one GUID")
	}
	for _, p := range [][]Partition{a.Partitions, b.Partitions} {
		for _, q := range p {
			for _, id := range []string{q.GUID.String(), q.Serial} {
				if id != "" && seen[id] {
					t.Errorf("%s: %s is here twice", q.Name, id)
				}
				seen[id] = true
			}
		}
	}
}

func TestNewRefuses(t *testing.T) {
	r := releasetest.New(t, 1<<20)
	good := Config{Name: "node.yaml", Data: []byte(releasetest.Config)}
	resign := func(change func(*release.Manifest)) *release.Release {
		m := *r.Signed.Manifest()
		m.Files = append([]release.File(nil), m.Files...)
		change(&m)
		manifest, sig, err := release.Sign(&m, r.Set.Release)
		if err != nil {
			t.Fatal(err)
		}
		out, err := release.Verify(manifest, sig, r.Trusted())
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	for _, c := range []struct {
		want   string
		board  func(*boards.Board)
		rel    func(*release.Manifest)
		config Config
		o      Options
	}{
		{want: "release 1.2.3: is for arm64, board x86-uefi is amd64", rel: func(m *release.Manifest) { m.Arch = "arm64" }},
		{want: "has nothing for board x86-uefi, only for other", rel: func(m *release.Manifest) {
			m.Boards = map[string]release.Board{"other": m.Boards["x86-uefi"]}
		}},
		{want: "lacks boot/systemd-boot.efi, which board x86-uefi needs", rel: func(m *release.Manifest) { m.Files = m.Files[1:] }},
		{want: "node.yaml:1:1: unknown key", config: Config{Name: "node.yaml", Data: []byte("apiVersio: x\n")}},
		{want: "image size 60MiB: is too small for board x86-uefi; it takes 89MiB or more", o: Options{Size: 60 * size.MiB}},
		{want: "is not a whole number of 1MiB", o: Options{Size: 600*size.MiB + 512}},
		{want: "partition root-b: the release's root is", board: func(b *boards.Board) { b.Disk.Partitions[1].Size = size.MiB }},
		{want: "room for a third kernel image", rel: func(m *release.Manifest) {
			b := m.Boards["x86-uefi"]
			b.Boot.Size = 16 << 20
			m.Boards = map[string]release.Board{"x86-uefi": b}
		}},
		{want: "do not fit in a volume", rel: func(m *release.Manifest) {
			b := m.Boards["x86-uefi"]
			b.Boot.Size = 20 << 20
			m.Boards = map[string]release.Board{"x86-uefi": b}
		}},
	} {
		b, rel, config := testBoard(t), r.Signed, good
		if c.board != nil {
			c.board(b)
		}
		if c.rel != nil {
			rel = resign(c.rel)
		}
		if c.config.Name != "" {
			config = c.config
		}
		if p, err := New(b, rel, config, c.o); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("want %q, got %v, %v", c.want, p, err)
		}
	}
}

// However a build ends early, the old image stays and nothing else is left.
func TestBuildThatFailsLeavesNothing(t *testing.T) {
	r := releasetest.New(t, 3<<20)
	p := newPlan(t, r, Options{})
	dir := t.TempDir()
	name := filepath.Join(dir, "x.img")
	if err := os.WriteFile(name, []byte("the old image"), 0o600); err != nil {
		t.Fatal(err)
	}
	root, err := os.ReadFile(filepath.Join(r.Release, "root.img"))
	if err != nil {
		t.Fatal(err)
	}
	damage := func(data []byte) func(t *testing.T) {
		return func(t *testing.T) {
			if err := os.WriteFile(filepath.Join(r.Release, "root.img"), data, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	flipped := bytes.Clone(root)
	flipped[len(flipped)/2] ^= 1
	for _, c := range []struct {
		want   string
		before func(*testing.T)
		cuts   int // reads of the release until the build is cancelled
		format Format
	}{
		{want: "root.img: sha256 is", before: damage(flipped), format: Raw},
		{want: "root.img: is not the", before: damage(root[:4096]), format: Raw},
		{want: "root.img: is not the", before: damage(append(bytes.Clone(root), 0)), format: cloud.QCOW2},
		{want: "canceled", before: damage(root), cuts: 1, format: Raw},
		{want: "canceled", cuts: 5, format: Raw},
		{want: "canceled", cuts: 9, format: cloud.QCOW2},
		{want: "image format \"vhdx\": is not one of", format: "vhdx"},
		{want: "root.img: no such file", before: func(t *testing.T) {
			if err := os.Remove(filepath.Join(r.Release, "root.img")); err != nil {
				t.Fatal(err)
			}
		}, format: cloud.QCOW2},
	} {
		if c.before != nil {
			c.before(t)
		}
		ctx, cancel := context.WithCancel(t.Context())
		files := cutting{os.DirFS(r.Release), func() {
			if c.cuts--; c.cuts == 0 {
				cancel()
			}
		}}
		err := Create(ctx, p, files, name, c.format)
		cancel()
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("want %q, got %v", c.want, err)
		}
		if c.want == "canceled" && !errors.Is(err, context.Canceled) {
			t.Errorf("%v is not a cancellation", err)
		}
		if got, err := os.ReadFile(name); err != nil || string(got) != "the old image" {
			t.Errorf("%s: the old image is gone (%v)", c.want, err)
		}
		if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
			t.Errorf("%s: left behind: %v (%v)", c.want, entries, err)
		}
	}
}

func TestImageIsPrivateAndSparse(t *testing.T) {
	r := releasetest.New(t, 1<<20)
	name := built(t, r, newPlan(t, r, Options{Size: 8 * size.GiB}), Raw)
	st, err := os.Stat(name)
	if err != nil || st.Mode().Perm() != 0o600 || st.Size() != int64(8*size.GiB) {
		t.Fatalf("%v, %v", st, err)
	}
	if used := blocksOf(st) * 512; used > 16<<20 {
		t.Errorf("takes %d bytes on disk", used)
	}
}

func TestQemuImgAgrees(t *testing.T) {
	qemuImg := imagetest.Tool(t, "qemu-img", "qemu-utils")
	r := releasetest.New(t, 3<<20)
	for _, n := range []size.Bytes{0, 3 * size.GiB} {
		p := newPlan(t, r, Options{Size: n})
		raw, qcow := built(t, r, p, Raw), built(t, r, p, cloud.QCOW2)
		imagetest.Run(t, qemuImg, "check", "-f", "qcow2", qcow)
		imagetest.Run(t, qemuImg, "compare", "-f", "raw", "-F", "qcow2", raw, qcow)
	}
}
