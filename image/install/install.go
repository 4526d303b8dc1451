// Package install is what a machine does that was started over the network: it finds its server, asks what to do, and writes
// the image it is to run to the disk that its node config picks, or takes the root into memory. The server's half is
// image/netboot; what both say is image/netboot/protocol.
package install

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/skerry-os/skerry/boards"
	"github.com/skerry-os/skerry/image"
	"github.com/skerry-os/skerry/image/flash"
	"github.com/skerry-os/skerry/image/netboot/protocol"
	"github.com/skerry-os/skerry/pkg/atomicfile"
	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/release"
)

// Installer is one start of one machine.
type Installer struct {
	Pin    string              // of the server's CA
	Hello  protocol.Hello      // what this machine says of itself
	Keys   []ed25519.PublicKey // of releases
	Root   string              // where the machine's /sys, /proc and /dev are: /
	Memory string              // folder for a root that is run from memory
	Find   func(ctx context.Context) (url string, err error)
	Open   func(name string) (Disk, error)
	Vars   Variables // of the firmware; nil: none
	Log    func(format string, a ...any)
	Pause  time.Duration // between two questions; 0: five seconds
	Stall  time.Duration // how long a connection may say nothing; 0: thirty seconds

	server string
	client *http.Client
	waits  string          // the last reason to wait that was said
	warned map[string]bool // of the server's warnings, those that were said
	silent bool            // the server did not answer the last time
}

// Disk is an open disk.
type Disk interface {
	flash.Device
	io.Closer
}

// NewSession makes up what tells this start of the machine from others.
func NewSession() string {
	b := make([]byte, 32)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}

