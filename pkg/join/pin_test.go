package join

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/skerry-os/skerry/pkg/pki"
	"github.com/skerry-os/skerry/pkg/token"
)

func chainOf(t *testing.T, file string) (out []*x509.Certificate) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for {
		var b *pem.Block
		if b, data = pem.Decode(data); b == nil {
			return out
		}
		if b.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, c)
	}
}

func pinOf(c *x509.Certificate) string {
	return token.Pin(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
}

// A token's pin opens the server of its cluster alone, with the authority of now and during a rotation with the one before; a clock
// that is off by years is told from another cluster.
func TestPins(t *testing.T) {
	now := time.Now()
	c := pki.Config{DataDir: t.TempDir(), NodeName: "s1", NodeIPs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, ServiceIP: netip.MustParseAddr("10.43.0.1"),
		Domain: "cluster.local", Port: 6443, Now: now}
	f, err := pki.Ensure(c)
	if err != nil {
		t.Fatal(err)
	}
	before := chainOf(t, f.APIServerPair)
	files, err := pki.Rotate(now, c.DataDir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pki.Adopt(c.DataDir, files); err != nil {
		t.Fatal(err)
	}
	if f, err = pki.Ensure(c); err != nil {
		t.Fatal(err)
	}
	during := chainOf(t, f.APIServerPair)
	oldPin, newPin := pinOf(before[len(before)-1]), pinOf(chainOf(t, f.ServerCA)[0])
	for name, p := range map[string]struct {
		pin   string
		chain []*x509.Certificate
		at    time.Time
		want  string // "": it opens
		wait  bool
	}{
		"before":            {oldPin, before, now, "", false},
		"old, during":       {oldPin, during, now, "", false},
		"new, during":       {newPin, during, now, "", false},
		"new, before":       {newPin, before, now, "another cluster than the token", false},
		"another":           {strings.Repeat("0", 64), during, now, "another cluster than the token", false},
		"no authority":      {oldPin, before[:1], now, "shows no CA", false},
		"clock at 1970":     {oldPin, before, time.Unix(0, 0), "this machine's clock says 1970-01-01", true},
		"clock years ahead": {newPin, during, now.AddDate(3, 0, 0), "set the clock", true},
	} {
		err := checkPin(p.pin, p.chain, p.at)
		if p.want == "" {
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		var no *Refusal
		if !errors.As(err, &no) || !strings.Contains(no.Message, p.want) || no.Wait != p.wait || strings.Contains(no.Message, "\n") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A node that has joined is told the same of its clock as one that joins.
func TestTheClockOfANodeThatHasJoined(t *testing.T) {
	for what, made := range map[string]time.Time{"ahead": time.Now().Add(-3 * pki.Lifetime), "behind": time.Now().Add(3 * pki.Lifetime)} {
		f, err := pki.Ensure(pki.Config{DataDir: t.TempDir(), NodeName: "s1", NodeIPs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, ServiceIP: netip.MustParseAddr("10.43.0.1"),
			Domain: "cluster.local", Port: 6443, Now: made})
		if err != nil {
			t.Fatal(err)
		}
		shown, err := tls.LoadX509KeyPair(f.APIServerPair, f.APIServerPair)
		if err != nil {
			t.Fatal(err)
		}
		l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{shown}, MinVersion: tls.VersionTLS13})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go func() {
			for c, err := l.Accept(); err == nil; c, err = l.Accept() {
				_ = c.(*tls.Conn).Handshake() // it is refused
				_ = c.Close()
			}
		}()
		pair, err := os.ReadFile(f.KubeletPair)
		if err != nil {
			t.Fatal(err)
		}
		ca, err := os.ReadFile(f.ServerCA)
		if err != nil {
			t.Fatal(err)
		}
		_, err = Renew(t.Context(), l.Addr().String(), pair, ca, Request{Node: "s1"})
		var no *Refusal
		if !errors.As(err, &no) || !no.Wait || !strings.Contains(err.Error(), "this machine's clock says") || !strings.Contains(err.Error(), "set the clock") {
			t.Errorf("%s: %v", what, err)
		}
	}
}
