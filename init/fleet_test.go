package main

import (
	"bytes"
	"context"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/skerry-os/skerry/image/fat"
	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/seed"
)

// settle is what the two steps do, one after the other.
func settle(ctx context.Context, dir, data string, hardware fs.FS, say func(string)) error {
	if err := pickNode(ctx, dir, hardware, say, func(why string) { say("waiting: " + why) }); err != nil {
		return err
	}
	if !exists(filepath.Join(dir, seed.Name)) {
		return nil
	}
	return moveSeed(dir, data, say)
}

func fleetTable(t *testing.T) []byte {
	t.Helper()
	s := seed.Seed{Fleet: "home", Files: map[string][]byte{"server/token": []byte("x")}}
	seedData, err := s.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	data, err := machine.SealTable("home", []machine.TableNode{
		{IDs: []string{machine.SerialID("S1")}, Config: []byte("apiVersion: skerry/v1alpha1\nkind: NodeConfig\nrole: server\nhostname: s1\n"), Seed: seedData},
		{IDs: []string{machine.MACID("02:00:00:00:00:02")}, Config: []byte("apiVersion: skerry/v1alpha1\nkind: NodeConfig\nrole: server\nhostname: s2\n")},
	})
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// A card that fits all machines becomes the machine's own, wherever power fails in between: every prefix of what is written is
// followed by another start.
func TestSettleCard(t *testing.T) {
	table := fleetTable(t)
	server := fstest.MapFS{"sys/class/dmi/id/product_serial": {Data: []byte("S1\n")}}
	for name, before := range map[string]func(dir, data string) error{
		"first start": func(string, string) error { return nil },
		"power failed after the seed": func(dir, _ string) error {
			return os.WriteFile(filepath.Join(dir, seed.Name), []byte("half"), 0o600)
		},
		"power failed in the config": func(dir, _ string) error {
			return os.WriteFile(filepath.Join(dir, "config.yaml"), []byte("apiVersion: sk"), 0o600)
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir, data := t.TempDir(), t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, machine.TableName), table, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := before(dir, data); err != nil {
				t.Fatal(err)
			}
			var said []string
			for range 2 {
				if err := settle(t.Context(), dir, data, server, func(l string) { said = append(said, l) }); err != nil {
					t.Fatal(err)
				}
			}
			c, err := machine.Load(filepath.Join(dir, "config.yaml"))
			if err != nil || c.Hostname != "s1" {
				t.Errorf("%+v %v", c, err)
			}
			if s, err := seed.Load(data); err != nil || s == nil || s.Fleet != "home" {
				t.Errorf("seed %+v %v", s, err)
			}
			if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) != 1 {
				t.Errorf("on the card are %v", left)
			}
			if !strings.Contains(strings.Join(said, "\n"), "found by its serial s1") {
				t.Errorf("said %q", said)
			}
		})
	}
}

// A machine with a card of its own: the seed goes, the config stays.
func TestSettleOwnCard(t *testing.T) {
	dir, data := t.TempDir(), t.TempDir()
	s := seed.Seed{Fleet: "home"}
	text, err := s.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{seed.Name: text, "config.yaml": []byte("x")} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := settle(t.Context(), dir, data, fstest.MapFS{}, func(string) {}); err != nil {
		t.Fatal(err)
	}
	if s, err := seed.Load(data); err != nil || s == nil {
		t.Errorf("%v %v", s, err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) != 1 {
		t.Errorf("on the card are %v", left)
	}
}

// A machine that is none of the fleet's says what it is known as, and takes no other's place.
func TestAnUnknownMachineWaits(t *testing.T) {
	dir, data := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, machine.TableName), fleetTable(t), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	var said []string
	err := settle(ctx, dir, data, fstest.MapFS{"proc/device-tree/serial-number": {Data: []byte("FFFF\x00")}}, func(l string) { said = append(said, l) })
	if err == nil || len(said) != 1 || !strings.Contains(said[0], "waiting: this machine is none of fleet home's nodes: it is known as serial ffff") {
		t.Errorf("%v, said %q", err, said)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) != 1 {
		t.Errorf("on the card are %v", left)
	}
	// The network card comes late.
	late := fstest.MapFS{"sys/class/net/eth0/address": {Data: []byte("02:00:00:00:00:02\n")}, "sys/class/net/eth0/device/x": {}}
	if err := settle(t.Context(), dir, data, late, func(string) {}); err != nil {
		t.Fatal(err)
	}
	if c, err := machine.Load(filepath.Join(dir, "config.yaml")); err != nil || c.Hostname != "s2" {
		t.Errorf("%+v %v", c, err)
	}
}

// On the kernel's own FAT: what was taken from a card cannot be found on it any more, byte by byte, and the volume is whole.
func TestSettleErases(t *testing.T) {
	table := fleetTable(t)
	s := seed.Seed{Fleet: "home", Files: map[string][]byte{"server/token": []byte("x")}}
	seedData, err := s.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	const size = 48 << 20
	files := []fat.File{{Path: machine.TableName, Size: int64(len(table))}, {Path: seed.Name, Size: int64(len(seedData))}}
	l, err := fat.Lay(fat.Params{Size: size, Label: "SKERRYCFG", Serial: 1, Time: time.Unix(1_800_000_000, 0)}, files)
	if err != nil {
		t.Fatal(err)
	}
	volume := make([]byte, size)
	for _, c := range l.Meta {
		copy(volume[c.Offset:], c.Data)
	}
	copy(volume[l.Files[0].Offset:], table)
	copy(volume[l.Files[1].Offset:], seedData)
	disk, at, data := filepath.Join(t.TempDir(), "disk"), t.TempDir(), t.TempDir()
	if err := os.WriteFile(disk, volume, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mount", "-o", "loop,umask=0077", "-t", "vfat", disk, at).CombinedOutput(); err != nil {
		t.Skipf("no FAT to be mounted here: %v %s", err, out)
	}
	hardware := fstest.MapFS{"sys/class/dmi/id/product_serial": {Data: []byte("S1\n")}}
	err = settle(t.Context(), at, data, hardware, func(string) {})
	if out, e := exec.Command("umount", at).CombinedOutput(); e != nil {
		t.Fatalf("%v %s", e, out)
	}
	if err != nil {
		t.Fatal(err)
	}
	after, err := os.ReadFile(disk)
	if err != nil {
		t.Fatal(err)
	}
	v, err := fat.Read(bytes.NewReader(after), size)
	if err != nil || len(v.Files) != 1 || v.Files[0].Path != "config.yaml" {
		t.Errorf("%+v %v", v, err)
	}
	for name, secret := range map[string][]byte{"table": table[len(table)-100:], "seed": seedData[:60]} {
		if bytes.Contains(after, secret) {
			t.Errorf("the %s is still on the card", name)
		}
	}
}
