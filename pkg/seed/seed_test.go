package seed

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func aSeed() *Seed {
	return &Seed{Fleet: "home", Files: map[string][]byte{"server/token": []byte("x\n")}, Tokens: []Token{{Secret: "aaaaaa.bbbbbbbbbbbbbbbb", Node: "a1"}, {Secret: "cccccc.bbbbbbbbbbbbbbbb", Node: "s2", Server: true}}}
}

// A seed is in one of the two folders at every moment, whole; a cut one is not taken.
func TestMove(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	if moved, err := Move(from, to); moved || err != nil {
		t.Fatalf("nothing to move: %v %v", moved, err)
	}
	data, err := aSeed().Marshal()
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(from, Name)
	if err := os.WriteFile(name, data[:len(data)-10], 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Move(from, to); err == nil || strings.Contains(err.Error(), "bbbb") {
		t.Errorf("a cut seed: %v", err)
	}
	for round := range 2 { // the second: power failed between the write and the removal
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if moved, err := Move(from, to); !moved || err != nil {
			t.Fatalf("round %d: %v %v", round, moved, err)
		}
		if _, err := os.Stat(name); err == nil {
			t.Error("the seed is still where it was")
		}
		got, err := Load(to)
		if err != nil || !reflect.DeepEqual(got.Tokens, aSeed().Tokens) {
			t.Errorf("%+v %v", got, err)
		}
	}
	// Power failed between the zeros and the removal.
	if err := os.WriteFile(name, make([]byte, len(data)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Move(from, to); err != nil {
		t.Error(err)
	}
	if got, err := Load(to); err != nil || len(got.Tokens) != 2 {
		t.Errorf("zeros took the seed's place: %+v %v", got, err)
	}
}

func FuzzParse(f *testing.F) {
	data, _ := aSeed().Marshal()
	f.Add(data)
	f.Add([]byte(`{"schema":1,"files":{"../x":""},"tokens":[]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := Parse(data)
		if err != nil {
			return
		}
		for name := range s.Files {
			if !strings.HasPrefix(filepath.Join("/data", name), "/data") {
				t.Errorf("%q leads out of the data folder", name)
			}
		}
	})
}
