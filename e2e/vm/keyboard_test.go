package vm_test

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/skerry-os/skerry/e2e/vm"
)

// What is typed reaches the machine, which is never kept waiting for somebody to read.
func TestKeyboard(t *testing.T) {
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, "console.sock"))
	if err := errors.Join(err, os.WriteFile(filepath.Join(dir, "vm.json"), []byte("{}"), 0o600)); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	typed := make(chan string, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			typed <- err.Error()
			return
		}
		if _, err := c.Write(make([]byte, 4<<20)); err != nil { // as a machine that says much
			typed <- err.Error()
			return
		}
		got := make([]byte, 3)
		if _, err := io.ReadFull(c, got); err != nil {
			typed <- err.Error()
			return
		}
		typed <- string(got)
	}()
	v, err := vm.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	k, err := v.Keyboard(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := k.Type("ls\r"); err != nil {
		t.Error(err)
	}
	if got := <-typed; got != "ls\r" {
		t.Errorf("the machine got %q", got)
	}
	if err := k.Close(); err != nil {
		t.Error(err)
	}
	_ = l.Close()
	if _, err := v.Keyboard(t.Context()); err == nil {
		t.Error("a console without a machine answers")
	}
}
