package main

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/skerry-os/skerry/image/imagetest"
	"github.com/skerry-os/skerry/image/releasetest"
	"github.com/skerry-os/skerry/image/uki"
	"github.com/skerry-os/skerry/pkg/keys"
	"github.com/skerry-os/skerry/pkg/linux"
	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/release"
	"github.com/skerry-os/skerry/pkg/repository"
)

// initramfsOf lays the keys out that a release carries which is built with a key folder now.
func initramfsOf(t *testing.T, set *keys.Set, files map[string][]byte) fs.FS {
	t.Helper()
	out := fstest.MapFS{}
	for i, pub := range set.Trusted() {
		data, err := keys.MarshalPublic(pub)
		if err != nil {
			t.Fatal(err)
		}
		out[[]string{"release.pub", "release-old.pub"}[i]] = &fstest.MapFile{Data: data}
	}
	for name, data := range files {
		out[name] = &fstest.MapFile{Data: data}
	}
	return out
}

// verifies is what stage 1 does with a slot: by the keys of its own kernel image.
func verifies(t *testing.T, trust fs.FS, r *release.Release) error {
	t.Helper()
	pubs, err := readKeys(trust)
	if err != nil {
		t.Fatal(err)
	}
	tail, err := r.Tail()
	if err != nil {
		t.Fatal(err)
	}
	got, err := release.ReadTail(bytes.NewReader(tail), int64(len(tail)), pubs)
	if err != nil {
		return err
	}
	return fits(got.Manifest(), cmdline{board: "x86-uefi", rootHash: r.Manifest().Root.RootHash}, "amd64")
}

