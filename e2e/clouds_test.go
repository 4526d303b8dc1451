package e2e

import (
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/skerry-os/skerry/boards"
	"github.com/skerry-os/skerry/e2e/nodes"
	"github.com/skerry-os/skerry/e2e/vm"
	"github.com/skerry-os/skerry/image/imagetest"
	"github.com/skerry-os/skerry/pkg/platform/platformtest"
)

var inClouds = flag.String("cloud", "", "of the clouds' images, boot only these: rows of cloudMachines, joined by commas")

// inCloud runs the calling test again in a network namespace of its own, and returns true there. The machine's packets leave QEMU
// as connections of its process, so that what answers at the namespace's loopback is the machine's metadata service.
func inCloud(t *testing.T) bool {
	t.Helper()
	if !*inVM {
		t.Skip("boots the image in QEMU: add -vm (or run make test-clouds)")
	}
	const env = "SKERRY_TEST_IN_CLOUD"
	if os.Getenv(env) != t.Name() {
		if os.Geteuid() != 0 {
			t.Skip("needs root: it makes a network namespace")
		}
		c := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=3h", "-out", *outDir, "-vm", "-cloud", *inClouds)
		c.Env = append(os.Environ(), env+"="+t.Name())
		c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
		out, err := c.CombinedOutput()
		if err != nil {
			t.Errorf("in the namespace: %v", err)
		}
		t.Logf("%s", out)
		return false
	}
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	for _, ip := range []string{platformtest.LinkLocal, platformtest.FabricAddress} {
		if err == nil {
			err = netlink.AddrAdd(lo, &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(ip), Mask: net.CIDRMask(32, 32)}})
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return true
}

// metadata is a service of the cloud, until the test ends.
func metadata(t *testing.T, ip string, h http.HandlerFunc) {
	t.Helper()
	l, err := net.Listen("tcp", ip+":80")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: h}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close() })
}

const (
	cloudToken  = "0123456789abcdef0123456789abcdef"
	cloudConfig = "apiVersion: skerry/v1alpha1\nkind: NodeConfig\nrole: server\ncluster: {token: " + cloudToken + "}\n"
)

// cloudMachines are machines of the clouds, each with its own board's image.
var cloudMachines = []struct {
	name, board string
	serve       func(t *testing.T, c *platformtest.Cloud)
	attach      func(t *testing.T, o *vm.Options)
	node        string // name, provider ID, region, zone and type
	asked       int    // questions until the node config is there; -1 for a volume, which nobody sees
}{
	{
		"aws", "aws", func(t *testing.T, c *platformtest.Cloud) { metadata(t, platformtest.LinkLocal, c.AWS) }, nil,
		"i-0a1b2c3d4e5f60718 aws:///eu-central-1b/i-0a1b2c3d4e5f60718 eu-central-1 eu-central-1b m7i.large", 3,
	},
	{
		"gcp", "gcp", func(t *testing.T, c *platformtest.Cloud) { metadata(t, platformtest.LinkLocal, c.GCP) }, nil,
		"north-mig-x7k2 gce://my-project/europe-west3-c/north-mig-x7k2 europe-west3 europe-west3-c e2-medium", 2,
	},
	{
		"azure", "azure", func(t *testing.T, c *platformtest.Cloud) {
			metadata(t, platformtest.LinkLocal, c.Azure)
			metadata(t, platformtest.FabricAddress, c.Fabric)
		}, nil,
		"vmss000003 azure:///subscriptions/s/resourceGroups/g/providers/Microsoft.Compute/virtualMachineScaleSets/vmss/virtualMachines/3 westeurope westeurope-2 Standard_D2s_v5", 3,
	},
	{
		"openstack", "openstack", func(t *testing.T, c *platformtest.Cloud) { metadata(t, platformtest.LinkLocal, c.OpenStack) }, nil,
		"north-1 openstack:///83679162-1378-4288-a2d4-70e13ec132aa  nova m1.medium", 3,
	},
	{
		"openstack-drive", "openstack", nil, func(t *testing.T, o *vm.Options) { o.Volume = configDrive(t) },
		"north-1 openstack:///83679162-1378-4288-a2d4-70e13ec132aa  nova ", -1,
	},
	{
		"proxmox", "proxmox", nil, func(t *testing.T, o *vm.Options) { o.CD = noCloud(t) }, "north-7    ", -1,
	},
}

