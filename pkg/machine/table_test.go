package machine_test

import (
	"bytes"
	"slices"
	"testing"
	"testing/fstest"

	"github.com/skerry-os/skerry/pkg/machine"
)

// A machine finds itself by any of its names and nobody else, and nothing of a node can be read without one.
func TestTable(t *testing.T) {
	data, err := machine.SealTable("home", []machine.TableNode{
		{IDs: []string{machine.SerialID("10000000C0FFEE00"), machine.MACID("02:00:00:00:00:0A")}, Config: []byte("hostname: north-1"), Seed: []byte("secret-seed")},
		{IDs: []string{machine.MACID("02-00-00-00-00-0b")}, Config: []byte("hostname: north-2")},
		{Config: []byte("hostname: nobody")},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{"north-", "secret", "c0ffee", "nobody"} {
		if bytes.Contains(bytes.ToLower(data), []byte(secret)) {
			t.Errorf("%q can be read", secret)
		}
	}
	table, err := machine.ParseTable(data)
	if err != nil || table.Fleet != "home" || len(table.Nodes) != 2 {
		t.Fatalf("%+v %v", table, err)
	}
	for id, want := range map[string]string{
		machine.SerialID("10000000c0ffee00\n"): "hostname: north-1", machine.MACID("02:00:00:00:00:0a"): "hostname: north-1", machine.MACID("0200.0000.000B"): "hostname: north-2",
		machine.SerialID("10000000c0ffee01"): "", machine.MACID(""): "",
	} {
		n, err := table.Find("serial of another", id)
		if err != nil || (n == nil) != (want == "") || n != nil && string(n.Config) != want {
			t.Errorf("%s: %+v %v", id, n, err)
		}
	}
	table.Nodes[0][3] ^= 1
	if n, err := table.Find(machine.SerialID("10000000c0ffee00")); err == nil {
		t.Errorf("a damaged entry gave %+v", n)
	}
	if _, err := machine.ParseTable(data[:len(data)-4]); err == nil {
		t.Error("a cut table was read")
	}
}

func TestHardwareIDs(t *testing.T) {
	got := machine.HardwareIDs(fstest.MapFS{
		"proc/device-tree/serial-number":  {Data: []byte("10000000C0FFEE00\x00")},
		"sys/class/dmi/id/product_serial": {Data: []byte("\n")},
		"sys/class/net/eth0/address":      {Data: []byte("02:00:00:00:00:0A\n")},
		"sys/class/net/eth0/device/x":     {},
		"sys/class/net/lo/address":        {Data: []byte("00:00:00:00:00:00\n")},
	})
	if !slices.Equal(got, []string{"serial 10000000c0ffee00", "mac 02000000000a"}) {
		t.Errorf("%q", got)
	}
}

func FuzzParseTable(f *testing.F) {
	f.Add([]byte(`{"schema":1,"fleet":"x","salt":"AA==","cost":2,"keys":[{"tag":"00","node":0,"box":""}],"nodes":[""]}`))
	f.Fuzz(func(_ *testing.T, data []byte) {
		if t, err := machine.ParseTable(data); err == nil && t.Cost <= 64 {
			_, _ = t.Find("serial 1")
		}
	})
}
