package flash

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skerry-os/skerry/image/disk"
)

// A real block device, whose page cache and exclusive opening are the kernel's.
func TestABlockDevice(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("making a loop device needs root")
	}
	backing := filepath.Join(t.TempDir(), "card")
	if err := os.WriteFile(backing, bytes.Repeat([]byte{0xa5}, 32*mib), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "--find", "--show", backing).Output()
	if err != nil {
		t.Skipf("no loop devices here: %v", err)
	}
	loop := strings.TrimSpace(string(out))
	t.Cleanup(func() { _ = exec.Command("losetup", "--detach", loop).Run() })

	d, err := OpenDevice(loop)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close() //nolint:errcheck // the test is over then
	if d.Size() != 32*mib {
		t.Errorf("size %d", d.Size())
	}
	if _, err := OpenDevice(loop); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("opened twice: %v", err)
	}
	image := anImage(t)
	i, err := Open(bytes.NewReader(image))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := i.Write(t.Context(), d, nil); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(backing)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := disk.Read(bytes.NewReader(got[:len(image)]), int64(len(image))); err != nil || !bytes.Equal(got[1*mib:3*mib], image[1*mib:3*mib]) {
		t.Errorf("the medium below: %v", err)
	}
}

func TestWhatIsNoDevice(t *testing.T) {
	for name, says := range map[string]string{"/dev/null": "neither a disk nor a file", t.TempDir(): "neither a disk nor a file", "/no/such/disk": "no such file"} {
		if _, err := OpenDevice(name); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
