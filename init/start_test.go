package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/skerry-os/skerry/pkg/linux"
	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/notify"
	"github.com/skerry-os/skerry/pkg/seed"
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
	s = &system{console: c, logs: process.NewLogs(logDir), reaper: b.reaper, health: newHealth(), time: newTimekeeper()}
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
	m := dataMount(s.id.Boot.Disk)
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
	if data, err := os.ReadFile("/proc/self/mountinfo"); err != nil || !regexp.MustCompile(`(?m) /var (\S*,)?noatime\b.* ext4 .*\blazytime\b.*errors=remount-ro,commit=30`).Match(data) {
		t.Errorf("the data partition is not mounted as it should: %s, %v", data, err)
	}
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
		if text := askPage(t); !strings.Contains(text, "config.yaml:4:1: unknown key") || strings.Contains(text, "secret") {
			t.Error(text)
		}
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

// askPage gives what a machine that waits says over the network.
func askPage(t *testing.T) string {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		r, err := http.Get("http://127.0.0.1/")
		if err != nil {
			continue
		}
		page, err := io.ReadAll(r.Body)
		_ = r.Body.Close()
		if err != nil || r.StatusCode != http.StatusServiceUnavailable {
			t.Errorf("%s, %v", r.Status, err)
		}
		return string(page)
	}
	t.Error("nobody answers at port 80")
	return ""
}

// A fleet's card that is damaged, or written for other machines, keeps its machine waiting, where console and network say why and
// what to do. It does not restart without end.
func TestDamagedFleetCardsWait(t *testing.T) {
	if !apart(t) {
		return
	}
	table := fleetTable(t)
	for name, c := range map[string]struct {
		file  string
		data  []byte
		what  string
		wants string
	}{
		"a cut table":               {machine.TableName, table[:len(table)/2], "its place in a fleet", "nodes.json: is not a table of nodes, or cut"},
		"a table of another form":   {machine.TableName, []byte(`{"schema": 9}`), "its place in a fleet", "write the card again"},
		"a table of other machines": {machine.TableName, table, "its place in a fleet", "this machine is none of fleet home's nodes"},
		"a cut seed":                {seed.Name, []byte(`{"schema": 1, "fl`), "its cluster's keys", "seed.json: is not a seed, or cut; build the fleet and write the card again"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.tell("")
			s, said, down := b.start()
			if err := errors.Join(os.Remove(filepath.Join(configDir, configName)), os.WriteFile(filepath.Join(configDir, c.file), c.data, 0o600)); err != nil {
				t.Fatal(err)
			}
			s.config = decode(t, "")
			ctx, cancel := context.WithCancel(s.life)
			ended := make(chan error, 1)
			go func() {
				if c.file == seed.Name {
					ended <- takeSeed(ctx, s)
					return
				}
				tell, done := s.waitsFor(machine.Network{}, "its place in a fleet")
				defer done()
				ended <- pickNode(ctx, configDir, fstest.MapFS{"proc/device-tree/serial-number": {Data: []byte("FFFF\x00")}}, s.console.say, tell)
			}()
			if text := askPage(t); !strings.Contains(text, "This machine waits for "+c.what) || !strings.Contains(text, c.wants) {
				t.Errorf("the network hears\n%s", text)
			}
			if text := said(); !strings.Contains(text, "skerry: waiting: ") || !strings.Contains(text, c.wants) {
				t.Errorf("the console says\n%s", text)
			}
			select {
			case err := <-ended:
				t.Errorf("it does not wait: %v", err)
			default:
			}
			cancel()
			if err := <-ended; !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
			down()
		})
	}
}

// loop makes a disk of its own of a file.
func (b *bench) loop(size int64, head string) string {
	b.t.Helper()
	file := filepath.Join(b.t.TempDir(), "volume")
	if err := errors.Join(os.WriteFile(file, []byte(head), 0o600), os.Truncate(file, size)); err != nil {
		b.t.Fatal(err)
	}
	out, err := exec.Command("losetup", "--find", "--show", file).CombinedOutput()
	if err != nil {
		b.t.Skipf("no loop device: %v: %s", err, out)
	}
	disk := strings.TrimSpace(string(out))
	b.t.Cleanup(func() { _ = linux.UnmountBelow("/var"); _ = exec.Command("losetup", "-d", disk).Run() })
	return disk
}

