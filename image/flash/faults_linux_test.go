package flash

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/skerry-os/skerry/image/disk"
)

// The faults of TestFaultsOfTheMedium, met by the code that writes real files and block devices: a place that takes nothing, as a bad
// sector, under a file and under a device; a device that loses its end while it is written; one that has less than it says.
func TestFaultsOfFilesAndDevices(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("small filesystems and loop devices need root")
	}
	image := anImage(t)
	for name, c := range map[string]struct {
		loop   bool
		room   string // of the filesystem that the file is in
		during func(t *testing.T, file, dev string, verifying bool)
		says   []string
	}{
		"a file that takes no more":   {false, "3m", nil, []string{"writing at byte", "no space left"}},
		"a device that takes no more": {true, "3m", nil, []string{"input/output error"}},
		"a device that loses its end": {true, "64m", func(t *testing.T, file, dev string, verifying bool) {
			if !verifying {
				shrink(t, file, 8*mib)
				run(t, "losetup", "--set-capacity", dev)
			}
		}, []string{"writing at byte", "no space left"}},
		"a file that is shorter when it is read back": {false, "64m", func(t *testing.T, file, _ string, verifying bool) {
			if verifying {
				shrink(t, file, 8*mib)
			}
		}, []string{"reading back at byte"}},
		"a device whose end is gone when it is read back": {true, "64m", func(t *testing.T, file, _ string, verifying bool) {
			if verifying {
				shrink(t, file, 8*mib)
			}
		}, []string{"reading back at byte"}},
		"a device that has less than it says": {true, "64m", func(t *testing.T, file, _ string, verifying bool) {
			if verifying {
				wrap(t, file, 16*mib)
			}
		}, []string{"its size is a lie"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size="+c.room, "none", dir).CombinedOutput(); err != nil {
				t.Skipf("no small filesystem here: %v: %s", err, out)
			}
			t.Cleanup(func() { _ = exec.Command("umount", dir).Run() })
			file := filepath.Join(dir, "card")
			f, err := os.Create(file)
			if err == nil {
				_, err = f.WriteAt(image[:disk.HeadSize], 0) // an earlier image of the same kind
			}
			if err == nil {
				err = f.Truncate(int64(len(image)))
			}
			if err != nil {
				t.Fatal(err)
			}
			_ = f.Close()
			name := file
			if c.loop {
				out, err := exec.Command("losetup", "--find", "--show", file).Output()
				if err != nil {
					t.Skipf("no loop devices here: %v", err)
				}
				name = strings.TrimSpace(string(out))
				t.Cleanup(func() { _ = exec.Command("losetup", "--detach", name).Run() })
			}
			d, err := OpenDevice(name)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = d.Close() })
			i, err := Open(bytes.NewReader(image))
			if err != nil {
				t.Fatal(err)
			}
			once := map[bool]bool{}
			_, err = i.Write(t.Context(), d, func(verifying bool, _, _ int64) {
				if c.during != nil && !once[verifying] {
					c.during(t, file, name, verifying)
				}
				once[verifying] = true
			})
			for _, says := range c.says {
				if err == nil || !strings.Contains(err.Error(), says) {
					t.Errorf("got %v, want an error with %q", err, says)
				}
			}
			got, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if table, _ := disk.ReadFirst(bytes.NewReader(got), int64(len(image))); table != nil {
				t.Error("the medium has a partition table")
			}
		})
	}
}

// Whoever is not root reads back past the page cache too: what is on the medium, and not what was written.
func TestReadBackWithoutRoot(t *testing.T) {
	file := filepath.Join(t.TempDir(), "card")
	if err := os.WriteFile(file, make([]byte, 24*mib), 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := OpenDevice(file)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close() //nolint:errcheck // the test is over then
	if _, err := d.WriteAt(bytes.Repeat([]byte{1}, 8*mib), 0); err != nil {
		t.Fatal(err)
	}
	if err := d.Sync(); err != nil {
		t.Fatal(err)
	}
	if cached(t, d) == 0 {
		t.Skip("what was written is not in the page cache, whatever Forget does")
	}
	if err := d.Forget(); err != nil { // of a file, it uses no right that root has alone
		t.Fatal(err)
	}
	var fsType unix.Statfs_t
	if err := unix.Fstatfs(int(d.Fd()), &fsType); err == nil && fsType.Type == unix.TMPFS_MAGIC {
		t.Skip("this folder is in memory; there is no medium to read back from")
	}
	if n := cached(t, d); n > 0 {
		t.Errorf("%d pages would be read back from memory", n)
	}
}

// cached counts the pages of the first 8 MiB that are in the page cache.
func cached(t *testing.T, d *File) (n int) {
	t.Helper()
	m, err := unix.Mmap(int(d.Fd()), 0, 8*mib, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Skipf("mmap: %v", err)
	}
	defer unix.Munmap(m) //nolint:errcheck // the test is over then
	pages := make([]byte, 8*mib/os.Getpagesize())
	if err := mincore(m, pages); err != nil {
		t.Skipf("mincore: %v", err)
	}
	for _, p := range pages {
		n += int(p & 1)
	}
	return n
}

func shrink(t *testing.T, file string, size int64) {
	t.Helper()
	if err := os.Truncate(file, size); err != nil {
		t.Error(err)
	}
}

// wrap makes of a card one that has no more than n bytes, and shows them again behind those.
func wrap(t *testing.T, file string, n int64) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Error(err)
		return
	}
	defer f.Close() //nolint:errcheck // in memory
	b := make([]byte, 4*mib)
	if _, err := f.ReadAt(b, 0); err != nil {
		t.Error(err)
	}
	if _, err := f.WriteAt(b, n); err != nil {
		t.Error(err)
	}
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Errorf("%s %v: %v: %s", name, args, err, out)
	}
}

func mincore(m, pages []byte) error {
	if _, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&m[0])), uintptr(len(m)), uintptr(unsafe.Pointer(&pages[0]))); errno != 0 {
		return errno
	}
	return nil
}
