// Package vm boots disk images in QEMU: for `make run`, where a person plays with a node, and for the tests in e2e, where
// promises are kept or broken on a whole machine. It starts the firmware a real machine has (UEFI with Secure Boot, a TPM if
// wanted), reads the serial console, and pulls the plug when asked to.
//
// A machine is a folder: its disk (a layer over the image, which is never written), its firmware's variables, its console
// log, its sockets and vm.json, which says which process runs it. So a machine outlives the command that started it, and any
// later command can Open it.
package vm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/skerry-os/skerry/boards"
	"github.com/skerry-os/skerry/pkg/atomicfile"
	"github.com/skerry-os/skerry/pkg/size"
)

// Options say what machine to start. Dir, Image and Board are needed; the rest has defaults.
type Options struct {
	Dir    string      // the machine's folder; its disk and variables stay there between starts
	Image  string      // raw disk image; the machine writes to a layer above it
	Board  boards.QEMU // what the machine is made of
	Fresh  bool        // forget the disk and the variables of an earlier start
	Disk   size.Bytes  // the disk the machine sees; 0 = 8 GiB, or the image's size if that is more
	Memory size.Bytes  // 0 = the board's
	CPUs   int         // 0 = the board's

	Forwards []Forward // ports of this host's loopback that lead into the machine
	Restrict bool      // no way out of the machine's network: the forwards, DHCP and nothing else
	Tap      string    // a tap device of this host the machine's card is at, instead of a network of its own
	MAC      string    // of the machine's card; "" = QEMU's
	NetFirst bool      // the firmware tries the network before the disk
	Serial   string    // of the machine, as its maker would print it on a label
	Vars     string    // the firmware's variables to begin with; "" = in setup mode, no key enrolled
	TPM      bool      // a TPM 2.0 (swtpm)
	TPMState string    // folder of another machine's TPM, to begin with its memory
	Stick    string    // raw image of a USB stick that is plugged in; it is not written
	Volume   string    // raw image of a second disk, as a hypervisor attaches one that says what the machine is to do; it is not written
	CD       string    // the same as a disc in a drive
	WriteLog string    // file for all that the machine does to its disk, in order; see powercut.ReadLog
	Accel    Accel     // "" = KVM where it really works, else emulation
	Detach   bool      // the machine outlives this process
}

// Forward leads from a port on this host's loopback to a port of the machine. Host 0 picks a free one.
type Forward struct {
	Host  int `json:"host"`
	Guest int `json:"guest"`
}

// VM is a machine that was started, by this process or another.
type VM struct {
	Console *Console

	dir   string
	state state
	done  chan struct{} // closed when the process this one started has ended; nil for a machine that was opened
}

// state is vm.json.
type state struct {
	process
	TPM      process   `json:"tpm"`
	Image    imageID   `json:"image"`
	Forwards []Forward `json:"forwards"`
	Accel    Accel     `json:"accel"`
	AccelWhy string    `json:"accelWhy"`
	Started  time.Time `json:"started"`
	Boots    int       `json:"consoleOffset"` // where in console.log this start begins
}

