package slot_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/skerry-os/skerry/pkg/slot"
	"github.com/skerry-os/skerry/pkg/slot/slottest"
)

func TestGRUBBooted(t *testing.T) {
	for line, want := range map[string]struct {
		id    slot.ID
		trial bool
		esp   string
	}{
		"quiet skerry.board=x skerry.esp=0F5B7C1E-9D43 skerry.slot=b skerry.trial=yes\n": {slot.B, true, "0f5b7c1e-9d43"},
		"skerry.slot=b skerry.trial=yes skerry.esp= skerry.slot=a skerry.trial=no":       {slot.A, false, ""}, // the last word is the script's
		"skerry.slot=c": {},
		"":              {},
	} {
		g := slot.NewGRUB(slot.Volume{}, line)
		id, trial, err := g.Booted()
		if id != want.id || trial != want.trial || (want.id == "") != errors.Is(err, slot.ErrNotNamed) {
			t.Errorf("%q: %s, %v, %v", line, id, trial, err)
		}
		if esp, err := g.ESPID(); esp != want.esp || (want.esp == "") != errors.Is(err, slot.ErrNotNamed) {
			t.Errorf("%q: %s, %v", line, esp, err)
		}
	}
}

// What the script is told of a kernel fits what GRUB reads, and what is no kernel image is refused before it is tried.
func TestGRUBKernel(t *testing.T) {
	good := slottest.Image("x")
	got, err := slot.GRUBKernel(bytes.NewReader(good))
	if want := "# GRUB Environment Block\nskerry_args=of=\\\\x skerry.board=x86-uefi skerry.slot=none\nskerry_initrd=2+14\nskerry_linux=16+8\n#"; err != nil ||
		!strings.HasPrefix(string(got), want) || len(got) != 512 || strings.Trim(string(got[len(want):]), "#") != "" {
		t.Errorf("%q, %v", got, err)
	}
	for what, c := range map[string]struct {
		data []byte
		says string
	}{
		"text":          {bytes.Repeat([]byte("no kernel "), 1000), "is no unified kernel image"},
		"no initramfs":  {bytes.Replace(good, []byte(".initrd"), []byte(".inside"), 1), "no section .initrd"},
		"no line":       {bytes.Replace(good, []byte(".cmdline"), []byte(".comment"), 1), "no command line"},
		"off":           {bytes.Replace(good, []byte{0, 0, 4, 0, 0}, []byte{0, 1, 4, 0, 0}, 1), "within a sector"},
		"cut short":     {good[:100], "is no unified kernel image"},
		"several lines": {bytes.Replace(good, []byte("of="), []byte("of\n"), 1), "more than one line"},
	} {
		if got, err := slot.GRUBKernel(bytes.NewReader(c.data)); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %q, %v", what, got, err)
		}
	}
}
