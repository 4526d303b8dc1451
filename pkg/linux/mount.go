// Package linux is what init asks of the kernel: mounts, block devices, verity, watchdog, settings, consoles, the power
// button, restart. With init it is the only code in Skerry that mounts parts of the system or restarts it.
//
// What can be decided without a kernel (which disk, which bytes of a partition table, what a partition holds) is decided on
// an fs.FS or io.ReaderAt, so that tests need no machine.
package linux

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Mount is one filesystem and where it goes.
type Mount struct {
	Source, Target, FS string
	Flags              uintptr
	Data               string
}

const quiet = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC

// KernelMounts are the filesystems that stage 1 makes and stage 2 inherits.
func KernelMounts() []Mount {
	return []Mount{
		{"proc", "/proc", "proc", quiet, ""},
		{"sysfs", "/sys", "sysfs", quiet, ""},
		{"devtmpfs", "/dev", "devtmpfs", unix.MS_NOSUID, "mode=0755"},
		{"tmpfs", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755,size=20%"},
	}
}

// NodeMounts are those that the running node needs besides.
func NodeMounts() []Mount {
	return []Mount{
		{"devpts", "/dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "mode=0620,ptmxmode=0666,gid=5"},
		{"tmpfs", "/dev/shm", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
		{"mqueue", "/dev/mqueue", "mqueue", quiet, ""},
		{"tmpfs", "/tmp", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777,size=20%"},
		{"cgroup2", "/sys/fs/cgroup", "cgroup2", quiet, "nsdelegate,memory_recursiveprot"},
		{"bpf", "/sys/fs/bpf", "bpf", quiet, "mode=0700"},
		{"securityfs", "/sys/kernel/security", "securityfs", quiet, ""},
	}
}

// EFIVars is where the firmware's variables are, on machines that have them.
func EFIVars() Mount {
	return Mount{"efivarfs", "/sys/firmware/efi/efivars", "efivarfs", quiet, ""}
}

// Do makes the folder and mounts.
func (m Mount) Do() error {
	if err := os.MkdirAll(m.Target, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(m.Source, m.Target, m.FS, m.Flags, m.Data); err != nil {
		return fmt.Errorf("mounting %s (%s) on %s: %w", m.Source, m.FS, m.Target, err)
	}
	return nil
}

// Bind mounts a file or folder over another one, which is there.
func (m Mount) Bind() error {
	if err := unix.Mount(m.Source, m.Target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("laying %s over %s: %w", m.Source, m.Target, err)
	}
	return nil
}

// Mounted says whether a filesystem is mounted at dir.
func Mounted(dir string) (bool, error) {
	list, err := Mounts()
	if err != nil {
		return false, err
	}
	for _, m := range list {
		if m.Target == dir {
			return true, nil
		}
	}
	return false, nil
}

// Mounts lists what is mounted, in the order it was.
func Mounts() ([]Mount, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return parseMountinfo(f)
}

// parseMountinfo reads proc_pid_mountinfo(5): ... root TARGET options [optional...] - FS SOURCE data.
func parseMountinfo(r io.Reader) ([]Mount, error) {
	var out []Mount
	s := bufio.NewScanner(r)
	s.Buffer(nil, 1<<20) // overlay's list of layers is long
	for s.Scan() {
		left, right, ok := strings.Cut(s.Text(), " - ")
		l, rt := strings.Fields(left), strings.Fields(right)
		if !ok || len(l) < 5 || len(rt) < 2 {
			return nil, fmt.Errorf("/proc/self/mountinfo: line %q is not in the known form", s.Text())
		}
		out = append(out, Mount{Source: unescape(rt[1]), Target: unescape(l[4]), FS: rt[0]})
	}
	return out, s.Err()
}

// unescape turns the octal escapes of mountinfo (\040 is a space) back.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if c, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(c))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// ShareAll makes every mount propagate into mount namespaces and back, which kubelet's volumes need.
func ShareAll() error {
	if err := unix.Mount("", "/", "", unix.MS_SHARED|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("sharing mounts: %w", err)
	}
	return nil
}

// DelegateCgroups lets cgroups below the root have every controller the kernel offers.
func DelegateCgroups(root string) error {
	have, err := os.ReadFile(filepath.Join(root, "cgroup.controllers"))
	if err != nil {
		return err
	}
	var errs []error
	for c := range strings.FieldsSeq(string(have)) {
		// One at a time: a controller that refuses must not take the others along.
		errs = append(errs, os.WriteFile(filepath.Join(root, "cgroup.subtree_control"), []byte("+"+c), 0))
	}
	return errors.Join(errs...)
}

// UnmountBelow unmounts everything at and below dir, the last mounted first, and turns what is still in use read-only. It
// returns what could be neither.
func UnmountBelow(dir string) error {
	list, err := Mounts()
	if err != nil {
		return err
	}
	var errs []error
	for i := len(list) - 1; i >= 0; i-- {
		t := list[i].Target
		if t != dir && !strings.HasPrefix(t, strings.TrimSuffix(dir, "/")+"/") {
			continue
		}
		err := unix.Unmount(t, 0)
		if err == nil || errors.Is(err, unix.EINVAL) { // EINVAL: went along with another
			continue
		}
		if t != dir {
			// What is stacked on the disk must not keep it from being unmounted.
			if err = unix.Unmount(t, unix.MNT_DETACH); err == nil {
				continue
			}
		} else if err = unix.Mount("", t, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err == nil {
			continue
		}
		errs = append(errs, fmt.Errorf("unmounting %s: %w", t, err))
	}
	return errors.Join(errs...)
}

// SwitchRoot moves the kernel filesystems into the filesystem at dir, makes that the root and frees the initramfs's memory.
func SwitchRoot(dir string) error {
	for _, m := range KernelMounts() {
		if err := unix.Mount(m.Target, filepath.Join(dir, m.Target), "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("moving %s into the root: %w", m.Target, err)
		}
	}
	old, err := os.OpenFile("/", os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer old.Close()
	if err := os.Chdir(dir); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("moving the root into place: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("entering the root: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	return removeContents(int(old.Fd()))
}

// removeContents deletes what is below the folder fd, and never leaves its filesystem.
func removeContents(fd int) error {
	var dir unix.Stat_t
	if err := unix.Fstat(fd, &dir); err != nil {
		return err
	}
	name := fmt.Sprintf("/proc/self/fd/%d", fd)
	entries, err := os.ReadDir(name)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		var st unix.Stat_t
		if err := unix.Fstatat(fd, e.Name(), &st, unix.AT_SYMLINK_NOFOLLOW); err != nil || st.Dev != dir.Dev {
			continue
		}
		flags := 0
		if e.IsDir() {
			flags = unix.AT_REMOVEDIR
			sub, err := unix.Openat(fd, e.Name(), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
			if err != nil {
				errs = append(errs, err)
				continue
			}
			errs = append(errs, removeContents(sub), unix.Close(sub))
		}
		if err := unix.Unlinkat(fd, e.Name(), flags); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENOTEMPTY) {
			errs = append(errs, fmt.Errorf("freeing %s: %w", e.Name(), err))
		}
	}
	return errors.Join(errs...)
}
