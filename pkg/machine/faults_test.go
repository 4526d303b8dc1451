package machine_test

import (
	"crypto/ed25519"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"

	"github.com/skerry-os/skerry/pkg/machine"
)

// Each config in testdata/faults has a file beside it that says what a person is told: on the console, and over the network.
func TestGoldenFaults(t *testing.T) {
	files, err := filepath.Glob("testdata/faults/*.yaml")
	if err != nil || len(files) < 20 {
		t.Fatalf("found %d, %v", len(files), err)
	}
	for _, name := range files {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		_, err = machine.Decode("config.yaml", data)
		if err == nil {
			t.Errorf("%s: is good", name)
			continue
		}
		text := "# on the console\n" + err.Error() + "\n# over the network\n" + machine.Redact(err.Error()) + "\n"
		golden(t, strings.TrimSuffix(name, ".yaml")+".txt", []byte(text))
	}
}

// A secret in any place of a config, right or wrong, is not told to the network; and where a secret belongs, it is not even told to
// the console.
func TestFaultsKeepSecrets(t *testing.T) {
	const secret = "hunter2 correct`horse \"battery"
	var root yaml.Node
	if err := yaml.Unmarshal(everything(t), &root); err != nil {
		t.Fatal(err)
	}
	told := 0
	var walk func(n *yaml.Node, where string)
	walk = func(n *yaml.Node, where string) {
		kept := *n
		for i, c := range n.Content {
			key := ""
			if n.Kind == yaml.MappingNode {
				if i%2 == 0 { // as a key
					was := *c
					*c = yaml.Node{Kind: yaml.ScalarNode, Value: secret, Style: yaml.DoubleQuotedStyle}
					check(t, &root, where+" key "+was.Value, secret, false, &told)
					*c = was
					continue
				}
				key = n.Content[i-1].Value
			}
			walk(c, where+"."+key)
		}
		*n = yaml.Node{Kind: yaml.ScalarNode, Value: secret, Style: yaml.DoubleQuotedStyle}
		own := slices.Contains([]string{"token", "password", "passphrase", "psk"}, where[strings.LastIndexByte(where, '.')+1:])
		check(t, &root, where, secret, own, &told)
		*n = kept
	}
	walk(root.Content[0], "")
	if told < 80 {
		t.Errorf("only %d places had a fault", told)
	}
}

func check(t *testing.T, root *yaml.Node, where, secret string, own bool, told *int) {
	t.Helper()
	data, err := yaml.Marshal(root)
	if err != nil {
		t.Fatal(err)
	}
	_, err = machine.Decode("config.yaml", data)
	if err == nil {
		return
	}
	*told++
	for _, part := range []string{"hunter2", "correct", "horse", "battery"} {
		if text := machine.Redact(err.Error()); strings.Contains(text, part) {
			t.Errorf("%s: the network hears %s", where, text)
			return
		}
		if own && strings.Contains(err.Error(), part) {
			t.Errorf("%s: the console shows %v", where, err)
		}
	}
	_ = secret
}

func TestSignature(t *testing.T) {
	pub, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	other, otherKey, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	data := []byte(server)
	sig, err := machine.SignConfig(data, key)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := machine.VerifyConfig(data, sig, []ed25519.PublicKey{other, pub}); err != nil {
		t.Errorf("a good one: %v", err)
	}
	foreign, err := machine.SignConfig(data, otherKey)
	if err != nil {
		t.Fatal(err)
	}
	for want, tt := range map[string]struct{ data, sig []byte }{
		"no signature beside it":          {data, nil},
		"was changed after it was signed": {append([]byte("#"), data...), sig},
		"a signature of another key":      {data, foreign},
		"a signature that cannot be read": {data, []byte("x")},
	} {
		_, err := machine.VerifyConfig(tt.data, tt.sig, []ed25519.PublicKey{pub})
		if !errors.Is(err, machine.ErrUnsigned) || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
}
