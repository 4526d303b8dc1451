package platform

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/platform/platformtest"
)

// inNamespace runs the calling test again in a network namespace of its own, whose loopback has the addresses that metadata
// services have, and returns true there.
func inNamespace(t *testing.T) bool {
	t.Helper()
	const env = "SKERRY_TEST_IN_NAMESPACE"
	if os.Getenv(env) != t.Name() {
		if os.Geteuid() != 0 {
			t.Skip("needs root: it makes a network namespace")
		}
		c := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
		c.Env = append(os.Environ(), env+"="+t.Name(), "HTTP_PROXY=http://192.0.2.1:1") // a proxy that must not be asked
		c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS}
		out, err := c.CombinedOutput()
		if err != nil {
			t.Errorf("in the namespace: %v\n%s", err, out)
		}
		return false
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		t.Fatal(err)
	}
	return true
}

// serve answers at an address of the link.
func serve(t *testing.T, ip string, h http.HandlerFunc) {
	t.Helper()
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	a := netip.MustParseAddr(ip)
	if err := netlink.AddrReplace(lo, &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}, Flags: syscall.IFA_F_NODAD}); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", net.JoinHostPort(ip, "80"))
	if err != nil {
		t.Fatal(err)
	}
	s := &httptest.Server{Listener: l, Config: &http.Server{Handler: h}}
	s.Start()
	t.Cleanup(s.Close)
}

// right fails a test whose requests were not as they must be.
func right(t *testing.T, c *platformtest.Cloud) {
	t.Helper()
	if wrong := c.Wrong(); len(wrong) > 0 {
		t.Errorf("not as they must be: %q", wrong)
	}
}

type said struct {
	mu    sync.Mutex
	lines []string
}

func (s *said) log(format string, a ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lines = append(s.lines, fmt.Sprintf(format, a...))
}

func ask(t *testing.T, platform string, p *Place) (*Instance, error) {
	t.Helper()
	if p.Log == nil {
		p.Log = t.Logf
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	return Ask(ctx, platform, p)
}

func expect(t *testing.T, got *Instance, err error, want Instance) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(*got, want) {
		t.Errorf("got  %+v\nwant %+v", *got, want)
	}
}

var onAWS = Instance{
	Platform: "aws", ID: "i-0a1b2c3d4e5f60718", Hostname: "i-0a1b2c3d4e5f60718", Type: "m7i.large", Region: "eu-central-1", Zone: "eu-central-1b",
	ProviderID: "aws:///eu-central-1b/i-0a1b2c3d4e5f60718",
}

func TestAWS(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	c := &platformtest.Cloud{Busy: 2, UserData: "role: agent\n"}
	serve(t, platformtest.LinkLocal, c.AWS)
	s := &said{}
	got, err := ask(t, "aws", &Place{Log: s.log})
	right(t, c)
	want := onAWS
	want.UserData = []byte("role: agent\n")
	expect(t, got, err, want)
	if len(s.lines) != 1 || !strings.Contains(s.lines[0], "/latest/api/token: answers 503 Service Unavailable; asking again") {
		t.Errorf("said %q", s.lines)
	}
}

// A subnet without IPv4 has the service at another address; an instance without user data is no fault.
func TestAWSByIPv6(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	c := new(platformtest.Cloud)
	serve(t, platformtest.LinkLocalIPv6, c.AWS)
	defer right(t, c)
	got, err := ask(t, "aws", &Place{})
	expect(t, got, err, onAWS)
	got, err = ask(t, "aws", &Place{SSHKeys: true})
	want := onAWS
	want.SSHKeys = []string{"ssh-ed25519 AAAA0 desk", "ssh-ed25519 AAAA2 desk"}
	expect(t, got, err, want)
}

func TestAWSTurnedOff(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	serve(t, "169.254.169.254", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "off", http.StatusForbidden) })
	s := &said{}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	_, err := Ask(ctx, "aws", &Place{Log: s.log})
	if err == nil || !strings.Contains(err.Error(), "platform aws: ") || !strings.Contains(strings.Join(s.lines, "\n"), "turn the instance's metadata service on") {
		t.Errorf("%v, said %q", err, s.lines)
	}
}

