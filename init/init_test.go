package main

import (
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/skerry-os/skerry/image/imagetest"
	"github.com/skerry-os/skerry/pkg/linux"
	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/notify"
	"github.com/skerry-os/skerry/pkg/release"
	"github.com/skerry-os/skerry/pkg/slot"
	"github.com/skerry-os/skerry/pkg/update/record"
)

var durations = regexp.MustCompile(`\([0-9.]+(µs|ms|s)\)`)

// The lines are read by tests and by the progress display, so their form is part of the promise.
func TestStepsSayHowTheyWent(t *testing.T) {
	ok := func(context.Context, *system) error { return nil }
	fail := func(context.Context, *system) error { return errors.New("the disk\nis gone") }
	hang := func(context.Context, *system) error { select {} }
	patient := func(ctx context.Context, _ *system) error {
		<-ctx.Done()
		return errors.New("waited for the disk")
	}
	var said []string
	err := runSteps(t.Context(), nil, []step{
		must("one", ok, time.Minute),
		may("two", fail, time.Minute),
		may("three", func(context.Context, *system) error { panic("oh") }, time.Minute),
		may("four", hang, 10*time.Millisecond),
		may("five", patient, 10*time.Millisecond),
		must("six", fail, time.Minute),
		must("seven", ok, time.Minute),
	}, func(line string) { said = append(said, durations.ReplaceAllString(line, "(T)")) })
	if err == nil || !strings.Contains(err.Error(), "six: the disk") {
		t.Errorf("error %v", err)
	}
	want := []string{
		"one: ok (T)",
		"two: the disk | is gone; going on without",
		"three: panic: oh | goroutine",
		"four: not done after 10ms; going on without",
		"five: not done after 10ms: waited for the disk; going on without",
		"six: the disk | is gone; restart in 10s",
	}
	if len(said) != len(want) {
		t.Fatalf("said %q", said)
	}
	for i := range want {
		if !strings.HasPrefix(said[i], want[i]) {
			t.Errorf("said %q, want %q", said[i], want[i])
		}
	}
}

// Somebody who presses the button while the machine starts is not told of a failure.
func TestStepsInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	pressed := stop{off: true, why: "the power button was pressed"}
	err := runSteps(ctx, nil, []step{
		must("one", func(context.Context, *system) error { cancel(pressed); return errors.New("torn off") }, time.Minute),
		must("two", func(context.Context, *system) error { t.Error("went on"); return nil }, time.Minute),
	}, func(line string) { t.Errorf("said %q", line) })
	if !errors.Is(err, pressed) {
		t.Errorf("error %v", err)
	}
}

// The pages can work: every step has something to do, a name of its own, and if it must succeed the time that slow cards need.
func TestSequences(t *testing.T) {
	for _, steps := range [][]step{stage1, stageNet, stage2} {
		seen := map[string]bool{}
		for _, st := range steps {
			if st.do == nil || st.limit <= 0 || seen[st.name] || strings.ContainsAny(st.name, ":;") {
				t.Errorf("%q: has no work, no limit, or a name that is taken or cannot be told from what follows it", st.name)
			}
			if st.must && st.limit < time.Minute {
				t.Errorf("%q: restarts the machine after %v", st.name, st.limit)
			}
			seen[st.name] = true
		}
	}
}

