package main

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/skerry-os/skerry/pkg/floor"
	"github.com/skerry-os/skerry/pkg/linux"
	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/release"
	"github.com/skerry-os/skerry/pkg/slot"
)

const (
	newRoot  = "/sysroot"
	keysDir  = "/etc/skerry/keys"
	bootJSON = "/" + machine.BootFile
)

// mountKernel gives us /dev, /proc, /sys and /run.
func mountKernel(_ context.Context, s *system) error {
	var errs []error
	for _, m := range linux.KernelMounts() {
		errs = append(errs, m.Do())
	}
	takeStdio()
	s.console.open(linux.Consoles(os.DirFS("/sys")))
	return errors.Join(errs...)
}

// takeStdio makes the console our standard output: what Go's runtime says of a panic must be seen.
func takeStdio() {
	f, err := os.OpenFile("/dev/console", os.O_RDWR|noCTTY, 0)
	if err != nil {
		return
	}
	defer f.Close()
	for fd := range 3 {
		_ = unix.Dup3(int(f.Fd()), fd, 0)
	}
}

// cmdline is what the signed kernel image says it is for.
type cmdline struct{ line, board, rootHash, slots string }

func readCmdline(_ context.Context, s *system) error {
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	s.cmdline = cmdline{
		line: string(line), board: linux.Cmdline(string(line), "skerry.board"), rootHash: linux.Cmdline(string(line), "skerry.roothash"),
		slots: cmp.Or(linux.Cmdline(string(line), "skerry.slots"), slot.KindUEFI),
	}
	if s.cmdline.board == "" || s.cmdline.rootHash == "" {
		return errors.New("the kernel command line lacks skerry.board or skerry.roothash; boot the release's own kernel image")
	}
	s.keys, err = readKeys(os.DirFS(keysDir))
	return err
}

