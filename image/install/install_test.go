package install_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/skerry-os/skerry/boards"
	"github.com/skerry-os/skerry/image"
	"github.com/skerry-os/skerry/image/disk"
	"github.com/skerry-os/skerry/image/flash"
	"github.com/skerry-os/skerry/image/install"
	"github.com/skerry-os/skerry/image/netboot"
	"github.com/skerry-os/skerry/image/netboot/protocol"
	"github.com/skerry-os/skerry/image/releasetest"
	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/release"
)

const (
	childEnv = "SKERRY_TEST_INSTALLER"
	spaceEnv = "SKERRY_TEST_IN_NAMESPACE"
)

// TestMain lets the test binary be a machine's installer, in a network namespace of its own.
func TestMain(m *testing.M) {
	if text := os.Getenv(childEnv); text != "" {
		if err := child(text); err != nil {
			fmt.Println("child:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// serial is every machine's.
const serial = "S-LAB"

// order is what a child is to be.
type order struct {
	Pin, Root, Memory, Firmware, Session, Outcome string
	Keys                                          [][]byte
}

func child(text string) error {
	var o order
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		return err
	}
	var card netlink.Link
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) { // until the other end of the cable is here
		var err error
		if card, err = netlink.LinkByName("far"); err == nil {
			break
		}
		if time.Now().After(end) {
			return err
		}
	}
	addr, err := netlink.ParseAddr("10.9.0.50/24")
	if err != nil {
		return err
	}
	if err := errors.Join(netlink.AddrAdd(card, addr), netlink.LinkSetUp(card)); err != nil {
		return err
	}
	say := func(f string, a ...any) { fmt.Printf(f+"\n", a...) }
	i := &install.Installer{
		Pin: o.Pin, Root: o.Root, Memory: o.Memory, Log: say, Pause: 300 * time.Millisecond, Stall: 3 * time.Second,
		Hello: protocol.Hello{MACs: install.MACs(), Serial: serial, Arch: "amd64", Board: "x86-uefi", Firmware: o.Firmware, Session: o.Session},
		Open:  func(name string) (install.Disk, error) { return flash.OpenDevice(name) },
		Find:  func(ctx context.Context) (string, error) { return install.Find(ctx, say) },
	}
	for _, k := range o.Keys {
		i.Keys = append(i.Keys, k)
	}
	out, err := i.Run(context.Background())
	if err != nil {
		return err
	}
	return install.WriteOutcome(o.Outcome, out)
}

// lab is a server and one machine on a cable.
type lab struct {
	t     *testing.T
	b     *releasetest.Bench
	store *netboot.Store
	pin   string
	fleet string
	root  string // the machine's
	mem   string
	mac   net.HardwareAddr
	near  netlink.Link
	said  *buffer // the server's log
}

// buffer is written and read at once.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func newLab(t *testing.T, with ...func(*releasetest.Bench, testing.TB) *releasetest.Bench) *lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes network namespaces")
	}
	if os.Getenv(spaceEnv) != t.Name() {
		c := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
		c.Env = append(os.Environ(), spaceEnv+"="+t.Name())
		c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
		out, err := c.CombinedOutput()
		if err != nil {
			t.Errorf("in the namespace: %v", err)
		}
		t.Logf("%s", out)
		return nil
	}
	l := &lab{t: t, b: releasetest.New(t, 2<<20).Netboot(t), fleet: t.TempDir(), root: t.TempDir(), mem: filepath.Join(t.TempDir(), "memory"), mac: net.HardwareAddr{0x52, 0x54, 0, 0, 7, 7}, said: new(buffer)}
	for _, change := range with {
		change(l.b, t)
	}
	l.must(os.MkdirAll(filepath.Join(l.root, "sys/block"), 0o755))
	l.must(os.MkdirAll(filepath.Join(l.root, "dev"), 0o755))
	l.must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "near"}, PeerName: "far", PeerHardwareAddr: l.mac}))
	var err error
	l.near, err = netlink.LinkByName("near")
	l.must(err)
	addr, err := netlink.ParseAddr("10.9.0.1/24")
	l.must(err)
	l.must(errors.Join(netlink.AddrAdd(l.near, addr), netlink.LinkSetUp(l.near)))
	state := t.TempDir()
	r, err := netboot.ParseRange("10.9.0.100-10.9.0.120")
	l.must(err)
	up := make(chan struct{})
	var once sync.Once
	s, err := netboot.New(netboot.Options{
		Interface: "near", Releases: []string{l.b.Release}, Trusted: l.b.Trusted(), Fleet: netboot.Folder(l.fleet), State: state, DHCP: &r,
		Log: func(f string, a ...any) {
			t.Logf("server: "+f, a...)
			fmt.Fprintf(l.said, f+"\n", a...)
			if strings.HasPrefix(f, "serving on") {
				once.Do(func() { close(up) })
			}
		},
	})
	l.must(err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	select {
	case <-up:
	case <-time.After(30 * time.Second):
		t.Fatal("the server does not start")
	}
	ca, err := netboot.OpenAuthority(state)
	l.must(err)
	l.store, l.pin = s.Store, ca.Pin()
	return l
}

