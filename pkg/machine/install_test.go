package machine

import (
	"strings"
	"testing"
)

const installHead = "apiVersion: skerry/v1alpha1\nkind: NodeConfig\nrole: server\n"

func TestDisksArePickedByWhatTheyAre(t *testing.T) {
	type disk struct {
		bytes                    int64
		model, serial, transport string
	}
	small, big := disk{60e9, "SanDisk Ultra", "S1", "usb"}, disk{1e12, "Samsung SSD 990/PRO", "S2AB", "nvme"}
	for text, want := range map[string][2]bool{
		"{}":                             {true, true},
		"{minSize: 100GiB}":              {false, true},
		"{maxSize: 100GiB}":              {true, false},
		`{model: "samsung*"}`:            {false, true},
		`{serial: "S2??"}`:               {false, true},
		"{transport: usb}":               {true, false},
		"{transport: usb, serial: S2AB}": {false, false},
	} {
		c, err := Decode("n", []byte(installHead+"install: {disk: "+text+"}\n"))
		if err != nil {
			t.Fatal(err)
		}
		for i, d := range []disk{small, big} {
			if got := c.Install.Disk.Fits(d.bytes, d.model, d.serial, d.transport); got != want[i] {
				t.Errorf("%s, %s: %v", text, d.model, got)
			}
		}
	}
}

func TestInstallFaultsAreNamed(t *testing.T) {
	for text, says := range map[string]string{
		"{disk: {transport: floppy}}":                "is not one of nvme",
		"{disk: {model: '[x'}}":                      "is not a pattern",
		"{disk: {minSize: 2GiB, maxSize: 1GiB}}":     "is less than minSize",
		"{diskless: true, disk: {transport: nvme}}":  "gets no image",
		"{state: {transport: nvme}}":                 "for diskless machines",
		"{disk: {size: 1GiB}}":                       "size",
		"{diskless: true, state: {minSize: banana}}": "banana",
	} {
		if _, err := Decode("n", []byte(installHead+"install: "+text+"\n")); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", text, err)
		}
	}
}
