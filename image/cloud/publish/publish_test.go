package publish

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/skerry-os/skerry/image/releasetest"
)

// Whatever a disk holds, its runs put together are the disk; they are whole granules, rise, are no longer than asked for, and hold
// no granule of zeros.
func TestRuns(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	for try := range 200 {
		granule := int64(512 << rng.IntN(4))
		most := granule * int64(1+rng.IntN(9))
		size := 1 + rng.Int64N(64<<10)
		content := make([]byte, size)
		for range rng.IntN(8) {
			at := rng.Int64N(size)
			for i := at; i < min(size, at+rng.Int64N(5000)); i++ {
				content[i] = byte(1 + rng.IntN(255))
			}
		}
		got, last, seen := make([]byte, size), int64(0), int64(0)
		err := Runs(t.Context(), Disk{ReaderAt: bytes.NewReader(content), Size: size}, granule, most, func(at, done int64, b []byte) error {
			n := int64(len(b))
			if at < last || at%granule != 0 || n == 0 || n > most || n%granule != 0 && at+n != size || done < at+n || done > size || done < seen {
				t.Errorf("try %d: %d bytes at %d after %d, of %d, granule %d, most %d, done %d", try, n, at, last, size, granule, most, done)
			}
			for i := int64(0); i < n; i += granule {
				if part := b[i:min(i+granule, n)]; bytes.Count(part, []byte{0}) == len(part) {
					t.Errorf("try %d: zeros at %d", try, at+i)
				}
			}
			copy(got[at:], b)
			last, seen = at+n, done
			return nil
		})
		if err != nil || !bytes.Equal(got, content) {
			t.Fatalf("try %d: %v, or another disk", try, err)
		}
	}
}

func TestRunsEnd(t *testing.T) {
	disk := Disk{ReaderAt: bytes.NewReader(bytes.Repeat([]byte{1}, 4096)), Size: 4096}
	stop := errors.New("stop")
	if err := Runs(t.Context(), disk, 512, 512, func(int64, int64, []byte) error { return stop }); !errors.Is(err, stop) {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if err := Runs(ctx, disk, 512, 512, func(int64, int64, []byte) error { cancel(); return nil }); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	disk.Size = 8192 // more than there is
	if err := Runs(t.Context(), disk, 512, 8192, func(int64, int64, []byte) error { return nil }); err == nil {
		t.Error("a disk that ends early was taken")
	}
}

// The certificates in a release's enrolment files are those of its keys, and what is no list of certificates is refused.
func TestCertificates(t *testing.T) {
	b := releasetest.New(t, 1<<16)
	for name, want := range map[string][]byte{"PK": b.Set.PK.Cert.Raw, "KEK": b.Set.KEK.Cert.Raw, "db": b.Set.DB.Cert.Raw} {
		auth, err := os.ReadFile(filepath.Join(b.Release, "secureboot", name+".auth"))
		if err != nil {
			t.Fatal(err)
		}
		v := Variable{Name: name, Auth: auth}
		got, err := v.Certificates()
		if err != nil || len(got) != 1 || !bytes.Equal(got[0], want) {
			t.Errorf("%s: %d certificates, %v", name, len(got), err)
		}
		_, data, err := v.Enrolment()
		if err != nil {
			t.Fatal(err)
		}
		head := len(auth) - len(data)
		for _, cut := range []int{0, 19, head, head + 27, head + 30, len(auth) - 1} {
			if _, err := (Variable{Name: name, Auth: auth[:cut]}).Certificates(); err == nil {
				t.Errorf("%s: cut to %d of %d bytes, and taken", name, cut, len(auth))
			}
		}
		twice := append(bytes.Clone(auth), data...)
		if got, err := (Variable{Name: name, Auth: twice}).Certificates(); err != nil || len(got) != 2 {
			t.Errorf("%s: of two lists %d certificates, %v", name, len(got), err)
		}
		for at := range 28 { // no header leads outside
			bad := bytes.Clone(auth)
			bad[head+at] ^= 0xff
			if got, err := (Variable{Name: name, Auth: bad}).Certificates(); err == nil && (len(got) != 1 || at < 16) {
				t.Errorf("%s: byte %d changed: %d certificates", name, at, len(got))
			}
		}
	}
}
