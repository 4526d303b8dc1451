package agent

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	kubeproxyconfig "k8s.io/kubernetes/pkg/proxy/apis/config"
	"k8s.io/kubernetes/pkg/proxy/healthcheck"
	"k8s.io/kubernetes/pkg/proxy/metrics"
	"sigs.k8s.io/knftables"
	"sigs.k8s.io/yaml"

	"github.com/skerry-os/skerry/pkg/atomicfile"
	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/supervise"
)

func prefixes(texts ...string) (out []netip.Prefix) {
	for _, t := range texts {
		out = append(out, netip.MustParsePrefix(t))
	}
	return out
}

func testConfig(dataDir string) Config {
	return Config{
		Settings:            machine.Agent{DataDir: dataDir, NodeLabel: []string{"zone=north"}, NodeTaint: []string{"dedicated=db:NoSchedule"}},
		NodeName:            "north-1",
		NodeIPs:             []netip.Addr{netip.MustParseAddr("192.0.2.5")},
		ClusterCIDR:         prefixes("10.42.0.0/16"),
		ClusterDNS:          []netip.Addr{netip.MustParseAddr("10.43.0.10")},
		ClusterDomain:       "cluster.local",
		ClientCA:            "/pki/client-ca.crt",
		KubeletPair:         "/pki/kubelet.pem",
		KubeletKubeconfig:   "/pki/kubelet.kubeconfig",
		KubeProxyKubeconfig: "/pki/kube-proxy.kubeconfig",
		Libexec:             filepath.Join(dataDir, "libexec"),
		Share:               filepath.Join(dataDir, "share"),
	}
}

// Everything a node with its own data folder writes is below that folder or its own run folder, and the sockets fit.
func TestLayout(t *testing.T) {
	usual := newLayout(testConfig(machine.DataDir))
	if usual.pods != "/var/lib/kubelet" || usual.logs != "/var/log/pods" || usual.socket() != "/run/skerry/containerd.sock" {
		t.Errorf("the usual folders are %s, %s, %s", usual.pods, usual.logs, usual.socket())
	}
	dir := "/a/very/long/folder/" + strings.Repeat("x", 200)
	own := newLayout(testConfig(dir))
	for _, p := range []string{own.pods, own.logs, own.data, own.cniConf()} {
		if !strings.HasPrefix(p, dir+"/") {
			t.Errorf("%s is outside the data folder", p)
		}
	}
	if len(own.socket()+".ttrpc") > 107 || own.run == usual.run {
		t.Errorf("run folder is %s", own.run)
	}
	if a, b := runDir("/x/y"), runDir("/x/y/"); a != b {
		t.Errorf("one folder, two run folders: %s, %s", a, b)
	}
}

func TestServicesNames(t *testing.T) {
	var names []string
	known := []string{"kube-apiserver"}
	for _, s := range Services(testConfig(t.TempDir())) {
		for _, need := range s.Needs {
			if !slices.Contains(known, need) {
				t.Errorf("%s needs %s, which does not stand above it", s.Name, need)
			}
		}
		names, known = append(names, s.Name), append(known, s.Name)
	}
	if got := strings.Join(names, " "); got != "registries containerd images pod-network network-policy kubelet node-addresses kube-proxy local-storage node-ready" {
		t.Errorf("services are %s", got)
	}
}