func (l *lab) must(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

// disk gives the machine one.
func (l *lab) disk(name, place, serial string, size int64, head []byte) string {
	l.t.Helper()
	dir := filepath.Join(l.root, "sys/devices", place, "block", name)
	l.must(os.MkdirAll(dir, 0o755))
	l.must(os.Symlink("../devices/"+place+"/block/"+name, filepath.Join(l.root, "sys/block", name)))
	for k, v := range map[string]string{"size": fmt.Sprint(size / 512), "dev": "9:9", "removable": "0", "ro": "0", "serial": serial} {
		l.must(os.WriteFile(filepath.Join(dir, k), []byte(v+"\n"), 0o644))
	}
	dev := filepath.Join(l.root, "dev", name)
	l.must(os.WriteFile(dev, head, 0o644))
	l.must(os.Truncate(dev, size))
	return dev
}

func (l *lab) config(extra string) string {
	text := releasetest.Config + extra
	l.must(os.WriteFile(filepath.Join(l.fleet, strings.ReplaceAll(l.mac.String(), ":", "-")+".yaml"), []byte(text), 0o600))
	return text
}

// installer is a running one.
type installer struct {
	*lab
	out  *buffer
	cmd  *exec.Cmd
	file string
}

func (l *lab) start(firmware string) *installer {
	l.t.Helper()
	n := &installer{lab: l, out: new(buffer), file: filepath.Join(l.t.TempDir(), "outcome.json")}
	o := order{Pin: l.pin, Root: l.root, Memory: l.mem, Firmware: firmware, Session: install.NewSession(), Outcome: n.file}
	for _, k := range l.b.Trusted() {
		o.Keys = append(o.Keys, k)
	}
	text, err := json.Marshal(o)
	l.must(err)
	far, err := netlink.LinkByName("far")
	l.must(err)
	n.cmd = exec.Command("/proc/self/exe")
	n.cmd.Env = append(os.Environ(), childEnv+"="+string(text))
	n.cmd.Stdout, n.cmd.Stderr = n.out, n.out
	n.cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	l.must(n.cmd.Start())
	l.must(netlink.LinkSetNsPid(far, n.cmd.Process.Pid))
	return n
}

// console waits for a line on the machine's console.
func (n *installer) console(part string) {
	n.t.Helper()
	for end := time.Now().Add(2 * time.Minute); !strings.Contains(n.out.String(), part); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			n.t.Fatalf("the console lacks %q: %s", part, n.out)
		}
	}
}