// A fleet goes from one release key to the next by ordinary updates, its signed configs with it.
func TestReleaseKeyGoesOver(t *testing.T) {
	b := releasetest.New(t, 1<<16)
	type step struct {
		trust  fs.FS
		signed *release.Release
		config told
	}
	now := func() step {
		t.Helper()
		m := *b.Signed.Manifest()
		b.Sign(t, &m)
		sig, err := machine.SignConfig([]byte(serverConfig), b.Set.ReleaseSigners()...)
		if err != nil {
			t.Fatal(err)
		}
		return step{initramfsOf(t, b.Set, map[string][]byte{machine.ReleasePolicyFile: []byte("signed")}), b.Signed, told{data: []byte(serverConfig), sig: sig}}
	}
	before := now()
	if err := b.Set.Rotate("release", keys.Source{}, time.Now()); err != nil {
		t.Fatal(err)
	}
	between := now()
	if err := b.Set.Retire("release", time.Now()); err != nil {
		t.Fatal(err)
	}
	after := now()
	for _, c := range []struct {
		what  string
		on    step
		given step
		ok    bool
	}{
		{"its own", before, before, true},
		{"the next release, which brings the new key", before, between, true},
		{"one that only the new key signed, too early", before, after, false},
		{"the one before, to go back to", between, before, true},
		{"the one after", between, after, true},
		{"a release of the time of both keys, to go back to", after, between, true},
		{"one that only the retired key signed", after, before, false},
	} {
		err := verifies(t, c.on.trust, c.given.signed)
		if (err == nil) != c.ok || err != nil && !errors.Is(err, release.ErrUntrusted) {
			t.Errorf("a machine is given %s: %v", c.what, err)
		}
		p, err := readPolicy(c.on.trust, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.decode(configName, c.given.config.data, c.given.config.sig); (err == nil) != c.ok {
			t.Errorf("config of %s: %v", c.what, err)
		}
	}
}

// What a release brings for the firmware is written once, as what it is signed for, and from the top down.
func TestTeachFirmware(t *testing.T) {
	b := releasetest.New(t, 1<<16)
	old := *b.Set
	for _, name := range keys.SecureBoot {
		*b.Set = old
		folder := filepath.Join(t.TempDir(), "keys")
		if err := os.CopyFS(folder, os.DirFS(b.Keys)); err != nil {
			t.Fatal(err)
		}
		for _, f := range []string{"PK.key", "KEK.key", "db.key", "release.key"} {
			if err := os.Chmod(filepath.Join(folder, f), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		set, err := keys.Load(folder, nil)
		if err != nil {
			t.Fatal(err)
		}
		enrolled := map[string][]byte{}
		for _, p := range set.Pairs() {
			enrolled[p.Name] = p.Enrol
		}
		if err := set.Rotate(name, keys.Source{}, time.Now()); err != nil {
			t.Fatal(err)
		}
		i := map[string]int{"PK": 0, "KEK": 1, "db": 2}[name]
		trust := initramfsOf(t, set, map[string][]byte{name + machine.FirmwareUpdate: set.Pairs()[i].Update})
		dir := t.TempDir()
		for n, auth := range enrolled {
			file, err := uki.VariableOf(n)
			if err != nil {
				t.Fatal(err)
			}
			list := auth[16+binary.LittleEndian.Uint32(auth[16:]):]
			if err := os.WriteFile(filepath.Join(dir, file), append([]byte{0x27, 0, 0, 0}, list...), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		var said []string
		say := func(line string) { said = append(said, line) }
		if err := teach(trust, linux.EFIVariables{Dir: dir}, say); err != nil {
			t.Fatal(err)
		}
		file, _ := uki.VariableOf(name)
		got, err := os.ReadFile(filepath.Join(dir, file))
		want := byte(0x67)
		if name == "PK" {
			want = 0x27
		}
		if err != nil || got[0] != want || !bytes.HasPrefix(got[4:], set.Pairs()[i].Update) || len(said) != 1 {
			t.Errorf("%s: wrote % x, said %q, %v", name, got[:min(24, len(got))], said, err)
		}
		// The firmware took it up.
		list := set.Pairs()[i].Enrol
		list = list[16+binary.LittleEndian.Uint32(list[16:]):]
		if err := os.WriteFile(filepath.Join(dir, file), append([]byte{0x27, 0, 0, 0}, list...), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(filepath.Join(dir, file), 0o400); err != nil {
			t.Fatal(err)
		}
		if err := teach(trust, linux.EFIVariables{Dir: dir}, say); err != nil || len(said) != 1 {
			t.Errorf("%s: once more: %v, said %q", name, err, said)
		}
	}
	if err := teach(fstest.MapFS{"db" + machine.FirmwareUpdate: {Data: []byte("x")}}, linux.EFIVariables{Dir: t.TempDir()}, nil); err == nil || !strings.Contains(err.Error(), "db") {
		t.Errorf("a damaged one: %v", err)
	}
}

// The whole chain signed by a token (SoftHSM): whoever builds has no private key, and stage 1 starts what comes out.
func TestSignedByToken(t *testing.T) {
	const library = "/usr/lib/softhsm/libsofthsm2.so"
	for _, tool := range []string{"softhsm2-util", "pkcs11-tool"} {
		imagetest.Tool(t, tool, "softhsm2 opensc")
	}
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	run := func(name string, args ...string) {
		t.Helper()
		if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
			t.Fatalf("%s %v: %v\n%s", name, args, err, out)
		}
	}
	for _, sub := range []string{"tokens", "public"} {
		if err := os.Mkdir(at(sub), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(at("softhsm2.conf"), []byte("directories.tokendir = "+at("tokens")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(at("pin"), []byte("123456\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SOFTHSM2_CONF", at("softhsm2.conf"))
	t.Setenv("PKCS11_PIN", "@"+at("pin"))
	run("go", "build", "-o", at("skerry-pkcs11"), "../cmd/skerry-pkcs11")
	run("softhsm2-util", "--init-token", "--free", "--label", "skerry", "--so-pin", "654321", "--pin", "123456")
	make := func(name, kind string) {
		t.Helper()
		run("pkcs11-tool", "--module", library, "--login", "--pin", "123456", "--keypairgen", "--key-type", kind, "--label", name)
		run("pkcs11-tool", "--module", library, "--read-object", "--type", "pubkey", "--label", name, "--output-file", filepath.Join(at("public"), name+".pub"))
	}
	for _, name := range append([]string{"release", "release-2"}, repository.RoleNames...) {
		make(name, "EC:edwards25519")
	}
	for _, name := range keys.SecureBoot {
		make(name, "rsa:2048")
	}
	pubs, err := keys.LoadPublicDir(at("public"))
	if err != nil {
		t.Fatal(err)
	}
	second := pubs["release-2"]
	delete(pubs, "release-2")
	src := keys.Source{Public: pubs, Sign: keys.ParseCommand(at("skerry-pkcs11") + " " + library)}
	set, err := keys.New(at("keys"), "Test", src)
	if err != nil {
		t.Fatal(err)
	}
	roles, err := repository.NewRolesFrom(filepath.Join(at("keys"), keys.RepositoryDir), src, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	b := releasetest.NewSigned(t, 1<<16, at("keys"), set)
	trust := initramfsOf(t, set, nil)
	if err := verifies(t, trust, b.Signed); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"boot/x86-uefi.efi", "boot/systemd-boot.efi"} {
		data, err := os.ReadFile(filepath.Join(b.Release, name))
		if err == nil {
			err = uki.Verify(data, set.DB.Cert)
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if tool, err := exec.LookPath("sbverify"); err == nil {
			run(tool, "--cert", b.DBCert(t), filepath.Join(b.Release, name))
		}
	}
	repo := at("repo")
	if _, err := repository.Publish(repo, roles, b.Signed, os.DirFS(b.Release), repository.PublishOptions{Now: time.Now()}); err != nil {
		t.Fatal(err)
	}
	root, err := roles.Root()
	if err != nil {
		t.Fatal(err)
	}
	from, err := repository.NewSource(repo, nil)
	if err != nil {
		t.Fatal(err)
	}
	if k, err := (&repository.Client{Source: from, Root: root, Dir: t.TempDir()}).Look(t.Context()); err != nil || len(k.Offers) != 1 {
		t.Errorf("the repository: %v", err)
	}
	src.Public["release"], src.Label = second, "release-2"
	if err := set.Rotate("release", src, time.Now()); err != nil {
		t.Fatal(err)
	}
	m := *b.Signed.Manifest()
	b.Sign(t, &m)
	for _, on := range []fs.FS{trust, initramfsOf(t, set, nil)} {
		if err := verifies(t, on, b.Signed); err != nil {
			t.Errorf("after the release key's rotation: %v", err)
		}
	}
	if !set.ReleasePublic().Equal(second.(ed25519.PublicKey)) {
		t.Error("another key signs")
	}
	err = filepath.WalkDir(at("keys"), func(name string, _ fs.DirEntry, err error) error {
		if strings.HasSuffix(name, ".key") {
			t.Errorf("a private key where releases are built: %s", name)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	t.Setenv("PKCS11_PIN", "000000")
	if _, err := set.Release.SignMessage(nil, []byte("x"), crypto.Hash(0)); err == nil {
		t.Error("signed without the PIN")
	}
}
