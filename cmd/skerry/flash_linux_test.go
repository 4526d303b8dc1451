package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skerry-os/skerry/image/flash"
	"github.com/skerry-os/skerry/image/releasetest"
)

// On a terminal the progress says how long it will take; elsewhere it is a line for each tenth.
func TestBars(t *testing.T) {
	for _, terminal := range []bool{true, false} {
		var out bytes.Buffer
		b := newBars(&out, terminal, false, 1)
		b.start[0] = time.Now().Add(-10 * time.Second)
		b.tell(0, "/dev/sdb", false, 1<<20, 4<<20)
		if !regexp.MustCompile(`/dev/sdb writing 25 %, (29|30|31)s left`).MatchString(out.String()) {
			t.Errorf("terminal %v: %q", terminal, out.String())
		}
		b.last = time.Time{}
		b.tell(0, "/dev/sdb", true, 4<<20, 4<<20)
		b.end()
		if !strings.Contains(out.String(), "reading back 100 %") {
			t.Errorf("terminal %v: %q", terminal, out.String())
		}
	}
	var out bytes.Buffer
	newBars(&out, true, true, 1).tell(0, "/dev/sdb", false, 1, 2)
	if out.Len() > 0 {
		t.Errorf("quiet: %q", out.String())
	}
}

func TestFlashedSaysWhatBecameOfTheCard(t *testing.T) {
	r := flashed{Device: "/dev/sdb", Node: "agent-1", Report: flash.Report{Written: 300 << 20}, Seconds: 12.34, ejected: true}
	if got, want := r.String(), "/dev/sdb is agent-1: 300MiB written and read back in 12.3 s; you can take it out"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	r.ejected = false
	if got := r.String(); strings.Contains(got, "take it out") {
		t.Errorf("a device that could not be ejected: %q", got)
	}
	r.Error = "writing at byte 5: input/output error"
	if got, want := r.String(), "/dev/sdb: FAILED: writing at byte 5: input/output error"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// A block device passes the guard by whatever name it is called, and what is mounted goes only when a person says so.
func TestFlashGuardsEveryDevice(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("making a loop device needs root")
	}
	dir := t.TempDir()
	backing, image, mnt := filepath.Join(dir, "card"), filepath.Join(dir, "x.img"), filepath.Join(dir, "mnt")
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	tool := func(args ...string) string {
		t.Helper()
		out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
		if err != nil {
			t.Skipf("%v: %v: %s", args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	b := releasetest.New(t, 1<<20)
	if build := command(t, imageBuild(b, image)...); build.Run() != nil {
		t.Fatal(build.Stderr)
	}
	f, err := os.Create(backing)
	check(err)
	check(f.Truncate(2 << 30))
	check(f.Close())
	loop := tool("losetup", "--find", "--show", backing)
	t.Cleanup(func() { _ = exec.Command("losetup", "--detach", loop).Run() })
	var st unix.Stat_t
	check(unix.Stat(loop, &st))
	link, node := filepath.Join(dir, "link"), filepath.Join(dir, "node")
	check(os.Symlink(loop, link))
	check(unix.Mknod(node, unix.S_IFBLK|0o600, int(st.Rdev)))
	check(os.Mkdir(mnt, 0o755))
	tool("mke2fs", "-q", "-F", loop)

	refused := func(says string, args ...string) {
		t.Helper()
		c := command(t, append([]string{"flash", "--yes"}, args...)...)
		if err := c.Run(); err == nil || !strings.Contains(c.Stderr.(*bytes.Buffer).String(), says) {
			t.Errorf("%v: %v, %s; want %q", args, err, c.Stderr, says)
		}
	}
	for _, name := range []string{loop, link, node} {
		refused("is not a stick or a card; add --any-disk", image, name)
	}
	tool("mount", loop, mnt)
	t.Cleanup(func() { _ = exec.Command("umount", mnt).Run() })
	for _, name := range []string{loop, link, node} {
		refused("is in use ("+mnt+"); unmount it first, or add --unmount", "--any-disk", image, name)
	}
	if _, err := os.Stat(filepath.Join(mnt, "lost+found")); err != nil {
		t.Errorf("a refused disk was touched: %v", err)
	}
	c := command(t, "flash", "--yes", "--any-disk", "--unmount", image, loop)
	if err := c.Run(); err != nil {
		t.Errorf("--unmount: %v, %s", err, c.Stderr)
	}
	if _, err := os.Stat(filepath.Join(mnt, "lost+found")); err == nil {
		t.Error("it is still mounted")
	}
}
