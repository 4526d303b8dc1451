package settings

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"github.com/skerry-os/skerry/pkg/machine"
)

// read is a server's command line from its words to its settings.
func read(t *testing.T, file string, args ...string) (machine.Server, error) {
	t.Helper()
	s, err := readArgs(t, file, args...)
	if err != nil && !errors.Is(err, ErrUsage) {
		t.Fatal(err)
	}
	return s, err
}

func readArgs(t *testing.T, file string, args ...string) (machine.Server, error) {
	t.Helper()
	for _, names := range environment { // the machine's own must not matter
		for _, n := range names {
			if _, set := os.LookupEnv(n); set && !strings.HasPrefix(os.Getenv(n), "test-") {
				t.Setenv(n, "")
			}
		}
	}
	typed, s := machine.DefaultServer(), machine.DefaultServer()
	flags := pflag.NewFlagSet("server", pflag.ContinueOnError)
	config := Bind(flags, &typed)
	if file != "" {
		name := filepath.Join(t.TempDir(), "config.yaml")
		if file, more, ok := strings.Cut(file, beside); ok {
			for i, text := range strings.Split(more, beside) {
				if err := errors.Join(os.MkdirAll(name+".d", 0o700), os.WriteFile(filepath.Join(name+".d", string(rune('0'+i))+".yaml"), []byte(text), 0o600)); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.WriteFile(name, []byte(file), 0o600); err != nil {
				t.Fatal(err)
			}
		} else if err := os.WriteFile(name, []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append([]string{"--config", name}, args...)
	}
	if err := flags.Parse(args); err != nil {
		return s, err
	}
	return s, Load(flags, *config, &typed, &s, func(name string, data []byte) error {
		d, err := machine.DecodeServer(name, data)
		if err == nil {
			s = *d
		}
		return err
	})
}

// beside parts the text of a file from those of the folder beside it.
const beside = "\n---beside---\n"

// Files in config.yaml.d are laid over the file: the last word holds, and lists grow where that is asked for.
func TestFolderOfSettings(t *testing.T) {
	s, err := read(t, "node-name: first\ndisable: [coredns]\nnode-label: [a=1]\ntls-san: [x.example]"+beside+
		"node-name: second\ndisable+: [ingress]\ntls-san: [y.example]"+beside+"node-label+: b=2\netcd-snapshot-retention: 9\n")
	if err != nil {
		t.Fatal(err)
	}
	if s.NodeName != "second" || strings.Join(s.Disable, ",") != "coredns,ingress" || strings.Join(s.NodeLabel, ",") != "a=1,b=2" ||
		strings.Join(s.TLSSAN, ",") != "y.example" || s.SnapshotRetention != 9 {
		t.Errorf("%q %q %q %q %d", s.NodeName, s.Disable, s.NodeLabel, s.TLSSAN, s.SnapshotRetention)
	}
	for text, want := range map[string]string{"no-such-setting: 1": "no-such-setting", "a: [": "1.yaml", "docker: true": "containerd is built in"} {
		if _, err := read(t, "node-name: first"+beside+"node-name: second"+beside+text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// A flag beats the environment, which beats the file, which beats the default.
func TestStrength(t *testing.T) {
	file := "token: test-from-the-file\nnode-name: file\nhttps-listen-port: 7443\ndisable: [coredns]\n"
	s, err := read(t, file)
	if err != nil || s.Token != "test-from-the-file" || s.NodeName != "file" || s.HTTPSListenPort != 7443 || s.ClusterDomain != "cluster.local" {
		t.Errorf("file alone: %+v, %v", s, err)
	}
	t.Setenv("K3S_TOKEN", "test-from-k3s-variable")
	if s, err = read(t, file); err != nil || s.Token != "test-from-k3s-variable" || s.NodeName != "file" {
		t.Errorf("with K3S_TOKEN: %+v, %v", s, err)
	}
	t.Setenv("SKERRY_TOKEN", "test-from-own-variable")
	if s, err = read(t, file); err != nil || s.Token != "test-from-own-variable" {
		t.Errorf("with SKERRY_TOKEN: %+v, %v", s, err)
	}
	s, err = read(t, file, "--token", "test-from-the-flag", "--https-listen-port=6443", "--disable", "servicelb,ingress", "--debug")
	if err != nil || s.Token != "test-from-the-flag" || s.HTTPSListenPort != 6443 || !s.Debug || s.NodeName != "file" {
		t.Errorf("with flags: %+v, %v", s, err)
	}
	if want := []string{"servicelb", "ingress"}; !reflect.DeepEqual(s.Disable, want) {
		t.Errorf("disable is %q, want %q", s.Disable, want)
	}
}

// The values of component flags have commas of their own.
func TestComponentFlagsAreNotSplit(t *testing.T) {
	s, err := read(t, "", "--kube-apiserver-arg", "feature-gates=A=true,B=false", "--kube-apiserver-arg=v=2")
	if want := []string{"feature-gates=A=true,B=false", "v=2"}; err != nil || !reflect.DeepEqual(s.KubeAPIServerArg, want) {
		t.Errorf("%q, %v", s.KubeAPIServerArg, err)
	}
}

// Every fault is the person's, and says where it is.
func TestFaults(t *testing.T) {
	for name, c := range map[string]struct {
		file string
		args []string
		want []string
	}{
		"unknown key":  {file: "data-dir: /x\nnode-nam: a\n", want: []string{"config.yaml:2:1: ", "node-nam"}},
		"bad value":    {file: "cluster-cidr: nonsense\n", want: []string{"config.yaml:1:15: ", "cluster-cidr"}},
		"bad flag":     {args: []string{"--node-ip", "300.1.1.1"}, want: []string{"--node-ip: "}},
		"overlap":      {args: []string{"--cluster-cidr", "10.43.0.0/16"}, want: []string{"--service-cidr: ", "overlaps"}},
		"two at once":  {args: []string{"--node-ip", "x", "--token", "short"}, want: []string{"--node-ip: ", "--token: "}},
		"missing file": {args: []string{"--config", "/nonexistent/config.yaml"}, want: []string{"/nonexistent/config.yaml"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := read(t, c.file, c.args...)
			if !errors.Is(err, ErrUsage) {
				t.Fatalf("error is %v", err)
			}
			for _, w := range c.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%q lacks %q", err, w)
				}
			}
		})
	}
}
