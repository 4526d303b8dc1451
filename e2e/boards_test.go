package e2e

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skerry-os/skerry/boards"
	"github.com/skerry-os/skerry/e2e/lan"
	"github.com/skerry-os/skerry/e2e/vm"
	"github.com/skerry-os/skerry/image/disk"
	"github.com/skerry-os/skerry/pkg/slot"
	"github.com/skerry-os/skerry/pkg/slot/slottest"
)

var (
	onBoard = flag.String("board", "", "boot the images of these boards in QEMU, joined by commas; needs them in -out/boards")
	upTo    = flag.String("board-until", "ready", "how far: stage2 or ready")
)

// slowly is how long a start may take on an emulated processor of another kind, on a busy host.
const slowly = 5 * patience

// eachBoard runs a test for each board that was asked for.
func eachBoard(t *testing.T, test func(t *testing.T, b *boards.Board, o vm.Options)) {
	t.Helper()
	if *onBoard == "" {
		t.Skip("boots images of boards in QEMU: run make test-boards")
	}
	for id := range strings.SplitSeq(*onBoard, ",") {
		b, err := boards.Load(id)
		if err != nil {
			t.Fatal(err)
		}
		if b.QEMU == nil {
			t.Logf("%s: no emulator knows it", id)
			continue
		}
		t.Run(id, func(t *testing.T) {
			image := copyOf(t, built(t, "boards/"+id+".img"))
			test(t, b, vm.Options{Dir: t.TempDir(), Image: image, Board: *b.QEMU, Restrict: true, Forwards: []vm.Forward{{Guest: 6443}}})
		})
	}
}

// Every board with an emulator starts from its own image as it stands on the card: firmware, kernel, verified root, data
// partition; and a pod runs on it from an image that it carries.
func TestBoardStarts(t *testing.T) {
	eachBoard(t, func(t *testing.T, b *boards.Board, o vm.Options) {
		began := time.Now()
		n := power(t, o)
		say := func(what string) { t.Logf("%s: %s after %v", b.ID, what, time.Since(began).Round(time.Second)) }
		n.expect(slowly, `skerry: mount kernel filesystems: ok`)
		say("stage 1")
		n.expect(slowly, `skerry: switch root: slot a`)
		say("verified root")
		n.expect(slowly, `skerry: mount data: ok`)
		say("data partition")
		t.Log(n.expect(slowly, `skerry: (check-config: \d+ checks passed.*)`)[1])
		n.expect(slowly, `skerry: start node`)
		say("skerryd started")
		if *upTo != "ready" || o.Board.Network == "none" {
			return
		}
		t.Log(n.expect(2*slowly, `skerry: (node: Ready.*)`)[1])
		say("Ready")
		c := n.cluster()
		c.ready()
		c.start()
		c.works()
		say("a pod works")
	})
}

// Every board whose emulator has a network joins, as an agent, a server that is another machine: this one, and runs a pod. Then it brings
// itself to another release and keeps it, and leaves one whose node never gets Ready.
func TestBoardJoinsAndUpdates(t *testing.T) {
	if *onBoard == "" {
		t.Skip("boots images of boards in QEMU: run make test-boards")
	}
	if *upTo != "ready" {
		t.Skip("joins a cluster: with -board-until ready")
	}
	out, err := filepath.Abs(*outDir)
	if err != nil {
		t.Fatal(err)
	}
	l := lan.New(t, "-board", *onBoard, "-out", out)
	if l == nil {
		return
	}
	e := engineHere(t)
	e.flags = []string{"--node-ip", lan.Address, "--disable", "ingress", "--disable", "local-storage", "--disable", "metrics-server"}
	e.start()
	at := 30
	eachBoard(t, func(t *testing.T, b *boards.Board, o vm.Options) {
		if o.Board.Network == "none" {
			t.Skip("no network that works there")
		}
		at++
		joinsAndUpdates(t, e, l, at, b, o)
	})
}

