package vm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/skerry-os/skerry/pkg/atomicfile"
)

// Accel is how the machine's processor is made.
type Accel string

// The ways to make a processor: "auto" is KVM where an image really boots with it, else emulation.
const (
	Auto Accel = "auto"
	KVM  Accel = "kvm"
	TCG  Accel = "tcg"
)

func (a Accel) args() []string {
	if a == KVM {
		return []string{"-accel", "kvm"}
	}
	return []string{"-accel", "tcg,thread=multi"}
}

// kvmSign is how long an image may take under KVM to write a word: a real one takes two or three seconds to its kernel.
const kvmSign = 20 * time.Second

func (a Accel) resolve(ctx context.Context, o Options) (Accel, string, error) {
	switch a {
	case KVM, TCG:
		return a, "asked for", nil
	case Auto, "":
	default:
		return "", "", fmt.Errorf("acceleration %q: is none of auto, kvm, tcg", a)
	}
	if host := map[string]string{"amd64": "x86_64", "arm64": "aarch64"}[runtime.GOARCH]; o.Board.System != host {
		return TCG, "no KVM: the machine is " + o.Board.System, nil
	}
	if why := closedKVM(); why != "" {
		return TCG, "no KVM: " + why, nil
	}
	if known, why := remembered(); known != "" {
		return known, why, nil
	}
	why := tryKVM(ctx, o)
	if err := ctx.Err(); err != nil {
		return "", "", err
	}
	found := KVM
	if why != "" {
		found, why = TCG, "no KVM: "+why
	}
	remember(found, why)
	return found, why, nil
}

// closedKVM says why this process may not even ask for KVM.
func closedKVM() string {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return err.Error()
	}
	_ = f.Close()
	return ""
}

// tryKVM boots the image under KVM, on a disk of its own, until its kernel or init says a word, and says what was wrong if
// it does not. /dev/kvm can be there and open, and yet no kernel run on it: inside some virtual machines it is so.
func tryKVM(ctx context.Context, o Options) string {
	dir, err := os.MkdirTemp("", "skerry-kvm-")
	if err != nil {
		return err.Error()
	}
	defer os.RemoveAll(dir)
	o.Dir, o.Vars, o.Forwards, o.TPM, o.TPMState, o.Stick, o.Volume, o.CD, o.Detach, o.Fresh = dir, "", nil, false, "", "", "", "", false, true
	ctx, cancel := context.WithTimeout(ctx, kvmSign)
	defer cancel()
	v, err := start(ctx, o, KVM, "trying")
	if err != nil {
		first, _, _ := strings.Cut(err.Error(), "\n")
		return first
	}
	defer v.PowerCut()
	err = v.Lines(ctx, func(line string) bool {
		return strings.Contains(line, "Linux version") || strings.HasPrefix(line, "skerry: ")
	})
	switch {
	case errors.Is(err, ErrNotRunning):
		return "QEMU ended: " + v.lastWords()
	case err != nil:
		return fmt.Sprintf("a machine with it said nothing for %v", kvmSign)
	}
	return ""
}

// kvmFinding is remembered until the host is restarted.
type kvmFinding struct {
	BootID string `json:"bootID"`
	Accel  Accel  `json:"accel"`
	Why    string `json:"why"`
}

func findingFile() (name, bootID string, err error) {
	dir, err := cacheDir()
	if err != nil {
		return "", "", err
	}
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return filepath.Join(dir, "kvm.json"), strings.TrimSpace(string(id)), err
}

func remembered() (Accel, string) {
	name, id, err := findingFile()
	if err != nil {
		return "", ""
	}
	var k kvmFinding
	b, err := os.ReadFile(name)
	if err != nil || json.Unmarshal(b, &k) != nil || k.BootID != id {
		return "", ""
	}
	return k.Accel, k.Why
}

// remember only saves time: without it the next start tries again.
func remember(a Accel, why string) {
	name, id, err := findingFile()
	if err != nil {
		return
	}
	if b, err := json.Marshal(kvmFinding{id, a, why}); err == nil {
		_ = atomicfile.Write(name, b, 0o644)
	}
}
