package release

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"strings"
	"testing"
	"testing/fstest"
	"time"
)

func key(b byte) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{b}, ed25519.SeedSize))
}

func describe(t *testing.T, path, content string) File {
	t.Helper()
	f, err := Describe(path, strings.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func sample(t *testing.T) (*Manifest, fstest.MapFS) {
	root := strings.Repeat("r", 8192)
	return &Manifest{
			Schema: Schema, Version: "1.2.3-4-gabcdef", Commit: strings.Repeat("c", 40),
			BuildTime: time.Unix(1_700_000_000, 0).UTC(), Arch: "amd64", Kubernetes: "v1.37.2",
			Root:   Root{File: describe(t, "root.img", root), DataSize: 4096, RootHash: strings.Repeat("1", 64), Salt: strings.Repeat("2", 64)},
			Boards: map[string]Board{"x": {Kernel: "6.12", Boot: describe(t, "boot/x.efi", "uki")}},
			Files:  []File{describe(t, "sbom.spdx.json", "{}")},
		}, fstest.MapFS{
			"root.img": {Data: []byte(root)}, "boot/x.efi": {Data: []byte("uki")}, "sbom.spdx.json": {Data: []byte("{}")},
		}
}

func trust(keys ...ed25519.PrivateKey) []ed25519.PublicKey {
	var out []ed25519.PublicKey
	for _, k := range keys {
		out = append(out, k.Public().(ed25519.PublicKey))
	}
	return out
}

func TestSignOpenCheck(t *testing.T) {
	m, fsys := sample(t)
	manifest, sig, err := Sign(m, key(1))
	if err != nil {
		t.Fatal(err)
	}
	fsys[ManifestName], fsys[SignatureName] = &fstest.MapFile{Data: manifest}, &fstest.MapFile{Data: sig}
	r, err := Open(fsys, trust(key(2), key(1)))
	if err != nil {
		t.Fatal(err)
	}
	if r.Manifest().Version != m.Version || r.KeyID() != KeyID(trust(key(1))[0]) {
		t.Errorf("got %+v by %s", r.Manifest(), r.KeyID())
	}
	if err := r.CheckFiles(fsys); err != nil {
		t.Error(err)
	}
	if _, err := Open(fsys, trust(key(2))); !errors.Is(err, ErrUntrusted) {
		t.Errorf("untrusted key: %v", err)
	}
	if _, err := Open(fsys, nil); !errors.Is(err, ErrUntrusted) {
		t.Errorf("no keys: %v", err)
	}
	for name, change := range map[string]string{"root.img": strings.Repeat("r", 8191) + "x", "boot/x.efi": "uk", "sbom.spdx.json": "{} "} {
		old := fsys[name]
		fsys[name] = &fstest.MapFile{Data: []byte(change)}
		if err := r.CheckFiles(fsys); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s changed: %v", name, err)
		}
		delete(fsys, name)
		if err := r.CheckFiles(fsys); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s removed: %v", name, err)
		}
		fsys[name] = old
	}
}

// No byte of a manifest or signature can change and still verify as the same bytes.
func TestEveryByteIsCovered(t *testing.T) {
	m, _ := sample(t)
	manifest, sig, err := Sign(m, key(1))
	if err != nil {
		t.Fatal(err)
	}
	for i := range manifest {
		bad := bytes.Clone(manifest)
		bad[i] ^= 1
		if _, err := Verify(bad, sig, trust(key(1))); err == nil {
			t.Fatalf("manifest byte %d changed and accepted", i)
		}
	}
	if _, err := Verify(append(bytes.Clone(manifest), '\n'), sig, trust(key(1))); err == nil {
		t.Error("longer manifest accepted")
	}
}