// A server takes its datastore back when it starts, by what settling the last update left: after the firmware fell back the
// machine learns that first, before skerryd runs.
func TestUpdatesAreSettledBeforeTheNodeStarts(t *testing.T) {
	at := func(name string) int {
		return slices.IndexFunc(stage2, func(st step) bool { return st.name == name })
	}
	if settle := at("settle update"); settle < at("mount data") || settle > at("start node") || settle < 0 {
		t.Errorf("it is step %d, and the node starts at %d", settle, at("start node"))
	}
	for left, want := range map[string]string{"": "did not come up", "slot b: it is damaged": "left slot b: it is damaged"} {
		st := record.File(filepath.Join(t.TempDir(), "record.json"))
		saved := &record.Saved{Snapshot: "s"}
		if err := st.Save(record.Record{Phase: record.Trying, Slot: slot.B, To: "1.1.0", Boots: 1, Armed: true, Saved: saved}); err != nil {
			t.Fatal(err)
		}
		id := machine.Identity{Release: machine.Release{Version: "1.0.0"}, Boot: machine.Boot{Slot: slot.A, Left: left}}
		cleared := &clears{}
		news, err := conclude(st, cleared, id, time.Unix(0, 0))
		r, lerr := st.Load()
		if err != nil || lerr != nil || !strings.Contains(news, want) || r.Undo == nil || r.Undo.Snapshot != "s" || !r.HasFailed("1.1.0") || cleared.id != slot.B {
			t.Errorf("%q: %q, %v; %+v, %v", left, news, err, r, lerr)
		}
	}
}

// clears is a selector of which nothing else is asked.
type clears struct {
	slot.Selector
	id slot.ID
}

func (c *clears) Clear(id slot.ID) error { c.id = id; return nil }

func TestCandidates(t *testing.T) {
	parts := []linux.Partition{
		{Name: "sda1", Disk: "sda", Label: "esp", UUID: "stick"},
		{Name: "sda2", Disk: "sda", Label: "root-a"},
		{Name: "vda1", Disk: "vda", Label: "esp", UUID: "inside"},
		{Name: "vda2", Disk: "vda", Label: "root-a"},
		{Name: "vda3", Disk: "vda", Label: "root-b"},
	}
	for _, tt := range []struct {
		name string
		want choice
		out  string
	}{
		{"slot and disk named", choice{id: slot.A, esp: "inside"}, "vda2"},
		{"a stick beside a disk", choice{id: slot.A, esp: "stick"}, "sda2"},
		{"that disk lacks the slot", choice{id: slot.B, esp: "stick"}, ""},
		{"that disk is not there yet", choice{id: slot.A, esp: "usb"}, ""},
		{"only the slot", choice{id: slot.B}, "vda3"},
		{"no word", choice{}, "sda2 vda2 vda3"},
	} {
		var names []string
		for _, p := range candidates(parts, tt.want) {
			names = append(names, p.Name)
		}
		if got := strings.Join(names, " "); got != tt.out {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.out)
		}
	}
}

func TestReadChoiceWithoutVariables(t *testing.T) {
	if c, err := readChoice(slot.UEFI{Vars: fstest.MapFS{}}); err != nil || c != (choice{}) {
		t.Errorf("got %+v, %v", c, err)
	}
}

func TestReadChoiceOfGRUB(t *testing.T) {
	g := slot.NewGRUB(slot.Volume{}, "skerry.board=x86-uefi skerry.board=x86-bios skerry.slots=grub skerry.esp=Inside skerry.slot=b skerry.trial=yes")
	if c, err := readChoice(g); err != nil || c != (choice{id: slot.B, trial: true, esp: "inside"}) {
		t.Errorf("got %+v, %v", c, err)
	}
}

func TestFits(t *testing.T) {
	good := func() *release.Manifest {
		return &release.Manifest{Version: "1", Arch: "amd64", Boards: map[string]release.Board{"x86-uefi": {}}, Root: release.Root{RootHash: "aabb"}}
	}
	c := cmdline{board: "x86-uefi", rootHash: "aabb"}
	if err := fits(good(), c, "amd64"); err != nil {
		t.Errorf("the right one: %v", err)
	}
	for want, change := range map[string]func(*release.Manifest){
		"is for arm64":                func(m *release.Manifest) { m.Arch = "arm64" },
		"has no board x86-uefi":       func(m *release.Manifest) { m.Boards = map[string]release.Board{"rpi4": {}} },
		"this kernel belongs to aabb": func(m *release.Manifest) { m.Root.RootHash = "ccdd" },
	} {
		m := good()
		change(m)
		if err := fits(m, c, "amd64"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want one with %q", err, want)
		}
	}
}

