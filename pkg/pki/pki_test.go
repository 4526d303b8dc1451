package pki

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var start = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)

func config(t *testing.T) Config {
	return Config{
		DataDir: t.TempDir(), NodeName: "north-1", NodeIPs: []netip.Addr{netip.MustParseAddr("192.0.2.5")},
		ServiceIP: netip.MustParseAddr("10.43.0.1"), Domain: "cluster.local", Port: 6443,
		SANs: []string{"k8s.example.org", "2001:db8::1"}, Now: start,
	}
}

func ensure(t *testing.T, c Config) *Files {
	t.Helper()
	f, err := Ensure(c)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// contents are all files below dir, and every one of them is private.
func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %o", path, info.Mode().Perm())
		}
		data, err := os.ReadFile(path)
		rel, _ := filepath.Rel(dir, path)
		out[rel] = string(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func changed(a, b map[string]string) (names []string) {
	for n := range b {
		if a[n] != b[n] {
			names = append(names, n)
		}
	}
	return names
}

func pool(t *testing.T, name string) *x509.CertPool {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	p := x509.NewCertPool()
	if !p.AppendCertsFromPEM(data) {
		t.Fatalf("%s holds no certificate", name)
	}
	if bytes.Contains(data, []byte("PRIVATE")) {
		t.Errorf("%s holds a key", name)
	}
	return p
}

// What the API shows is valid for every name it is called by, to whoever knows the server authority and nobody else.
func TestAPICertificate(t *testing.T) {
	c := config(t)
	f := ensure(t, c)
	cert, err := tls.LoadX509KeyPair(f.APIServerPair, f.APIServerPair)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{
		"localhost", "127.0.0.1", "::1", "192.0.2.5", "10.43.0.1", "north-1", "kubernetes", "kubernetes.default",
		"kubernetes.default.svc", "kubernetes.default.svc.cluster.local", "k8s.example.org", "2001:db8::1",
	} {
		if _, err := cert.Leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: pool(t, f.ServerCA), CurrentTime: start}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := cert.Leaf.Verify(x509.VerifyOptions{DNSName: "example.com", Roots: pool(t, f.ServerCA), CurrentTime: start}); err == nil {
		t.Error("is valid for example.com too")
	}
	for _, other := range []string{f.ClientCA, f.RequestHeaderCA} {
		if _, err := cert.Leaf.Verify(x509.VerifyOptions{Roots: pool(t, other), CurrentTime: start}); err == nil {
			t.Errorf("is signed by %s too", other)
		}
	}
}

// Each kubeconfig is who it should be, and no server certificate can be used as a client.
func TestIdentities(t *testing.T) {
	c := config(t)
	f := ensure(t, c)
	for name, want := range map[string]string{
		f.Admin: "CN=system:admin,O=system:masters", f.ControllerManager: "CN=system:kube-controller-manager",
		f.Scheduler: "CN=system:kube-scheduler", f.Kubelet: "CN=system:node:north-1,O=system:nodes", f.KubeProxy: "CN=system:kube-proxy",
	} {
		server, err := ReadServer(name)
		if err != nil {
			t.Fatal(err)
		}
		p, err := readPair(pairOf(name))
		if err != nil {
			t.Fatal(err)
		}
		if got := p.cert.Subject.String(); got != want || server != "https://127.0.0.1:6443" {
			t.Errorf("%s: is %s at %s, want %s", name, got, server, want)
		}
		_, err = p.cert.Verify(x509.VerifyOptions{Roots: pool(t, f.ClientCA), CurrentTime: start, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, server := range []string{f.APIServerPair, f.KubeletPair} {
		p, err := readPair(server)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.cert.Verify(x509.VerifyOptions{Roots: pool(t, f.ServerCA), CurrentTime: start, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err == nil {
			t.Errorf("%s can be used as a client", server)
		}
	}
}

// A restart changes nothing until something no longer fits; then only that is made anew, and authorities never are.
func TestRenewal(t *testing.T) {
	c := config(t)
	f := ensure(t, c)
	before := contents(t, c.DataDir)
	again := func(c Config) []string {
		t.Helper()
		ensure(t, c)
		now := contents(t, c.DataDir)
		names := changed(before, now)
		before = now
		return names
	}
	if got := again(c); len(got) > 0 {
		t.Errorf("a restart changed %q", got)
	}
	later := c
	later.Now = start.Add(Lifetime - Margin(Lifetime) - time.Hour)
	if got := again(later); len(got) > 0 {
		t.Errorf("a restart with more than %s left changed %q", Margin(Lifetime), got)
	}
	later.Now = start.Add(Lifetime - Margin(Lifetime) + time.Hour)
	if got := again(later); len(got) != 9 {
		t.Errorf("a restart with less left renewed %d, want all 9 certificates: %q", len(got), got)
	}
	for _, n := range []string{"server/tls/server-ca.pem", "server/tls/client-ca.pem", "server/tls/service-account.key", "agent/server-ca.crt"} {
		if first := contents(t, c.DataDir)[n]; first != before[n] {
			t.Errorf("%s was replaced", n)
		}
	}

	later.SANs = append(later.SANs, "new.example.org")
	if got := again(later); len(got) != 1 || got[0] != "server/tls/kube-apiserver.pem" {
		t.Errorf("a new name renewed %q", got)
	}
	later.Port = 7443
	if got := again(later); len(got) != 5 {
		t.Errorf("another port rewrote %q, want the 5 kubeconfigs", got)
	}
	if err := os.WriteFile(f.KubeletPair, []byte("torn"), 0o644); err != nil {
		t.Fatal(err)
	}
	before = contents(t, filepath.Join(c.DataDir, "server"))
	ensure(t, later)
	if _, err := readPair(f.KubeletPair); err != nil {
		t.Errorf("a torn certificate was not replaced: %v", err)
	}
	contents(t, c.DataDir) // private again
}

// An authority that cannot be used stops the start and says which file it was; it is not replaced.
func TestBrokenAuthority(t *testing.T) {
	for name, data := range map[string]string{"server-ca.pem": "torn", "client-ca.pem": "", "service-account.key": "torn"} {
		t.Run(name, func(t *testing.T) {
			c := config(t)
			ensure(t, c)
			path := filepath.Join(c.DataDir, "server", "tls", name)
			if err := os.WriteFile(path, []byte(data), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := Ensure(c)
			if err == nil || !strings.HasPrefix(err.Error(), path) || !strings.Contains(err.Error(), "restore it from a backup") {
				t.Errorf("Ensure: %v", err)
			}
			if now, _ := os.ReadFile(path); string(now) != data {
				t.Error("the file was replaced")
			}
		})
	}
	c := config(t)
	ensure(t, c)
	c.Now = start.Add(11 * Lifetime)
	if _, err := Ensure(c); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("Ensure with an expired authority: %v", err)
	}
}

// A node's keys stay its own, and what a server signs for them says what the server decided.
func TestANodesCertificates(t *testing.T) {
	c := config(t)
	f := ensure(t, c)
	keys, err := NewNodeKeys()
	if err != nil {
		t.Fatal(err)
	}
	public := map[string][]byte{}
	for use, k := range keys {
		public[use] = k.Public
	}
	ip := netip.MustParseAddr("192.0.2.7")
	certs, err := f.SignNode(start, time.Hour, "south-1", []netip.Addr{ip}, public)
	if err != nil {
		t.Fatal(err)
	}
	pairs := map[string][]byte{}
	for use, k := range keys {
		pairs[use] = append(certs[use], k.Private...)
	}
	read := func(name string) []byte {
		t.Helper()
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	n, err := NodeFiles(t.TempDir(), "https://127.0.0.1:6444", read(f.ServerCA), read(f.ClientCA), pairs)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		pairOf(n.Kubelet): "CN=system:node:south-1,O=system:nodes", pairOf(n.KubeProxy): "CN=system:kube-proxy,O=skerry.io:node:south-1", n.KubeletPair: "CN=system:node:south-1,O=system:nodes",
	} {
		p, err := readPair(name)
		if err != nil {
			t.Fatal(err)
		}
		if got := p.cert.Subject.String(); got != want || p.cert.NotAfter != start.Add(time.Hour) {
			t.Errorf("%s: %s until %s", name, got, p.cert.NotAfter)
		}
	}
	p, err := readPair(n.KubeletPair)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.cert.Verify(x509.VerifyOptions{DNSName: "192.0.2.7", Roots: pool(t, n.ServerCA), CurrentTime: start}); err != nil {
		t.Error(err)
	}
	if p, err := Embed(n.Kubelet); err != nil || bytes.Contains(p, []byte(n.ServerCA)) || !bytes.Contains(p, []byte("client-key-data")) {
		t.Errorf("for a person: %v\n%s", err, p)
	}
	for _, bad := range [][]byte{nil, []byte("torn")} {
		public[KubeProxy] = bad
		if _, err := f.SignNode(start, time.Hour, "south-1", nil, public); err == nil || !strings.Contains(err.Error(), KubeProxy) {
			t.Errorf("a key %q: %v", bad, err)
		}
	}
}

// Whatever a server has made that is no authority, etcd's included, lives as long as the setting says, is taken away by Expire, and
// is made anew in its last third by the same call that a running server makes again and again.
func TestEveryCertificateIsRenewed(t *testing.T) {
	c := config(t)
	c.Etcd, c.Lifetime = true, time.Hour
	if _, err := EnsureEtcd(c); err != nil { // as a restore on a new machine does
		t.Fatal(err)
	}
	leaves := func() map[string]Status {
		t.Helper()
		ensure(t, c)
		all, err := List(c.DataDir)
		if err != nil {
			t.Fatal(err)
		}
		out := map[string]Status{}
		for _, s := range all {
			if s.CA {
				continue
			}
			out[s.File] = s
			if got := s.Until.Sub(s.From); got != time.Hour+Backdate {
				t.Errorf("%s lives for %v", s.File, got)
			}
		}
		return out
	}
	first := leaves()
	if len(first) != 12 {
		t.Errorf("there are %d certificates", len(first))
	}
	c.Now = start.Add(30 * time.Minute)
	for file, s := range leaves() {
		if s != first[file] {
			t.Errorf("%s was renewed too early", file)
		}
	}
	c.Now = start.Add(45 * time.Minute)
	renewed := leaves()
	for file, s := range renewed {
		if !s.Until.After(first[file].Until) {
			t.Errorf("%s was not renewed", file)
		}
	}
	authorities := contents(t, c.DataDir)
	if n, err := Expire(c.DataDir); err != nil || n != len(renewed) {
		t.Errorf("%d of %d were taken away: %v", n, len(renewed), err)
	}
	for file := range renewed {
		if _, err := os.Stat(file); err == nil {
			t.Errorf("%s is still there", file)
		}
	}
	for name := range authorities {
		_, err := os.Stat(filepath.Join(c.DataDir, name))
		if _, leaf := renewed[filepath.Join(c.DataDir, name)]; !leaf && err != nil {
			t.Errorf("%s was taken away", name)
		}
	}
	c.Now = start.Add(46 * time.Minute)
	for file, s := range leaves() {
		if !s.Until.After(renewed[file].Until) {
			t.Errorf("%s was not made anew", file)
		}
	}
}
