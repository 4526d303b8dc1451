// Command skerry-install runs in the initramfs of a machine that was started over the network. Init starts it, shows what it
// prints on every console, and reads from the file it leaves what to do next (see image/install).
package main

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/skerry-os/skerry/image/flash"
	"github.com/skerry-os/skerry/image/install"
	"github.com/skerry-os/skerry/image/netboot/protocol"
	"github.com/skerry-os/skerry/pkg/clock"
	"github.com/skerry-os/skerry/pkg/keys"
	"github.com/skerry-os/skerry/pkg/linux"
	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/network"
	"github.com/skerry-os/skerry/pkg/version"
)

func main() {
	if err := run(context.Background()); err != nil {
		say("%v", err)
		os.Exit(1)
	}
}

func say(format string, a ...any) { fmt.Printf(format+"\n", a...) }

func run(ctx context.Context) error {
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	board, pin := linux.Cmdline(string(line), "skerry.board"), linux.Cmdline(string(line), protocol.PinArg)
	if board == "" || len(pin) != 64 {
		return errors.New("the kernel command line lacks skerry.board or " + protocol.PinArg + "; start the machine with: skerry pxe serve")
	}
	trusted, err := trustedKeys("/etc/skerry/keys")
	if err != nil {
		return err
	}
	if _, err := clock.System().Raise(version.BuildTime()); err != nil {
		say("the clock: %v; going on", err)
	}
	net := &network.Manager{Config: machine.Network{}, Log: say}
	go func() { // lives as long as the program
		for {
			say("network: %v; again in ten seconds", net.Run(ctx))
			time.Sleep(10 * time.Second)
		}
	}()
	i := &install.Installer{
		Pin: pin, Hello: install.Describe(board), Keys: trusted, Root: "/", Memory: machine.NetbootDir, Log: say,
		Open: func(name string) (install.Disk, error) { return flash.OpenDevice(name) },
		Find: func(ctx context.Context) (string, error) {
			if err := net.WaitAddress(ctx); err != nil {
				return "", err
			}
			return install.Find(ctx, say)
		},
	}
	if m := linux.EFIVars(); i.Hello.Firmware == protocol.UEFI {
		i.Vars = linux.EFIVariables{Dir: m.Target}
	}
	say("waiting for an address by DHCP")
	if err := net.WaitAddress(ctx); err != nil {
		return err
	}
	i.Hello.MACs = install.MACs()
	out, err := i.Run(ctx)
	if err != nil {
		return err
	}
	return install.WriteOutcome(machine.NetbootFile, out)
}

func trustedKeys(dir string) ([]ed25519.PublicKey, error) {
	names, err := filepath.Glob(filepath.Join(dir, "*.pub"))
	if err != nil {
		return nil, err
	}
	var out []ed25519.PublicKey
	for _, name := range names {
		data, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		key, err := keys.ParsePublic(data)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		out = append(out, key)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s: holds no release key; no release can be trusted", dir)
	}
	return out, nil
}
