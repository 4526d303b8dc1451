package compose

import (
	"bytes"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/skerry-os/skerry/image/rootfs"
)

// A debug release is a release with a shell in its root: busybox, and skerry-debug, which init starts to bring the shell to
// consoles and SSH. Nothing here is in any other root.
const (
	shellPackage = "busybox-static"
	shellProgram = "usr/bin/busybox"
	debugProgram = "usr/libexec/skerry/skerry-debug"
)

// notOurs are busybox's programs that would meddle with what init does, that kubelet would find and take for util-linux's, or
// that install packages.
var notOurs = []string{
	"busybox", "init", "linuxrc", "getty", "login", "su", "sulogin", "passwd", "mkpasswd", "crond", "crontab", "syslogd", "klogd", "mdev", "uevent",
	"watchdog", "run-init", "switch_root", "pivot_root", "nuke", "resume", "losetup", "fsck", "blkid", "dpkg", "dpkg-deb", "rpm", "rpm2cpio",
	"telnetd", "httpd", "udhcpd", "ifup", "ifdown",
}

// addShell puts busybox and skerry-debug into the tree.
func (b *build) addShell(t *rootfs.Tree) error {
	dir, _, err := b.packages.dir(shellPackage)
	if err != nil {
		return err
	}
	if err := addBusybox(t, filepath.Join(dir, "bin/busybox")); err != nil {
		return fmt.Errorf("package %s: %w", shellPackage, err)
	}
	if err := t.AddFile(debugProgram, filepath.Join(b.programs, "debug/skerry-debug"), 0o755); err != nil {
		return err
	}
	return b.packages.use(t, shellPackage)
}

// addBusybox adds the program and a link for each of its names that no program of the root has.
func addBusybox(t *rootfs.Tree, host string) error {
	data, err := os.ReadFile(host)
	if err != nil {
		return err
	}
	names, err := applets(data)
	if err != nil {
		return err
	}
	if err := t.AddFile(shellProgram, host, 0o755); err != nil {
		return err
	}
	for _, name := range names {
		taken := slices.ContainsFunc([]string{"usr/bin", "usr/sbin"}, func(dir string) bool {
			_, there := t.Get(path.Join(dir, name))
			return there
		})
		if taken || slices.Contains(notOurs, name) {
			continue
		}
		if err := t.AddLink(path.Join("usr/bin", name), path.Base(shellProgram)); err != nil {
			return err
		}
	}
	return nil
}

// applets lists the names that busybox goes by: a table in the program, sorted, a zero byte behind each and one more at the end.
// It is read rather than asked for, because the program may be one for another architecture.
func applets(program []byte) ([]string, error) {
	const first = "\x00[\x00[[\x00"
	begin := bytes.Index(program, []byte(first))
	if begin < 0 {
		return nil, fmt.Errorf("%s: has no table of its programs where one was looked for", path.Base(shellProgram))
	}
	table, _, _ := bytes.Cut(program[begin+1:], []byte("\x00\x00"))
	names := strings.Split(string(table), "\x00")
	if !slices.IsSorted(names) || !slices.Contains(names, "sh") || len(names) < 50 {
		return nil, fmt.Errorf("%s: its table of %d programs is not as expected, or has no sh", path.Base(shellProgram), len(names))
	}
	return names, nil
}
