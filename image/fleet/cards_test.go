package fleet

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// What the record says is not written twice, unless the card is another by now.
func TestCards(t *testing.T) {
	b := newBench(t, 1<<20)
	b.build(three, Options{})
	open := func() *Built {
		t.Helper()
		built, err := Open(b.out, nil)
		if err != nil {
			t.Fatal(err)
		}
		return built
	}
	built := open()
	if got := names(built.Next(2)); got != "s1 a1" {
		t.Errorf("the first two are %s", got)
	}
	card, err := built.Card("a1")
	if err != nil {
		t.Fatal(err)
	}
	if err := built.Record(card, "/dev/sdb", "/dev/sdb, 32GiB", time.Now()); err != nil {
		t.Fatal(err)
	}
	b.forOwnerAlone()
	if got := names(open().Next(5)); got != "s1 a2" || open().Left() != 2 {
		t.Errorf("left are %s", got)
	}
	b.build(strings.Replace(three, "role: agent, serial: A1", "role: agent, labels: [x=y]", 1), Options{})
	if got := names(open().Next(5)); got != "s1 a1 a2" {
		t.Errorf("after a change left are %s", got)
	}
	if _, err := built.Card("nobody"); err == nil {
		t.Error("a node that is none")
	}
}

// Nodes with larger disks have an image of their own beneath them, and the one of before goes when nobody needs it.
func TestSizes(t *testing.T) {
	b := newBench(t, 1<<20)
	b.build(three, Options{})
	large := strings.ReplaceAll(three, "role:", "size: 2GiB, role:")
	if r := b.build(strings.Replace(large, "size: 2GiB, role: server", "role: server", 1), Options{}); len(r.Bases) != 1 || len(r.Changed) != 2 {
		t.Errorf("%s", r)
	}
	b.partition("a1")
	b.partition("s1")
	b.build(large, Options{})
	if _, err := os.Stat(filepath.Join(b.out, "base-x86-uefi.img")); err == nil {
		t.Error("an image that no node needs is still there")
	}
	b.partition("s1")
}

// Whole images, for those who write them with other programs.
func TestWhole(t *testing.T) {
	b := newBench(t, 1<<20)
	r := b.build(three, Options{Whole: true})
	if !r.Whole {
		t.Error("they are not whole")
	}
	b.partition("a1")
	if r := b.build(three, Options{Whole: true}); r.Same != 3 {
		t.Errorf("built again: %s", r)
	}
	b.build(three, Options{})
	b.partition("a1")
}