func joinsAndUpdates(t *testing.T, e *engine, l *lan.LAN, at int, b *boards.Board, o vm.Options) {
	keys, repo := built(t, "keys"), t.TempDir()
	files := http.FileServer(http.Dir(repo))
	web := httptest.NewUnstartedServer(files)
	var err error
	if web.Listener, err = net.Listen("tcp", lan.Address+":0"); err != nil {
		t.Fatal(err)
	}
	web.Start()
	t.Cleanup(web.Close)
	release := built(t, map[string]string{"amd64": "release", "arm64": "release-arm64", "arm": "release-arm"}[b.Arch])
	publish := func(dir string) {
		t.Log(run(t, built(t, "bin/skerry"), "update", "publish", "--keys", keys, "--release", dir, "--repo", repo))
	}
	publish(release)
	config := filepath.Join(t.TempDir(), "node.yaml")
	text := fmt.Sprintf("apiVersion: skerry/v1alpha1\nkind: NodeConfig\nrole: agent\nhostname: %s\ncluster: {server: \"https://%s:6443\", token: %s}\n"+
		"network: {interfaces: [{name: eth0, addresses: [10.11.12.%d/24], gateway: %[2]s}]}\nntp: {servers: []}\nupdate: {source: %[5]q, interval: 30s, deadline: 30m}\n",
		b.ID, lan.Address, e.token, at, web.URL)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	o.Image = filepath.Join(t.TempDir(), "card.img")
	run(t, built(t, "bin/skerry"), "image", "build", "-q", "--board", b.ID, "--release", release, "--keys", keys, "--config", config, "-o", o.Image)
	o.Tap, o.Restrict, o.Forwards = l.Tap(), false, nil
	if o.Board.Network == "onboard" {
		// QEMU's network card of Allwinner's SoCs stops for ever when its 512 buffers are full, where the real one goes on: senders have
		// less than that under way. The setting is this namespace's.
		if err := os.WriteFile("/proc/sys/net/ipv4/tcp_wmem", []byte("4096 16384 65536"), 0); err != nil {
			t.Fatal(err)
		}
	}
	began := time.Now()
	say := func(what string) { t.Logf("%s: %s after %v", b.ID, what, time.Since(began).Round(time.Second)) }
	n := power(t, o)
	n.expect(slowly, `skerry: start node`)
	c := e.cluster()
	c.T = t
	ready := func() {
		t.Helper()
		c.eventually(2*slowly, is("True"), "get", "node", b.ID, "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].status}`)
	}
	ready()
	say("Ready")
	c.do(holder(b.ID), "apply", "-f", "-")
	works := func() {
		t.Helper()
		c.eventually(2*slowly, is("true"), "get", "pod", "on-"+b.ID, "-o", "jsonpath={.status.containerStatuses[0].ready}")
		c.eventually(slowly, contains("with CoreDNS"), "exec", "on-"+b.ID, "--", "/skerry-addons", "coredns", "-version")
	}
	works()
	say("a pod works")

	publish(altered(t, release, keys, change{version: "99.0.0", board: b.ID}))
	n.expect(2*slowly, `skerry: restart: a restart was asked for`)
	say("the release is brought")
	n.expect(2*slowly, `skerry: switch root: slot b, release 99\.0\.0`)
	n.expect(2*slowly, `skerry: update: slot b, release 99\.0\.0, is kept`)
	say("it is kept")
	ready()
	works()
	publish(altered(t, release, keys, change{version: "99.0.1", board: b.ID, cmdline: [2]string{" loglevel=4 ", " rdinit=/no "}}))
	n.expect(2*slowly, `skerry: restart: a restart was asked for`)
	why := n.expect(2*slowly, `skerry: update: (.*99\.0\.1.*)`)[1]
	say("a release whose kernel finds no init is left")
	t.Log(why)
	works()
	say("the pod works")
}

// The boot loader itself, U-Boot or GRUB, counts the tries of a slot whose kernel does not load, and comes back to the other.
func TestBoardFallsBack(t *testing.T) {
	eachBoard(t, func(t *testing.T, b *boards.Board, o vm.Options) {
		if b.Slots != boards.UBoot && b.Slots != boards.GRUB {
			t.Skip("its firmware is tested on x86-uefi, or not at all")
		}
		arm(t, b, o.Image, slottest.Image("no kernel"))
		n := power(t, o)
		for _, left := range []string{"2", "1", "0"} {
			n.expect(slowly, `Skerry: slot b, trial b, tries left `+left+` `)
			n.expect(slowly, `Skerry: slot b does not start`)
		}
		n.expect(slowly, `Skerry: slot a, trial , tries left +\(`)
		n.expect(slowly, `skerry: switch root: slot a`)
		if text := n.Text(); strings.Contains(text, "on trial") {
			t.Error("slot a is on trial")
		}
	})
}

// arm makes slot b of the board's image one that is tried, with this kernel.
func arm(t *testing.T, b *boards.Board, image string, kernel []byte) {
	t.Helper()
	f, err := os.OpenFile(filepath.Clean(image), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	table, err := disk.ReadFirst(f, disk.SizeOf(f, 1<<40))
	if err != nil {
		t.Fatal(err)
	}
	esp := table.Partitions[0]
	v := slot.Volume{Device: part{f, esp.Start, esp.Size}, Size: esp.Size}
	var u slot.Selector = slot.NewUBoot(v)
	if b.Slots == boards.GRUB {
		u = slot.NewGRUB(v, "")
	}
	for _, err := range []error{
		u.Clear(slot.B), u.Stage(slot.B, bytes.NewReader(kernel), int64(len(kernel))), second(u.TryOnce(slot.B)),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
}

func second(_ string, err error) error { return err }

// part is a partition of an image.
type part struct {
	f        *os.File
	at, size int64
}

func (p part) ReadAt(b []byte, at int64) (int, error) {
	return io.NewSectionReader(p.f, p.at, p.size).ReadAt(b, at)
}
func (p part) WriteAt(b []byte, at int64) (int, error) { return p.f.WriteAt(b, p.at+at) }
func (p part) Sync() error                             { return p.f.Sync() }
