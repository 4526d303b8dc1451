package flash

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/skerry-os/skerry/image/disk"
)

const mib = 1 << 20

// anImage is a disk of 24 MiB with three partitions: one with content, one all zero, one with content in its middle alone.
func anImage(t *testing.T) []byte {
	t.Helper()
	data := make([]byte, 24*mib)
	table := &disk.Table{Size: int64(len(data)), GUID: disk.GUID{1}, Partitions: []disk.Partition{
		{Name: "esp", Type: disk.GUID{2}, GUID: disk.GUID{3}, Start: 1 * mib, Size: 4 * mib},
		{Name: "root-b", Type: disk.GUID{2}, GUID: disk.GUID{4}, Start: 5 * mib, Size: 8 * mib},
		{Name: "data", Type: disk.GUID{2}, GUID: disk.GUID{5}, Start: 13 * mib, Size: 10 * mib},
	}}
	head, tail, err := table.Encode()
	if err != nil {
		t.Fatal(err)
	}
	copy(data, head)
	copy(data[len(data)-len(tail):], tail)
	noise := rand.NewChaCha8([32]byte{7})
	_, _ = noise.Read(data[1*mib : 3*mib])
	_, _ = noise.Read(data[18*mib : 18*mib+1000])
	return data
}

// medium is a card in memory, full of an earlier life, with faults to choose from.
type medium struct {
	bytes   []byte
	writes  int
	flushes int
	failAt  int   // the write that fails with EIO, from 1
	shortAt int   // the write that stops half-way without an error
	worn    int64 // a byte that does not keep what is written to it
	badRead int64 // a byte that cannot be read back
	gone    bool  // it is pulled out before it is read back
	real    int64 // what a fake has; the rest of its size leads to the beginning again
	cached  []byte
	flushAt int // the flush that fails with EIO, from 1
}

func newMedium(size int) *medium {
	m := &medium{bytes: bytes.Repeat([]byte{0xa5}, size), worn: -1, badRead: -1}
	m.cached = slices.Clone(m.bytes)
	return m
}

func (m *medium) Size() int64 { return int64(len(m.bytes)) }

func (m *medium) WriteAt(b []byte, at int64) (int, error) {
	switch m.writes++; m.writes {
	case m.failAt:
		return 0, syscall.EIO
	case m.shortAt:
		return copy(m.cached[at:], b[:len(b)/2]), nil
	}
	if m.real > 0 {
		for i, c := range b {
			m.cached[(at+int64(i))%m.real] = c
		}
		return len(b), nil
	}
	return copy(m.cached[at:], b), nil
}

func (m *medium) Sync() error {
	copy(m.bytes, m.cached)
	if m.worn >= 0 {
		m.bytes[m.worn] ^= 1
	}
	if m.flushes++; m.flushes == m.flushAt {
		return syscall.EIO
	}
	return nil
}

func (m *medium) Forget() error {
	if m.gone {
		return syscall.ENODEV
	}
	copy(m.cached, m.bytes)
	return nil
}

func (m *medium) ReadAt(b []byte, at int64) (int, error) {
	if m.badRead >= at && m.badRead < at+int64(len(b)) {
		return 0, syscall.EIO
	}
	if m.real > 0 {
		for i := range b {
			b[i] = m.cached[(at+int64(i))%m.real]
		}
		return len(b), nil
	}
	return copy(b, m.cached[at:]), nil
}

