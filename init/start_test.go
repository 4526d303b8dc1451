package main

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skerry-os/skerry/pkg/linux"
	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/notify"
	"github.com/skerry-os/skerry/pkg/slot"
	"github.com/skerry-os/skerry/pkg/supervise/process"
)

// apart runs the calling test again with mounts and a network of its own, and returns true there.
func apart(t *testing.T) bool {
	t.Helper()
	const env = "SKERRY_TEST_APART"
	if os.Getenv(env) == t.Name() {
		return true
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root: it mounts disks")
	}
	for _, program := range []string{"losetup", "/usr/sbin/mke2fs"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skip(err)
		}
	}
	c := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
	c.Env = append(os.Environ(), env+"="+t.Name())
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET}
	out, err := c.CombinedOutput()
	if err != nil {
		t.Errorf("apart: %v\n%s", err, out)
	}
	t.Logf("%s", out)
	return false
}

// bench is a machine's disk, and what one start after the other makes of it.
type bench struct {
	t      *testing.T
	disk   string
	reaper *process.Reaper
}

// newBench makes a disk that is all data, for hosts may not know partitions, and folders that are the machine's own.
func newBench(t *testing.T) *bench {
	t.Helper()
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "disk")
	if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Truncate(file, 96<<20)); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("/usr/sbin/mke2fs", "-q", "-F", "-t", "ext4", file).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	out, err := exec.Command("losetup", "--find", "--show", file).CombinedOutput()
	disk := strings.TrimSpace(string(out))
	if err != nil {
		t.Skipf("no loop device: %v: %s", err, out)
	}
	b := &bench{t: t, disk: disk, reaper: process.NewReaper()}
	for _, dir := range []string{"/run", "/var"} {
		if err := (linux.Mount{Source: "tmpfs", Target: dir, FS: "tmpfs"}).Do(); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { b.reaper.Run(ctx); close(done) }()
	t.Cleanup(func() {
		cancel()
		<-done
		_ = linux.UnmountBelow("/var")
		_ = exec.Command("losetup", "-d", disk).Run()
	})
	return b
}

// tell writes the node config, where stage 1 of a machine that was started over the network puts it: hosts may lack FAT.
func (b *bench) tell(text string) {
	b.t.Helper()
	if err := errors.Join(os.MkdirAll(configDir, 0o700), os.WriteFile(filepath.Join(configDir, configName), []byte(serverConfig+text), 0o600)); err != nil {
		b.t.Fatal(err)
	}
}

// start runs the boot's steps up to the files, as one start of the machine does, and down takes it down.
func (b *bench) start() (s *system, said func() string, down func()) {
	b.t.Helper()
	c, read := pipeConsole(b.t)
	s = &system{console: c, reaper: b.reaper, health: newHealth(), time: newTimekeeper()}
	s.life, s.end = context.WithCancelCause(context.Background())
	s.id = machine.Identity{Release: machine.Release{Version: "1.2.3", Kubernetes: "v1.37.2"}, Boot: machine.Boot{Board: "x86-uefi", Slot: slot.A, Disk: b.disk, Netboot: true}}
	return s, func() string { return read(false) }, func() {
		b.t.Helper()
		s.end(stop{why: "the test is over"})
		s.background.Wait()
		s.console.logTo(nil)
		for _, dir := range []string{"/" + certsFile, "/etc", "/var"} {
			if dir == "/etc" && !slices.ContainsFunc(s.config.Files, func(f machine.File) bool { return f.Path == "/etc/motd" }) {
				continue
			}
			_ = unix.Unmount(dir, 0)
		}
	}
}

// mountBench is mountData without the partition.
func mountBench(ctx context.Context, s *system) error {
	m := linux.Mount{Source: s.id.Boot.Disk, Target: "/var", FS: "ext4"}
	if err := m.Do(); err != nil {
		return err
	}
	_, err := s.wipeData(ctx, m)
	return errors.Join(err, makeDirs("/"), s.dataOptions().keepWord("/"))
}

var untilFiles = []step{
	must("read config", readConfig, time.Minute), must("mount data", mountBench, time.Minute), must("settle config", settleConfig, forever), must("lay out files", layFiles, time.Minute),
}

func (b *bench) boot(s *system) {
	b.t.Helper()
	if err := runSteps(s.life, s, untilFiles, s.console.say); err != nil {
		b.t.Fatal(err)
	}
}