func (n *installer) ends() machine.Netboot {
	n.t.Helper()
	done := make(chan error, 1)
	go func() { done <- n.cmd.Wait() }()
	select {
	case err := <-done:
		n.t.Logf("machine: %s", n.out)
		if err != nil {
			n.t.Fatal(err)
		}
	case <-time.After(2 * time.Minute):
		_, _ = n.cmd.Process.Kill(), <-done
		n.t.Fatalf("the installer does not end: %s", n.out)
	}
	var o machine.Netboot
	data, err := os.ReadFile(n.file)
	n.must(err)
	n.must(json.Unmarshal(data, &o))
	return o
}

// until waits for the server to know something of the machine.
func (l *lab) until(what string, ok func(*netboot.Machine) bool) *netboot.Machine {
	l.t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		m, err := l.store.Get(l.mac.String())
		if err == nil && ok(m) {
			return m
		}
		if time.Now().After(end) {
			l.t.Fatalf("not within a minute: %s; it is %+v, %v", what, m, err)
		}
	}
}

const disk4G = 4 << 30

// A machine with three disks, of which one is meant: by mistake first none is, and the cable is pulled in the middle.
func TestInstall(t *testing.T) {
	l := newLab(t)
	if l == nil {
		return
	}
	system := l.disk("sda", "pci0/ata1/host1", "OLD", disk4G, []byte("a filesystem"))
	small := l.disk("vda", "pci0/virtio1", "SMALL", 64<<20, nil)
	meant := l.disk("nvme0n1", "pci0/nvme/nvme0", "S-NVME", disk4G, nil)
	l.config("install: {disk: {serial: NONE}}\n")
	n := l.start(protocol.UEFI)
	m := l.until("no disk matches", func(m *netboot.Machine) bool { return m.Stage == protocol.StageFailed })
	for _, part := range []string{"no disk matches install.disk", "/dev/sda", "serial OLD does not match"} {
		if !strings.Contains(m.Error, part) {
			t.Errorf("%q is not in %q", part, m.Error)
		}
	}
	// The cable comes out while it waits: its console says so, and what to do. Then all is put right.
	l.must(netlink.LinkSetDown(l.near))
	n.console("the server does not answer: is the cable in, and does skerry pxe serve run?")
	config := l.config("")
	l.must(netlink.LinkSetUp(l.near))
	n.console("the server answers again")
	if o := n.ends(); o.Diskless || !strings.Contains(o.Why, "/dev/nvme0n1") {
		t.Errorf("%+v", o)
	}
	m = l.until("installed", func(m *netboot.Machine) bool { return m.Stage == protocol.StageInstalled })
	if m.Installed.IsZero() || m.Error != "" || !strings.Contains(m.Disk, "nvme0n1") {
		t.Errorf("%+v", m)
	}
	same(t, l, meant, config)
	for name, want := range map[string]string{system: "a filesystem", small: ""} {
		data := make([]byte, 12)
		f, err := os.Open(name)
		l.must(err)
		_, _ = f.ReadAt(data, 0)
		_ = f.Close()
		if got := strings.TrimRight(string(data), "\x00"); got != want {
			t.Errorf("%s was written: %q", name, data)
		}
	}
}

// The release's folder is taken away while the server runs: console, log, page and list say what to do, and when it is back the
// machine goes on.
func TestTheReleaseGoesAway(t *testing.T) {
	l := newLab(t)
	if l == nil {
		return
	}
	dev := l.disk("vda", "pci0/virtio1", "V", disk4G, nil)
	config := l.config("")
	l.must(os.Rename(l.b.Release, l.b.Release+".gone"))
	n := l.start(protocol.UEFI)
	const remedy = "put the release's folder back there, or serve another one with --release"
	l.until("it says so", func(m *netboot.Machine) bool {
		return m.Stage == protocol.StageFailed && strings.Contains(m.Error, remedy)
	})
	n.console(remedy)
	n.console("the server warns: " + l.b.Release + ": open manifest.json: no such file or directory; put the release back")
	if text := l.said.String(); !strings.Contains(text, remedy) || !strings.Contains(text, l.b.Release+": open manifest.json: no such file or directory; put the release back") {
		t.Errorf("the log: %s", text)
	}
	if list, err := l.store.Warnings(); err != nil || len(list) != 1 || !strings.Contains(list[0].Text, "put the release back") {
		t.Errorf("the list: %v, %v", list, err)
	}
	l.must(os.Rename(l.b.Release+".gone", l.b.Release))
	if o := n.ends(); !strings.Contains(o.Why, "installed on /dev/vda") {
		t.Errorf("%+v", o)
	}
	same(t, l, dev, config)
	if list, err := l.store.Warnings(); err != nil || len(list) != 0 {
		t.Errorf("still warned of: %v, %v", list, err)
	}
}