// Volumes of the config: one that is empty is formatted, once; what holds anything never is; and one that fails or is missing keeps
// nobody from the others.
func TestMountVolumes(t *testing.T) {
	if !apart(t) {
		return
	}
	b := newBench(t)
	blank, used := b.loop(32<<20, ""), b.loop(32<<20, "somebody's data")
	b.tell(fmt.Sprintf("mounts:\n  - {device: %s, path: /var/mnt/used, format: true}\n  - {device: %s, path: /var/mnt/photos, format: true, options: [noatime, commit=60]}\n"+
		"  - {device: PARTLABEL=missing, path: /var/mnt/missing}\n", used, blank))
	for start := range 2 {
		s, said, down := b.start()
		b.boot(s)
		ctx, cancel := context.WithTimeoutCause(t.Context(), 3*time.Second, errors.New("the step is over"))
		err := mountVolumes(ctx, s)
		cancel()
		if err == nil || !strings.Contains(err.Error(), used+" at /var/mnt/used: ") || !strings.Contains(err.Error(), "PARTLABEL=missing at /var/mnt/missing: the step is over") || strings.Contains(err.Error(), blank) {
			t.Errorf("start %d: %v", start, err)
		}
		if made := strings.Contains(said(), "mount volumes: making a filesystem on "+blank); made != (start == 0) {
			t.Errorf("start %d: made anew: %v", start, made)
		}
		if data, err := os.ReadFile("/proc/self/mountinfo"); err != nil || !regexp.MustCompile(`(?m) /var/mnt/photos rw,nosuid,nodev,noatime .* ext4 .*commit=60`).Match(data) {
			t.Errorf("start %d: %s, %v", start, data, err)
		}
		if start == 0 {
			if err := os.WriteFile("/var/mnt/photos/mine", []byte("a mountain"), 0o600); err != nil {
				t.Error(err)
			}
		}
		holds(t, "/var/mnt/photos/mine", "a mountain")
		holds(t, used, "somebody's data")
		_ = unix.Unmount("/var/mnt/photos", 0)
		down()
	}
}

// A config that changes on the partition of a running machine: what can be taken up is in force, in the kernel too; what cannot is
// told, with what to do; one with a fault changes nothing.
func TestRunningMachineTakesUpItsConfig(t *testing.T) {
	if !apart(t) {
		return
	}
	b := newBench(t)
	const first = "network: {interfaces: [{name: eth0, addresses: [10.1.2.3/24]}]}\nntp: {servers: []}\nsysctls: {net.ipv4.ip_default_ttl: 61}\n"
	b.tell(first)
	card := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "far"}
	if err := netlink.LinkAdd(card); err != nil {
		t.Skipf("no network card to be made here: %v", err)
	}
	if far, err := netlink.LinkByName("far"); err != nil || netlink.LinkSetUp(far) != nil {
		t.Fatal("the other end of eth0: ", err)
	}
	s, said, down := b.start()
	b.boot(s)
	if err := applySysctls(t.Context(), s); err != nil {
		t.Log(err) // a namespace may not change all
	}
	s.keepNetwork(s.config.Network)
	has := func(want string) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			list, err := netlink.AddrList(card, netlink.FAMILY_V4)
			if err == nil && len(list) == 1 && list[0].IP.String() == want {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("eth0 has %v, %v; want %s", list, err, want)
			}
		}
	}
	has("10.1.2.3")
	holds(t, "/proc/sys/net/ipv4/ip_default_ttl", "61")

	seen, running := s.told, s.config
	look := func() { seen, running = s.lookAgain(t.Context(), seen, running) }
	b.tell(strings.NewReplacer("10.1.2.3", "10.1.2.4", ": 61", ": 62").Replace(first) + "hostname: other\nmodules: [nosuchmodule]\nfiles: [{path: /var/lib/app/x, content: y}]\n")
	look()
	has("10.1.2.4")
	holds(t, "/proc/sys/net/ipv4/ip_default_ttl", "62")
	holds(t, "/var/lib/app/x", "y")
	holds(t, goodConfig, "10.1.2.4")
	for _, want := range []string{"config: modules: ", "config: changed and in force: sysctls, network, files", "config: changed, and needs a restart of the machine: hostname"} {
		if text := said(); !strings.Contains(text, want) {
			t.Errorf("the console lacks %q:\n%s", want, text)
		}
	}
	b.tell("sysctls: {net.ipv4.ip_default_ttl: 63}\nhostnam: x\n")
	look()
	holds(t, "/proc/sys/net/ipv4/ip_default_ttl", "62")
	holds(t, goodConfig, "10.1.2.4")
	if n := s.allNotes(); len(n) < 2 || !strings.Contains(n[0], `config.yaml was changed, and is refused: config.yaml:5:1: unknown key "hostnam"`) || !strings.Contains(n[1], "hostname changed; restart the machine for it") {
		t.Errorf("the display says %q", n)
	}
	b.tell(first)
	look()
	has("10.1.2.3")
	holds(t, "/proc/sys/net/ipv4/ip_default_ttl", "61")
	if _, err := os.Stat("/var/lib/app/x"); err == nil {
		t.Error("a file that the config does not bring any more is still there")
	}
	if n := s.allNotes(); slices.ContainsFunc(n, func(l string) bool { return strings.Contains(l, "restart") || strings.Contains(l, "refused") }) {
		t.Errorf("all is as it was, and the display says %q", n)
	}
	down()
}

// Lines of a log wait in memory, and yet another program that reads it sees the last one.
func TestLogsAreHeldAndCanBeRead(t *testing.T) {
	if !apart(t) {
		return
	}
	b := newBench(t)
	b.tell("")
	s, said, down := b.start()
	b.boot(s)
	l, err := s.logs.Open("skerryd.log", 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	s.holdLogs(machine.Logs{Flush: "1h"})
	if s.readers == nil {
		t.Skip(said())
	}
	_, _ = l.Write([]byte("all is well\n"))
	if data, err := os.ReadFile(nodeLog); err != nil || len(data) > 0 {
		t.Errorf("%q was written at once, %v", data, err)
	}
	if out, err := exec.Command("cat", nodeLog).Output(); err != nil || string(out) != "all is well\n" {
		t.Errorf("a reader sees %q, %v", out, err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	down()
}
