package vm

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/skerry-os/skerry/pkg/size"
)

// The files in a machine's folder.
const (
	stateFile  = "vm.json"
	diskFile   = "disk.qcow2"
	varsFile   = "vars.fd"
	kernelFile = "kernel.bin"
	treeFile   = "machine.dtb"
	consoleLog = "console.log"
	qemuLog    = "qemu.log"
	qmpSock    = "qmp.sock"
	conSock    = "console.sock"
	tpmDir     = "tpm"
	tpmSock    = "tpm.sock"
)

func (o *Options) setDefaults() error {
	if o.Dir == "" || o.Image == "" || o.Board.System == "" {
		return errors.New("a machine needs a folder, an image and a board that QEMU can be")
	}
	if o.CPUs == 0 {
		o.CPUs = o.Board.CPUs
	}
	if o.Memory == 0 {
		o.Memory = o.Board.Memory
	}
	var err error
	if o.Dir, err = filepath.Abs(o.Dir); err != nil {
		return err
	}
	o.Image, err = filepath.Abs(o.Image)
	return err
}

func identify(path string) (imageID, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return imageID{}, err
	}
	return imageID{Path: path, Size: fi.Size(), ModTime: fi.ModTime().UTC()}, nil
}

// prepareFolder makes the disk and the firmware's variables, or keeps those that belong to this very image.
func prepareFolder(ctx context.Context, o Options, img imageID, fw firmware) error {
	for _, name := range []string{qmpSock, conSock, tpmSock} {
		if err := os.Remove(filepath.Join(o.Dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	disk, vars := filepath.Join(o.Dir, diskFile), filepath.Join(o.Dir, varsFile)
	if old, err := Open(o.Dir); err == nil && !o.Fresh && old.state.Image == img && exists(disk) && (fw.vars == "" || exists(vars)) {
		return nil
	}
	// The state names what the disk belongs to, so it goes first and comes last.
	for _, name := range []string{stateFile, diskFile, varsFile, consoleLog, tpmDir} {
		if err := os.RemoveAll(filepath.Join(o.Dir, name)); err != nil {
			return err
		}
	}
	if fw.vars != "" {
		if err := copyFile(vars, cmp.Or(o.Vars, fw.vars)); err != nil {
			return err
		}
	}
	if fw.kernel != "" {
		if err := takeFromCard(o); err != nil {
			return err
		}
	}
	if o.TPMState != "" {
		if err := os.CopyFS(filepath.Join(o.Dir, tpmDir), os.DirFS(o.TPMState)); err != nil {
			return err
		}
	}
	total := max(int64(o.Disk), img.Size)
	if o.Disk == 0 {
		total = max(8*int64(size.GiB), img.Size)
	}
	if o.Board.Disk == onboardSD && total&(total-1) != 0 { // QEMU's cards come in no other size
		total = 1 << bits.Len64(uint64(total))
	}
	out, err := exec.CommandContext(ctx, "qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", img.Path, disk, strconv.FormatInt(total, 10)).CombinedOutput()
	if err != nil {
		return fmt.Errorf("qemu-img create %s: %w: %s", disk, err, strings.TrimSpace(string(out)))
	}
	return nil
}

func exists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close() // only read
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// pickPorts fills in free host ports. Another process may take one before QEMU does; QEMU then says so and ends.
func pickPorts(want []Forward) ([]Forward, error) {
	var held []net.Listener
	defer func() {
		for _, l := range held {
			_ = l.Close()
		}
	}()
	got := make([]Forward, len(want))
	for i, f := range want {
		l, err := net.Listen("tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(f.Host)))
		if err != nil {
			return nil, fmt.Errorf("port %d of this host, which should lead to the machine's %d: %w", f.Host, f.Guest, err)
		}
		held = append(held, l)
		got[i] = Forward{Host: l.Addr().(*net.TCPAddr).Port, Guest: f.Guest}
	}
	return got, nil
}

// processStart is the time a process started, in ticks since boot: field 22 of its stat file.
func processStart(pid int) (uint64, error) {
	name := fmt.Sprintf("/proc/%d/stat", pid)
	b, err := os.ReadFile(name)
	if err != nil {
		return 0, err
	}
	// The second field is the program's name in brackets and may hold anything.
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(fields) < 20 {
		return 0, fmt.Errorf("%s: has %d fields after the name, fewer than 20", name, len(fields))
	}
	// The first thread may have ended while others still hold the process's files.
	if threads := string(fields[17]); string(fields[0]) == "Z" && (threads == "0" || threads == "1") {
		return 0, fmt.Errorf("%s: the process has ended", name)
	}
	return strconv.ParseUint(string(fields[19]), 10, 64)
}

// startTPM starts a TPM that lives as long as the machine is connected to it.
func startTPM(dir string, detach bool) (process, error) {
	if err := os.MkdirAll(filepath.Join(dir, tpmDir), 0o700); err != nil {
		return process{}, err
	}
	cmd := exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir="+tpmDir, "--ctrl", "type=unixio,path="+tpmSock, "--terminate")
	cmd.Dir = dir
	cmd.SysProcAttr = childAttr(detach)
	if err := cmd.Start(); err != nil {
		return process{}, fmt.Errorf("%w; `make setup` installs swtpm", err)
	}
	p := process{PID: cmd.Process.Pid}
	p.Start, _ = processStart(p.PID) // if it has ended already, that is told below
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for !exists(filepath.Join(dir, tpmSock)) {
		select {
		case err := <-ended:
			return process{}, fmt.Errorf("swtpm ended at once: %w", err)
		case <-time.After(10 * time.Millisecond):
		}
	}
	return p, nil
}