func TestReadKeys(t *testing.T) {
	pub, _, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	keys, err := readKeys(fstest.MapFS{"release.pub": {Data: text}, "README": {Data: []byte("x")}})
	if err != nil || len(keys) != 1 || !keys[0].Equal(pub) {
		t.Errorf("got %v, %v", keys, err)
	}
	for name, files := range map[string]fstest.MapFS{"none": {}, "rubbish": {"a.pub": {Data: []byte("x")}}, "a bad one beside a good one": {"a.pub": {Data: text}, "b.pub": {Data: []byte("x")}}} {
		if _, err := readKeys(files); err == nil {
			t.Errorf("%s: was accepted", name)
		}
	}
}

func TestModuleList(t *testing.T) {
	files := fstest.MapFS{"l": {Data: []byte("# boot\ndm-mod\n\nloop max_loop=8 x=1 # why\n  erofs\n")}}
	f, err := files.Open("l")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for name, params := range moduleList(f) {
		got = append(got, name+"("+params+")")
	}
	if s := strings.Join(got, " "); s != "dm-mod() loop(max_loop=8 x=1) erofs()" {
		t.Errorf("got %s", s)
	}
}

// The name is chosen once: a card added later must not rename the node.
func TestHostname(t *testing.T) {
	kept := filepath.Join(t.TempDir(), "hostname")
	if got, err := hostname("north-1", "", kept, nil); err != nil || got != "north-1" {
		t.Errorf("configured: %q, %v", got, err)
	}
	if got, err := hostname("", "", kept, []string{"52:54:00:ff:00:01", "52:54:00:12:34:56"}); err != nil || got != "skerry-123456" {
		t.Errorf("first start: %q, %v", got, err)
	}
	if got, err := hostname("", "", kept, []string{"52:54:00:00:00:00"}); err != nil || got != "skerry-123456" {
		t.Errorf("second start: %q, %v", got, err)
	}
	if got, err := hostname("", "skerry-s1", kept, nil); err != nil || got != "skerry-s1" {
		t.Errorf("by its serial number: %q, %v", got, err)
	}
}

// A serial number names one machine alone, whatever it is made of; what makers leave in its place does not.
func TestSerialName(t *testing.T) {
	for want, ids := range map[string][]string{
		"skerry-10000000abcdef12": {"serial 10000000abcdef12", "mac 520000000001"}, // a Raspberry Pi's
		"skerry-gtf-24-00x1":      {"serial default string", "serial to be filled by o.e.m.", "serial 0", "serial 0123456789", "serial 00000000", "serial gtf_24/00x1 "},
		"":                        {"serial not specified", "serial none", "serial ----", "mac 520000000001"},
		"skerry-" + strings.Repeat("4", 5) + strings.Repeat("a", 51): {"serial " + strings.Repeat("4", 20) + strings.Repeat("a", 51)},
	} {
		got := serialName(ids)
		if got != want {
			t.Errorf("%q: %q, want %q", ids, got, want)
		}
		if _, err := machine.Decode(configName, []byte(serverConfig+"hostname: "+got+"\n")); got != "" && err != nil {
			t.Error(err)
		}
	}
}

func TestUsualHold(t *testing.T) {
	sys := fstest.MapFS{"block/sda/removable": {Data: []byte("1\n")}, "block/sdb/removable": {Data: []byte("0\n")}, "block/mmcblk0/removable": {Data: []byte("0\n")}}
	for disk, want := range map[string]time.Duration{"/dev/mmcblk0": 5 * time.Minute, "/dev/sda": 5 * time.Minute, "/dev/sdb": 10 * time.Second, "/dev/nvme0n1": 10 * time.Second, "": 10 * time.Second} {
		if got := usualHold(sys, disk); got != want {
			t.Errorf("%s: %v, want %v", disk, got, want)
		}
	}
}

