package datafs

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/skerry-os/skerry/image/imagetest"
)

// part is a data partition in a file.
type part struct {
	*os.File
	t     *testing.T
	size  int64
	cutAt int // the write that never happens, from 1, and all after it
	wrote int
}

func newPart(t *testing.T, size int64) *part {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "data.img"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return &part{File: f, t: t, size: size}
}

var errCut = errors.New("no power")

func (p *part) WriteAt(b []byte, at int64) (int, error) {
	if p.wrote++; p.cutAt > 0 && p.wrote >= p.cutAt {
		return 0, errCut
	}
	return p.File.WriteAt(b, at)
}

func (p *part) tool(name string, args ...string) error {
	p.t.Helper()
	path := imagetest.Tool(p.t, name, "e2fsprogs")
	out, err := exec.Command(path, append(args, p.Name())...).CombinedOutput()
	p.t.Logf("%s %v: %v %s", name, args, err, out)
	return err
}

// mke2fs is called as init does.
func (p *part) mke2fs() {
	p.t.Helper()
	if err := p.tool("mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-m", "1", "-L", Label, "-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=1"); err != nil {
		p.t.Fatal(err)
	}
}

func (p *part) want(what string, want State) {
	p.t.Helper()
	if got, err := Probe(p.File, p.size); err != nil || got != want {
		p.t.Errorf("%s: state %d, %v; want %d", what, got, err, want)
	}
}

func (p *part) put(b []byte, at int64) {
	p.t.Helper()
	if _, err := p.File.WriteAt(b, at); err != nil {
		p.t.Fatal(err)
	}
}

func (p *part) check(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatal(err)
	}
}

// live is a whole first boot.
func (p *part) live() {
	p.t.Helper()
	p.check(Clear(p, p.size))
	p.mke2fs()
	p.check(MarkUsed(p))
}

// The life of a data partition, with the real mke2fs.
func TestLife(t *testing.T) {
	p := newPart(t, 160<<20)
	p.want("an image of before there was a mark", New)
	p.put(Fresh(), 0)
	p.want("as the image brings it", New)
	p.check(Clear(p, p.size))
	p.want("cleared", New)
	p.mke2fs()
	p.want("made, and not mounted yet", New)
	p.check(MarkUsed(p))
	p.want("used", Used)
	if err := p.tool("e2fsck", "-f", "-n"); err != nil {
		t.Errorf("the mark is not outside the filesystem: %v", err)
	}
	p.put(make([]byte, 1024), 1024)
	p.want("superblock lost", Torn)
	p.put(make([]byte, 4096), 0)
	p.want("the whole first block lost", Torn)
}

// A machine that was set up by a release of before there was "fresh" keeps its data, marked or not.
func TestMachinesOfBefore(t *testing.T) {
	p := newPart(t, 160<<20)
	p.mke2fs()
	p.want("made", Made)
	p.put(usedMark, 0)
	p.want("used", Used)
	p.put(make([]byte, 4096), 0)
	p.want("torn", Torn)
}

// A medium that is written anew holds nothing of its earlier life, though that reaches far behind what the image covers; and the first
// boot may lose power at any write.
func TestAnEarlierLife(t *testing.T) {
	p := newPart(t, 4<<30)
	p.live()
	places := 0
	for g := int64(1); g*groupBytes < p.size; g++ {
		b := make([]byte, superSize)
		if _, err := p.ReadAt(b, g*groupBytes); err != nil {
			t.Fatal(err)
		}
		if superblock(b) {
			places++
			if !known(g*groupBytes, p.size) {
				t.Errorf("mke2fs keeps a copy in group %d, which Copies does not know", g)
			}
		}
	}
	if places == 0 {
		t.Error("mke2fs made no copies; this test proves nothing")
	}
	// What dd of an image leaves: its data partition's mark and zeros, and the copies of before.
	image := append(Fresh(), make([]byte, 16<<20-sector)...)
	p.put(image, 0)
	p.want("written anew", New)
	for cut := 1; ; cut++ {
		p.cutAt, p.wrote = cut, 0
		err := Clear(p, p.size)
		p.want("cut while it is cleared", New)
		if err == nil {
			break
		}
	}
	for _, c := range Copies(p.size) {
		b := make([]byte, c[1]-c[0])
		if _, err := p.ReadAt(b, c[0]); err != nil || !bytes.Equal(b, make([]byte, len(b))) {
			t.Errorf("the copy at %d is still there: %v", c[0], err)
		}
	}
	p.put(make([]byte, 4096), 0)
	p.want("cleared, and the mark gone", New)
}

func known(at, size int64) bool {
	for _, c := range Copies(size) {
		if c[0] == at {
			return true
		}
	}
	return false
}

// Making everything anew on a partition in use, as data.wipe does, leaves the old filesystem or none.
func TestClearingWhatIsUsed(t *testing.T) {
	p := newPart(t, 160<<20)
	p.live()
	p.cutAt, p.wrote = 1, 0
	if err := Clear(p, p.size); !errors.Is(err, errCut) {
		t.Fatal(err)
	}
	p.want("cut before the first write", Used)
	for p.cutAt = 2; ; p.cutAt++ {
		p.wrote = 0
		err := Clear(p, p.size)
		p.want("cut later", New)
		if err == nil {
			return
		}
	}
}
