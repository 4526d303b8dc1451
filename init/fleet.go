package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skerry-os/skerry/pkg/atomicfile"
	"github.com/skerry-os/skerry/pkg/linux"
	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/seed"
)

const (
	// lateCards is how long a machine without a name waits for network cards that come late.
	lateCards  = 5 * time.Second
	remindEach = time.Minute
)

// findOwnNode takes this machine's config out of the table on a fleet's card that fits all of its machines, and erases the table.
func findOwnNode(ctx context.Context, s *system) error {
	if s.id.Boot.Netboot {
		return nil // whoever answered knew which machine asked
	}
	limited, cancel := context.WithTimeoutCause(ctx, 20*time.Second, errors.New("waited 20s"))
	p, err := s.partition(limited, "config")
	cancel()
	if err != nil {
		return nil //nolint:nilerr // read config says it, and goes on with the last good config
	}
	m := configMount(p.Dev(), unix.MS_RDONLY)
	if err := m.Do(); err != nil {
		return nil //nolint:nilerr // as above
	}
	if exists(filepath.Join(configDir, machine.TableName)) {
		m = configMount(p.Dev(), unix.MS_REMOUNT)
		if err = m.Do(); err == nil {
			tell, done := s.waitsFor(machine.Network{}, "its place in a fleet")
			err = pickNode(ctx, configDir, os.DirFS("/"), s.console.say, tell)
			done()
		}
	}
	return errors.Join(err, linux.UnmountBelow(configDir))
}

func configMount(dev string, flags uintptr) linux.Mount {
	return linux.Mount{Source: dev, Target: configDir, FS: "vfat", Flags: unix.MS_NODEV | unix.MS_NOSUID | unix.MS_NOEXEC | flags, Data: "umask=0077"}
}

// takeSeed brings what the first server of a fleet is given from the config partition, which read config has mounted, to the data
// partition, and erases it where it was.
//
// One that cannot be taken stops the machine here, where it says why: it would begin another cluster without. It is tried again and
// again, for a full disk may be made emptier.
func takeSeed(ctx context.Context, s *system) error {
	if !exists(filepath.Join(configDir, seed.Name)) {
		return nil
	}
	if !s.id.Boot.Netboot {
		if err := configMount("", unix.MS_REMOUNT).Do(); err != nil {
			s.console.sayf("take seed: %s", oneLine(err)) // what can be read is taken all the same
		}
		readOnly := configMount("", unix.MS_REMOUNT|unix.MS_RDONLY)
		defer func() { _ = readOnly.Do() }() // a partition that stays writable does no harm
	}
	tell, done := s.waitsFor(s.config.Network, "its cluster's keys")
	defer done()
	for {
		err := moveSeed(configDir, dataDir, s.console.say)
		if err == nil {
			return nil
		}
		if err := pause(ctx, tell, oneLine(err)); err != nil {
			return err
		}
	}
}

// moveSeed is content when the seed is on the data partition, even if it cannot be erased from a card that is write-protected.
func moveSeed(dir, dataDir string, say func(string)) error {
	_, err := seed.Move(dir, dataDir)
	if err == nil {
		say("fleet: the cluster's keys are on the data partition now, and erased from the card")
		return nil
	}
	if there, e := seed.Load(dataDir); e == nil && there != nil {
		say(fmt.Sprintf("fleet: the cluster's keys are on the data partition, and still on the card: %s", oneLine(err)))
		return nil
	}
	return err
}

// pickNode writes the config of this machine's node, and its seed if it has one, in the table's place. say gets what was done, tell
// what the machine waits for.
func pickNode(ctx context.Context, dir string, hardware fs.FS, say, tell func(string)) error {
	file, config := filepath.Join(dir, machine.TableName), filepath.Join(dir, configName)
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if text, err := os.ReadFile(config); err == nil {
		if _, err := machine.Decode(configName, text); err == nil {
			return seed.Erase(file) // power failed before, or a person wrote one
		}
	}
	table, err := machine.ParseTable(data)
	if err != nil {
		return wait(ctx, tell, fmt.Sprintf("%v; write the card again", err))
	}
	n, err := findNode(ctx, table, hardware, tell)
	if err != nil {
		return wait(ctx, tell, err.Error())
	}
	if len(n.Seed) > 0 {
		if err := atomicfile.Write(filepath.Join(dir, seed.Name), n.Seed, 0o600); err != nil {
			return err
		}
	}
	if err := atomicfile.Write(config, n.Config, 0o600); err != nil {
		return err
	}
	say(fmt.Sprintf("fleet %s: this machine was found by its %s", table.Fleet, n.IDs[0]))
	return seed.Erase(file)
}

// findNode asks the table for every name that the machine has, and waits for more if it knows none: a network card may come late.
func findNode(ctx context.Context, table *machine.Table, hardware fs.FS, tell func(string)) (*machine.TableNode, error) {
	var tried []string
	said := time.Time{}
	for {
		for _, id := range machine.HardwareIDs(hardware) {
			if slices.Contains(tried, id) {
				continue
			}
			tried = append(tried, id)
			n, err := table.Find(id)
			if n != nil || err != nil {
				return n, err
			}
			said = time.Time{}
		}
		if time.Since(said) >= remindEach {
			said = time.Now()
			tell(fmt.Sprintf("this machine is none of fleet %s's nodes: it is known as %s; write one of these into fleet.yaml, build and write the card again", table.Fleet, known(tried)))
		}
		select {
		case <-time.After(lateCards):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func known(ids []string) string {
	if len(ids) == 0 {
		return "nothing (no serial number, no network card)"
	}
	return strings.Join(ids, ", ")
}

// wait says what is wrong again and again, for whoever comes to look.
func wait(ctx context.Context, tell func(string), what string) error {
	for {
		if err := pause(ctx, tell, what); err != nil {
			return err
		}
	}
}

func pause(ctx context.Context, tell func(string), what string) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	tell(what)
	select {
	case <-time.After(remindEach):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