// configDrive is a volume config-2 with FAT, as OpenStack can attach one.
func configDrive(t *testing.T) string {
	t.Helper()
	mkfs, mmd, mcopy := imagetest.Tool(t, "mkfs.vfat", "dosfstools"), imagetest.Tool(t, "mmd", "mtools"), imagetest.Tool(t, "mcopy", "mtools")
	file := filepath.Join(t.TempDir(), "config-2.img")
	imagetest.Run(t, mkfs, "-n", "config-2", "-C", file, "4096")
	imagetest.Run(t, mmd, "-i", file, "::openstack", "::openstack/latest")
	for name, text := range map[string]string{"meta_data.json": platformtest.Nova, "user_data": cloudConfig} {
		from := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(from, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		imagetest.Run(t, mcopy, "-i", file, from, "::openstack/latest/"+name)
	}
	return file
}

// noCloud is a disc cidata, as Proxmox makes it of a snippet.
func noCloud(t *testing.T) string {
	t.Helper()
	tool := imagetest.Tool(t, "genisoimage", "genisoimage")
	src, file := t.TempDir(), filepath.Join(t.TempDir(), "cidata.iso")
	for name, text := range map[string]string{
		"meta-data": "instance-id: 2f3b\nlocal-hostname: overruled\n",
		"user-data": "#cloud-config\nhostname: north-7\nusers: [default]\nskerry: {role: server, cluster: {token: " + cloudToken + "}}\n",
	} {
		if err := os.WriteFile(filepath.Join(src, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	imagetest.Run(t, tool, "-quiet", "-volid", "cidata", "-joliet", "-rock", "-output", file, src)
	return file
}

// The image for each cloud, which holds nothing of one machine, becomes a Ready server: it asks its platform in that platform's own
// way, is called what the instance is called, and carries its zone. It never asks again.
func TestCloudImageAsksItsPlatform(t *testing.T) {
	if !inCloud(t) {
		return
	}
	for _, m := range cloudMachines {
		if *inClouds != "" && !slices.Contains(strings.Split(*inClouds, ","), m.name) {
			continue
		}
		t.Run(m.name, func(t *testing.T) {
			b, err := boards.Load(m.board)
			if err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			image, config := filepath.Join(dir, "disk.img"), filepath.Join(dir, "node.yaml")
			if err := os.WriteFile(config, []byte(cloudConfig), 0o600); err != nil {
				t.Fatal(err)
			}
			if out, err := exec.Command(built(t, "bin/skerry"), "image", "build", "--board", m.board, "--format", "raw", "--release", built(t, "release"), "--keys", built(t, "keys"), "-q", "-o", image).CombinedOutput(); err != nil {
				t.Fatalf("skerry image build: %v: %s", err, out)
			}
			c := &platformtest.Cloud{UserData: cloudConfig}
			if m.serve != nil {
				m.serve(t, c)
			}
			o := vm.Options{Dir: filepath.Join(dir, "vm"), Image: image, Board: *b.QEMU, Forwards: []vm.Forward{{Guest: 6443}}}
			if m.attach != nil {
				m.attach(t, &o)
			}
			n := power(t, o)
			n.expect(patience, `skerry: switch root`)
			t.Log(n.expect(2*patience, `skerry: (node: Ready.*)`)[1])
			asked := max(m.asked, 0)
			if got := c.Asked(); len(got) != asked || len(c.Wrong()) > 0 {
				t.Errorf("the services were asked %q, of which wrong were %q", got, c.Wrong())
			}
			if got := c.Reported(); m.board == "azure" && (len(got) != 1 || got[0].State != "Ready") || m.board != "azure" && len(got) > 0 {
				t.Errorf("reported was %+v", got)
			}
			if m.name == "proxmox" && !strings.Contains(n.Text(), "cloud-config: users is not done here") {
				t.Error("the console does not say what is left out")
			}
			k := n.clusterOf(config)
			k.ready()
			k.eventually(patience, contains("<"+m.node+">"), "get", "nodes", "-o",
				`jsonpath=<{.items[0].metadata.name} {.items[0].spec.providerID} {.items[0].metadata.labels.topology\.kubernetes\.io/region} {.items[0].metadata.labels.topology\.kubernetes\.io/zone} {.items[0].metadata.labels.node\.kubernetes\.io/instance-type}>`)
			if m.name != "aws" {
				n.PowerCut() // one start is like the others' second
				return
			}
			n.PowerCut()
			n = power(t, o)
			t.Log("once more: ", n.expect(2*patience, `skerry: (node: Ready.*)`)[1])
			if got := c.Asked(); len(got) != asked {
				t.Errorf("the service was asked again: %q", got)
			}
			n.PowerCut()
		})
	}
}

// A group of machines that are all told the same: each joins under its own name. One that its cloud has ended is removed, one
// without a provider ID is not, and the one that the group starts in its place joins. What comes back after all registers again.
func TestNodesLostMachine(t *testing.T) {
	w := newWire(t)
	s, gone, shelf, next := w.Node("s1"), w.Node("i1"), w.Node("shelf"), w.Node("i2")
	s.Start("server", "--node-remove-after", "2m", "--token", cloudToken)
	s.Ready()
	told := []string{"--server", s.URL(), "--token", cloudToken}
	instance := func(n *nodes.Node) {
		n.Start("agent", append(told, "--kubelet-arg", "provider-id=aws:///eu-central-1b/"+n.Name)...)
	}
	instance(gone)
	shelf.Start("agent", told...)
	gone.Ready()
	shelf.Ready()
	s.ReadyInAPI(s, gone, shelf)
	s.Becomes("aws:///eu-central-1b/i1", "get", "node", gone.Name, "-o", "jsonpath={.spec.providerID}")
	gone.PullThePlug()
	shelf.PullThePlug()
	ended := time.Now()
	instance(next)
	next.Ready()
	s.ReadyInAPI(next)
	s.Within(10*time.Minute, "the node of the ended machine is removed", func() (bool, string) {
		out, err := s.Try("", "get", "nodes", "-o", "name")
		return err == nil && !strings.Contains(out, "node/"+gone.Name), fmt.Sprint(out, err)
	})
	if took := time.Since(ended); took < 2*time.Minute {
		t.Errorf("it went after %v", took)
	}
	event(s, "LostNodeRemoved")
	for _, n := range []*nodes.Node{s, shelf, next} {
		s.Becomes(n.Name, "get", "node", n.Name, "-o", "jsonpath={.metadata.name}")
	}
	gone.PowerOn()
	instance(gone)
	gone.Ready()
	s.ReadyInAPI(gone, next)
}

// clusterOf fetches a kubeconfig over the wire with the token of a node config.
func (n *node) clusterOf(config string) cluster {
	n.t.Helper()
	file := filepath.Join(n.t.TempDir(), "kubeconfig")
	addr, err := n.Addr(6443)
	if err != nil {
		n.t.Fatal(err)
	}
	out, err := exec.CommandContext(n.t.Context(), built(n.t, "bin/skerry"), "kubeconfig", "--server", addr, "--config", config, "-o", file).CombinedOutput()
	if err != nil {
		n.t.Fatal(fmt.Errorf("skerry kubeconfig: %w: %s", err, strings.TrimSpace(string(out))))
	}
	return cluster{T: n.t, kubectl: []string{built(n.t, "amd64/usr/bin/kubectl"), "--kubeconfig", file}, programs: "/usr/bin"}
}