// A machine that nobody knows by its serial alone waits; approved, it goes on where it waits.
func TestAMachineThatOnlySaysWhoItIs(t *testing.T) {
	l := newLab(t)
	if l == nil {
		return
	}
	dev := l.disk("vda", "pci0/virtio1", "V", disk4G, nil)
	l.must(os.WriteFile(filepath.Join(l.fleet, serial+".yaml"), []byte(releasetest.Config), 0o600))
	n := l.start(protocol.UEFI)
	n.console("waiting: it says that it is node north-1, by its serial " + serial + ", and anybody on this network can say that; if it is, on the server: skerry pxe approve " + l.mac.String())
	_, err := l.store.Approve(l.mac.String(), netboot.Approval{})
	l.must(err)
	if o := n.ends(); !strings.Contains(o.Why, "installed on /dev/vda") {
		t.Errorf("%+v", o)
	}
	same(t, l, dev, releasetest.Config)
}

// same compares a disk with the image that skerry image build makes, but for the marker.
func same(t *testing.T, l *lab, dev, config string) {
	t.Helper()
	sameFor(t, l, "x86-uefi", dev, config)
}

func sameFor(t *testing.T, l *lab, id, dev, config string) {
	t.Helper()
	board, err := boards.Load(id)
	l.must(err)
	p, err := image.New(board, l.b.Signed, image.Config{Name: "n", Data: []byte(config)}, image.Options{})
	l.must(err)
	name := filepath.Join(t.TempDir(), "want.img")
	l.must(image.Create(t.Context(), p, os.DirFS(l.b.Release), name, image.Raw))
	want, err := os.Open(name)
	l.must(err)
	defer want.Close() //nolint:errcheck // only read
	got, err := os.Open(dev)
	l.must(err)
	defer got.Close() //nolint:errcheck // only read
	x, y := make([]byte, 1<<20), make([]byte, 1<<20)
	for at := int64(0); at < p.Size; at += 1 << 20 {
		_, err := io.ReadFull(want, x)
		_, err2 := io.ReadFull(got, y)
		l.must(errors.Join(err, err2))
		if at == 0 {
			if !bytes.HasPrefix(y[1<<20-4096:], []byte("SKERRY-INSTALL")) {
				t.Error("no marker")
			}
			clear(y[1<<20-4096:])
		}
		if !bytes.Equal(x, y) {
			t.Fatalf("another byte from %d on", at)
		}
	}
}

// A disk that holds this machine's installation is left alone, and written anew only when a person says so.
func TestAnInstalledMachineLeavesItsDiskAlone(t *testing.T) {
	l := newLab(t)
	if l == nil {
		return
	}
	marker := append(make([]byte, 1<<20-4096), "SKERRY-INSTALL\x00\x01{\"id\":\"0123456789abcdef0123456789abcdef\",\"macs\":[\""+l.mac.String()+"\"]}"...)
	dev := l.disk("vda", "pci0/virtio1", "V", disk4G, marker)
	l.config("install: {wipe: true}\n")
	n := l.start(protocol.UEFI)
	if o := n.ends(); o.Diskless || !strings.Contains(o.Why, "holds an installation") {
		t.Errorf("%+v", o)
	}
	data, err := os.ReadFile(dev)
	l.must(err)
	if !bytes.Equal(data[:len(marker)], marker) || !bytes.Equal(data[1<<20:2<<20], make([]byte, 1<<20)) {
		t.Error("the disk was written")
	}
	m := l.until("installed", func(m *netboot.Machine) bool { return !m.Installed.IsZero() })
	if m.Install != "0123456789abcdef0123456789abcdef" {
		t.Errorf("%+v", m)
	}
}

