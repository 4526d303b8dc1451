package slottest

import (
	"bytes"
	"debug/pe"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/skerry-os/skerry/pkg/powercut"
	"github.com/skerry-os/skerry/pkg/slot"
)

// GRUB is GRUB with Skerry's script: the script's own text, run by a shell that knows just its commands.
type GRUB struct{}

// Once says no.
func (GRUB) Once() bool { return false }

// New makes the boot volume as images have it, but without a state.
func (GRUB) New(t testing.TB) *powercut.Disk {
	files, err := slot.GRUBFiles("x86-bios", bytes.NewReader(Kernel(slot.A)))
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range slot.IDs { // the kernels differ in a letter
		files["EFI/Linux/os-"+string(id)+".efi"] = Kernel(id)
	}
	if files["EFI/Linux/os-b.env"], err = slot.GRUBKernel(bytes.NewReader(Kernel(slot.B))); err != nil {
		t.Fatal(err)
	}
	return powercut.New(Volume(t, files))
}

// Selector reads the command line that GRUB left.
func (GRUB) Selector(d Disk, b Boot) slot.Selector {
	line, _ := b.State.(string)
	return slot.NewGRUB(slot.Volume{Device: d, Size: VolumeSize}, line)
}

// Boot runs the script until it starts a kernel.
func (GRUB) Boot(d Disk, _ string, loads func([]byte) bool) Boot {
	for range 10 { // a kernel that does not load makes the script restart the machine
		g := &grub{shell: shell{d: d, loads: loads, vars: map[string]string{"root": "hd0,gpt1"}}}
		g.do = g.command
		g.run(strings.Split(slot.GRUBScript("x86-bios"), "\n"))
		if !g.reset {
			return g.booted
		}
	}
	return Boot{}
}

// grub is GRUB's shell.
type grub struct {
	shell
	loop          []byte // the file that is a disk
	linux, initrd []byte
	line          string // of the kernel
}

func (g *grub) command(w []string) bool {
	switch w[0] {
	case "serial", "terminal_output":
		return true
	case "probe": // --set=NAME --part-uuid DEVICE
		g.vars[strings.TrimPrefix(w[1], "--set=")] = "0f5b7c1e-9d43-4d0a-8f6e-1b2a3c4d5e6f"
		return w[2] == "--part-uuid" && w[3] == "hd0,gpt1"
	case "set":
		name, value, _ := strings.Cut(w[1], "=")
		g.vars[name] = value
		return len(w) == 2
	case "load_env": // -f FILE NAME…
		return g.loadEnv(w[2], w[3:])
	case "save_env":
		return g.saveEnv(w[2], w[3:])
	case "loopback": // NAME FILE
		data, ok := text(open(g.d), w[2][1:])
		g.loop = []byte(data)
		return ok && w[1] == "skerry"
	case "linux": // (skerry)FIRST+NUMBER ARG…
		g.linux, g.line = g.blocks(w[1]), strings.Join(w[2:], " ")
		return g.linux != nil && g.loads(g.loop)
	case "initrd":
		g.initrd = g.blocks(w[1])
		return g.initrd != nil
	case "boot":
		g.start()
		return false
	}
	panic(fmt.Sprintf("the boot script has a command that is not known here: %q", w))
}

var blockList = regexp.MustCompile(`^\(skerry\)([0-9]+)\+([0-9]+)$`)

// blocks gives sectors of the loop; the last one is filled up with zeros.
func (g *grub) blocks(name string) []byte {
	m := blockList.FindStringSubmatch(name)
	if m == nil {
		return nil
	}
	first, _ := strconv.Atoi(m[1])
	count, _ := strconv.Atoi(m[2])
	whole := slices.Concat(g.loop, make([]byte, -len(g.loop)&511))
	if count == 0 || (first+count)*512 > len(whole) {
		return nil
	}
	return whole[first*512 : (first+count)*512]
}

// start checks that what is started is the kernel image whole: its kernel, its initramfs, its command line before the script's.
func (g *grub) start() {
	f, err := pe.NewFile(bytes.NewReader(g.loop))
	must(err)
	for name, got := range map[string][]byte{".linux": g.linux, ".initrd": g.initrd, ".cmdline": []byte(g.line)} {
		s := f.Section(name)
		want, err := io.ReadAll(io.NewSectionReader(s, 0, int64(s.VirtualSize)))
		must(err)
		if !bytes.HasPrefix(got, want) {
			panic(fmt.Sprintf("the boot script starts another %s than the kernel image has", name))
		}
	}
	id, trial := slot.ID(g.vars["skerry_pick"]), g.vars["skerry_on_trial"] == "yes"
	g.booted = Boot{Slot: id, Trial: trial, Kernel: string(g.loop), State: g.line}
}

const blockHead = "# GRUB Environment Block\n"

// loadEnv is load_env: no checksum, and names that are not listed are left out.
func (g *grub) loadEnv(file string, names []string) bool {
	data, _ := text(open(g.d), file[1:])
	data, ok := strings.CutPrefix(data, blockHead)
	for line := range strings.Lines(data) {
		name, value, is := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		if is && !strings.HasPrefix(line, "#") && slices.Contains(names, name) {
			g.vars[name] = strings.ReplaceAll(value, `\\`, `\`)
		}
	}
	return ok
}

// saveEnv is save_env: the file's own sectors are written again, with each variable where it stood or behind the others.
func (g *grub) saveEnv(file string, names []string) bool {
	e := open(g.d)
	data, _ := text(e, file[1:])
	rest, ok := strings.CutPrefix(data, blockHead)
	if !ok {
		return false
	}
	lines := strings.SplitAfter(strings.TrimRight(rest, "#"), "\n")
	for _, name := range names {
		lines = slices.DeleteFunc(lines, func(l string) bool { return strings.HasPrefix(l, name+"=") || l == "" })
		lines = append(lines, name+"="+g.vars[name]+"\n")
	}
	out := blockHead + strings.Join(lines, "")
	if len(out) > len(data) {
		return false
	}
	f, _ := e.Find(file[1:])
	_, err := g.d.WriteAt([]byte(out+strings.Repeat("#", len(data)-len(out))), f.Offset())
	return err == nil
}
