package floor_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"

	"github.com/skerry-os/skerry/pkg/floor"
	"github.com/skerry-os/skerry/pkg/release"
)

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// software is a TPM that is switched on with its memory of before. What restart gives is the same one after the next start.
func software(t *testing.T) (restart func() floor.Place) {
	t.Helper()
	if _, err := exec.LookPath("swtpm"); err != nil {
		t.Skip("swtpm is not installed: apt-get install swtpm")
	}
	dir, err := os.MkdirTemp("", "tpm") // t.TempDir is too long for a socket
	check(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	off := func() {}
	return func() floor.Place {
		off()
		sock := filepath.Join(dir, "sock")
		_ = os.Remove(sock)
		cmd := exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir="+dir, "--server", "type=unixio,path="+sock, "--flags", "not-need-init")
		check(t, cmd.Start())
		off = func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }
		t.Cleanup(off)
		for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			if _, err := os.Stat(sock); err == nil {
				break
			}
			if time.Now().After(end) {
				t.Fatal("swtpm does not start")
			}
		}
		tpm, err := linuxudstpm.Open(sock)
		check(t, err)
		_, err = tpm2.Startup{StartupType: tpm2.TPMSUClear}.Execute(tpm) // what firmware does
		check(t, err)
		return floor.TPM{TPM: tpm}
	}
}

// variables is efivarfs.
type variables fstest.MapFS

func (v variables) Write(name string, data []byte) error {
	v[name] = &fstest.MapFile{Data: append([]byte{7, 0, 0, 0}, data...)}
	return nil
}

func (v variables) Remove(name string) error { delete(v, name); return nil }

// A machine's life: nothing older than the floor starts, the way back stays open, and the floor follows.
func TestHold(t *testing.T) {
	vars := variables{}
	for name, restart := range map[string]func() floor.Place{
		"TPM":      nil,
		"variable": func() floor.Place { return floor.Variable{Vars: fstest.MapFS(vars), Set: vars} },
	} {
		t.Run(name, func(t *testing.T) {
			if restart == nil {
				restart = software(t)
			}
			for i, boot := range []struct {
				version, other string
				kept           bool
				floor          string
				refused        bool
			}{
				{"1.0.0", "1.0.0", true, "1.0.0", false},
				{"1.1.0", "1.0.0", false, "1.0.0", false}, // a trial raises nothing
				{"1.1.0", "1.0.0", true, "1.0.0", false},  // the way back
				{"1.0.0", "1.1.0", true, "1.0.0", false},
				{"1.1.0", "", true, "1.1.0", false}, // the other slot is being written
				{"1.2.0", "1.1.0", true, "1.1.0", false},
				{"1.0.0", "1.2.0", false, "1.1.0", true},
				{"1.0.0", "1.0.0", true, "1.1.0", true}, // another disk
				{"1.1.0", "0.9.0", true, "1.1.0", false},
				{"2.0.0-rc1", "2.0.0-rc1", true, "2.0.0-rc1", false},
			} {
				got, err := floor.Hold(restart(), boot.version, boot.other, boot.kept)
				if got != boot.floor || errors.Is(err, release.ErrRollback) != boot.refused || (err != nil) != boot.refused {
					t.Errorf("boot %d, %s beside %q: floor %q, %v; want %s", i, boot.version, boot.other, got, err, boot.floor)
				}
			}
		})
	}
}

// Once stage 1 is through, nothing changes a TPM's floor until the machine restarts.
func TestClosedTPM(t *testing.T) {
	restart := software(t)
	p := restart()
	_, err := floor.Hold(p, "1.0.0", "", true)
	check(t, err)
	if err := p.Raise("0.1.0"); err == nil {
		t.Error("the floor was lowered")
	}
	if got, err := p.Load(); got != "1.0.0" || err != nil {
		t.Errorf("floor %q, %v", got, err)
	}
	check(t, restart().Raise("1.2.0"))
	if err := restart().Raise(strings.Repeat("1", 80)); err == nil {
		t.Error("a version that does not fit was stored")
	}
}

func TestDamagedVariable(t *testing.T) {
	vars := variables{}
	p := floor.Variable{Vars: fstest.MapFS(vars), Set: vars}
	check(t, p.Raise("1.0.0"))
	for name := range vars {
		vars[name].Data = []byte{7}
	}
	if _, err := floor.Hold(p, "1.0.0", "", true); err == nil || errors.Is(err, release.ErrRollback) {
		t.Errorf("got %v", err)
	}
}