func TestGCP(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	c := &platformtest.Cloud{UserData: "role: agent\n"}
	serve(t, platformtest.LinkLocal, c.GCP)
	defer right(t, c)
	got, err := ask(t, "gcp", &Place{})
	want := Instance{
		Platform: "gcp", ID: "4172309120498712345", Hostname: "north-mig-x7k2", Type: "e2-medium", Region: "europe-west3", Zone: "europe-west3-c",
		ProviderID: "gce://my-project/europe-west3-c/north-mig-x7k2", UserData: []byte("role: agent\n"), SSHKeys: []string{"ssh-ed25519 AAAA admin@desk"},
	}
	expect(t, got, err, want)
	got, err = ask(t, "gcp", &Place{SSHKeys: true})
	want.SSHKeys = append(want.SSHKeys, "ssh-ed25519 AAAC b")
	expect(t, got, err, want)
}

// Azure has two services: one tells, the other is told.
func TestAzure(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	c := &platformtest.Cloud{UserData: "role: agent\n"}
	serve(t, platformtest.LinkLocal, c.Azure)
	serve(t, platformtest.FabricAddress, c.Fabric)
	defer right(t, c)
	got, err := ask(t, "azure", &Place{})
	expect(t, got, err, Instance{
		Platform: "azure", ID: "02aab8a4-74ef-476e-8182-f6d2ba4166a6", Hostname: "vmss000003", Type: "Standard_D2s_v5", Region: "westeurope", Zone: "westeurope-2",
		ProviderID: "azure:///subscriptions/s/resourceGroups/g/providers/Microsoft.Compute/virtualMachineScaleSets/vmss/virtualMachines/3", UserData: []byte("role: agent\n"), SSHKeys: []string{"ssh-rsa AAAA admin@desk"},
	})
	if err := Report(t.Context(), got); err != nil {
		t.Fatal(err)
	}
	if want := []platformtest.Health{{Incarnation: "7", Container: "c-1", Instance: "a&b._vmss_3", State: "Ready"}}; !reflect.DeepEqual(c.Reported(), want) {
		t.Errorf("reported %+v", c.Reported())
	}
	if err := Report(t.Context(), &Instance{Platform: "aws"}); err != nil {
		t.Error(err)
	}
}

func volume(files fstest.MapFS, has string) func(context.Context, ...string) (fs.FS, bool, func(), error) {
	return func(_ context.Context, labels ...string) (fs.FS, bool, func(), error) {
		for _, l := range labels {
			if l == has {
				return files, true, func() {}, nil
			}
		}
		return nil, false, nil, nil
	}
}

var onNova = Instance{
	Platform: "openstack", ID: "83679162-1378-4288-a2d4-70e13ec132aa", Hostname: "north-1", Zone: "nova", ProviderID: "openstack:///83679162-1378-4288-a2d4-70e13ec132aa",
	UserData: []byte("role: agent\n"), SSHKeys: []string{"ssh-ed25519 AAAA desk"},
}

// OpenStack's volume is read where there is one; its service is asked where there is none.
func TestOpenStack(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	files := fstest.MapFS{"openstack/latest/meta_data.json": {Data: []byte(platformtest.Nova)}, "openstack/latest/user_data": {Data: []byte("role: agent\n")}}
	got, err := ask(t, "openstack", &Place{Volume: volume(files, "config-2")})
	expect(t, got, err, onNova)

	c := &platformtest.Cloud{UserData: "role: agent\n"}
	serve(t, platformtest.LinkLocal, c.OpenStack)
	defer right(t, c)
	got, err = ask(t, "openstack", &Place{Volume: volume(nil, "other")})
	want := onNova
	want.Type = "m1.medium"
	expect(t, got, err, want)
}