func TestReinstall(t *testing.T) {
	l := newLab(t)
	if l == nil {
		return
	}
	marker := append(make([]byte, 1<<20-4096), "SKERRY-INSTALL\x00\x01{\"id\":\"0123456789abcdef0123456789abcdef\",\"macs\":[\""+l.mac.String()+"\"]}"...)
	dev := l.disk("vda", "pci0/virtio1", "V", disk4G, marker)
	config := l.config("")
	_, err := l.store.Change(l.mac.String(), func(m *netboot.Machine) error { m.Stage, m.Node = protocol.StageInstalled, "north-1"; return nil })
	l.must(err)
	_, err = l.store.Approve(l.mac.String(), netboot.Approval{Again: true})
	l.must(err)
	if o := l.start(protocol.UEFI).ends(); !strings.Contains(o.Why, "installed on /dev/vda") {
		t.Errorf("%+v", o)
	}
	same(t, l, dev, config)
	if m := l.until("installed", func(m *netboot.Machine) bool { return !m.Installed.IsZero() }); m.Again {
		t.Error("and once more")
	}
}

func TestWhatKeepsAMachineFromBeingInstalledIsSaid(t *testing.T) {
	l := newLab(t)
	if l == nil {
		return
	}
	l.disk("vda", "pci0/virtio1", "V1", disk4G, nil)
	l.disk("vdb", "pci0/virtio2", "V2", disk4G, nil)
	used := l.disk("vdc", "pci0/virtio3", "V3", disk4G, nil)
	f, err := os.OpenFile(used, os.O_WRONLY, 0)
	l.must(err)
	_, err = f.WriteAt([]byte{1}, disk4G-5000)
	l.must(errors.Join(err, f.Close()))
	n := l.start(protocol.UEFI)
	l.until("nobody knows it", func(m *netboot.Machine) bool {
		return m.Stage == netboot.StageWaiting && strings.Contains(m.Error, "skerry pxe approve")
	})
	for _, c := range []struct{ config, says string }{
		{"", "2 disks match install.disk"},
		{"install: {disk: {serial: V3}}\n", "serial V3 holds data; write install.wipe: true"},
		{"install: {disk: {maxSize: 1GiB}}\n", "no disk matches"},
		{"instal: {}\n", "instal"},
	} {
		l.config(c.config)
		l.until(c.says, func(m *netboot.Machine) bool { return strings.Contains(m.Error, c.says) })
	}
	l.must(os.Remove(filepath.Join(l.root, "sys/block/vda")))
	l.must(os.Remove(filepath.Join(l.root, "sys/block/vdb")))
	l.must(os.Remove(filepath.Join(l.root, "sys/block/vdc")))
	l.config("")
	l.until("no disk", func(m *netboot.Machine) bool { return strings.Contains(m.Error, "has no disk") })
	l.must(n.cmd.Process.Kill())
	_ = n.cmd.Wait()
	for _, line := range []string{"waiting: nobody knows this machine", "2 disks match", "holds data", "has no disk"} {
		if !strings.Contains(n.out.String(), line) {
			t.Errorf("the console lacks %q: %s", line, n.out)
		}
	}
}

// A machine with a BIOS gets the board for that, whose kernel image it was started with. A release without one says so.
func TestInstallByBIOS(t *testing.T) {
	l := newLab(t, (*releasetest.Bench).AddBIOS)
	if l == nil {
		return
	}
	dev := l.disk("vda", "pci0/virtio1", "V", disk4G, nil)
	config := l.config("")
	if o := l.start(protocol.BIOS).ends(); !strings.Contains(o.Why, "installed on /dev/vda") {
		t.Errorf("%+v", o)
	}
	sameFor(t, l, "x86-bios", dev, config)
}

