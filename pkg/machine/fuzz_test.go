package machine_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/skerry-os/skerry/pkg/machine"
)

// Any text is a config or an error, and what is a config can be written for skerryd.
func FuzzConfig(f *testing.F) {
	f.Add([]byte("apiVersion: skerry/v1alpha1\nkind: NodeConfig\nrole: server\nupdate: {windows: [\"02:00-05:00\"]}\n"))
	f.Add([]byte("apiVersion: skerry/v1alpha1\nkind: NodeConfig\nrole: agent\ncluster: {server: https://h:6443, token: 0123456789abcdef}\n"))
	f.Add([]byte("a: &a [*a]\n"))
	f.Add(everything(f))
	faults, err := filepath.Glob("testdata/faults/*.yaml")
	if err != nil {
		f.Fatal(err)
	}
	for _, name := range faults {
		data, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := machine.Decode("config.yaml", data)
		if err != nil {
			_ = machine.Redact(err.Error())
			return
		}
		if _, err := machine.EngineYAML(c, "host"); err != nil {
			t.Error(err)
		}
	})
}
