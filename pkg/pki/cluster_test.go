package pki

import (
	"crypto/x509"
	"encoding/base64"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gopkg.in/yaml.v3"
)

// A server that finds the files of NewCluster takes them as its own, whatever its clock says between the two times.
func TestAClusterMadeBeforeItsServer(t *testing.T) {
	now := time.Now()
	built := now.Add(-90 * 24 * time.Hour)
	files, err := NewCluster(built, now)
	if err != nil {
		t.Fatal(err)
	}
	for _, clock := range []time.Time{built, now, now.Add(300 * 24 * time.Hour)} {
		dir := t.TempDir()
		for name, data := range files {
			path := filepath.Join(dir, name)
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		c := Config{
			DataDir: dir, NodeName: "s1", NodeIPs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, ServiceIP: netip.MustParseAddr("10.43.0.1"),
			Domain: "cluster.local", Port: 6443, Now: clock,
		}
		f, err := Ensure(c)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := EnsureEtcd(c); err != nil {
			t.Fatal(err)
		}
		for name, data := range files {
			if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != string(data) {
				t.Errorf("%s was made anew (%v)", name, err)
			}
		}
		// Made once and good: nothing is made again.
		before, err := os.ReadFile(f.APIServerPair)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Ensure(c); err != nil {
			t.Fatal(err)
		}
		if after, err := os.ReadFile(f.APIServerPair); err != nil || string(after) != string(before) {
			t.Errorf("clock %v: the API's certificate does not fit its authority", clock)
		}
		pinned, err := Certificate(files[ServerCAFile])
		if err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(f.ServerCA); err != nil || string(got) != string(pinned) {
			t.Errorf("what a token's pin names is not what the server shows")
		}
	}
	for _, name := range Shared() {
		if strings.HasSuffix(name, ".before.crt") {
			continue // of a rotation
		}
		if _, ok := files[name]; !ok && name != "server/token" && name != "server/encryption.yaml" {
			t.Errorf("%s: is missing", name)
		}
	}
}

// A kubeconfig that was made at a desk opens the cluster whatever its server's clock says, as long as the authorities are valid.
func TestAdministrator(t *testing.T) {
	now := time.Now()
	built := now.Add(-90 * 24 * time.Hour)
	files, err := NewCluster(built, now)
	if err != nil {
		t.Fatal(err)
	}
	data, err := Administrator(files, "home", "https://192.0.2.10:6443", now)
	if err != nil {
		t.Fatal(err)
	}
	var k kubeconfig
	if err := yaml.Unmarshal(data, &k); err != nil || k.Clusters[0].Cluster.Server != "https://192.0.2.10:6443" || k.CurrentContext != "home" {
		t.Fatalf("%v\n%s", err, data)
	}
	text, err := base64.StdEncoding.DecodeString(k.Users[0].User.CertData)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(find(text, "CERTIFICATE").Bytes)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(files[clientCAFile])
	for _, clock := range []time.Time{built, now, now.Add(Lifetime - time.Hour)} {
		if _, err := cert.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: clock, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
			t.Errorf("at %v: %v", clock, err)
		}
	}
	if cert.Subject.CommonName != "system:admin" || cert.Subject.Organization[0] != "system:masters" {
		t.Errorf("it is %v", cert.Subject)
	}
}