// A signed manifest that is not canonical, or whose content makes no sense, is refused although the key is right.
func TestSignedNonsense(t *testing.T) {
	k := key(1)
	good, _ := sample(t)
	canonical, _, err := Sign(good, k)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"spaces":  strings.Replace(string(canonical), `{"schema"`, `{ "schema"`, 1),
		"unknown": strings.Replace(string(canonical), `{"schema":1`, `{"schema":1,"extra":true`, 1),
		"schema":  strings.Replace(string(canonical), `"schema":1`, `"schema":2`, 1),
		"dotdot":  strings.Replace(string(canonical), `boot/x.efi`, `../x.efi`, 1),
		"arch":    strings.Replace(string(canonical), `"amd64"`, `"vax"`, 1),
		"empty":   "",
		"huge":    strings.Repeat(" ", MaxManifestBytes+1),
	} {
		_, sig, err := signRaw(t, []byte(text), k)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Verify([]byte(text), sig, trust(k)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// Boards may share a kernel image, but not two under one name. What is at the start of the disk ends before the partition table.
func TestBoardsTogether(t *testing.T) {
	m, _ := sample(t)
	one := m.Boards[m.BoardIDs()[0]]
	other, code := one, File{Path: "boot/y/boot.img", Size: 440, SHA256: strings.Repeat("a", 64)}
	other.Firmware = []Firmware{{File: code}}
	m.Boards["y"] = other
	if _, err := m.Marshal(); err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, f := range m.AllFiles() {
		if f.Path == one.Boot.Path {
			n++
		}
	}
	if n != 1 {
		t.Errorf("the kernel image is listed %d times", n)
	}
	other.Boot.SHA256 = strings.Repeat("b", 64)
	m.Boards["y"] = other
	if _, err := m.Marshal(); err == nil || !strings.Contains(err.Error(), "listed twice") {
		t.Errorf("two kernel images of one name: %v", err)
	}
	other.Boot = one.Boot
	for what, f := range map[string]Firmware{
		"441 bytes at the start of the disk": {File: File{Path: code.Path, Size: 441, SHA256: code.SHA256}},
		"either a file":                      {File: code, To: "x", At: 512},
		"or at byte -1":                      {File: code, At: -1},
	} {
		other.Firmware = []Firmware{f}
		m.Boards["y"] = other
		if _, err := m.Marshal(); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestTail(t *testing.T) {
	m, _ := sample(t)
	manifest, sig, _ := Sign(m, key(1))
	r, err := Verify(manifest, sig, trust(key(1)))
	if err != nil {
		t.Fatal(err)
	}
	tail, err := r.Tail()
	if err != nil || len(tail) != TailSize {
		t.Fatalf("%d bytes, %v", len(tail), err)
	}
	part := append(make([]byte, 100_000), tail...)
	got, err := ReadTail(bytes.NewReader(part), int64(len(part)), trust(key(1)))
	if err != nil || got.Manifest().Version != m.Version {
		t.Fatalf("%v, %v", got, err)
	}
	if _, err := ReadTail(bytes.NewReader(part), int64(len(part)), trust(key(2))); !errors.Is(err, ErrUntrusted) {
		t.Errorf("untrusted: %v", err)
	}
	for _, blank := range [][]byte{make([]byte, 100_000), nil, make([]byte, 10)} {
		if _, err := ReadTail(bytes.NewReader(blank), int64(len(blank)), trust(key(1))); !errors.Is(err, ErrNoTail) {
			t.Errorf("blank of %d: %v", len(blank), err)
		}
	}
	for i := range 16 + len(manifest) {
		bad := bytes.Clone(part)
		bad[100_000+i] ^= 0x80
		if _, err := ReadTail(bytes.NewReader(bad), int64(len(bad)), trust(key(1))); err == nil {
			t.Fatalf("tail byte %d changed and accepted", i)
		}
	}
}

func FuzzReadTail(f *testing.F) {
	f.Add([]byte(string(tailMagic) + "\xff\xff\xff\xff\xff\xff\xff\xff"))
	f.Fuzz(func(_ *testing.T, data []byte) {
		data = append(data, make([]byte, max(0, TailSize-len(data)))...)
		_, _ = ReadTail(bytes.NewReader(data), TailSize, trust(key(1)))
	})
}

// A field that says nothing leaves a manifest's bytes as they were before there was one, and signatures over them good.
func TestDebugIsAddedAtTheEnd(t *testing.T) {
	m, _ := sample(t)
	plain, err := m.Marshal()
	if err != nil || bytes.Contains(plain, []byte("debug")) {
		t.Errorf("%s, %v", plain, err)
	}
	m.Debug = true
	debug, err := m.Marshal()
	if want := strings.TrimSuffix(string(plain), "}\n") + ",\"debug\":true}\n"; err != nil || string(debug) != want {
		t.Errorf("%s, %v; want %s", debug, err, want)
	}
}