func TestNoBoardForABIOS(t *testing.T) {
	l := newLab(t)
	if l == nil {
		return
	}
	l.disk("vda", "pci0/virtio1", "V", disk4G, nil)
	l.config("")
	n := l.start(protocol.BIOS)
	l.until("refused", func(m *netboot.Machine) bool {
		return m.Stage == protocol.StageFailed && strings.Contains(m.Error, "only x86-uefi: serve a release with board x86-bios, switch the firmware to UEFI, or write install.diskless: true")
	})
	l.must(n.cmd.Process.Kill())
	_ = n.cmd.Wait()
}

func TestDiskless(t *testing.T) {
	l := newLab(t)
	if l == nil {
		return
	}
	dev := l.disk("vda", "pci0/virtio1", "STATE", disk4G, nil)
	config := l.config("install: {diskless: true, state: {serial: STATE}}\n")
	o := l.start(protocol.BIOS).ends()
	if !o.Diskless || o.State != "/dev/vda" {
		t.Errorf("%+v", o)
	}
	root, err := os.ReadFile(filepath.Join(l.mem, machine.NetbootRoot))
	l.must(err)
	want, err := os.ReadFile(filepath.Join(l.b.Release, "root.img"))
	l.must(err)
	if !bytes.Equal(root, want) {
		t.Error("another root")
	}
	if got, err := os.ReadFile(filepath.Join(l.mem, machine.NetbootConfigDir, "config.yaml")); err != nil || string(got) != config {
		t.Errorf("%s, %v", got, err)
	}
	manifest, err := os.ReadFile(filepath.Join(l.mem, release.ManifestName))
	l.must(err)
	sig, err := os.ReadFile(filepath.Join(l.mem, release.SignatureName))
	l.must(err)
	if _, err := release.Verify(manifest, sig, l.b.Trusted()); err != nil {
		t.Error(err)
	}
	f, err := os.Open(dev)
	l.must(err)
	defer f.Close() //nolint:errcheck // only read
	table, err := disk.Read(f, disk4G)
	if err != nil || len(table.Partitions) != 1 || table.Partitions[0].Name != boards.Data || !slices.Equal([]int64{table.Partitions[0].Start, table.Partitions[0].Size}, []int64{1 << 20, disk4G - 2<<20}) {
		t.Errorf("%+v, %v", table, err)
	}
	l.until("running", func(m *netboot.Machine) bool { return m.Stage == protocol.StageRunning })
}

// The power goes while the image is written. The machine then waits for a person, and begins again.
func TestAnInterruptedInstallation(t *testing.T) {
	l := newLab(t)
	if l == nil {
		return
	}
	half := append(make([]byte, 1<<20-4096), "SKERRY-INSTALL\x00\x01{\"id\":\"0123456789abcdef0123456789abcdef\",\"macs\":[\""+l.mac.String()+"\"],\"begun\":true}"...)
	half = append(append(half, make([]byte, 3<<19-len(half))...), "half of something"...)
	dev := l.disk("vda", "pci0/virtio1", "V", disk4G, half)
	config := l.config("")
	_, err := l.store.Change(l.mac.String(), func(m *netboot.Machine) error {
		m.Stage, m.Node, m.Session, m.Handed = protocol.StageWrite, "north-1", "another", time.Now()
		return nil
	})
	l.must(err)
	n := l.start(protocol.UEFI)
	l.until("it waits", func(m *netboot.Machine) bool {
		return m.Stage == netboot.StageWaiting && strings.Contains(m.Error, "did not end")
	})
	_, err = l.store.Approve(l.mac.String(), netboot.Approval{})
	l.must(err)
	if o := n.ends(); !strings.Contains(o.Why, "installed on /dev/vda") {
		t.Errorf("%+v", o)
	}
	same(t, l, dev, config)
}
