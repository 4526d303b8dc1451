package e2e

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/skerry-os/skerry/boards"
	"github.com/skerry-os/skerry/e2e/vm"
)

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
		c := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v", "-out", *outDir, "-vm")
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
	if err == nil {
		err = netlink.AddrAdd(lo, &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(169, 254, 169, 254), Mask: net.CIDRMask(32, 32)}})
	}
	if err != nil {
		t.Fatal(err)
	}
	return true
}

// The image for EC2, which holds nothing of one machine, becomes a Ready server on a machine with an NVMe disk: it asks version 2
// of the metadata service, is called what the instance is called, and carries its zone. It never asks again.
func TestCloudImageAsksItsPlatform(t *testing.T) {
	if !inCloud(t) {
		return
	}
	b, err := boards.Load("aws")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	image, config := filepath.Join(dir, "aws.img"), filepath.Join(dir, "node.yaml")
	user := "apiVersion: skerry/v1alpha1\nkind: NodeConfig\nrole: server\ncluster: {token: 0123456789abcdef0123456789abcdef}\n"
	if err := os.WriteFile(config, []byte(user), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(built(t, "bin/skerry"), "image", "build", "--board", "aws", "--release", built(t, "release"), "--keys", built(t, "keys"), "-q", "-o", image).CombinedOutput(); err != nil {
		t.Fatalf("skerry image build: %v: %s", err, out)
	}
	var asked atomic.Int32
	l, err := net.Listen("tcp", "169.254.169.254:80")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		const session = "session=="
		switch {
		case r.Method == http.MethodPut && r.URL.Path == "/latest/api/token" && r.Header.Get("X-aws-ec2-metadata-token-ttl-seconds") != "":
			_, _ = io.WriteString(w, session)
		case r.Header.Get("X-aws-ec2-metadata-token") != session:
			t.Errorf("%s %s without a session", r.Method, r.URL)
			http.Error(w, "no session", http.StatusUnauthorized)
		case r.URL.Path == "/latest/dynamic/instance-identity/document":
			_, _ = io.WriteString(w, `{"availabilityZone":"eu-central-1b","instanceId":"i-0a1b2c3d4e5f60718","instanceType":"m7i.large","region":"eu-central-1"}`)
		case r.URL.Path == "/latest/user-data":
			_, _ = io.WriteString(w, user)
		default:
			http.NotFound(w, r)
		}
	})}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close() })

	o := vm.Options{Dir: filepath.Join(dir, "vm"), Image: image, Board: *b.QEMU, Forwards: []vm.Forward{{Guest: 6443}}}
	n := power(t, o)
	n.expect(patience, `skerry: switch root`)
	t.Log(n.expect(2*patience, `skerry: (node: Ready.*)`)[1])
	if n := asked.Load(); n != 3 {
		t.Errorf("the service was asked %d times", n)
	}
	c := n.clusterOf(config)
	c.ready()
	c.eventually(patience, contains("i-0a1b2c3d4e5f60718 aws:///eu-central-1b/i-0a1b2c3d4e5f60718 eu-central-1 eu-central-1b m7i.large"), "get", "nodes", "-o",
		`jsonpath={.items[0].metadata.name} {.items[0].spec.providerID} {.items[0].metadata.labels.topology\.kubernetes\.io/region} {.items[0].metadata.labels.topology\.kubernetes\.io/zone} {.items[0].metadata.labels.node\.kubernetes\.io/instance-type}`)

	n.PowerCut()
	n = power(t, o)
	t.Log("once more: ", n.expect(2*patience, `skerry: (node: Ready.*)`)[1])
	if n := asked.Load(); n != 3 {
		t.Errorf("the service was asked again: %d times in all", n)
	}
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