// Proxmox attaches either kind of volume; it may come late.
func TestVolumes(t *testing.T) {
	files := fstest.MapFS{"meta-data": {Data: []byte("instance-id: abc\nlocal-hostname: North-1.lan\n")}, "user-data": {Data: []byte("role: agent\n")}}
	tries := 0
	s := &said{}
	got, err := ask(t, "proxmox", &Place{Log: s.log, Volume: func(ctx context.Context, labels ...string) (fs.FS, bool, func(), error) {
		if tries++; tries < 2 {
			return nil, false, nil, nil
		}
		return volume(files, "cidata")(ctx, labels...)
	}})
	expect(t, got, err, Instance{Platform: "proxmox", ID: "abc", Hostname: "north-1", UserData: []byte("role: agent\n")})
	if len(s.lines) != 1 || !strings.Contains(s.lines[0], "no volume labelled cidata or config-2 is attached; asking again") {
		t.Errorf("said %q", s.lines)
	}
	got, err = ask(t, "proxmox", &Place{Volume: volume(fstest.MapFS{}, "cidata")})
	expect(t, got, err, Instance{Platform: "proxmox"})
}

func TestURL(t *testing.T) {
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/elsewhere" {
			http.Redirect(w, r, "/node.yaml", http.StatusFound)
			return
		}
		_, _ = io.WriteString(w, "role: agent\n")
	}))
	defer s.Close()
	once := func(url string) (*Instance, error) { return fromURL(t.Context(), &Place{URL: url}) }
	if _, err := once(s.URL + "/node.yaml"); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("a certificate that nobody vouches for: %v", err)
	}
	transport := client.Transport.(*http.Transport)
	transport.TLSClientConfig = &tls.Config{RootCAs: s.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs}
	defer func() { transport.TLSClientConfig = nil }()
	if got, err := once(s.URL + "/node.yaml"); err != nil || string(got.UserData) != "role: agent\n" || got.ID != s.URL+"/node.yaml" {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := once(s.URL + "/elsewhere"); err == nil || !strings.Contains(err.Error(), "redirect") {
		t.Errorf("a redirect: %v", err)
	}
	if _, err := once("http://192.0.2.1/node.yaml"); err == nil || !strings.Contains(err.Error(), "write https://") {
		t.Errorf("in clear text: %v", err)
	}
}

func TestUserData(t *testing.T) {
	for _, c := range []struct{ name, in, node, err, warn string }{
		{name: "nothing", in: " \n"},
		{name: "a node config", in: "role: agent\n", node: "role: agent\n"},
		{name: "a script", in: "#!/bin/sh\nrm -rf /\n", err: "has no shell"},
		{name: "parts", in: "Content-Type: multipart/mixed; boundary=x\n", err: "of several parts"},
		{name: "cloud-config", in: "#cloud-config\nfqdn: North_1.example.org\nntp: {servers: [192.0.2.1]}\nusers: [default]\nskerry: {role: agent}\n",
			node: "hostname: north-1\nntp:\n    servers:\n        - 192.0.2.1\nrole: agent\n", warn: "users is not done here"},
		{name: "no clock", in: "#cloud-config\nntp: {enabled: false}\n", node: "ntp:\n    servers: []\n"},
		{name: "not YAML", in: "#cloud-config\n{", err: "cloud-config: yaml"},
		{name: "a file elsewhere", in: "#cloud-config\nwrite_files: [{path: /etc/skerry/../passwd, content: x}]\n", err: "/etc/skerry/../passwd: the root cannot be changed; files go below /etc/skerry/"},
	} {
		got, err := ReadUserData([]byte(c.in))
		switch {
		case c.err != "":
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s: %v", c.name, err)
			}
		case err != nil || string(got.Node) != c.node || !strings.Contains(strings.Join(got.Warnings, "\n"), c.warn):
			t.Errorf("%s: %+v, %v", c.name, got, err)
		}
	}
	got, err := ReadUserData([]byte("#cloud-config\nwrite_files:\n- {path: /etc/skerry/registries.yaml, permissions: '0640', encoding: gz+b64, content: H4sIAAAAAAACA8tIzcnJBwCGphA2BQAAAA==}\n"))
	if err != nil || len(got.Files) != 1 || string(got.Files[0].Data) != "hello" || got.Files[0].Mode != 0o640 {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := ReadUserData([]byte("#cloud-config\nwrite_files:\n- {path: /etc/skerry/registries.yaml, encoding: gz+b64, content: H4sIAAAAAAACA8tIzcnJBwCGphA3BQAAAA==}\n")); err == nil || !strings.Contains(err.Error(), "checksum") {
		t.Errorf("a damaged file: %+v, %v", got, err)
	}
	got, err = ReadUserData([]byte("#cloud-config\nssh_authorized_keys: [ssh-ed25519 AAAA desk]\n"))
	if err != nil || len(got.Warnings) > 0 || len(got.SSHKeys) != 1 || got.SSHKeys[0] != "ssh-ed25519 AAAA desk" || len(got.Node) > 0 {
		t.Errorf("keys of cloud-config: %+v, %v", got, err)
	}
	got, err = ReadUserData([]byte("#cloud-config\nwrite_files:\n- {path: /var/lib/skerry/server/manifests/a.yaml, encoding: b64, content: aGVsbG8=}\n"))
	if err != nil || len(got.Files) != 1 || string(got.Files[0].Data) != "hello" || got.Files[0].Mode != 0o600 {
		t.Errorf("%+v, %v", got, err)
	}
}

