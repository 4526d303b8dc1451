package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skerry-os/skerry/pkg/cni"
)

// TestMain lets the test program stand in for skerry-pod under every name.
func TestMain(m *testing.M) {
	if os.Getenv("SKERRY_POD_TEST") != "" {
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func runAs(t *testing.T, name string, env []string, args ...string) (string, error) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), name)
	if err := os.Symlink(self, link); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(link, args...)
	cmd.Env = append(append(os.Environ(), "SKERRY_POD_TEST=1"), env...)
	cmd.Stdin = strings.NewReader(`{"cniVersion":"1.0.0"}`)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func TestEveryName(t *testing.T) {
	for _, name := range cni.Names() {
		out, err := runAs(t, name, []string{"CNI_COMMAND=VERSION"})
		if err != nil || !strings.Contains(out, `"supportedVersions"`) {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
	out, err := runAs(t, "containerd-shim-runc-v2", nil, "-v")
	if err != nil || !strings.Contains(out, "containerd-shim-runc-v2:") {
		t.Errorf("shim: %v\n%s", err, out)
	}
	if _, err := runAs(t, "containerd-shim-runc-v2", nil, "start"); err == nil {
		t.Error("a shim without a namespace started")
	}
}