func holds(t *testing.T, name, want string) {
	t.Helper()
	if data, err := os.ReadFile(name); err != nil || !strings.Contains(string(data), want) {
		t.Errorf("%s: %.200q, %v; want %q", name, data, err, want)
	}
}

// The starts of one machine on a real disk: its config lays out files; a broken
// one goes unheard, with the last good one in force; a new word wipes the data; and without any good config the machine waits,
// says so to whoever asks, and goes on when there is one.
func TestStartsWithConfigsGoodAndBad(t *testing.T) {
	if !apart(t) {
		return
	}
	if _, err := os.Stat("/" + certsFile); err != nil {
		t.Skip(err)
	}
	authority, err := os.ReadFile("../pkg/machine/testdata/authority.pem")
	if err != nil {
		t.Fatal(err)
	}
	b := newBench(t)
	b.tell("files: [{path: /etc/motd, content: a mountain}, {path: /var/lib/app/x, content: y}]\n" +
		"manifests: {hello: \"apiVersion: v1\\nkind: Namespace\\n\"}\nregistries: {mirrors: {docker.io: {endpoint: [\"https://m.example\"]}}}\n" +
		"certificates:\n  - |\n    " + strings.ReplaceAll(strings.TrimSpace(string(authority)), "\n", "\n    ") + "\n")
	s, _, down := b.start()
	b.boot(s)
	holds(t, "/etc/motd", "a mountain")
	if err := os.WriteFile("/etc/skerry-test", nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("/etc can be written: %v", err)
	}
	holds(t, "/var/lib/app/x", "y")
	holds(t, dataDir+"/server/manifests/config-hello.yaml", "kind: Namespace")
	holds(t, dataDir+"/etc/registries.yaml", "https://m.example")
	holds(t, "/"+certsFile, strings.TrimSpace(string(authority)))
	holds(t, goodConfig, "a mountain")
	down()

	b.tell("hostnam: secret-1\n")
	s, said, down := b.start()
	b.boot(s)
	if !strings.Contains(said(), `skerry: config: config.yaml:4:1: unknown key "hostnam"; did you mean "hostname"?; the last good config goes on.`) || len(s.config.Files) != 2 {
		t.Errorf("a broken config after a good one: %s", said())
	}
	if n := s.allNotes(); len(n) != 1 || !strings.Contains(n[0], "the last good config goes on") {
		t.Errorf("the display says %q", n)
	}
	holds(t, "/etc/motd", "a mountain")
	down()

	b.tell("data: {wipe: \"2026-05\"}\n")
	s, said, down = b.start()
	b.boot(s)
	if _, err := os.Stat("/var/lib/app/x"); err == nil || !strings.Contains(said(), "data.wipe has a new word") {
		t.Errorf("nothing was wiped: %s", said())
	}
	if err := os.WriteFile("/var/lib/mine", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	down()
	s, _, down = b.start()
	b.boot(s)
	if _, err := os.Stat("/var/lib/mine"); err != nil {
		t.Errorf("it was wiped twice: %v", err)
	}
	if err := os.Remove(goodConfig); err != nil {
		t.Fatal(err)
	}
	down()

	b.tell("hostnam: secret-1\n")
	s, said, down = b.start()
	go func() {
		defer b.tell("hostname: north-1\n") // as a person does who has read the page
		for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
			r, err := http.Get("http://127.0.0.1/")
			if err != nil {
				continue
			}
			page, err := io.ReadAll(r.Body)
			_ = r.Body.Close()
			if text := string(page); err != nil || r.StatusCode != http.StatusServiceUnavailable || !strings.Contains(text, "config.yaml:4:1: unknown key") || strings.Contains(text, "secret") {
				t.Errorf("%s, %v\n%s", r.Status, err, text)
			}
			return
		}
		t.Error("nobody answers at port 80")
	}()
	b.boot(s)
	if text := said(); s.config.Hostname != "north-1" || !strings.Contains(text, "skerry: waiting: a node config: config.yaml:4:1:") || !strings.Contains(text, "skerry: config: is good now") {
		t.Errorf("host name %q, console:\n%s", s.config.Hostname, text)
	}
	s.screen.started(1)
	s.screen.heard(notify.Message{PID: 1, Fields: map[string]string{"READY": "1"}}) // the display goes on with the node
	if !strings.Contains(said(), "skerry: node: Ready") {
		t.Errorf("console:\n%s", said())
	}
	down()
}
