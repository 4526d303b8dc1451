package slottest_test

import (
	"strings"
	"testing"
	"time"

	"github.com/skerry-os/skerry/image/fat"
	"github.com/skerry-os/skerry/pkg/slot"
	"github.com/skerry-os/skerry/pkg/slot/slottest"
)

func TestUEFI(t *testing.T)  { slottest.Run(t, slottest.UEFI{}) }
func TestUBoot(t *testing.T) { slottest.Run(t, slottest.UBoot{}) }
func TestGRUB(t *testing.T)  { slottest.Run(t, slottest.GRUB{}) }
func TestPi(t *testing.T)    { slottest.Run(t, slottest.Pi{}) }

// deaf takes writes and keeps none, as some BIOSes do with a stick that is write-protected.
type deaf struct{ slottest.Disk }

func (deaf) WriteAt(b []byte, _ int64) (int, error) { return len(b), nil }

// A try that could not be counted is none: the kept slot starts, and says that it is on no trial.
func TestGRUBReadsBack(t *testing.T) {
	m := slottest.GRUB{}
	d := m.New(t)
	all := func([]byte) bool { return true }
	if _, err := m.Selector(d, m.Boot(d, "", all)).TryOnce(slot.B); err != nil {
		t.Fatal(err)
	}
	for range 2 * slot.Tries {
		got := m.Boot(deaf{d}, "", all)
		if got.Slot != slot.A || got.Trial {
			t.Fatalf("boots %v", got)
		}
		if id, trial, err := m.Selector(d, got).Booted(); id != slot.A || trial || err != nil {
			t.Errorf("Booted: %s, %v, %v", id, trial, err)
		}
	}
	if got := m.Boot(d, "", all); got.Slot != slot.B || !got.Trial {
		t.Errorf("boots %v", got)
	}
}

// first damages the first state file.
func first(t *testing.T, d slottest.Disk) {
	t.Helper()
	e, err := fat.Edit(d, d.Size(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	f, _ := e.Find("skerry-1.env")
	if _, err := d.WriteAt(make([]byte, 512), f.Offset()); err != nil {
		t.Fatal(err)
	}
}

// With the first state file damaged, the copy counts, and it is the copy that the tries are counted in.
func TestGRUBGoesOnWithTheCopy(t *testing.T) {
	m := slottest.GRUB{}
	d := m.New(t)
	all := func([]byte) bool { return true }
	if _, err := m.Selector(d, m.Boot(d, "", all)).TryOnce(slot.B); err != nil {
		t.Fatal(err)
	}
	first(t, d)
	for i := range slot.Tries + 2 {
		got, want := m.Boot(d, "", all), slot.B
		if i >= slot.Tries {
			want = slot.A
		}
		if got.Slot != want || got.Trial != (want == slot.B) {
			t.Errorf("start %d: %v", i, got)
		}
	}
	// What was counted is in both files: with the first one gone, too, the kept slot starts.
	again := m.New(t)
	if _, err := m.Selector(again, m.Boot(again, "", all)).TryOnce(slot.B); err != nil {
		t.Fatal(err)
	}
	for range slot.Tries + 1 {
		m.Boot(again, "", all)
	}
	first(t, again)
	if got := m.Boot(again, "", all); got.Slot != slot.A || got.Trial {
		t.Errorf("with the copy alone: %v", got)
	}
	if err := m.Selector(d, slottest.Boot{}).Clear(slot.B); err != nil {
		t.Fatal(err)
	}
	e, err := fat.Edit(d, d.Size(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if data, _, err := e.ReadFile("skerry-1.env", 512); err != nil || !strings.HasPrefix(string(data), "# GRUB Environment Block\nskerry_slot=a\n#") {
		t.Errorf("the first state file: %.60q, %v", data, err)
	}
}