// readKeys reads the public keys a release may be signed with.
func readKeys(fsys fs.FS) ([]ed25519.PublicKey, error) {
	names, err := fs.Glob(fsys, "*.pub")
	if err != nil {
		return nil, err
	}
	var keys []ed25519.PublicKey
	for _, name := range names {
		data, err := fs.ReadFile(fsys, name)
		if err != nil {
			return nil, err
		}
		block, _ := pem.Decode(data)
		if block == nil {
			return nil, fmt.Errorf("%s: is not PEM", name)
		}
		pub, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		key, ok := pub.(ed25519.PublicKey)
		if !ok {
			return nil, fmt.Errorf("%s: is a %T, not an ed25519 key", name, pub)
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		return nil, errors.New("the initramfs holds no release key; no root can be trusted")
	}
	return keys, nil
}

// findSlot waits for the partition that this boot is for.
func findSlot(ctx context.Context, s *system) error {
	byState := false
	var want choice
	var err error
	switch s.cmdline.slots {
	case slot.KindUEFI:
		want, err = firmwareChoice()
	case slot.KindGRUB:
		want, err = readChoice(slot.NewGRUB(slot.Volume{}, s.cmdline.line)) // a BIOS has no Secure Boot
	default:
		byState = true
	}
	if err != nil {
		return err
	}
	if want.id == "" && !byState {
		// Without a word from the firmware there is no trial, and any slot this kernel belongs to will do.
		s.boot.Note = slot.ErrNotNamed.Error()
	}
	for {
		found := s.deviceCame() // before looking, so that nothing comes unseen in between
		parts, err := linux.Partitions(os.DirFS("/sys"))
		if err != nil {
			return err
		}
		if want.esp != "" {
			linux.ReadUUIDs(parts)
		}
		var p *linux.Partition
		if byState {
			p, want.trial = s.findByState(parts)
		} else if p, err = s.firstThatFits(candidates(parts, want), want); err != nil {
			return err
		}
		if p != nil {
			s.root = *p
			s.boot.Slot, _ = slot.Parse(strings.TrimPrefix(p.Label, "root-"))
			s.boot.Trial, s.boot.Secure = want.trial, want.secureBoot
			s.boot.Disk, s.boot.Root = p.DiskDev(), p.Dev()
			return nil
		}
		select {
		case <-found:
		case <-ctx.Done():
			return fmt.Errorf("%w: no partition %s; disks seen: %s", context.Cause(ctx), want, describeDisks(parts))
		}
	}
}

// choice is what the firmware says it booted.
type choice struct {
	id    slot.ID // "" for no word
	trial bool
	esp   string // PARTUUID of the boot partition, "" for no word

	secureBoot bool
}

func (c choice) String() string {
	if c.id == "" {
		return "root-a or root-b with this kernel's root hash"
	}
	if c.esp != "" {
		return fmt.Sprintf("%s on the disk with boot partition %s", c.id.RootLabel(), c.esp)
	}
	return c.id.RootLabel()
}

// firmwareChoice reads it from the EFI variables. Machines without them say nothing.
func firmwareChoice() (choice, error) {
	m := linux.EFIVars()
	if !exists(m.Target) {
		return choice{}, nil // no EFI, or one whose variables cannot be had at run time
	}
	if err := m.Do(); err != nil {
		return choice{}, err
	}
	u := slot.UEFI{Vars: os.DirFS(m.Target)}
	c, err := readChoice(u)
	if err != nil {
		return c, err
	}
	c.secureBoot, err = u.SecureBoot()
	return c, err
}

// naming is firmware that names the slot and the partition it was started from.
type naming interface {
	Booted() (id slot.ID, trial bool, err error)
	ESPID() (string, error)
}

func readChoice(u naming) (c choice, err error) {
	c.id, c.trial, err = u.Booted()
	if err != nil && !errors.Is(err, slot.ErrNotNamed) {
		return c, err
	}
	c.esp, err = u.ESPID()
	if errors.Is(err, slot.ErrNotNamed) {
		err = nil
	}
	return c, err
}

// candidates lists the root partitions the boot may be for, best first. Where the firmware names a slot, only that one:
// falling back is the firmware's business, and whoever updates later must know for certain which slot runs. Where it names
// its boot partition, only that partition's disk: a USB stick with Skerry beside a disk with Skerry is two machines.
func candidates(parts []linux.Partition, want choice) []linux.Partition {
	disk := ""
	if want.esp != "" {
		for _, p := range parts {
			if p.UUID == want.esp {
				disk = p.Disk
			}
		}
		if disk == "" {
			return nil // not there yet
		}
	}
	var out []linux.Partition
	for _, id := range slot.IDs {
		if want.id != "" && want.id != id {
			continue
		}
		for _, p := range parts {
			if p.Label == id.RootLabel() && (disk == "" || p.Disk == disk) {
				out = append(out, p)
			}
		}
	}
	return out
}

// firstThatFits picks a candidate. With the firmware's word it is the first, right or wrong: verifySlot says what is wrong.
// Without, it is the first whose signed manifest names this kernel's root hash.
func (s *system) firstThatFits(list []linux.Partition, want choice) (*linux.Partition, error) {
	for _, p := range list {
		if want.id != "" {
			return &p, nil
		}
		r, err := readTail(p, s.keys)
		if err != nil {
			s.console.sayf("find slot: %s: %s; not this one", p.Dev(), oneLine(err))
			continue
		}
		if r.Manifest().Root.RootHash == s.cmdline.rootHash {
			return &p, nil
		}
	}
	return nil, nil
}

func describeDisks(parts []linux.Partition) string {
	if len(parts) == 0 {
		return "none"
	}
	var out []string
	for _, p := range parts {
		out = append(out, strings.Join(strings.Fields(p.Name+" "+p.Label+" "+p.UUID), " "))
	}
	return strings.Join(out, ", ")
}

func readTail(p linux.Partition, keys []ed25519.PublicKey) (*release.Release, error) {
	f, err := os.Open(p.Dev())
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return release.ReadTail(f, p.Size, keys)
}

// verifySlot checks that the slot holds a signed release for this machine and this kernel.
func verifySlot(_ context.Context, s *system) error {
	r, err := readTail(s.root, s.keys)
	if err != nil {
		return fmt.Errorf("slot %s (%s): %w", s.boot.Slot, s.root.Dev(), err)
	}
	if err := fits(r.Manifest(), s.cmdline, runtime.GOARCH); err != nil {
		return fmt.Errorf("slot %s (%s): %w", s.boot.Slot, s.root.Dev(), err)
	}
	s.release = r
	s.boot.Board, s.boot.Version = s.cmdline.board, r.Manifest().Version
	return nil
}

// fits says why a release is not for this machine and kernel.
func fits(m *release.Manifest, c cmdline, arch string) error {
	var errs []error
	if m.Arch != arch {
		errs = append(errs, fmt.Errorf("release %s is for %s; this machine is %s", m.Version, m.Arch, arch))
	}
	if !slices.Contains(m.BoardIDs(), c.board) {
		errs = append(errs, fmt.Errorf("release %s has no board %s", m.Version, c.board))
	}
	if m.Root.RootHash != c.rootHash {
		errs = append(errs, fmt.Errorf("the root hash of release %s is %.8s; this kernel belongs to %.8s", m.Version, m.Root.RootHash, c.rootHash))
	}
	return errors.Join(errs...)
}

// checkFloor refuses a release that is older than the floor. A machine that has no place for one, or whose place is broken,
// goes on: the record on the data partition has another.
func checkFloor(_ context.Context, s *system) error {
	p, done, err := floorPlace()
	if err != nil {
		s.console.sayf("check floor: %s; going on without", oneLine(err))
	}
	if p == nil {
		return nil
	}
	defer done()
	s.boot.FloorIn = p.String()
	s.boot.Floor, err = floor.Hold(p, s.boot.Version, s.otherVersion(), !s.boot.Trial)
	switch {
	case errors.Is(err, release.ErrRollback):
		return err
	case err != nil:
		s.console.sayf("check floor: %s; going on", oneLine(err))
	case s.boot.Floor != "":
		s.console.sayf("check floor: nothing older than %s starts, says %s", s.boot.Floor, p)
	}
	return nil
}

// floorPlace is the best this machine has, nil for none.
func floorPlace() (floor.Place, func(), error) {
	tpm, done, err := floor.OpenTPM()
	if err == nil {
		return tpm, func() { _ = done() }, nil
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	vars := linux.EFIVars().Target
	if exists(filepath.Join(vars, slot.BootOrder)) {
		return floor.Variable{Vars: os.DirFS(vars), Set: linux.EFIVariables{Dir: vars}}, func() {}, err
	}
	return nil, nil, err
}

// otherVersion is the version of the release in the other slot of the same disk, "" if there is none that is signed.
func (s *system) otherVersion() string {
	parts, err := linux.Partitions(os.DirFS("/sys"))
	if err != nil {
		return ""
	}
	for _, p := range parts {
		if p.Disk == s.root.Disk && p.Label == s.boot.Slot.Other().RootLabel() {
			if r, err := readTail(p, s.keys); err == nil {
				return r.Manifest().Version
			}
		}
	}
	return ""
}

// openRoot mounts the root, every block of it checked on the way.
func openRoot(_ context.Context, s *system) error {
	dev, err := linux.OpenVerity("skerry-root", s.root.Dev(), s.release.Manifest().Root)
	if err != nil {
		return err
	}
	s.device = dev
	return linux.Mount{Source: dev, Target: newRoot, FS: "erofs", Flags: unix.MS_RDONLY | unix.MS_NODEV | unix.MS_NOSUID}.Do()
}

// switchRoot hands over to stage 2: the facts in /run, the watchdog as an open file.
func switchRoot(_ context.Context, s *system) error {
	if err := handTrustOver(keysDir, "/"+machine.TrustDir); err != nil {
		return err
	}
	data, err := json.Marshal(s.boot)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(bootJSON), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(bootJSON, append(data, '\n'), 0o644); err != nil {
		return err
	}
	env := []string{"PATH=" + nodePath, "HOME=/"}
	if s.watchdog != nil {
		fd, err := s.watchdog.Keep()
		if err != nil {
			return err
		}
		env = append(env, fmt.Sprintf("%s=%d", watchdogEnv, fd))
	}
	if err := linux.SwitchRoot(newRoot); err != nil {
		return err
	}
	s.console.sayf("switch root: slot %s, release %s, %s %s", cmp.Or(string(s.boot.Slot), "none"), s.boot.Version, s.boot.Root, afterPowerOn())
	return fmt.Errorf("/sbin/init of the root: %w", unix.Exec("/sbin/init", []string{"/sbin/init"}, env))
}
