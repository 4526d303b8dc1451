package boards

import (
	"slices"
	"strings"
	"testing"
)

func TestEveryBoardLoads(t *testing.T) {
	all, err := All()
	if err != nil {
		t.Fatal(err)
	}
	if len(all) == 0 {
		t.Fatal("no board is embedded")
	}
	for _, b := range all {
		again, err := Load(b.ID)
		if err != nil || again.ID != b.ID {
			t.Errorf("Load(%q) = %v, %v", b.ID, again, err)
		}
	}
}

func TestUnknownBoardListsThoseThereAre(t *testing.T) {
	for _, id := range []string{"", "x86", "../boards/x86-uefi", "x86-uefi.yaml", "*"} {
		if b, err := Load(id); err == nil || !strings.Contains(err.Error(), "is not one of arm64-uefi, aws, ") {
			t.Errorf("Load(%q) = %v, %v", id, b, err)
		}
	}
}

// What a board says replaces what its base says, key by key and list by list; the rest is the base's.
func TestBoardsWithABase(t *testing.T) {
	base, err := Load("x86-uefi")
	if err != nil {
		t.Fatal(err)
	}
	b, err := Load("gcp")
	if err != nil {
		t.Fatal(err)
	}
	if b.ID != "gcp" || b.Base != "x86-uefi" || b.Platform != "gcp" || b.Kernel.Package != base.Kernel.Package || len(b.Modules.Node.Carry) != len(base.Modules.Node.Carry) ||
		len(b.Modules.Boot.Carry) != 5 || len(b.Firmware) != 0 || len(b.Disk.Partitions) != len(base.Disk.Partitions) || b.QEMU.Machine != base.QEMU.Machine || b.QEMU.Disk == base.QEMU.Disk {
		t.Errorf("%+v", b)
	}
	for text, want := range map[string]string{
		"id: x\nbase: y\n":                           `boards/x.yaml: base: board "y": is not one of`,
		"id: x\nbase: aws\n":                         "board aws has a base itself, x86-uefi; name that one",
		"id: x\nbase: x86-uefi\nmodule: {}\n":        `boards/x.yaml:3:1: unknown key "module"; did you mean "modules"?`,
		"id: x\nbase: x86-uefi\nplatform: ibm":       `boards/x.yaml:3:11: platform: "ibm" is not one of aws, azure`,
		"id: x\nbase: x86-uefi\ndisk: {round: 3KiB}": "boards/x.yaml:3:15: disk.round: 3KiB is not a whole number of MiB",
	} {
		if _, err := Decode("boards/x.yaml", []byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// Each cloud's board carries the drivers of what that cloud gives its machines: disks in the initramfs, network cards on the root.
func TestCloudBoardsReachTheirHardware(t *testing.T) {
	table := map[string]struct{ boot, node []string }{
		"aws":       {[]string{"nvme", "xen-blkfront"}, []string{"ena", "ixgbevf", "xen-netfront"}},
		"aws-arm64": {[]string{"nvme"}, []string{"ena"}},
		"gcp":       {[]string{"nvme", "virtio_scsi", "sd_mod"}, []string{"gve", "virtio_net", "idpf", "virtio-rng", "virtio_balloon"}},
		"azure":     {[]string{"hv_vmbus", "hv_storvsc", "sd_mod", "nvme", "pci-hyperv"}, []string{"hv_netvsc", "mana", "mlx5_core", "hv_utils", "hv_balloon"}},
		"openstack": {[]string{"virtio_blk", "virtio_scsi", "sd_mod", "sr_mod"}, []string{"virtio_net", "e1000", "isofs", "virtio-rng", "virtio_balloon"}},
		"proxmox":   {[]string{"virtio_blk", "virtio_scsi", "sd_mod", "sr_mod", "ahci", "vmw_pvscsi"}, []string{"virtio_net", "e1000", "vmxnet3", "isofs", "virtio_balloon"}},
	}
	all, err := All()
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range all {
		if _, ok := table[b.ID]; b.Platform != "" && !ok {
			t.Errorf("%s: is for a cloud, and no row of this table", b.ID)
		}
	}
	for id, want := range table {
		b, err := Load(id)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range want.boot {
			if !slices.Contains(b.Modules.Boot.Carry, m) {
				t.Errorf("%s: has no %s in the initramfs", id, m)
			}
		}
		for _, m := range want.node {
			if !slices.Contains(b.Modules.Node.Carry, m) {
				t.Errorf("%s: has no %s on the root", id, m)
			}
		}
		if !slices.ContainsFunc(b.Kernel.Args, func(a string) bool { return strings.HasPrefix(a, "console=ttyS0,") }) {
			t.Errorf("%s: has no serial console: %q", id, b.Kernel.Args)
		}
	}
}

// A cloud's board for another architecture is the other base with the same platform.
func TestCloudBoardsOfArchitectures(t *testing.T) {
	for id, want := range map[string]struct{ base, arch, kernel string }{
		"aws":       {"x86-uefi", "amd64", "linux-image-amd64"},
		"aws-arm64": {"arm64-uefi", "arm64", "linux-image-arm64"},
	} {
		b, err := Load(id)
		if err != nil {
			t.Fatal(err)
		}
		if b.Base != want.base || b.Arch != want.arch || b.Kernel.Package != want.kernel || b.Platform != "aws" || b.Format != "raw" || b.Slots != UEFI || len(b.Firmware) != 0 {
			t.Errorf("%s: %+v", id, b)
		}
		if last := b.Kernel.Args[len(b.Kernel.Args)-1]; !slices.Contains(b.Kernel.Args, "console=ttyS0,115200") || slices.ContainsFunc(b.Kernel.Args, func(a string) bool { return strings.Contains(a, "ttyAMA") }) || last != "nvme_core.io_timeout=4294967295" {
			t.Errorf("%s: %q", id, b.Kernel.Args)
		}
	}
}

// A board with a BIOS starts the kernel image of its base, so it may not say anything that would make that another.
func TestBoardsWithABIOS(t *testing.T) {
	const head = "id: x\nbase: x86-uefi\nslots: grub\n"
	if _, err := Decode("boards/x.yaml", []byte(head+"disk: {table: bios}\n")); err != nil {
		t.Error(err)
	}
	for text, want := range map[string]string{
		head: `disk.table: "gpt": slots: grub and table: bios go together`,
		"id: x\nbase: x86-uefi\ndisk: {table: bios}\n":                     "go together",
		head + "disk: {table: bios}\nkernel: {args: [quiet]}\n":            "kernel, modules.boot and platform are to be the same",
		head + "disk: {table: bios}\nmodules: {boot: {carry: [nvme]}}\n":   "are to be the same",
		head + "disk: {table: bios}\nplatform: aws\n":                      "are to be the same",
		"id: x\nbase: rpi3\nslots: grub\ndisk: {table: bios}\n":            `base: "rpi3": is no board with UEFI`,
		"id: x\nbase: x86-uefi\nslots: grub\ndisk: {table: mbr}\nqemu: {}": `"mbr" is not one of gpt, hybrid, bios`,
	} {
		if _, err := Decode("boards/x.yaml", []byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// Each change to a good board makes it bad in one way, and the error names the place.
func TestFaultsAreNamed(t *testing.T) {
	good, err := files.ReadFile("x86-uefi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ old, new, want string }{
		{"id: x86-uefi", "id: X86", "x86-uefi.yaml:2:5: id: \"X86\" is not lower-case words"},
		{"id: x86-uefi", "id: other", "id: is \"other\" in a file named x86-uefi.yaml"},
		{"arch: amd64", "arch: x86_64", "arch: \"x86_64\" is not one of amd64, arm64, arm"},
		{"arch: amd64", "architecture: amd64", "unknown key \"architecture\""},
		{"slots: uefi ", "slots: bios ", "slots: \"bios\" is not one of uefi"},
		{"size: 256MiB", "size: 256", "has no unit"},
		{"size: 256MiB", "size: 64MiB", "not exactly 64MiB; this is 64MiB"},
		{"size: 256MiB", "size: 20MiB", "FAT32 here is 34MiB"},
		{"size: 512MiB, slots: true", "size: 512MiB", "root: slots: true belongs to root"},
		{"size: 16MiB,  grow: true", "size: 16MiB", "data comes last and has grow: true"},
		{"kind: ext4", "kind: btrfs", "kind is \"btrfs\"; this program makes ext4"},
		{"name: config,", "name: conf,", "name \"conf\" is not one of"},
		{"load: [dm-mod, dm-verity, erofs", "load: [dm-mod, erofs", "lacks dm_verity"},
		{"- virtio_scsi", "- virtio-blk", "is listed already in modules.boot.carry"},
		{"- loglevel=4", "- loglevel=4 quiet", "must be one kernel argument"},
		{"firmware: ovmf-secboot", "firmware: seabios", "qemu.firmware: \"seabios\" is not one of"},
		{"rtl_nic/*", "../etc/*", "is not a pattern below lib/firmware"},
		{"package: linux-image-amd64", "package:", "kernel.package: is missing"},
	} {
		data := strings.Replace(string(good), c.old, c.new, 1)
		if data == string(good) {
			t.Errorf("%q is not in the board file any more", c.old)
			continue
		}
		_, err := Decode("boards/x86-uefi.yaml", []byte(data))
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "boards/x86-uefi.yaml:") {
			t.Errorf("%s -> %s: got %v, want %q", c.old, c.new, err, c.want)
		}
	}
}
