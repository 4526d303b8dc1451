package e2e

import (
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skerry-os/skerry/e2e/nodes"
	"github.com/skerry-os/skerry/image"
	"github.com/skerry-os/skerry/image/disk"
	"github.com/skerry-os/skerry/image/fat"
	"github.com/skerry-os/skerry/image/fleet"
	"github.com/skerry-os/skerry/image/releasetest"
	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/seed"
)

// builtFleet is a fleet of the nodes, made before any of them runs.
type builtFleet struct {
	t     *testing.T
	file  *fleet.Fleet
	cards *fleet.Built
	dir   string
}

// newFleet makes a fleet in which the nodes whose names begin with s are servers.
func newFleet(t *testing.T, all ...*nodes.Node) *builtFleet {
	t.Helper()
	b := releasetest.New(t, 1<<20)
	dir := filepath.Dir(b.Release)
	text := "apiVersion: skerry/v1alpha1\nkind: Fleet\nname: home\nkeys: keys\nreleases: {amd64: release}\nnodes:\n"
	for _, n := range all {
		role := machine.RoleAgent
		if strings.HasPrefix(n.Name, "s") {
			role = machine.RoleServer
		}
		text += fmt.Sprintf("  - {name: %s, board: x86-uefi, role: %s, address: %s/16, labels: [fleet.example/of=%s]}\n", n.Name, role, n.IP, n.Name)
	}
	name := filepath.Join(dir, "fleet.yaml")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := fleet.Load(name)
	if err != nil {
		t.Fatal(err)
	}
	cards := filepath.Join(dir, "cards")
	report, err := fleet.Build(t.Context(), f, cards, fleet.Options{Now: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s", report)
	built, err := fleet.Open(cards, nil)
	if err != nil {
		t.Fatal(err)
	}
	return &builtFleet{t, f, built, dir}
}

// insert does what a machine's first process does with the card of a node: the seed goes to the data folder, the config becomes the
// engine's settings, whose file it gives.
func (f *builtFleet) insert(n *nodes.Node, card string) (role, settings string) {
	f.t.Helper()
	c, err := f.cards.Card(card)
	if err != nil {
		f.t.Fatal(err)
	}
	d, err := f.cards.Image(c)
	if err != nil {
		f.t.Fatal(err)
	}
	defer d.Close() //nolint:errcheck // read only
	table, err := disk.Read(d, d.Size())
	if err != nil {
		f.t.Fatal(err)
	}
	partition := f.t.TempDir()
	for _, p := range table.Partitions {
		if p.Name != "config" {
			continue
		}
		v, err := fat.Read(io.NewSectionReader(d, p.Start, p.Size), p.Size)
		if err != nil {
			f.t.Fatal(err)
		}
		for _, file := range v.Files {
			data, err := io.ReadAll(file.Open())
			if err == nil {
				err = os.WriteFile(filepath.Join(partition, file.Path), data, 0o600)
			}
			if err != nil {
				f.t.Fatal(err)
			}
		}
	}
	if err := os.MkdirAll(filepath.Join(n.DataDir(), "server"), 0o700); err != nil {
		f.t.Fatal(err)
	}
	if _, err := seed.Move(partition, n.DataDir()); err != nil {
		f.t.Fatal(err)
	}
	config, err := machine.Load(filepath.Join(partition, image.ConfigName))
	if err != nil {
		f.t.Fatal(err)
	}
	text, err := machine.EngineYAML(config, config.Hostname)
	if err != nil {
		f.t.Fatal(err)
	}
	settings = filepath.Join(n.Dir, "engine.yaml")
	if err := os.WriteFile(settings, text, 0o600); err != nil {
		f.t.Fatal(err)
	}
	return string(config.Role), settings
}

func (f *builtFleet) start(n *nodes.Node) {
	f.t.Helper()
	role, settings := f.insert(n, n.Name)
	n.Start(role, "--config", settings)
}

// A fleet that was built without a network becomes one Ready cluster, whatever the order in which its machines are switched on,
// and nobody tells any of them anything.
func TestNodesFleet(t *testing.T) {
	w := newWire(t)
	s, a, b := w.Node("s1"), w.Node("a1"), w.Node("a2")
	all := []*nodes.Node{s, a, b}
	f := newFleet(t, all...)
	f.become(all)

	// The kubeconfig was made without the cluster, and opens it.
	kubeconfig, err := f.file.Kubeconfig(nil, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(a.Dir, "own"), kubeconfig, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := a.Command(t.Context(), filepath.Join(filepath.Dir(built(t, "amd64/usr/bin/skerryd")), "kubectl"), "--kubeconfig", filepath.Join(a.Dir, "own"),
		"get", "nodes", "-L", "fleet.example/of", "--no-headers").CombinedOutput()
	if err != nil || strings.Count(string(out), " Ready ") != 3 {
		t.Errorf("%v\n%s", err, out)
	}
	t.Logf("with the kubeconfig made offline:\n%s", out)

	// What was on the server's card is its own now, and nowhere else.
	for _, name := range []string{seed.Name, seed.PendingName} {
		s.Eventually(name+" is gone", func() (bool, string) {
			_, err := os.Stat(filepath.Join(s.DataDir(), name))
			return os.IsNotExist(err), ""
		})
	}
	code, list := s.Skerryd("token", "list", "--data-dir", s.DataDir())
	if code != 0 || !strings.Contains(list, "a1, which has") || !strings.Contains(list, "a2, which has") {
		t.Errorf("%d %s", code, list)
	}

	// A copy of a card is no way in, under its name or another.
	x := w.Node("x1")
	_, settings := f.insert(x, "a1")
	x.Start("agent", "--config", settings, "--node-name", "a1")
	says(x, "the node name a1 belongs to machine")
	x.Interrupt()
	x.Start("agent", "--config", settings)
	says(x, "is for node a1")
	if x.Running() {
		x.Exited()
	}

	// A dead machine's card in a new one: a person approves, and no token is needed.
	b.Reflash()
	f.start(b)
	says(b, "run skerryd node approve a2")
	if code, out := s.Skerryd("node", "approve", "a2", "--data-dir", s.DataDir()); code != 0 {
		t.Fatalf("approve: %d %s", code, out)
	}
	t.Logf("a2's card in another machine: Ready %v after its start", b.Ready())

	// Everything comes back by itself.
	for _, n := range all {
		n.PullThePlug()
		n.PowerOn()
	}
	f.become(all)
	for _, n := range all {
		n.Stop()
	}
}

// become switches the nodes on in any order and waits until they are one cluster.
func (f *builtFleet) become(all []*nodes.Node) {
	f.t.Helper()
	var order []string
	for _, i := range rand.Perm(len(all)) {
		order = append(order, all[i].Name)
		f.start(all[i])
		time.Sleep(time.Duration(rand.IntN(3000)) * time.Millisecond) // somebody walks along the shelf
	}
	for _, n := range all {
		f.t.Logf("switched on as %s: %s Ready after %v", strings.Join(order, ", "), n.Name, n.Ready())
	}
	all[0].ReadyInAPI(all...)
}
