package image

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/skerry-os/skerry/boards"
	"github.com/skerry-os/skerry/image/releasetest"
	"github.com/skerry-os/skerry/pkg/release"
)

// faultsOf takes the Faults out of a joined error.
func faultsOf(err error) (out []Fault) {
	var joined interface{ Unwrap() []error }
	if errors.As(err, &joined) {
		for _, e := range joined.Unwrap() {
			out = append(out, faultsOf(e)...)
		}
		return out
	}
	var f Fault
	if errors.As(err, &f) {
		out = append(out, f)
	}
	return out
}

// No byte that means something can change unnoticed. Each is named by its partition, and by a place at or before it within
// the same range.
func TestEveryChangedByteIsNamed(t *testing.T) {
	r := releasetest.New(t, 3<<20)
	p := newPlan(t, r, Options{})
	image, err := os.ReadFile(built(t, r, p, Raw))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range p.Extents {
		places := []int64{0, e.Size - 1}
		for _, n := range []int64{3, 7, 101} {
			places = append(places, e.Size*n/103, (e.Size-1)*n/103|1)
		}
		for _, at := range places {
			at = e.Offset + min(at, e.Size-1)
			bit := byte(1) << (at % 8)
			image[at] ^= bit
			_, err := Inspect(t.Context(), bytes.NewReader(image), int64(len(image)), r.Trusted())
			image[at] ^= bit
			named := false
			for _, f := range faultsOf(err) {
				// A GPT or a FAT folder may show the damage at the place that contradicts it, earlier in the partition.
				nearest := f.Offset >= e.Offset || e.Where == "gpt" || strings.HasPrefix(e.What, "folder")
				named = named || f.Where == e.Where && f.Offset <= at && nearest
			}
			if !named {
				t.Errorf("%s: %s: byte %d changed: %v", e.Where, e.What, at, err)
			}
		}
	}
	if _, err := Inspect(t.Context(), bytes.NewReader(image), int64(len(image)), r.Trusted()); err != nil {
		t.Errorf("the image put back: %v", err)
	}
}

// What no extent covers means nothing.
func TestFreeSpaceIsFree(t *testing.T) {
	r := releasetest.New(t, 1<<20)
	p := newPlan(t, r, Options{})
	image, err := os.ReadFile(built(t, r, p, Raw))
	if err != nil {
		t.Fatal(err)
	}
	end := int64(0)
	for _, e := range p.Extents {
		for i := end; i < e.Offset; i++ {
			image[i] = 0x55
		}
		end = e.Offset + e.Size
	}
	if _, err := Inspect(t.Context(), bytes.NewReader(image), int64(len(image)), r.Trusted()); err != nil {
		t.Error(err)
	}
}

// An image written to a larger medium is whole, whatever stands behind it.
func TestLargerMedium(t *testing.T) {
	r := releasetest.New(t, 1<<20)
	p := newPlan(t, r, Options{})
	image, err := os.ReadFile(built(t, r, p, Raw))
	if err != nil {
		t.Fatal(err)
	}
	for _, more := range []int{1, 512, 5 << 20} {
		b := append(bytes.Clone(image), bytes.Repeat([]byte{0x55}, more)...)
		got, err := Inspect(t.Context(), bytes.NewReader(b), int64(len(b)), r.Trusted())
		if err != nil || asJSON(t, got) != asJSON(t, p) {
			t.Errorf("%d bytes more: %v", more, err)
		}
	}
}

// Extents lie in order, inside their partitions, and no two claim one byte.
func TestExtentsDoNotOverlap(t *testing.T) {
	r := releasetest.New(t, 1<<20)
	p := newPlan(t, r, Options{})
	end := int64(0)
	for _, e := range p.Extents {
		if e.Offset < end || e.Size <= 0 || e.Offset+e.Size > p.Size {
			t.Errorf("%+v: begins before %d or ends behind the disk", e, end)
		}
		end = e.Offset + e.Size
		if e.Where == "gpt" {
			continue
		}
		for _, q := range p.Partitions {
			if q.Name == e.Where && (e.Offset < q.Start || end > q.Start+q.Size) {
				t.Errorf("%+v: is outside %+v", e, q)
			}
		}
	}
}