// Without kube-proxy its place in the list does nothing, but for the rules of one that ran here before: those go once.
func TestNoKubeProxy(t *testing.T) {
	cfg := testConfig(t.TempDir())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, disabled := range []bool{false, true} {
		cfg.DisableKubeProxy = disabled
		all := Services(cfg)
		i := slices.IndexFunc(all, func(s supervise.Service) bool { return s.Name == KubeProxy })
		ready := false
		if err := all[i].Run(ctx, func() { ready = true }); ready != disabled || (err == nil) != disabled { // it has no kubeconfig here
			t.Errorf("disabled %v: ready %v, %v", disabled, ready, err)
		}
	}
	l := newLayout(cfg)
	l.run = t.TempDir()
	removed := 0
	remove := func() error { removed++; return nil }
	if err := l.forgetKubeProxy(remove); err != nil || removed > 0 {
		t.Errorf("another's rules are removed: %v", err)
	}
	if err := os.WriteFile(filepath.Join(l.run, kubeProxyKubeconfig), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := l.forgetKubeProxy(func() error { return os.ErrPermission }); err == nil {
		t.Error("rules that cannot be removed are forgotten")
	}
	for range 2 {
		if err := l.forgetKubeProxy(remove); err != nil || removed != 1 {
			t.Errorf("our rules are removed %d times: %v", removed, err)
		}
	}
}

func TestHelpers(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{"bin", "libexec/skerry", "share/skerry"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	libexec, share := Helpers(filepath.Join(dir, "bin/skerryd"))
	if libexec != filepath.Join(dir, "libexec/skerry") || share != filepath.Join(dir, "share/skerry") {
		t.Errorf("got %s, %s", libexec, share)
	}
	if libexec, share := Helpers("/nowhere/bin/skerryd"); libexec != "/usr/libexec/skerry" || share != "/usr/share/skerry" {
		t.Errorf("got %s, %s", libexec, share)
	}
	t.Setenv("PATH", filepath.Join(dir, "bin"))
	if _, err := findProgram(filepath.Join(dir, "libexec/skerry"), "runc"); err == nil || !strings.Contains(err.Error(), "neither in") {
		t.Errorf("a program that is nowhere: %v", err)
	}
	for _, where := range []string{"bin", "libexec/skerry"} { // the helper's folder wins over PATH
		want := filepath.Join(dir, where, "runc")
		if err := os.WriteFile(want, []byte("#!/bin/sh\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		if got, err := findProgram(filepath.Join(dir, "libexec/skerry"), "runc"); err != nil || got != want {
			t.Errorf("got %s, %v; want %s", got, err, want)
		}
	}
}

// A node without its pod network's plugins must not start, let alone say Ready.
func TestContainerdConfigNeedsItsPrograms(t *testing.T) {
	cfg := testConfig(t.TempDir())
	l := newLayout(cfg)
	t.Setenv("PATH", "")
	for _, name := range []string{"containerd-shim-runc-v2", "runc", "cni/ptp", "cni/portmap"} {
		if _, err := l.containerdConfig(); err == nil || !strings.Contains(err.Error(), filepath.Base(name)) {
			t.Errorf("without %s: %v", name, err)
		}
		p := filepath.Join(cfg.Libexec, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte("#!/bin/sh\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	c, err := l.containerdConfig()
	if err != nil {
		t.Fatal(err)
	}
	grpc := c.Plugins["io.containerd.server.v1.grpc"].(map[string]any)
	if c.Version != 4 || grpc["address"] != l.socket() || !strings.HasPrefix(c.Root, cfg.Settings.DataDir) {
		t.Errorf("version %d, address %v, root %s", c.Version, grpc["address"], c.Root)
	}
}

// programs makes a node's own, and others beside them.
func programs(t *testing.T, cfg Config, more ...string) {
	t.Helper()
	for _, name := range append([]string{"containerd-shim-runc-v2", "runc", "cni/ptp", "cni/portmap"}, more...) {
		p := filepath.Join(cfg.Libexec, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte("#!/bin/sh\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

// runtimeConfig is what containerd reads of the settings for pods.
type runtimeConfig struct {
	NonrootDevices bool `toml:"device_ownership_from_security_context"`
	Containerd     struct {
		Default  string `toml:"default_runtime_name"`
		Runtimes map[string]struct {
			Type    string         `toml:"runtime_type"`
			Path    string         `toml:"runtime_path"`
			Options map[string]any `toml:"options"`
		} `toml:"runtimes"`
	} `toml:"containerd"`
}

func readRuntimeConfig(t *testing.T, cfg Config) (out runtimeConfig) {
	t.Helper()
	c, err := newLayout(cfg).containerdConfig()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Decode(t.Context(), "io.containerd.cri.v1.runtime", &out); err != nil || c.Version != 4 {
		t.Fatalf("version %d: %v", c.Version, err)
	}
	return out
}

func TestNonrootDevices(t *testing.T) {
	cfg := testConfig(t.TempDir())
	programs(t, cfg)
	for _, want := range []bool{false, true} {
		cfg.Settings.NonrootDevices = want
		if got := readRuntimeConfig(t, cfg); got.NonrootDevices != want {
			t.Errorf("devices are the pod's user's: %v; want %v", got.NonrootDevices, want)
		}
	}
}

// The runtimes that are installed are offered, each with state of its own, and one of them can be the default.
func TestRuntimes(t *testing.T) {
	cfg := testConfig(t.TempDir())
	t.Setenv("PATH", "")
	programs(t, cfg)
	if got := readRuntimeConfig(t, cfg).Containerd; got.Default != "runc" || len(got.Runtimes) != 1 {
		t.Errorf("a node with runc alone has %+v", got)
	}
	cfg.Settings.DefaultRuntime = "nvidia"
	if _, err := newLayout(cfg).containerdConfig(); err == nil || !strings.Contains(err.Error(), "default-runtime: nvidia: nvidia-container-runtime: neither in") {
		t.Errorf("a default that is not installed: %v", err)
	}
	programs(t, cfg, "nvidia-container-runtime", "crun", "containerd-shim-spin-v2")
	got := readRuntimeConfig(t, cfg).Containerd
	names := slices.Sorted(maps.Keys(got.Runtimes))
	if got.Default != "nvidia" || !slices.Equal(names, []string{"crun", "nvidia", "runc", "spin"}) {
		t.Errorf("the default is %s of %q", got.Default, names)
	}
	roots := map[any]bool{}
	for name, program := range map[string]string{"runc": "runc", "crun": "crun", "nvidia": "nvidia-container-runtime"} {
		r := got.Runtimes[name]
		if r.Type != "io.containerd.runc.v2" || filepath.Base(r.Path) != "containerd-shim-runc-v2" || r.Options["BinaryName"] != filepath.Join(cfg.Libexec, program) || roots[r.Options["Root"]] {
			t.Errorf("%s is %+v", name, r)
		}
		roots[r.Options["Root"]] = true
	}
	if r := got.Runtimes["spin"]; r.Type != "io.containerd.spin.v2" || r.Path != filepath.Join(cfg.Libexec, "containerd-shim-spin-v2") || r.Options != nil {
		t.Errorf("spin is %+v", r)
	}
	for _, name := range machine.Runtimes {
		if _, ok := alternatives[name]; !ok && name != "runc" {
			t.Errorf("--default-runtime takes %s, which no node offers", name)
		}
	}
	classes, err := os.ReadFile("../../overlays/server/usr/share/skerry/manifests/runtimes/runtimes.yaml")
	if err != nil {
		t.Fatal(err)
	}
	handlers := map[string]bool{}
	for doc := range strings.SplitSeq(string(classes), "---\n") {
		var c nodev1.RuntimeClass
		if err := yaml.UnmarshalStrict([]byte(doc), &c); err != nil || c.Kind != "RuntimeClass" || c.Name != c.Handler {
			t.Errorf("%q: %v", doc, err)
		}
		handlers[c.Handler] = true
	}
	if got, want := slices.Sorted(maps.Keys(handlers)), slices.Sorted(maps.Keys(alternatives)); !slices.Equal(got, want) {
		t.Errorf("there are classes for %q, and nodes offer %q", got, want)
	}
	if len(machine.Runtimes) != len(alternatives)+1 {
		t.Error("--default-runtime does not take all that a node offers")
	}
}

func TestCNIConfig(t *testing.T) {
	data, err := cniConfig(prefixes("10.42.3.0/24", "fd00:42:0:3::/64"), 1450, "/run/skerry/cni", "/run/skerry/policy.sock")
	if err != nil {
		t.Fatal(err)
	}
	var conf struct {
		Name    string
		Plugins []struct {
			Type string
			MTU  int
			IPAM struct {
				Type, DataDir string
				Ranges        [][]struct{ Subnet string }
				Routes        []struct{ Dst string }
			}
			Backend      string
			Capabilities map[string]bool
		}
	}
	if err := json.Unmarshal(data, &conf); err != nil {
		t.Fatal(err)
	}
	ptp, portmap := conf.Plugins[0], conf.Plugins[1]
	if ptp.Type != "ptp" || ptp.MTU != 1450 || ptp.IPAM.Ranges[0][0].Subnet != "10.42.3.0/24" || ptp.IPAM.Ranges[1][0].Subnet != "fd00:42:0:3::/64" ||
		ptp.IPAM.Routes[0].Dst != "0.0.0.0/0" || ptp.IPAM.Routes[1].Dst != "::/0" || ptp.IPAM.DataDir != "/run/skerry/cni" {
		t.Errorf("ptp is %+v", ptp)
	}
	if portmap.Type != "portmap" || portmap.Backend != "nftables" || !portmap.Capabilities["portMappings"] {
		t.Errorf("portmap is %+v", portmap)
	}
}

// The file follows the Node, and is not touched when nothing changed.
func TestWriteCNIFollowsNode(t *testing.T) {
	n := newNode(newLayout(testConfig(t.TempDir())))
	read := func() string { data, _ := os.ReadFile(n.cniConf()); return string(data) }
	if err := n.writeCNI(prefixes("10.42.0.0/24"), 1450); err != nil || !strings.Contains(read(), "10.42.0.0/24") {
		t.Fatalf("%v: %s", err, read())
	}
	before, _ := os.Stat(n.cniConf())
	if err := n.writeCNI(prefixes("10.42.0.0/24"), 1450); err != nil {
		t.Fatal(err)
	}
	if after, _ := os.Stat(n.cniConf()); !os.SameFile(before, after) {
		t.Error("the file was written again without need")
	}
	if err := n.writeCNI(prefixes("10.42.7.0/24"), 1450); err != nil || !strings.Contains(read(), "10.42.7.0/24") {
		t.Errorf("%v: %s", err, read())
	}
}

func TestMasqueradeRules(t *testing.T) {
	fake := knftables.NewFake(knftables.InetFamily, masqTable)
	for range 2 { // a second start must not double them
		if err := fake.Run(t.Context(), masqueradeRules(fake, prefixes("10.42.0.0/16", "fd00:42::/56"))); err != nil {
			t.Fatal(err)
		}
	}
	var rules []string
	for line := range strings.Lines(fake.Dump()) {
		if rule, ok := strings.CutPrefix(strings.TrimSpace(line), "add rule inet skerry postrouting "); ok {
			rules = append(rules, rule)
		}
	}
	want := []string{
		"ip saddr 10.42.0.0/16 ip daddr 10.42.0.0/16 return",
		"ip saddr 10.42.0.0/16 ip daddr 224.0.0.0/4 return",
		"ip saddr 10.42.0.0/16 masquerade",
		"ip6 saddr fd00:42::/56 ip6 daddr fd00:42::/56 return",
		"ip6 saddr fd00:42::/56 ip6 daddr ff00::/8 return",
		"ip6 saddr fd00:42::/56 masquerade",
	}
	if !slices.Equal(rules, want) {
		t.Errorf("rules are\n%s", strings.Join(rules, "\n"))
	}
}

func TestKubeletServer(t *testing.T) {
	cfg := testConfig(t.TempDir())
	cfg.Settings.KubeletArg = []string{"max-pods=50", "--v=2", "eviction-hard=memory.available<200Mi"}
	s, err := newLayout(cfg).kubeletServer()
	if err != nil {
		t.Fatal(err)
	}
	if s.Authentication.Anonymous.Enabled || !s.Authentication.Webhook.Enabled || s.ReadOnlyPort != 0 || s.Authorization.Mode != "Webhook" {
		t.Error("its server lets in who should stay out")
	}
	if s.MaxPods != 50 || s.EvictionHard["memory.available"] != "200Mi" {
		t.Errorf("extra flags are not heard: %d, %v", s.MaxPods, s.EvictionHard)
	}
	if s.HostnameOverride != "north-1" || s.NodeIP != "192.0.2.5" || s.NodeLabels["zone"] != "north" || s.RegisterWithTaints[0].Value != "db" {
		t.Errorf("node is %s %s %v %v", s.HostnameOverride, s.NodeIP, s.NodeLabels, s.RegisterWithTaints)
	}
	if s.ClusterDNS[0] != "10.43.0.10" || s.TLSCertFile != "/pki/kubelet.pem" {
		t.Errorf("dns %v, certificate %s", s.ClusterDNS, s.TLSCertFile)
	}
	for _, bad := range []string{"no-such-flag=1", "max-pods=many", "config=/x"} {
		cfg.Settings.KubeletArg = []string{bad}
		if _, err := newLayout(cfg).kubeletServer(); err == nil || !strings.Contains(err.Error(), "kubelet-arg") {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

func TestKubeProxyOptions(t *testing.T) {
	cfg := testConfig(t.TempDir())
	cfg.Settings.KubeProxyArg = []string{"healthz-bind-address=192.0.2.5:1000"}
	if _, err := newLayout(cfg).kubeProxyOptions(cfg.KubeProxyKubeconfig); err != nil {
		t.Errorf("a setting of a person's own: %v", err)
	}
	cfg.Settings.KubeProxyArg = []string{"proxy-mode=carrier-pigeon"}
	if _, err := newLayout(cfg).kubeProxyOptions(cfg.KubeProxyKubeconfig); err == nil {
		t.Error("a mode that does not exist was accepted")
	}
}

func TestHost(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	if !mayLowerOOMScore(write("root", "Name:\tx\nCapEff:\t000001ffffffffff\n")) || mayLowerOOMScore(write("less", "CapEff:\t000001fffeffffff\n")) || mayLowerOOMScore(dir+"/none") {
		t.Error("CAP_SYS_RESOURCE is misread")
	}
	stub := write("stub", "nameserver 127.0.0.53\n")
	real := write("real", "# x\nsearch example.org\nnameserver 192.0.2.53\n")
	empty := write("empty", "")
	kept := filepath.Join(dir, "run", "kept")
	for i, c := range []struct {
		files []string
		want  string
	}{{[]string{stub, real}, "nameserver 192.0.2.53"}, {[]string{real, stub}, "search example.org"}, {[]string{stub}, noNameserver}, {[]string{empty, dir + "/none"}, noNameserver}} {
		changed, err := (resolvConf{kept, c.files}).update()
		if err != nil {
			t.Fatal(err)
		}
		if want := i == 2; changed != want { // nothing was there before the first, and the others say the same
			t.Errorf("%v: changed is %v", c.files, changed)
		}
		if got, err := os.ReadFile(kept); err != nil || !strings.Contains(string(got), c.want) {
			t.Errorf("%v: %q, %v", c.files, got, err)
		}
	}
}

// A list that appears later, behind a link to a folder of its own, reaches the pods.
func TestResolvConfFollows(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "run"), 0o755); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "resolv.conf")
	if err := os.Symlink(filepath.Join(dir, "run", "resolv.conf"), link); err != nil {
		t.Fatal(err)
	}
	r := resolvConf{filepath.Join(dir, "pods", "resolv.conf"), []string{link}}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	changes := make(chan struct{}, 10)
	go func() { done <- r.follow(ctx, func() { changes <- struct{}{} }) }()
	wait := func(text string) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
			if data, err := os.ReadFile(r.file); err == nil && strings.Contains(string(data), text) {
				return
			}
		}
		t.Fatalf("%q never came", text)
	}
	wait("100::1")
	if err := atomicfile.Write(filepath.Join(dir, "run", "resolv.conf"), []byte("nameserver 192.0.2.53\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	wait("192.0.2.53")
	<-changes
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestArchiveImages(t *testing.T) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for name, text := range map[string]string{"layer.tar": strings.Repeat("x", 5000), "manifest.json": `[{"Config":"blobs/sha256/abc","RepoTags":["skerry.local/pause:1"]}]`} {
		if err := w.WriteHeader(&tar.Header{Name: name, Size: int64(len(text)), Mode: 0o644}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	list, err := archiveImages(bytes.NewReader(buf.Bytes()))
	if err != nil || len(list) != 1 || list[0].RepoTags[0] != "skerry.local/pause:1" || list[0].configDigest() != "abc" {
		t.Errorf("%+v, %v", list, err)
	}
	for config, want := range map[string]string{"sha256:abc": "abc", "abc.json": "abc"} {
		if got := (archived{Config: config}).configDigest(); got != want {
			t.Errorf("%s: %s", config, got)
		}
	}
	if _, err := archiveImages(strings.NewReader("this is not a tar archive at all" + strings.Repeat("\n", 600))); err == nil {
		t.Error("rubbish was taken for an archive")
	}
}

// A list may have what people write; what is no image is told, with its place, and keeps nothing else back.
func TestReadList(t *testing.T) {
	file := filepath.Join(t.TempDir(), "list.txt")
	if err := os.WriteFile(file, []byte("# images\n\nbusybox\n  example.org/a/b:1  \nUPPER CASE\nx@sha256:1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	names, err := readList(file)
	if want := []string{"docker.io/library/busybox:latest", "example.org/a/b:1"}; !slices.Equal(names, want) {
		t.Errorf("%q, want %q", names, want)
	}
	if err == nil || !strings.Contains(err.Error(), "list.txt:5: ") || !strings.Contains(err.Error(), "list.txt:6: ") {
		t.Errorf("%v", err)
	}
	for name, want := range map[string]bool{"a.tar": true, "a.tar.gz": true, "a.tgz": true, "a.tar.zst": true, "a.txt": false, "tar": false, "a.tar.gz.part": false} {
		if isArchive(name) != want {
			t.Errorf("%s: %v", name, !want)
		}
	}
}

// kube-proxy waits for the addresses of now: those of another start, of another family or in another order are not they.
func TestANodeIsPlaced(t *testing.T) {
	state := func(addresses ...string) *corev1.Node {
		n := &corev1.Node{}
		n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: "n"}, {Type: corev1.NodeExternalIP, Address: "203.0.113.1"}}
		for _, a := range addresses {
			n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a})
		}
		return n
	}
	n := newNode(newLayout(Config{NodeIPs: []netip.Addr{netip.MustParseAddr("192.0.2.5"), netip.MustParseAddr("2001:db8::5")}}))
	if !n.isPlaced(state("192.0.2.5", "2001:db8::5")) {
		t.Error("the right addresses are not taken")
	}
	n.NodeExternalIPs = []netip.Addr{netip.MustParseAddr("203.0.113.1")}
	if !n.isPlaced(state("192.0.2.5", "2001:db8::5")) {
		t.Error("the right external address is not taken")
	}
	n.NodeExternalIPs[0] = netip.MustParseAddr("203.0.113.2")
	if n.isPlaced(state("192.0.2.5", "2001:db8::5")) {
		t.Error("another external address is taken for this machine's")
	}
	n.NodeExternalIPs = nil
	for _, wrong := range [][]string{nil, {"192.0.2.5"}, {"192.0.2.6", "2001:db8::5"}, {"2001:db8::5", "192.0.2.5"}} {
		if n.isPlaced(state(wrong...)) {
			t.Errorf("%v is taken for this machine's addresses", wrong)
		}
	}
}

// kube-proxy is ready when it has written the rules of all the cluster's families, and no sooner: not when its health is told, which
// is up to date from the start, nor with one family of two.
func TestWaitRules(t *testing.T) {
	metrics.RegisterMetrics(kubeproxyconfig.ProxyModeNFTables)
	written := map[string]bool{}
	check := func() {
		t.Helper()
		for cidrs, want := range map[string]bool{"10.42.0.0/16": written["IPv4"], "fd00:42::/56": written["IPv6"], "10.42.0.0/16 fd00:42::/56": written["IPv4"] && written["IPv6"]} {
			l := &layout{Config: Config{ClusterCIDR: prefixes(strings.Fields(cidrs)...)}}
			ctx, cancel := context.WithTimeout(t.Context(), 60*time.Millisecond)
			if got := l.waitRules(ctx) == nil; got != want {
				t.Errorf("%s with %v written: %v", cidrs, written, got)
			}
			cancel()
		}
	}
	healthcheck.NewProxyHealthServer("", time.Minute, nil).Updated(corev1.IPv4Protocol)
	check()
	for _, family := range []string{"IPv6", "IPv4"} {
		metrics.SyncProxyRulesLastTimestamp.WithLabelValues(family).SetToCurrentTime()
		written[family] = true
		check()
	}
}
