package vm

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/skerry-os/skerry/pkg/size"
)

// firmware is what the machine starts with: UEFI, as Debian's ovmf and qemu-efi-aarch64 and Fedora's edk2 install it; or for
// machines whose firmware nobody emulates, the program and the device tree that it would start; or nothing, where the machine
// starts from its card as the real one does.
type firmware struct{ code, vars, kernel, tree string }

// The variables beside the code have no key enrolled: the firmware starts in setup mode.
func findFirmware(kind string) (firmware, error) {
	uefi := map[string][2]string{
		"ovmf": {"OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"}, "ovmf-secboot": {"OVMF_CODE_4M.secboot.fd", "OVMF_VARS_4M.fd"},
		"aavmf": {"AAVMF_CODE.fd", "AAVMF_VARS.fd"},
	}
	names, ok := uefi[kind]
	switch {
	case kind == "card", kind == BIOS: // the machine has it, or QEMU brings it along
		return firmware{}, nil
	case kind == "u-boot":
		return firmware{kernel: kernelFile, tree: treeFile}, nil
	case !ok:
		return firmware{}, fmt.Errorf("this machine cannot be started with firmware %q yet", kind)
	}
	dirs := []string{"/usr/share/OVMF", "/usr/share/AAVMF", "/usr/share/edk2/ovmf", "/usr/share/edk2/aarch64"}
	for _, dir := range dirs {
		fw := firmware{code: filepath.Join(dir, names[0]), vars: filepath.Join(dir, names[1])}
		if exists(fw.code) && exists(fw.vars) {
			return fw, nil
		}
	}
	return firmware{}, fmt.Errorf("UEFI firmware %s: is in none of %s; `make setup` installs it", names[0], strings.Join(dirs, ", "))
}

// qemuArgs is the whole machine. Relative names are in its folder, where QEMU runs.
func qemuArgs(o Options, fw firmware, accel Accel, forwards []Forward) []string {
	args := []string{
		"-name", "skerry",
		"-machine", o.Board.Machine, "-cpu", o.Board.CPU,
		"-no-user-config", "-nodefaults", "-display", "none",
		"-smp", fmt.Sprint(o.CPUs),
		"-m", fmt.Sprint(int64(o.Memory / size.MiB)),
		"-chardev", "socket,id=console,path=" + conSock + ",server=on,wait=off,logfile=" + consoleLog + ",logappend=on",
		"-qmp", "unix:" + qmpSock + ",server=on,wait=off",
	}
	if fw.code != "" {
		args = append(args, "-drive", "if=pflash,unit=0,format=raw,readonly=on,file="+escape(fw.code), "-drive", "if=pflash,unit=1,format=raw,file="+varsFile)
	}
	if fw.kernel != "" {
		args = append(args, "-kernel", fw.kernel, "-dtb", fw.tree)
	}
	switch {
	case o.Board.Disk == onboardSD:
		args = append(args, "-drive", "if=sd,format=qcow2,discard=unmap,file="+diskFile)
	case o.WriteLog != "":
		args = append(args, "-blockdev", "driver=blklogwrites,node-name=disk,file.driver=qcow2,file.file.driver=file,file.file.filename="+diskFile+
			",log.driver=file,log.filename="+escape(o.WriteLog))
	default:
		args = append(args, "-drive", "if=none,id=disk,format=qcow2,discard=unmap,file="+diskFile)
	}
	if o.Board.Disk != onboardSD {
		args = append(args, "-device", o.Board.Disk+",drive=disk,bootindex=1", "-device", "virtio-rng-pci")
	}
	if o.Serial != "" {
		args = append(args, "-smbios", "type=1,serial="+escape(o.Serial))
	}
	for range o.Board.Console {
		args = append(args, "-serial", "null")
	}
	args = append(args, "-serial", "chardev:console")
	args = append(args, accel.args()...)
	args = append(args, o.Board.Args...)
	if o.TPM {
		args = append(args, "-chardev", "socket,id=tpm,path="+tpmSock, "-tpmdev", "emulator,id=tpm,chardev=tpm", "-device", "tpm-tis,tpmdev=tpm")
	}
	if o.Stick != "" {
		args = append(args, "-device", "qemu-xhci", "-drive", "if=none,id=stick,format=raw,readonly=on,file="+escape(o.Stick), "-device", "usb-storage,drive=stick")
	}
	if o.Volume != "" {
		args = append(args, "-drive", "if=none,id=volume,format=raw,readonly=on,file="+escape(o.Volume), "-device", "virtio-blk-pci,drive=volume")
	}
	if o.CD != "" {
		args = append(args, "-drive", "if=none,id=cd,media=cdrom,format=raw,readonly=on,file="+escape(o.CD), "-device", "ide-cd,drive=cd")
	}
	if o.Board.Network == noNetwork {
		return append(args, "-nic", "none")
	}
	net := "user,id=net"
	if o.Restrict {
		net += ",restrict=on"
	}
	for _, f := range forwards {
		net += fmt.Sprintf(",hostfwd=tcp:127.0.0.1:%d-:%d", f.Host, f.Guest)
	}
	if o.Tap != "" {
		net = "tap,id=net,script=no,downscript=no,ifname=" + o.Tap
	}
	if o.Board.Network == onboard {
		return append(args, "-nic", net)
	}
	card := o.Board.Network + ",netdev=net"
	if o.MAC != "" {
		card += ",mac=" + o.MAC
	}
	if o.NetFirst {
		card += ",bootindex=0"
	}
	if fw.code != "" {
		card += ",romfile=" // UEFI has a driver of its own
	}
	return append(args, "-netdev", net, "-device", card)
}

// BIOS is the firmware of a machine without UEFI.
const BIOS = "bios"

// Words of boards for what is part of the machine: its card slot, its network.
const (
	onboardSD = "sd"
	onboard   = "onboard"
	noNetwork = "none" // none that works there
)

// escape doubles commas, which separate a QEMU option's parts.
func escape(name string) string { return strings.ReplaceAll(name, ",", ",,") }

// cacheDir is where what this package learned about the host is kept.
func cacheDir() (string, error) {
	dir := os.Getenv("SKERRY_CACHE")
	if dir == "" {
		base, err := os.UserCacheDir()
		if err != nil {
			return "", err
		}
		dir = filepath.Join(base, "skerry")
	}
	return dir, os.MkdirAll(dir, 0o755)
}