func TestInspectRefuses(t *testing.T) {
	r := releasetest.New(t, 1<<20)
	p := newPlan(t, r, Options{})
	good, err := os.ReadFile(built(t, r, p, Raw))
	if err != nil {
		t.Fatal(err)
	}
	other, _, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	part := map[string]Partition{}
	for _, q := range p.Partitions {
		part[q.Name] = q
	}
	wipe := func(b []byte, at, n int64) { clear(b[at : at+n]) }
	for name, c := range map[string]struct {
		want   string
		keys   []ed25519.PublicKey
		change func(b []byte) []byte
	}{
		"another key":  {want: "is not signed by a trusted key", keys: []ed25519.PublicKey{other}},
		"no key":       {want: "is not signed by a trusted key", keys: []ed25519.PublicKey{}},
		"cut off":      {want: "second GPT", change: func(b []byte) []byte { return b[:len(b)-1<<20] }},
		"not sectors":  {want: "not whole sectors", change: func(b []byte) []byte { return b[:len(b)-1] }},
		"empty":        {want: "no room for a GPT", change: func(b []byte) []byte { return nil }},
		"zeros":        {want: "has no signature", change: func(b []byte) []byte { clear(b); return b }},
		"no tails":     {want: "holds no release manifest", change: func(b []byte) []byte { wipe(b, part["root-a"].Start, part["root-a"].Size*2); return b }},
		"no config":    {want: "config: offset", change: func(b []byte) []byte { wipe(b, part["config"].Start, 1<<20); return b }},
		"no esp":       {want: "esp: offset", change: func(b []byte) []byte { wipe(b, part["esp"].Start, 1<<20); return b }},
		"half written": {want: "config: offset", change: func(b []byte) []byte { wipe(b, part["root-b"].Start, int64(len(b))-part["root-b"].Start); return b }},
		"a slot gone":  {want: "root-b: offset", change: func(b []byte) []byte { wipe(b, part["root-b"].Start, part["root-b"].Size); return b }},
	} {
		b, keys := bytes.Clone(good), r.Trusted()
		if c.change != nil {
			b = c.change(b)
		}
		if c.keys != nil {
			keys = c.keys
		}
		if _, err := Inspect(t.Context(), bytes.NewReader(b), int64(len(b)), keys); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: want %q, got %v", name, c.want, err)
		}
	}
}

// A config edited on a PC, here with the size kept, is said to be edited; nothing else is blamed.
func TestEditedConfigIsNamed(t *testing.T) {
	r := releasetest.New(t, 1<<20)
	p := newPlan(t, r, Options{})
	b, err := os.ReadFile(built(t, r, p, Raw))
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(b, []byte("hostname: north-1"))
	copy(b[at:], "hostname: north-7")
	_, err = Inspect(t.Context(), bytes.NewReader(b), int64(len(b)), r.Trusted())
	faults := faultsOf(err)
	if len(faults) != 1 || faults[0].Where != boards.Config || !strings.Contains(faults[0].Msg, "/config.yaml: was changed since the image was built") {
		t.Errorf("got %v", err)
	}
}

// A release whose manifest is signed but whose hash tree or Secure Boot signature is wrong does not pass either.
func TestWrongReleaseIsFound(t *testing.T) {
	for want, spoil := range map[string]func(b *releasetest.Bench, m *release.Manifest){
		"root-a: offset": func(_ *releasetest.Bench, m *release.Manifest) { m.Root.RootHash = strings.Repeat("12", 32) },
		"/EFI/Linux/os-b.efi: its command line lacks skerry.roothash=1212": func(_ *releasetest.Bench, m *release.Manifest) { m.Root.RootHash = strings.Repeat("12", 32) },
		"/EFI/Linux/os-a.efi: is not signed": func(b *releasetest.Bench, m *release.Manifest) {
			board := m.Boards["x86-uefi"]
			for _, f := range m.Files {
				if f.Path == "boot/plain.efi" {
					board.Boot = f
				}
			}
			m.Boards["x86-uefi"] = board
			m.Files = m.Files[1:]
		},
	} {
		r := releasetest.New(t, 1<<20)
		m := *r.Signed.Manifest()
		if strings.Contains(want, "efi") {
			m.Files = append([]release.File{r.Unsigned(t, "boot/plain.efi")}, m.Files...)
		}
		spoil(r, &m)
		r.Sign(t, &m)
		p := newPlan(t, r, Options{})
		data, n := open(t, built(t, r, p, Raw))
		if _, err := Inspect(t.Context(), data, n, r.Trusted()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
}

// Whatever stands in the first and last sectors, the volumes and the tails, inspecting ends without a panic.
func FuzzInspect(f *testing.F) {
	r := releasetest.New(f, 1<<20)
	p := newPlan(f, r, Options{})
	image, err := os.ReadFile(built(f, r, p, Raw))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(uint16(0), uint32(0), []byte{1})
	f.Fuzz(func(t *testing.T, extent uint16, at uint32, data []byte) {
		e := p.Extents[int(extent)%len(p.Extents)]
		b := patched{image, e.Offset + int64(at)%e.Size, data}
		if _, err := Inspect(t.Context(), b, int64(len(image)), r.Trusted()); err != nil && err.Error() == "" {
			t.Error(fmt.Errorf("an error without words: %w", err))
		}
	})
}

// patched is an image with some bytes changed.
type patched struct {
	base []byte
	at   int64
	data []byte
}

func (p patched) ReadAt(b []byte, off int64) (int, error) {
	n, err := bytes.NewReader(p.base).ReadAt(b, off)
	for i, v := range p.data {
		if at := p.at + int64(i); at >= off && at < off+int64(n) {
			b[at-off] = v
		}
	}
	return n, err
}