// Run works until the machine is installed, or its root is in memory. What goes wrong is said to the server and on the
// console, and tried again: a person may put it right meanwhile.
func (i *Installer) Run(ctx context.Context) (machine.Netboot, error) {
	if i.Pause == 0 {
		i.Pause = 5 * time.Second
	}
	if i.Stall == 0 {
		i.Stall = stalled
	}
	for {
		out, err := i.once(ctx)
		if ctx.Err() != nil {
			return machine.Netboot{}, context.Cause(ctx)
		}
		if err == nil && out != nil {
			return *out, nil
		}
		if err != nil {
			i.Log("%v; trying again", err)
			i.silent = errors.Is(err, errNoServer)
			i.tell(ctx, protocol.Report{Stage: protocol.StageFailed, Error: err.Error()})
			if errors.Is(err, errNoServer) {
				i.server = ""
			}
		}
		if err := sleep(ctx, i.Pause); err != nil {
			return machine.Netboot{}, err
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// once goes from the question to the end. No outcome and no error is: ask again later.
func (i *Installer) once(ctx context.Context) (*machine.Netboot, error) {
	if i.server == "" {
		url, err := i.Find(ctx)
		if err != nil {
			return nil, err
		}
		i.server = url
		i.client = &http.Client{Transport: &http.Transport{TLSClientConfig: protocol.ClientTLS(i.Pin), IdleConnTimeout: 30 * time.Second}, Timeout: 2 * i.Stall}
		i.Log("the server is %s", url)
	}
	disks, err := i.disks()
	if err != nil {
		return nil, err
	}
	i.Hello.Holds = i.holds(disks)
	var a protocol.Answer
	if err := i.ask(ctx, protocol.HelloPath, i.Hello, &a); err != nil {
		return nil, err
	}
	if i.silent {
		i.Log("the server answers again")
		i.silent = false
	}
	i.warn(a.Warnings)
	switch a.Do {
	case protocol.Leave:
		i.Log("%s", a.Why)
		return &machine.Netboot{Why: a.Why}, nil
	case protocol.Install:
	default:
		if a.Why != i.waits {
			i.Log("waiting: %s", a.Why)
		}
		i.waits = a.Why
		return nil, nil //nolint:nilnil // documented above
	}
	i.waits = ""
	var given protocol.Config
	if err := i.ask(ctx, protocol.ConfigPath, i.Hello, &given); err != nil {
		return nil, err
	}
	config := image.Config{Name: a.Name + ".yaml", Data: given.Node}
	for _, name := range slices.Sorted(maps.Keys(given.Beside)) {
		config.Beside = append(config.Beside, image.File{Name: name, Data: given.Beside[name]})
	}
	c, err := machine.Decode(config.Name, config.Data)
	if err != nil {
		return nil, err
	}
	files := &web{ctx: ctx, base: a.Release, log: i.Log, stall: i.Stall}
	rel, err := release.Open(files, i.Keys)
	if err != nil {
		return nil, fmt.Errorf("release: %w", err)
	}
	i.Log("%s: release %s for node %s", map[bool]string{true: "run from memory", false: "install"}[c.Install.Diskless], rel.Manifest().Version, a.Name)
	if c.Install.Diskless {
		return i.diskless(ctx, c, config, rel, files, disks)
	}
	return i.install(ctx, a, c, config, rel, files, disks)
}

// warn says each of the server's warnings once.
func (i *Installer) warn(texts []string) {
	for _, text := range texts {
		if !i.warned[text] {
			i.Log("the server warns: %s", text)
		}
	}
	i.warned = map[string]bool{}
	for _, text := range texts {
		i.warned[text] = true
	}
}

// install writes the image.
func (i *Installer) install(ctx context.Context, a protocol.Answer, c *machine.Config, config image.Config, rel *release.Release, files fs.FS, disks []flash.Disk) (*machine.Netboot, error) {
	board, err := i.board(rel.Manifest())
	if err != nil {
		return nil, err
	}
	p, err := image.New(board, rel, config, image.Options{})
	if err != nil {
		return nil, err
	}
	if a.Again {
		disks = i.own(disks) // a person asked for this one to be written again
	}
	picked, err := i.pick("install.disk", c.Install.Disk, disks, p.Size, func(d flash.Disk) (string, error) {
		if m, ok := i.mine(d); c.Install.Wipe || ok && (a.Again || m.Begun) {
			return "", nil
		}
		return i.data(d)
	})
	if err != nil {
		return nil, err
	}
	i.Log("install: writing %s", picked)
	d, err := i.Open(i.path(picked))
	if err != nil {
		return nil, err
	}
	defer d.Close() //nolint:errcheck // synced before
	// Whoever finds the disk half written knows that nothing on it is of use.
	if err := writeMarker(d, i.marker(a.ID, true)); err != nil {
		return nil, fmt.Errorf("%s: %w", picked.Path, err)
	}
	stream := image.NewStream(p, files)
	defer stream.Close() //nolint:errcheck // only read
	img, err := flash.Open(stream)
	if err != nil {
		return nil, err
	}
	last := time.Time{}
	_, err = img.Write(ctx, d, func(verifying bool, done, total int64) {
		if time.Since(last) < 2*time.Second {
			return
		}
		last = time.Now()
		stage := protocol.StageWrite
		if verifying {
			stage = protocol.StageVerify
		}
		i.Log("install: %s: %d %%", stage, 100*done/total)
		i.tell(ctx, protocol.Report{Stage: stage, Done: done, Total: total, Disk: picked.String()})
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", picked.Path, err)
	}
	if err := writeMarker(d, i.marker(a.ID, false)); err != nil {
		return nil, fmt.Errorf("%s: %w", picked.Path, err)
	}
	if i.Vars != nil {
		if err := bootNext(i.Vars, p); err != nil {
			i.Log("install: telling the firmware to start from the disk: %v; its boot order decides", err)
		}
	}
	// The server must know before the machine restarts, or its firmware would be offered the installer again. The marker on the
	// disk keeps that from doing harm.
	done := protocol.Report{Session: i.Hello.Session, Stage: protocol.StageInstalled, Done: p.Size, Total: p.Size, Disk: picked.String()}
	for try := range 60 {
		if err = i.ask(ctx, protocol.ReportPath, done, nil); err == nil {
			break
		}
		if try == 0 {
			i.Log("install: done, but the server does not hear it: %v; trying again", err)
		}
		if err := sleep(ctx, i.Pause); err != nil {
			return nil, err
		}
	}
	i.Log("install: done, %s", picked)
	return &machine.Netboot{Why: "installed on " + picked.Path}, nil
}

// board is what is installed: the one that the kernel image says, or on a machine with a BIOS the one that is like it.
func (i *Installer) board(m *release.Manifest) (*boards.Board, error) {
	if i.Hello.Firmware == protocol.UEFI {
		return boards.Load(i.Hello.Board)
	}
	for _, id := range m.BoardIDs() {
		if b, err := boards.Load(id); err == nil && b.Slots == boards.GRUB && b.Base == i.Hello.Board {
			return b, nil
		}
	}
	return nil, fmt.Errorf("this machine was started by its BIOS, and release %s has no board that starts from a disk by that, only %s: serve a release with board x86-bios, switch the firmware to UEFI, or write install.diskless: true into its node config",
		m.Version, strings.Join(m.BoardIDs(), ", "))
}

// diskless takes the root into memory.
func (i *Installer) diskless(ctx context.Context, c *machine.Config, config image.Config, rel *release.Release, files fs.FS, disks []flash.Disk) (*machine.Netboot, error) {
	out := &machine.Netboot{Diskless: true, Why: "runs from memory"}
	root := rel.Manifest().Root
	if free := i.Hello.Memory; free > 0 && free < root.Size+least {
		return nil, fmt.Errorf("the root is %d MiB and the machine has %d MiB of memory; %d MiB are needed at least", root.Size>>20, free>>20, (root.Size+least)>>20)
	}
	if !c.Install.State.Empty() {
		picked, err := i.pick("install.state", c.Install.State, disks, leastState, func(d flash.Disk) (string, error) {
			if c.Install.Wipe || i.hasData(d) {
				return "", nil
			}
			return i.data(d)
		})
		if err != nil {
			return nil, err
		}
		if !i.hasData(picked) {
			i.Log("diskless: making a data partition on %s", picked)
			if err := i.makeData(picked); err != nil {
				return nil, fmt.Errorf("%s: %w", picked.Path, err)
			}
		}
		out.State = picked.Path
	}
	if err := os.MkdirAll(i.Memory, 0o700); err != nil {
		return nil, err
	}
	if err := i.fetchRoot(ctx, files, root, filepath.Join(i.Memory, machine.NetbootRoot)); err != nil {
		return nil, err
	}
	manifest, sig := rel.Bytes()
	put := map[string][]byte{release.ManifestName: manifest, release.SignatureName: sig, filepath.Join(machine.NetbootConfigDir, image.ConfigName): config.Data}
	for _, f := range config.Beside {
		put[filepath.Join(machine.NetbootConfigDir, f.Name)] = f.Data
	}
	if err := os.MkdirAll(filepath.Join(i.Memory, machine.NetbootConfigDir), 0o700); err != nil {
		return nil, err
	}
	for name, data := range put {
		if err := os.WriteFile(filepath.Join(i.Memory, name), data, 0o600); err != nil {
			return nil, err
		}
	}
	i.tell(ctx, protocol.Report{Stage: protocol.StageRunning, Done: root.Size, Total: root.Size, Disk: out.State})
	return out, nil
}

// least is the memory a node needs beside its root, and leastState the size of a disk for its state.
const (
	least      = 768 << 20
	leastState = 1 << 30
)

func (i *Installer) fetchRoot(ctx context.Context, files fs.FS, root release.Root, to string) error {
	in, err := files.Open(root.Path)
	if err != nil {
		return err
	}
	defer in.Close() //nolint:errcheck // only read
	f, err := os.Create(to)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // in memory
	var done int64
	last := time.Time{}
	if err := root.Check(io.TeeReader(in, writer(func(b []byte) (int, error) {
		done += int64(len(b))
		if time.Since(last) > 2*time.Second {
			last = time.Now()
			i.Log("diskless: %s: %d %%", protocol.StageFetch, 100*done/root.Size)
			i.tell(ctx, protocol.Report{Stage: protocol.StageFetch, Done: done, Total: root.Size})
		}
		return f.Write(b)
	}))); err != nil {
		return fmt.Errorf("release: %w", err)
	}
	return nil
}

type writer func([]byte) (int, error)

func (w writer) Write(b []byte) (int, error) { return w(b) }

// errNoServer means that nobody answers at the server's address.
var errNoServer = errors.New("the server does not answer: is the cable in, and does skerry pxe serve run?")

// post sends a question and gives the answer's body.
func (i *Installer) post(ctx context.Context, path string, in any) ([]byte, error) {
	data, err := json.Marshal(in)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, i.server+path, bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	r, err := i.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("%w (%w)", errNoServer, err)
	}
	defer r.Body.Close() //nolint:errcheck // read whole
	body, err := io.ReadAll(io.LimitReader(r.Body, 16<<20))
	if err != nil {
		return nil, fmt.Errorf("%w (%w)", errNoServer, err)
	}
	if r.StatusCode != http.StatusOK {
		var f protocol.Fault
		if json.Unmarshal(body, &f) != nil || f.Error == "" {
			f.Error = r.Status
		}
		return nil, fmt.Errorf("the server says: %s", f.Error)
	}
	return body, nil
}

func (i *Installer) ask(ctx context.Context, path string, in, out any) error {
	body, err := i.post(ctx, path, in)
	if err != nil || out == nil {
		return err
	}
	return json.Unmarshal(body, out)
}

// tell reports how far the machine is. That nobody hears it changes nothing.
func (i *Installer) tell(ctx context.Context, r protocol.Report) {
	if i.client == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	r.Session = i.Hello.Session
	_ = i.ask(ctx, protocol.ReportPath, r, nil)
}

// WriteOutcome stores it for init.
func WriteOutcome(name string, o machine.Netboot) error {
	data, err := json.Marshal(o)
	if err != nil {
		return err
	}
	return atomicfile.Write(name, data, 0o600)
}
