package network

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/skerry-os/skerry/pkg/kmod"
)

// TestMain lets the test binary be process 1 of a machine that has nothing else, for kinds of links that this host's kernel may
// lack: e2e/vm boots it with a release's kernel.
func TestMain(m *testing.M) {
	if os.Getpid() != 1 {
		os.Exit(m.Run())
	}
	for _, fs := range []struct{ kind, dir string }{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}, {"tmpfs", "/tmp"}} {
		err := os.MkdirAll(fs.dir, 0o755)
		if err == nil {
			err = unix.Mount(fs.kind, fs.dir, fs.kind, 0, "")
		}
		if err != nil {
			fmt.Println("mounting:", fs.dir, err)
		}
	}
	if err := loadModules(); err != nil {
		fmt.Println("loading modules:", err)
	}
	fmt.Println("tests end with", m.Run())
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

// loadModules loads everything that is there: whoever made the initramfs chose it.
func loadModules() error {
	var un unix.Utsname
	if err := unix.Uname(&un); err != nil {
		return err
	}
	loader, err := kmod.NewLoader(filepath.Join("/usr/lib/modules", strings.TrimRight(string(un.Release[:]), "\x00")))
	if err != nil {
		return err
	}
	var names []string
	for name := range loader.Index().Modules {
		names = append(names, name)
	}
	return loader.LoadAll(names)
}