func write(t *testing.T, content []byte, m *medium) (Report, error) {
	t.Helper()
	i, err := Open(bytes.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	defer i.Close() //nolint:errcheck // reads from memory
	return i.Write(t.Context(), m, nil)
}

func TestOnlyWhatCountsIsWritten(t *testing.T) {
	image := anImage(t)
	m := newMedium(40 * mib)
	r, err := write(t, image, m)
	if err != nil {
		t.Fatal(err)
	}
	got := m.bytes
	table, err := disk.Read(bytes.NewReader(got[:len(image)]), int64(len(image)))
	if err != nil || len(table.Partitions) != 3 {
		t.Fatalf("the table on the card: %v, %v", table, err)
	}
	for _, p := range table.Partitions {
		for _, r := range [][2]int64{{p.Start, p.Start + headWipe}, {p.Start + p.Size - tailWipe, p.Start + p.Size}} {
			if !bytes.Equal(got[r[0]:r[1]], image[r[0]:r[1]]) {
				t.Errorf("%s: bytes %d to %d are not the image's: an earlier life shows through", p.Name, r[0], r[1])
			}
		}
	}
	if !bytes.Equal(got[1*mib:3*mib], image[1*mib:3*mib]) || !bytes.Equal(got[18*mib:18*mib+1000], image[18*mib:18*mib+1000]) {
		t.Error("content is missing")
	}
	if !isZero(got[len(got)-tailWipe:]) {
		t.Error("the end of the card was left as it was: a second GPT of an earlier image may be there")
	}
	if got[8*mib] != 0xa5 || got[30*mib] != 0xa5 {
		t.Error("places that nobody reads were written")
	}
	if r.Written < 2*mib || r.Written > 3*mib {
		t.Errorf("wrote %d bytes of an image with about 2 MiB in it", r.Written)
	}
}

func TestCompressedImagesAreWrittenAsTheyAre(t *testing.T) {
	image := anImage(t)
	var packed bytes.Buffer
	z, err := zstd.NewWriter(&packed)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := z.Write(image); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	plain, unpacked := newMedium(24*mib), newMedium(24*mib)
	want, err1 := write(t, image, plain)
	got, err2 := write(t, packed.Bytes(), unpacked)
	if err1 != nil || err2 != nil || got != want || !bytes.Equal(plain.bytes, unpacked.bytes) {
		t.Errorf("%v, %v; reports %+v and %+v", err1, err2, got, want)
	}
	if _, err := write(t, packed.Bytes()[:packed.Len()-100], newMedium(24*mib)); err == nil {
		t.Error("a torn file was written without an error")
	}
}

// Whatever goes wrong, it is an error, and what is on the medium then has no partition table to boot from.
func TestFaultsOfTheMedium(t *testing.T) {
	image := anImage(t)
	for name, c := range map[string]struct {
		break_ func(*medium)
		says   string
	}{
		"yanked at once":                  {func(m *medium) { m.failAt = 1 }, "input/output error"},
		"yanked in the middle":            {func(m *medium) { m.failAt = 4 }, "input/output error"},
		"a short write":                   {func(m *medium) { m.shortAt = 3 }, "short write"},
		"the first flush fails":           {func(m *medium) { m.flushAt = 1 }, "flushing"},
		"the flush before the table":      {func(m *medium) { m.flushAt = 2 }, "flushing"},
		"the flush of the table":          {func(m *medium) { m.flushAt = 3 }, "flushing"},
		"a bad sector":                    {func(m *medium) { m.worn = 2*mib + 5 }, "worn out"},
		"a sector that cannot be read":    {func(m *medium) { m.badRead = 2*mib + 5 }, "reading back at byte"},
		"yanked before it is read back":   {func(m *medium) { m.gone = true }, "no such device"},
		"a size that is a lie":            {func(m *medium) { m.real = 16 * mib }, "its size is a lie"},
		"a bad sector in a cleared place": {func(m *medium) { m.worn = 13*mib + 1080 }, "worn out"},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMedium(24 * mib)
			copy(m.bytes, image[:disk.HeadSize]) // an earlier image of the same kind
			copy(m.cached, m.bytes)
			c.break_(m)
			_, err := write(t, image, m)
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Fatalf("got %v, want an error with %q", err, c.says)
			}
			noTable(t, m.cached, 24*mib)
		})
	}
}

// noTable looks where firmware does: at both copies, those of the image and of an earlier one.
func noTable(t *testing.T, medium []byte, size int64) {
	t.Helper()
	for _, n := range []int64{size, int64(len(medium))} {
		if table, _ := disk.Read(bytes.NewReader(medium[:n]), n); table != nil {
			t.Error("a half-written medium has a partition table")
		}
	}
}

