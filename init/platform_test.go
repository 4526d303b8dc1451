package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/platform"
)

func TestPlatformOf(t *testing.T) {
	for line, want := range map[string][2]string{
		"console=tty0 skerry.board=x86-uefi":                        {},
		"skerry.board=aws skerry.platform=aws":                      {"aws", ""},
		"skerry.platform=aws skerry.config=https://example.org/a=b": {"url", "https://example.org/a=b"},
	} {
		if name, url := platformOf(line); name != want[0] || url != want[1] {
			t.Errorf("%s: %q %q", line, name, url)
		}
	}
}

// The image's config is the ground, user data goes over it, and what the platform knows fills what both leave open.
func TestConfigFromPlatform(t *testing.T) {
	const ground = "apiVersion: skerry/v1alpha1\nkind: NodeConfig\nrole: agent\ncluster: {server: \"https://10.0.0.1:6443\", token: 0123456789abcdef0123}\n"
	i := &platform.Instance{Platform: "aws", ID: "i-1", Hostname: "i-1", Zone: "eu-central-1b", ProviderID: "aws:///eu-central-1b/i-1"}
	s := &system{told: told{data: []byte(ground)}}
	c, _, err := s.configFrom(i)
	if err != nil || c.Hostname != "i-1" || len(c.Agent.NodeLabel) != 1 || len(c.Agent.KubeletArg) != 1 {
		t.Errorf("%+v, %v", c, err)
	}
	i.UserData = []byte("#cloud-config\nhostname: north-1\nusers: []\n")
	c, user, err := s.configFrom(i)
	if err != nil || c.Hostname != "north-1" || c.Cluster.Server != "https://10.0.0.1:6443" || len(user.Warnings) != 1 {
		t.Errorf("%+v, %v", c, err)
	}
	i.UserData = []byte(strings.Replace(ground, "agent", "worker", 1))
	if _, _, err := s.configFrom(i); err == nil || !strings.Contains(err.Error(), `user data:3:7: role: is "worker"`) {
		t.Error(err)
	}
	s.policy.Policy = machine.PolicySigned
	if _, _, err := s.configFrom(i); err == nil || !strings.Contains(err.Error(), "signed node configs alone") {
		t.Error(err)
	}
	if _, _, err := new(system).configFrom(&platform.Instance{Platform: "aws", ID: "i-1"}); err == nil || !strings.Contains(err.Error(), "neither the image nor the platform has a node config for this machine (aws i-1)") {
		t.Error(err)
	}
}

func TestFilesOfUserData(t *testing.T) {
	root := t.TempDir()
	if err := writeFiles(root, []platform.File{{Path: "/etc/skerry/registries.yaml", Mode: 0o640, Data: []byte("x")}}); err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(filepath.Join(root, "etc/skerry/registries.yaml")); err != nil || fi.Mode() != 0o640 {
		t.Errorf("%v, %v", fi, err)
	}
}
