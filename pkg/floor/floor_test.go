package floor_test

import (
	"errors"
	"io/fs"
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
	check(t, p.Close()) // as often as one likes
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

// faulty is a place whose calls are noted, and of which those in fails fail.
type faulty struct {
	floor string
	fails string
	calls []string
}

var errFaulty = errors.New("is broken")

func (p *faulty) call(name string) error {
	p.calls = append(p.calls, name)
	if strings.Contains(p.fails, name) {
		return errFaulty
	}
	return nil
}

func (p *faulty) Load() (string, error) { return p.floor, p.call("load") }
func (p *faulty) Raise(to string) error {
	err := p.call("raise")
	if err == nil {
		p.floor = to
	}
	return err
}
func (p *faulty) Close() error   { return p.call("close") }
func (p *faulty) String() string { return "a place" }
func (p *faulty) Reset() string  { return "mend it" }

// Whatever starts finds the floor closed, a trial too; what fails is told, and the floor that is given is the one that holds.
func TestFaultyPlace(t *testing.T) {
	for name, tt := range map[string]struct {
		fails, version string
		trial          bool
		floor, calls   string
		faults         int
	}{
		"kept":                  {"", "1.2.0", false, "1.2.0", "load raise close", 0},
		"nothing to raise":      {"", "1.1.0", false, "1.1.0", "load close", 0},
		"on trial":              {"", "1.2.0", true, "1.1.0", "load close", 0},
		"refused":               {"", "1.0.0", false, "1.1.0", "load", 1},
		"unreadable":            {"load", "1.2.0", false, "", "load", 1},
		"not raised":            {"raise", "1.2.0", false, "1.1.0", "load raise close", 1},
		"not closed":            {"close", "1.2.0", false, "1.2.0", "load raise close", 1},
		"not raised nor closed": {"raise close", "1.2.0", false, "1.1.0", "load raise close", 2},
	} {
		p := &faulty{floor: "1.1.0", fails: tt.fails}
		got, err := floor.Hold(p, tt.version, "", !tt.trial)
		if calls := strings.Join(p.calls, " "); got != tt.floor || calls != tt.calls {
			t.Errorf("%s: floor %q, called %s", name, got, calls)
		}
		if (err != nil) != (tt.faults > 0) || errors.Is(err, errFaulty) != (tt.fails != "") || errors.Is(err, release.ErrRollback) != (name == "refused") {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && strings.Count(err.Error(), errFaulty.Error()) != len(strings.Fields(tt.fails)) {
			t.Errorf("%s: not every fault is told: %v", name, err)
		}
	}
}

// Nothing that a place holds and that is no floor is taken for one, nor for none.
func TestDamagedVariable(t *testing.T) {
	for _, data := range [][]byte{{}, {7}, {7, 0, 0}, append([]byte{7, 0, 0, 0}, strings.Repeat("1", 81)...)} {
		vars := variables{}
		p := floor.Variable{Vars: fstest.MapFS(vars), Set: vars}
		check(t, p.Raise("1.0.0"))
		for name := range vars {
			vars[name].Data = data
		}
		if got, err := floor.Hold(p, "1.0.0", "", true); err == nil || got != "" || errors.Is(err, release.ErrRollback) {
			t.Errorf("%d bytes: floor %q, %v", len(data), got, err)
		}
	}
	if _, err := (floor.Variable{Vars: broken{}}).Load(); !errors.Is(err, errFaulty) {
		t.Errorf("firmware that does not answer: %v", err)
	}
}

// broken is a TPM, or firmware, that does not answer.
type broken struct{}

func (broken) Send([]byte) ([]byte, error)  { return nil, errFaulty }
func (broken) Open(string) (fs.File, error) { return nil, errFaulty }

func TestBrokenTPM(t *testing.T) {
	p := floor.TPM{TPM: broken{}}
	_, err := p.Load()
	for what, err := range map[string]error{"load": err, "raise": p.Raise("1.0.0"), "close": p.Close()} {
		if !errors.Is(err, errFaulty) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// define makes the index with nothing in it.
func define(t *testing.T, p floor.TPM, size uint16) tpm2.AuthHandle {
	t.Helper()
	public := tpm2.TPMSNVPublic{
		NVIndex: 0x01853e21, NameAlg: tpm2.TPMAlgSHA256, DataSize: size,
		Attributes: tpm2.TPMANV{AuthWrite: true, AuthRead: true, WriteSTClear: true, NoDA: true, NT: tpm2.TPMNTOrdinary},
	}
	_, err := tpm2.NVDefineSpace{AuthHandle: tpm2.TPMRHOwner, PublicInfo: tpm2.New2B(public)}.Execute(p.TPM)
	check(t, err)
	r, err := tpm2.NVReadPublic{NVIndex: public.NVIndex}.Execute(p.TPM)
	check(t, err)
	return tpm2.AuthHandle{Handle: public.NVIndex, Name: r.NVName, Auth: tpm2.PasswordAuth(nil)}
}

// The power fails after the index is made and before it is written: it is no floor yet, and becomes one.
func TestUnwrittenIndex(t *testing.T) {
	restart := software(t)
	define(t, restart().(floor.TPM), 80)
	if got, err := restart().Load(); got != "" || err != nil {
		t.Errorf("floor %q, %v", got, err)
	}
	if got, err := floor.Hold(restart(), "1.0.0", "", true); got != "1.0.0" || err != nil {
		t.Errorf("floor %q, %v", got, err)
	}
}

// An index of somebody else's is no floor, and stays as it is.
func TestForeignIndex(t *testing.T) {
	p := software(t)().(floor.TPM)
	index := define(t, p, 100)
	if got, err := floor.Hold(p, "1.0.0", "", true); err == nil || got != "" {
		t.Errorf("before anything is in it: floor %q, %v", got, err)
	}
	_, err := tpm2.NVWrite{AuthHandle: index, NVIndex: tpm2.NamedHandle{Handle: index.Handle, Name: index.Name}, Data: tpm2.TPM2BMaxNVBuffer{Buffer: make([]byte, 100)}}.Execute(p.TPM)
	check(t, err)
	_, err = p.Load()
	for what, err := range map[string]error{"load": err, "raise": p.Raise("1.0.0"), "close": p.Close()} {
		if err == nil || !strings.Contains(err.Error(), "not Skerry's") {
			t.Errorf("%s: %v", what, err)
		}
	}
}
