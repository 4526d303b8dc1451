package flash

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skerry-os/skerry/boards"
	"github.com/skerry-os/skerry/image/datafs"
	"github.com/skerry-os/skerry/image/disk"
	"github.com/skerry-os/skerry/image/imagetest"
	"github.com/skerry-os/skerry/pkg/linux"
)

// cardSize has room for copies of a superblock in the groups 1, 3, 5, 7, 9 and 25.
const cardSize = 4 << 30

// A card that a machine has used is written again: nothing of its first life is found, neither by flash nor by dd, which leaves the
// far copies of the superblock where they are. An image of before there was a mark is safe by flash.
func TestACardIsWrittenAgain(t *testing.T) {
	for _, tool := range []string{"mke2fs", "debugfs"} {
		imagetest.Tool(t, tool, "e2fsprogs")
	}
	image := anImage(t)
	table, err := disk.Read(bytes.NewReader(image), int64(len(image)))
	if err != nil {
		t.Fatal(err)
	}
	data := table.Partitions[len(table.Partitions)-1]
	if data.Name != boards.Data {
		t.Fatalf("the last partition is %s", data.Name)
	}
	marked := bytes.Clone(image)
	copy(marked[data.Start:], make([]byte, data.Size))
	copy(marked[data.Start:], datafs.Fresh())
	unmarked := bytes.Clone(marked)
	copy(unmarked[data.Start:], make([]byte, len(datafs.Fresh())))

	for name, again := range map[string]struct {
		image []byte
		write func(t *testing.T, card string, image []byte)
		clean bool // of copies, too
	}{
		"by flash":                            {marked, flashTo, true},
		"by dd":                               {marked, ddTo, false},
		"an image of before there was a mark": {unmarked, flashTo, true},
	} {
		t.Run(name, func(t *testing.T) {
			card := filepath.Join(t.TempDir(), "card")
			f, err := os.Create(card)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close() //nolint:errcheck // the test is over then
			if err := f.Truncate(cardSize); err != nil {
				t.Fatal(err)
			}
			flashTo(t, card, marked)
			part := firstBoot(t, f, true)
			tool(t, "debugfs", "-w", "-R", fmt.Sprintf("write %s old-cluster", "/etc/hostname"), card+fmt.Sprintf("?offset=%d", part.Start))
			again.write(t, card, again.image)

			part = firstBoot(t, f, false)
			section := &partition{f, part}
			if state, err := datafs.Probe(section, part.Size); err != nil || state != datafs.New {
				t.Errorf("the written card's data partition is in state %d, %v", state, err)
			}
			copies := 0
			for _, c := range datafs.Copies(part.Size) {
				b := make([]byte, c[1]-c[0])
				if _, err := section.ReadAt(b, c[0]); err != nil {
					t.Fatal(err)
				}
				if !isZero(b) {
					copies++
				}
			}
			if (copies == 0) != again.clean {
				t.Errorf("%d copies of the old superblock are there", copies)
			}
			firstBoot(t, f, true)
			out := tool(t, "debugfs", "-R", "ls -p /", card+fmt.Sprintf("?offset=%d", part.Start))
			if strings.Contains(out, "old-cluster") || !strings.Contains(out, "lost+found") {
				t.Errorf("after the first boot:\n%s", out)
			}
		})
	}
}

func flashTo(t *testing.T, card string, image []byte) {
	t.Helper()
	d, err := OpenDevice(card)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close() //nolint:errcheck // the test is over then
	i, err := Open(bytes.NewReader(image))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := i.Write(t.Context(), d, nil); err != nil {
		t.Fatal(err)
	}
}

func ddTo(t *testing.T, card string, image []byte) {
	t.Helper()
	f, err := os.OpenFile(card, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() //nolint:errcheck // the test is over then
	if _, err := f.WriteAt(image, 0); err != nil {
		t.Fatal(err)
	}
}

func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// partition is one in a file.
type partition struct {
	*os.File
	disk.Partition
}

func (p *partition) ReadAt(b []byte, at int64) (int, error)  { return p.File.ReadAt(b, p.Start+at) }
func (p *partition) WriteAt(b []byte, at int64) (int, error) { return p.File.WriteAt(b, p.Start+at) }

// firstBoot is what init does with the data partition: it grows, and gets a filesystem.
func firstBoot(t *testing.T, f *os.File, fill bool) disk.Partition {
	t.Helper()
	_, part, _, err := linux.GrowLast(f, cardSize, boards.Data)
	if err != nil {
		t.Fatal(err)
	}
	if !fill {
		return part
	}
	p := &partition{f, part}
	if err := datafs.Clear(p, part.Size); err != nil {
		t.Fatal(err)
	}
	tool(t, "mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-L", datafs.Label, "-E", fmt.Sprintf("nodiscard,lazy_itable_init=1,lazy_journal_init=1,offset=%d", part.Start),
		f.Name(), fmt.Sprint(part.Size/4096))
	if err := datafs.MarkUsed(p); err != nil {
		t.Fatal(err)
	}
	return part
}
