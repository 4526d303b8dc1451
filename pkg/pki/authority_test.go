package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/skerry-os/skerry/pkg/token"
)

func read(t *testing.T, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// opens says whether who trusts the file takes the certificate, with what its file sends along.
func opens(t *testing.T, trust, pairFile string, now time.Time, usage x509.ExtKeyUsage) bool {
	t.Helper()
	shown, err := tls.LoadX509KeyPair(pairFile, pairFile)
	if err != nil {
		t.Fatal(err)
	}
	between := x509.NewCertPool()
	for _, der := range shown.Certificate[1:] {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		between.AddCert(c)
	}
	_, err = shown.Leaf.Verify(x509.VerifyOptions{Roots: pool(t, trust), Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{usage}})
	return err == nil
}

func keep(t *testing.T, file string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), filepath.Base(file))
	if err := os.WriteFile(name, read(t, file), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// Whoever has heard of a rotation and whoever has not take each other's certificates until it is finished.
func TestRotationStrandsNobody(t *testing.T) {
	c := config(t)
	f := ensure(t, c)
	etcd, err := EnsureEtcd(c)
	if err != nil {
		t.Fatal(err)
	}
	type side struct {
		trust, pair string
		usage       x509.ExtKeyUsage
	}
	now := map[string]side{
		"API":         {f.ServerCA, f.APIServerPair, x509.ExtKeyUsageServerAuth},
		"kubelet":     {f.ServerCA, f.KubeletPair, x509.ExtKeyUsageServerAuth},
		"node":        {f.ClientCA, pairOf(f.Kubelet), x509.ExtKeyUsageClientAuth},
		"admin":       {f.ClientCA, pairOf(f.Admin), x509.ExtKeyUsageClientAuth},
		"auth proxy":  {f.RequestHeaderCA, f.AuthProxyPair, x509.ExtKeyUsageClientAuth},
		"etcd peer":   {etcd.PeerCA, etcd.PeerPair, x509.ExtKeyUsageServerAuth},
		"etcd client": {etcd.ServerCA, etcd.ClientPair, x509.ExtKeyUsageClientAuth},
	}
	before := map[string]side{}
	for name, s := range now {
		before[name] = side{keep(t, s.trust), keep(t, s.pair), s.usage}
	}
	oldPin := token.Pin(read(t, f.ServerCA))
	again := func() {
		t.Helper()
		f = ensure(t, c)
		if etcd, err = EnsureEtcd(c); err != nil {
			t.Fatal(err)
		}
	}

	c.Now = start.AddDate(3, 0, 0)
	again() // certificates of now, by the old authorities
	for name, s := range now {
		before[name] = side{before[name].trust, keep(t, s.pair), s.usage}
	}
	files, err := Rotate(c.Now, c.DataDir)
	if err != nil {
		t.Fatal(err)
	}
	if len(files) != 10 {
		t.Errorf("%d files", len(files))
	}
	if changed, err := Adopt(c.DataDir, files); !changed || err != nil {
		t.Fatal(changed, err)
	}
	if changed, err := Adopt(c.DataDir, files); changed || err != nil {
		t.Errorf("adopted twice: %v, %v", changed, err)
	}
	if _, err := Rotate(c.Now, c.DataDir); !errors.Is(err, ErrRotating) {
		t.Errorf("rotated twice: %v", err)
	}
	oldCA := read(t, f.ServerCA)
	again()
	if token.Pin(read(t, f.ServerCA)) == oldPin {
		t.Error("new tokens name the old authority")
	}
	if !Newer(oldCA, read(t, f.ServerCA)) || Newer(read(t, f.ServerCA), oldCA) || Newer(oldCA, oldCA) {
		t.Error("the newer is not told from the older")
	}
	for name, s := range now {
		b := before[name]
		for what, ok := range map[string]bool{
			"new to new": opens(t, s.trust, s.pair, c.Now, s.usage),
			"new to old": opens(t, b.trust, s.pair, c.Now, s.usage),
			"old to new": opens(t, s.trust, b.pair, c.Now, s.usage),
		} {
			if !ok {
				t.Errorf("%s: %s is refused", name, what)
			}
		}
		if string(read(t, s.pair)) == string(read(t, b.pair)) {
			t.Errorf("%s: is still the old authority's", name)
		}
	}
	// A node that is signed for now opens servers that have not heard of it.
	keys, err := NewNodeKeys()
	if err != nil {
		t.Fatal(err)
	}
	public := map[string][]byte{}
	for use, k := range keys {
		public[use] = k.Public
	}
	certs, err := f.SignNode(c.Now, 0, "north-2", []netip.Addr{netip.MustParseAddr("192.0.2.7")}, public)
	if err != nil {
		t.Fatal(err)
	}
	node := filepath.Join(t.TempDir(), "node.pem")
	if err := os.WriteFile(node, append(certs[KubeletClient], keys[KubeletClient].Private...), 0o600); err != nil {
		t.Fatal(err)
	}
	if !opens(t, before["node"].trust, node, c.Now, x509.ExtKeyUsageClientAuth) {
		t.Error("a new node is refused by a server that has not heard of the rotation")
	}

	// Nothing is made anew while nothing changes.
	same := contents(t, c.DataDir)
	again()
	if names := changed(same, contents(t, c.DataDir)); len(names) > 0 {
		t.Errorf("changed: %v", names)
	}

	open := read(t, f.ServerCA)
	if changed, err := Adopt(c.DataDir, Finish(files)); !changed || err != nil {
		t.Fatal(changed, err)
	}
	again()
	if !Newer(open, read(t, f.ServerCA)) {
		t.Error("a finished rotation is not newer than an open one")
	}
	for name, s := range now {
		if !opens(t, s.trust, s.pair, c.Now, s.usage) {
			t.Errorf("%s: is refused after the end", name)
		}
		if opens(t, s.trust, before[name].pair, c.Now, s.usage) {
			t.Errorf("%s: the old authority still counts", name)
		}
	}
	if _, err := Rotate(c.Now, c.DataDir); err != nil {
		t.Errorf("a second rotation: %v", err)
	}
}

// A power cut between the two files of an authority leaves the old one or the new one, whole.
func TestRotationTorn(t *testing.T) {
	c := config(t)
	f := ensure(t, c)
	files, err := Rotate(c.Now, c.DataDir)
	if err != nil {
		t.Fatal(err)
	}
	pair, before := "server/tls/server-ca.pem", "server/tls/server-ca.before.crt"
	had := read(t, f.ServerCA)
	if err := os.WriteFile(filepath.Join(c.DataDir, before), files[before], 0o600); err != nil {
		t.Fatal(err)
	}
	ensure(t, c)
	if string(read(t, f.ServerCA)) != string(had) {
		t.Error("the second file alone changes what is trusted")
	}
	// The pair's file is there, and the others are not yet.
	if err := os.WriteFile(filepath.Join(c.DataDir, pair), files[pair], 0o600); err != nil {
		t.Fatal(err)
	}
	ensure(t, c)
	if !opens(t, f.ServerCA, f.APIServerPair, c.Now, x509.ExtKeyUsageServerAuth) || !opens(t, f.ClientCA, pairOf(f.Admin), c.Now, x509.ExtKeyUsageClientAuth) {
		t.Error("half of the authorities are new, and nothing works")
	}
	if changed, err := Adopt(c.DataDir, files); !changed || err != nil {
		t.Fatal(changed, err)
	}
	if changed, err := Adopt(c.DataDir, map[string][]byte{pair: []byte("torn")}); changed || err == nil {
		t.Errorf("adopted garbage: %v", err)
	}
	if err := os.WriteFile(filepath.Join(c.DataDir, before), []byte("torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Ensure(c); err == nil {
		t.Error("a torn file is not noticed")
	}
}