// Whichever write or flush is the last that the medium takes, and whenever a person stops it: no table is left, neither the old nor the
// new one, as long as the medium takes anything afterwards.
func TestNoStepLeavesATable(t *testing.T) {
	image := anImage(t)
	whole := newMedium(24 * mib)
	if _, err := write(t, image, whole); err != nil {
		t.Fatal(err)
	}
	if whole.flushes < 3 || whole.writes < 5 {
		t.Fatalf("%d writes, %d flushes", whole.writes, whole.flushes)
	}
	try := func(what string, n int, break_ func(*medium)) {
		t.Helper()
		m := newMedium(24 * mib)
		copy(m.cached, image)
		_ = m.Sync()
		m.flushes = 0
		break_(m)
		if _, err := write(t, image, m); err == nil {
			t.Errorf("%s %d fails, and nobody says so", what, n)
		}
		noTable(t, m.cached, 24*mib)
	}
	for n := 1; n <= whole.writes; n++ {
		try("write", n, func(m *medium) { m.failAt = n })
		try("half of write", n, func(m *medium) { m.shortAt = n })
	}
	for n := 1; n <= whole.flushes; n++ {
		try("flush", n, func(m *medium) { m.flushAt = n })
	}
	for stop := 1; ; stop++ {
		m := newMedium(24 * mib)
		copy(m.cached, image)
		_ = m.Sync()
		ctx, cancel := context.WithCancelCause(t.Context())
		i, err := Open(bytes.NewReader(image))
		if err != nil {
			t.Fatal(err)
		}
		told := 0
		_, err = i.Write(ctx, m, func(bool, int64, int64) {
			if told++; told == stop {
				cancel(errors.New("enough"))
			}
		})
		cancel(nil)
		if err == nil {
			break // everything was behind it
		}
		noTable(t, m.cached, 24*mib)
	}
}

func TestAnInterruptionIsNoSuccess(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	stop := errors.New("enough")
	i, err := Open(bytes.NewReader(anImage(t)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := i.Write(ctx, newMedium(24*mib), func(bool, int64, int64) { cancel(stop) }); !errors.Is(err, stop) {
		t.Errorf("got %v", err)
	}
}

func TestWhatIsNoImageIsRefused(t *testing.T) {
	image := anImage(t)
	damaged := slices.Clone(image)
	damaged[disk.Sector*2+60] ^= 1
	for name, c := range map[string]struct {
		data []byte
		says string
	}{
		"nothing":         {nil, "too short"},
		"a text":          {[]byte("apiVersion: skerry/v1alpha1\n"), "too short"},
		"zeros":           {make([]byte, mib), "no partition table"},
		"qcow2":           {append([]byte("QFI\xfb"), make([]byte, mib)...), "--format raw"},
		"a damaged table": {damaged, "damaged partition table"},
		"damaged zstd":    {append([]byte{0x28, 0xb5, 0x2f, 0xfd}, make([]byte, 100)...), "not a disk image"},
	} {
		if _, err := Open(bytes.NewReader(c.data)); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: got %v, want an error with %q", name, err, c.says)
		}
	}
	for name, data := range map[string][]byte{"cut off": image[:20*mib], "longer than its table": append(slices.Clone(image), 0)} {
		if _, err := write(t, data, newMedium(40*mib)); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if _, err := write(t, image, newMedium(10*mib)); err == nil || !strings.Contains(err.Error(), "needs 24") {
		t.Errorf("a small medium: %v", err)
	}
}

func FuzzOpen(f *testing.F) {
	f.Add([]byte("EFI PART"))
	f.Add([]byte{0x28, 0xb5, 0x2f, 0xfd, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		if i, err := Open(bytes.NewReader(data)); err == nil {
			_, _ = i.Write(t.Context(), newMedium(2*mib), nil)
			_ = i.Close()
		}
	})
}
