package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skerry-os/skerry/pkg/linux"
	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/release"
	"github.com/skerry-os/skerry/pkg/slot"
)

// installLimit is how long the installer may wait for a person, a cable or a server before the machine starts anew.
const installLimit = 30 * 24 * time.Hour

// netbooted says whether this is the initramfs of a machine that was started over the network.
func netbooted() bool { return exists(machine.InstallerFile) }

// runInstaller runs the installer to its end and shows what it says. An installed machine restarts here.
func runInstaller(ctx context.Context, s *system) error {
	cmd := exec.CommandContext(ctx, machine.InstallerFile)
	cmd.Env = []string{"PATH=" + nodePath, "HOME=/"}
	said, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	cmd.Stderr = cmd.Stdout
	if err := os.MkdirAll(filepath.Dir(machine.NetbootFile), 0o755); err != nil {
		return err
	}
	if m := linux.EFIVars(); exists(m.Target) {
		if err := m.Do(); err != nil {
			s.console.sayf("netboot: %s; going on without", oneLine(err))
		}
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	for lines := bufio.NewScanner(said); lines.Scan(); {
		s.console.say("netboot: " + lines.Text())
	}
	_, _ = io.Copy(io.Discard, said) // of a line that is too long
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("the installer ended: %w", err)
	}
	data, err := os.ReadFile(machine.NetbootFile)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, &s.netboot); err != nil {
		return fmt.Errorf("%s: %w", machine.NetbootFile, err)
	}
	if s.netboot.Diskless {
		return nil
	}
	unix.Sync()
	s.console.sayf("netboot: %s; restart, from the disk", s.netboot.Why)
	return errors.Join(linux.Restart(), errors.New("the kernel did not restart"))
}

// openMemory checks the root in memory as verifySlot and openRoot do one on a disk, and mounts it.
func openMemory(_ context.Context, s *system) error {
	file := func(name string) string { return filepath.Join(machine.NetbootDir, name) }
	manifest, err := os.ReadFile(file(release.ManifestName))
	if err != nil {
		return err
	}
	sig, err := os.ReadFile(file(release.SignatureName))
	if err != nil {
		return err
	}
	if s.release, err = release.Verify(manifest, sig, s.keys); err != nil {
		return err
	}
	if err := fits(s.release.Manifest(), s.cmdline, runtime.GOARCH); err != nil {
		return err
	}
	if err := os.CopyFS(configDir, os.DirFS(file(machine.NetbootConfigDir))); err != nil {
		return err
	}
	if err := os.Chmod(configDir, 0o700); err != nil {
		return err
	}
	dev, err := linux.AttachLoop(file(machine.NetbootRoot))
	if err != nil {
		return err
	}
	s.root = linux.Partition{Name: strings.TrimPrefix(dev, "/dev/")}
	s.boot.Board, s.boot.Version, s.boot.Root, s.boot.Disk, s.boot.Netboot = s.cmdline.board, s.release.Manifest().Version, dev, s.netboot.State, true
	s.boot.Secure, _ = slot.UEFI{Vars: os.DirFS(linux.EFIVars().Target)}.SecureBoot() // a BIOS has none
	return openRoot(context.Background(), s)
}

// memoryData is /var of a machine that has no disk: what is there, a restart forgets.
func memoryData(s *system) error {
	s.console.sayf("mount data: in memory; a restart forgets what is there")
	m := linux.Mount{Source: "tmpfs", Target: "/var", FS: "tmpfs", Flags: unix.MS_NODEV | unix.MS_NOSUID, Data: "mode=0755,size=50%"}
	if err := m.Do(); err != nil {
		return err
	}
	return makeDirs("/")
}