// The journal of a large partition is bounded; a small one has what mke2fs gives it.
func TestMakeData(t *testing.T) {
	for _, tool := range []string{"mke2fs", "dumpe2fs"} {
		imagetest.Tool(t, tool, "e2fsprogs")
	}
	for size, want := range map[int64]string{1 << 30: "32M", 64 << 30: "64M"} {
		dev := filepath.Join(t.TempDir(), "disk")
		if err := errors.Join(os.WriteFile(dev, nil, 0o600), os.Truncate(dev, size)); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("/usr/sbin/mke2fs", makeDataArgs(dev, size)...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		out, err := exec.Command("/usr/sbin/dumpe2fs", "-h", dev).Output()
		if m := regexp.MustCompile(`Total journal size: +(\S+)`).FindSubmatch(out); err != nil || m == nil || string(m[1]) != want {
			t.Errorf("%d bytes: the journal has %s, %v; want %s", size, m, err, want)
		}
	}
}

func TestMachineID(t *testing.T) {
	kept := filepath.Join(t.TempDir(), "machine-id")
	first, err := machineID(kept, "")
	if err != nil || !machineIDs.MatchString(first) {
		t.Fatalf("got %q, %v", first, err)
	}
	for _, hardware := range []string{"", "serial another"} { // a board that was changed makes no new machine
		if again, err := machineID(kept, hardware); err != nil || again != first {
			t.Errorf("then %q, %v", again, err)
		}
	}
	if other, err := machineID(kept+"1", ""); err != nil || other == first {
		t.Errorf("another machine without a name is %q too, %v", other, err)
	}
	if err := os.WriteFile(kept+"2", []byte("torn"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got, err := machineID(kept+"2", ""); err != nil || !machineIDs.MatchString(got) {
		t.Errorf("a damaged one is made anew: %q, %v", got, err)
	}
	if err := os.Mkdir(kept+"3", 0o755); err != nil {
		t.Fatal(err)
	}
	if got, err := machineID(kept+"3", "serial S-1"); err == nil {
		t.Errorf("one that cannot be read is taken to be %q", got)
	}
}

// A machine that keeps nothing from one start to the next, or was installed anew, is the same machine to its cluster.
func TestAMachineWithoutItsDiskIsTheSame(t *testing.T) {
	const uuid, serial, board = "sys/class/dmi/id/product_uuid", "sys/class/dmi/id/product_serial", "proc/device-tree/serial-number"
	card := func(name, mac, kind string) map[string]string {
		return map[string]string{"sys/class/net/" + name + "/address": mac, "sys/class/net/" + name + "/device/uevent": "", "sys/class/net/" + name + "/addr_assign_type": kind}
	}
	at := func(parts ...map[string]string) fs.FS {
		root := fstest.MapFS{}
		for _, p := range parts {
			for name, text := range p {
				root[name] = &fstest.MapFile{Data: []byte(text + "\n")}
			}
		}
		return root
	}
	starts := func(root fs.FS) string {
		t.Helper()
		id, err := machineID(filepath.Join(t.TempDir(), "machine-id"), hardwareName(root))
		if err != nil || !machineIDs.MatchString(id) {
			t.Fatalf("%q, %v", id, err)
		}
		return id
	}
	const own, junk = "4c4c4544-0035-3010-8048-b7c04f4a4d32", "03000200-0400-0500-0006-000700080009"
	eth := card("eth0", "52:54:00:00:00:02", "0")
	seen := map[string]string{}
	for name, root := range map[string]fs.FS{
		"a PC":                      at(map[string]string{uuid: own, serial: "S-1"}, eth),
		"another PC of its maker":   at(map[string]string{uuid: own, serial: "S-2"}, eth),
		"one without a serial":      at(map[string]string{uuid: own, serial: "To be filled by O.E.M."}, eth),
		"one without a UUID":        at(map[string]string{uuid: junk, serial: "S-1"}, eth),
		"a board":                   at(map[string]string{board: "10000000a1b2c3d4\x00"}, eth),
		"one with nothing but card": at(map[string]string{uuid: junk, serial: "0"}, eth, card("eth1", "52:54:00:00:00:03", "0"), map[string]string{"sys/class/net/veth0/address": "02:00:00:00:00:00"}),
		"another card":              at(card("eth0", "52:54:00:00:00:04", "0")),
	} {
		id := starts(root)
		if again := starts(root); again != id {
			t.Errorf("%s: is %s at one start and %s at the next", name, id, again)
		}
		if other := seen[id]; other != "" {
			t.Errorf("%s is the same machine as %s", name, other)
		}
		seen[id] = name
	}
	if a, b := starts(at(map[string]string{uuid: own})), starts(at(map[string]string{uuid: strings.ToUpper(own)}, eth)); a != b {
		t.Error("a card that was added makes another machine")
	}
	if id := starts(at(map[string]string{uuid: own})); strings.Contains(id, strings.ReplaceAll(own, "-", "")[:8]) || id[12] != '4' {
		t.Errorf("%s", id)
	}
	for name, root := range map[string]fs.FS{"nothing": at(), "an address that changes": at(card("eth0", "02:11:22:33:44:55", "1"))} {
		if a, b := starts(root), starts(root); a == b {
			t.Errorf("%s makes one machine of many: %s", name, a)
		}
	}
}

func TestMakeDirs(t *testing.T) {
	root := t.TempDir()
	for range 2 { // every start finds those of the last
		if err := makeDirs(root); err != nil {
			t.Fatal(err)
		}
	}
	for name, mode := range map[string]os.FileMode{"var/lib/skerry/server": 0o700, "var/tmp": 0o777 | os.ModeSticky, "var/log/skerry": 0o755} {
		if st, err := os.Stat(filepath.Join(root, name)); err != nil || st.Mode()&(os.ModePerm|os.ModeSticky) != mode {
			t.Errorf("%s: %v", name, err)
		}
	}
	if to, err := os.Readlink(filepath.Join(root, "var/lib/rancher/k3s/server/node-token")); err != nil || to != "/var/lib/skerry/server/node-token" {
		t.Errorf("K3s's token: %q, %v", to, err)
	}
}

// pipeConsole is a console with one serial line and one screen that the test reads.
func pipeConsole(t *testing.T) (*console, func(screen bool) string) {
	t.Helper()
	dir := t.TempDir()
	c := new(console)
	for _, name := range []string{"serial", "screen"} {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		c.ttys = append(c.ttys, tty{f, name == "screen"})
	}
	return c, func(screen bool) string {
		data, err := os.ReadFile(filepath.Join(dir, map[bool]string{true: "screen", false: "serial"}[screen]))
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
}

// What skerryd says comes out once: as lines and, when something changed, a block on a serial line, as one picture on a screen.
func TestStatusDisplay(t *testing.T) {
	c, read := pipeConsole(t)
	s := &system{console: c, hostname: "north-1", config: &machine.Config{Role: machine.RoleServer}}
	s.id = machine.Identity{Release: machine.Release{Version: "1.2.3", Kubernetes: "v1.37.2"}, Boot: machine.Boot{Slot: slot.B, Trial: true, Board: "x86-uefi"}}
	sc := newScreen(s)
	sc.started(42)
	sc.show()
	say := func(pid int, fields ...string) {
		m := notify.Message{PID: pid, Fields: map[string]string{}}
		for _, f := range fields {
			k, v, _ := strings.Cut(f, "=")
			m.Fields[k] = v
		}
		sc.heard(m)
	}
	say(42, "STATUS=waiting for the datastore")
	say(42, "STATUS=waiting for the datastore")
	say(66, "READY=1") // somebody else's
	say(42, "READY=1")
	say(42, "READY=1", "STATUS=still fine")
	got := regexp.MustCompile(`\([0-9.]+s after power on\)`).ReplaceAllString(read(false), "(T)")
	block := func(state string) string {
		return "skerry| Skerry 1.2.3, Kubernetes 1.37.2, x86-uefi\nskerry| slot      b (on trial), Secure Boot off\nskerry| node      north-1, server\nskerry| address   none yet\nskerry| state     " + state + "\n"
	}
	want := block("waiting for skerryd to start") + "skerry: waiting: the datastore\n" + "skerry: node: Ready (T)\n" + block("Ready")
	if got != want {
		t.Errorf("serial line:\n%s\nwant\n%s", got, want)
	}
	pictures := strings.Split(read(true), "\x1b[H\x1b[2J")
	if last := pictures[len(pictures)-1]; !strings.Contains(last, "state     Ready") || !strings.Contains(last, "skerry: node: Ready") {
		t.Errorf("screen ends with\n%s", last)
	}
}

// The verdict waits for what skerryd says, and tells at the deadline what the node still waited for.
func TestHealth(t *testing.T) {
	h := newHealth()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := h.wait(ctx, nil); err == nil || !strings.Contains(err.Error(), "skerryd to start") {
		t.Errorf("nothing was heard: %v", err)
	}
	h.heard("pod default/web", "")
	h.heard("", "")
	if _, err := h.wait(ctx, nil); err == nil || !strings.Contains(err.Error(), "pod default/web") {
		t.Errorf("waiting for a pod: %v", err)
	}
	h.heard("good", "pod default/old is gone")
	h.heard("good", "pod default/old is gone")
	if note, err := h.wait(t.Context(), nil); err != nil || note != "pod default/old is gone" {
		t.Errorf("%q, %v", note, err)
	}
}

// skerryd that ends again and again is not waited for.
func TestHopeless(t *testing.T) {
	h := newHealth()
	for range mostEnds + 2 {
		h.ended("exit status 3: the table is gone")
	}
	if _, err := h.wait(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "skerryd ended 8 times, the last time with: exit status 3: the table is gone") {
		t.Error(err)
	}
}

// Starts are those of one slot; why the other was left is told once.
func TestStarts(t *testing.T) {
	st := starts{dir: t.TempDir()}
	for i, step := range []struct {
		save string
		slot slot.ID
		n    int
		left string
	}{
		{"", slot.B, 0, ""},
		{"b 1", slot.B, 1, ""},
		{"b 2", slot.B, 2, ""},
		{"b 2", slot.A, 0, ""},
		{"b many", slot.B, 0, ""},
		{leftMark + "slot b: data block 0 is damaged", slot.A, 0, "slot b: data block 0 is damaged"},
		{"a 1", slot.A, 1, ""},
	} {
		if step.save != "" {
			if err := errors.Join(st.clear(), st.save(step.save)); err != nil { // a firmware replaces, a file is written over
				t.Fatal(err)
			}
		}
		if n, left := st.load(step.slot); n != step.n || left != step.left {
			t.Errorf("step %d: %d starts of slot %s, left %q", i, n, step.slot, left)
		}
	}
	if err := errors.Join(st.clear(), st.clear()); err != nil {
		t.Error(err)
	}
	if n, _ := st.load(slot.A); n != 0 {
		t.Errorf("%d starts after a Ready node", n)
	}
	if err := (starts{}).save("a 1"); err != nil {
		t.Errorf("a machine without variables: %v", err)
	}
}

func TestTrustIsHandedOver(t *testing.T) {
	from, to := t.TempDir(), filepath.Join(t.TempDir(), "run", "trust")
	for _, name := range []string{"release.pub", "root.json"} {
		if err := os.WriteFile(filepath.Join(from, name), []byte(name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := handTrustOver(from, to); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"release.pub", "root.json"} {
		if data, err := os.ReadFile(filepath.Join(to, name)); err != nil || string(data) != name {
			t.Errorf("%s: %q, %v", name, data, err)
		}
	}
}