// What is kept is for root alone and for this machine alone.
func TestKept(t *testing.T) {
	file := filepath.Join(t.TempDir(), "platform", "instance.json")
	if k, err := Load(file, "u1"); k != nil || err != nil {
		t.Errorf("%+v, %v", k, err)
	}
	k := &Kept{Machine: "u1", Instance: onAWS}
	if err := k.Save(file); err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(file); err != nil || fi.Mode() != 0o600 {
		t.Errorf("%v, %v", fi, err)
	}
	if got, err := Load(file, "u1"); err != nil || !reflect.DeepEqual(got, k) {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := Load(file, "u2"); got != nil || err != nil {
		t.Errorf("a cloned disk: %+v, %v", got, err)
	}
	if got := Machine(fstest.MapFS{"class/dmi/id/product_uuid": {Data: []byte("EC2A-1\n")}}); got != "ec2a-1" {
		t.Errorf("machine %q", got)
	}
}

// The labels are such as kubelet may set and the node config allows.
func TestInstanceBecomesNodeConfig(t *testing.T) {
	image := machine.Layer{Name: "config.yaml", Data: []byte("apiVersion: skerry/v1alpha1\nkind: NodeConfig\nrole: agent\ncluster: {server: \"https://10.0.0.1:6443\", token: 0123456789abcdef0123}\n")}
	user := machine.Layer{Name: "user data", Data: []byte("agent: {node-label: [topology.kubernetes.io/zone=rack-7]}\n")}
	c, err := machine.DecodeLayers(machine.Facts{Hostname: onAWS.Hostname, Labels: onAWS.Labels(), ProviderID: onAWS.ProviderID}, image, user)
	if err != nil {
		t.Fatal(err)
	}
	labels := "[topology.kubernetes.io/zone=rack-7 node.kubernetes.io/instance-type=m7i.large topology.kubernetes.io/region=eu-central-1]"
	if c.Hostname != onAWS.Hostname || fmt.Sprint(c.Agent.NodeLabel) != labels || fmt.Sprint(c.Agent.KubeletArg) != "[provider-id="+onAWS.ProviderID+"]" {
		t.Errorf("%+v", c)
	}
	if _, err := machine.DecodeLayers(machine.Facts{}, image, machine.Layer{Name: "user data", Data: []byte("hostnam: x\n")}); err == nil || !strings.Contains(err.Error(), `user data:1:1: unknown key "hostnam"`) {
		t.Error(err)
	}
	if _, err := machine.DecodeLayers(machine.Facts{}); err == nil || !strings.Contains(err.Error(), "write server or agent") {
		t.Error(err)
	}
	if got := labelValue("a b/ü"); got != "a-b" {
		t.Errorf("label %q", got)
	}
}
