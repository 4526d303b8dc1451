package host

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skerry-os/skerry/cmd/skerryd/internal/settings"
)

// A data folder has one skerryd at a time.
func TestClaim(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	release, err := Claim(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Claim(dir); err == nil || !strings.Contains(err.Error(), "another skerryd uses this folder") {
		t.Errorf("a second claim: %v", err)
	}
	release()
	release, err = Claim(dir)
	if err != nil {
		t.Errorf("after the release: %v", err)
	}
	release()
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := Claim(dir); err == nil || !strings.Contains(err.Error(), "chmod go-w") {
		t.Errorf("a folder that others may write to: %v", err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Claim(file); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("a file in its place: %v", err)
	}
}

func TestNodeIPs(t *testing.T) {
	if ips, err := NodeIPs("127.0.0.1"); err != nil || len(ips) != 1 || ips[0].String() != "127.0.0.1" {
		t.Errorf("%v, %v", ips, err)
	}
	if _, err := NodeIPs("192.0.2.77,127.0.0.1"); !errors.Is(err, settings.ErrUsage) || !strings.Contains(err.Error(), "192.0.2.77 is on none of") {
		t.Errorf("an address that is not here: %v", err)
	}
}

func TestNodeName(t *testing.T) {
	if n, err := NodeName("given"); n != "given" || err != nil {
		t.Errorf("%q, %v", n, err)
	}
	if n, err := NodeName(""); err == nil && n != strings.ToLower(n) {
		t.Errorf("%q has capitals, which no node name may have", n)
	}
}