// process is one that may have ended since: a reused PID has another start.
type process struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"processStart"` // from /proc/PID/stat
}

func (p process) alive() bool {
	if p.PID <= 0 {
		return false
	}
	start, err := processStart(p.PID)
	return err == nil && start == p.Start
}

type imageID struct {
	Path    string    `json:"path"`
	Size    int64     `json:"size"`
	ModTime time.Time `json:"modTime"`
}

// ErrNotRunning means that no process runs this machine now.
var ErrNotRunning = errors.New("the machine does not run")

// Start boots a machine and returns when QEMU answers. Unless it is detached, it ends with ctx or Close.
func Start(ctx context.Context, o Options) (*VM, error) {
	if err := o.setDefaults(); err != nil {
		return nil, err
	}
	if old, err := Open(o.Dir); err == nil {
		if old.Running() {
			return nil, fmt.Errorf("%s: process %d runs this machine already; stop it first", o.Dir, old.state.PID)
		}
		old.wait(ctx)
	}
	accel, why, err := o.Accel.resolve(ctx, o)
	if err != nil {
		return nil, err
	}
	return start(ctx, o, accel, why)
}

func start(ctx context.Context, o Options, accel Accel, why string) (*VM, error) {
	img, err := identify(o.Image)
	if err != nil {
		return nil, err
	}
	fw, err := findFirmware(o.Board.Firmware)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, err
	}
	if err := prepareFolder(ctx, o, img, fw); err != nil {
		return nil, err
	}
	if o.WriteLog != "" { // QEMU wants it to be there
		if err := os.WriteFile(o.WriteLog, nil, 0o600); err != nil {
			return nil, err
		}
	}
	forwards, err := pickPorts(o.Forwards)
	if err != nil {
		return nil, err
	}
	var log int
	if fi, err := os.Stat(filepath.Join(o.Dir, consoleLog)); err == nil {
		log = int(fi.Size())
	}
	v := &VM{dir: o.Dir, done: make(chan struct{}), Console: newConsole(o.Dir, int64(log))}
	v.state = state{Image: img, Forwards: forwards, Accel: accel, AccelWhy: why, Started: time.Now(), Boots: log}
	if o.TPM {
		if v.state.TPM, err = startTPM(o.Dir, o.Detach); err != nil {
			return nil, err
		}
	}
	if err := v.launch(o, qemuArgs(o, fw, accel, forwards)); err != nil {
		return nil, err
	}
	if err := v.await(ctx); err != nil {
		v.PowerCut()
		return nil, err
	}
	if !o.Detach {
		context.AfterFunc(ctx, v.PowerCut)
	}
	return v, nil
}

// launch starts QEMU in the machine's folder, so that its socket names stay short, and records it.
func (v *VM) launch(o Options, args []string) error {
	log, err := os.Create(filepath.Join(v.dir, qemuLog))
	if err != nil {
		return err
	}
	defer log.Close() // the child has its own
	cmd := exec.Command("qemu-system-"+o.Board.System, args...)
	cmd.Dir = v.dir
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = childAttr(o.Detach)
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("%w; `make setup` installs QEMU", err)
	}
	v.state.PID = cmd.Process.Pid
	if v.state.Start, err = processStart(v.state.PID); err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return err
	}
	go func() {
		_ = cmd.Wait() // its exit code says nothing that qemu.log does not
		close(v.done)
	}()
	return v.save()
}

// await returns when QEMU answers its monitor, or says why it ended.
func (v *VM) await(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		_, err := v.qmp(ctx, "query-status", nil)
		if err == nil {
			return nil
		}
		select {
		case <-v.done:
			return fmt.Errorf("QEMU ended at once: %s", v.lastWords())
		case <-ctx.Done():
			return fmt.Errorf("QEMU does not answer its monitor: %w; %s", err, v.lastWords())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (v *VM) lastWords() string {
	b, err := os.ReadFile(filepath.Join(v.dir, qemuLog))
	if err != nil || len(b) == 0 {
		return "it said nothing"
	}
	return strings.TrimSpace(string(b[max(0, len(b)-1000):]))
}

func (v *VM) save() error {
	b, err := json.MarshalIndent(v.state, "", "  ")
	if err != nil {
		return err
	}
	return atomicfile.Write(filepath.Join(v.dir, stateFile), append(b, '\n'), 0o600)
}

// Open finds the machine in a folder, running or not.
func Open(dir string) (*VM, error) {
	b, err := os.ReadFile(filepath.Join(dir, stateFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%s: no machine was started here: %w", dir, ErrNotRunning)
	}
	if err != nil {
		return nil, err
	}
	v := &VM{dir: dir}
	if err := json.Unmarshal(b, &v.state); err != nil {
		return nil, fmt.Errorf("%s: %w; remove the folder to begin anew", filepath.Join(dir, stateFile), err)
	}
	v.Console = newConsole(dir, int64(v.state.Boots))
	return v, nil
}

// Running says whether the machine's process is alive.
func (v *VM) Running() bool {
	return v.state.alive()
}

// PID is the process that runs the machine.
func (v *VM) PID() int { return v.state.PID }

// Started is when the machine's power came on.
func (v *VM) Started() time.Time { return v.state.Started }

// Accel says how the machine's processor is made, and why not otherwise.
func (v *VM) Accel() (Accel, string) { return v.state.Accel, v.state.AccelWhy }

// Addr is where on this host the machine's port is reached.
func (v *VM) Addr(guest int) (string, error) {
	for _, f := range v.state.Forwards {
		if f.Guest == guest {
			return net.JoinHostPort("127.0.0.1", fmt.Sprint(f.Host)), nil
		}
	}
	return "", fmt.Errorf("%s: no host port leads to port %d of the machine", v.dir, guest)
}

// PowerCut ends the machine as a pulled plug does, and returns when it is gone.
func (v *VM) PowerCut() {
	for _, p := range []process{v.state.process, v.state.TPM} {
		if p.alive() {
			_ = kill(p.PID) // it may just have ended
		}
	}
	v.wait(context.Background())
}

// Stop presses the power button and waits until the machine has shut down in order.
func (v *VM) Stop(ctx context.Context) error {
	if !v.Running() {
		return nil
	}
	if _, err := v.qmp(ctx, "system_powerdown", nil); err != nil && v.Running() {
		return fmt.Errorf("pressing the power button: %w", err)
	}
	if !v.wait(ctx) {
		return fmt.Errorf("the machine still runs after its power button was pressed: %w", context.Cause(ctx))
	}
	return nil
}

// Reset presses the reset button.
func (v *VM) Reset(ctx context.Context) error {
	_, err := v.qmp(ctx, "system_reset", nil)
	return err
}

// wait returns true when the machine's processes have ended, false when ctx has. The TPM ends by itself when QEMU has; a
// next start must not meet it, for it takes its socket with it.
func (v *VM) wait(ctx context.Context) bool {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for v.Running() || v.state.TPM.alive() {
		select {
		case <-ctx.Done():
			return !v.Running()
		case <-tick.C:
		}
	}
	return true
}
