package linux

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// Whoever reads a file of the folder finds what was held until then; the program itself reads without being told.
func TestReadersWait(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "skerryd.log")
	if err := os.WriteFile(name, []byte("early\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := HearReaders(dir)
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSYS) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	var heard atomic.Int32
	done := make(chan error, 1)
	go func() {
		done <- r.Run(func() {
			if heard.Add(1) > 1 {
				return
			}
			// It opens a file of the folder, as a log that begins anew does.
			f, err := os.OpenFile(name, os.O_APPEND|os.O_WRONLY, 0)
			if err == nil {
				_, err = f.WriteString("late\n")
				err = errors.Join(err, f.Close())
			}
			if err != nil {
				t.Error(err)
			}
		})
	}()
	if got, err := os.ReadFile(name); err != nil || string(got) != "early\n" {
		t.Errorf("this program reads %q, %v", got, err)
	}
	if got, err := exec.Command("cat", name).Output(); err != nil || string(got) != "early\nlate\n" {
		t.Errorf("another reads %q, %v", got, err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if heard.Load() == 0 {
		t.Error("nobody was heard")
	}
	if _, err := exec.Command("cat", name).Output(); err != nil {
		t.Errorf("once it is closed: %v", err)
	}
}
