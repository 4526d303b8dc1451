package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skerry-os/skerry/boards"
	"github.com/skerry-os/skerry/pkg/atomicfile"
	"github.com/skerry-os/skerry/pkg/linux"
	"github.com/skerry-os/skerry/pkg/machine"
)

const (
	configName = "config.yaml"
	goodConfig = dataDir + "/config/last-good.yaml"

	// forever is the limit of a step that a person ends.
	forever = 100 * 365 * 24 * time.Hour
	// lookAtConfig is how often the config partition is looked at for a change.
	lookAtConfig = 10 * time.Second
)

// told is what stands on the config partition, and what came of it: a config or an error.
type told struct {
	data, sig []byte
	config    *machine.Config
	err       error
}

func (t told) same(o told) bool { return bytes.Equal(t.data, o.data) && bytes.Equal(t.sig, o.sig) }

// readConfig reads the node config from the partition that any PC can edit. What is wrong with it is settled once the data
// partition is there, which has the last good one.
func readConfig(ctx context.Context, s *system) error {
	boot, done := s.bootFiles()
	policy, err := readPolicy(os.DirFS("/"+machine.TrustDir), boot)
	done()
	if err != nil {
		return err
	}
	s.policy = policy
	s.told = s.readTold(ctx)
	cmdline, err := os.ReadFile("/proc/cmdline")
	s.platform, s.configURL = platformOf(string(cmdline))
	return err
}

// bootFiles mounts the boot partition for reading; nil where the disk has none.
func (s *system) bootFiles() (fs.FS, func()) {
	const dir = runDir + "/boot"
	parts, err := linux.Partitions(os.DirFS("/sys"))
	if err != nil {
		return nil, func() {}
	}
	for _, p := range parts {
		if (p.Label == boards.ESP || p.Label == boards.Select) && p.DiskDev() == s.id.Boot.Disk {
			m := linux.Mount{Source: p.Dev(), Target: dir, FS: "vfat", Flags: unix.MS_RDONLY | unix.MS_NODEV | unix.MS_NOSUID | unix.MS_NOEXEC, Data: "umask=0077"}
			if err := m.Do(); err != nil {
				s.console.sayf("read config: %s", oneLine(err))
				return nil, func() {}
			}
			return os.DirFS(dir), func() { _ = linux.UnmountBelow(dir) } // it stays readable, at worst
		}
	}
	return nil, func() {}
}

// policy is which configs this machine takes, and by whom they may be signed.
type policy struct {
	machine.Policy
	keys []ed25519.PublicKey
}

// readPolicy reads it from what the signed release says, or else from what the image says on its boot partition. Only the former
// is out of reach of somebody with the disk in hand, so it also decides alone about the keys. boot may be nil.
func readPolicy(trust, boot fs.FS) (p policy, err error) {
	said, err := readOptional(trust, machine.ReleasePolicyFile)
	if err != nil {
		return p, err
	}
	more, err := readOptional(trust, machine.ReleaseKeysFile)
	if err != nil {
		return p, err
	}
	p.Policy = machine.Policy(strings.TrimSpace(string(said)))
	if p.Policy != machine.PolicySigned && boot != nil {
		said, err := readOptional(boot, machine.ImagePolicyFile)
		if err != nil {
			return p, err
		}
		keys, err := readOptional(boot, machine.ImageKeysFile)
		if err != nil {
			return p, err
		}
		p.Policy, more = machine.Policy(strings.TrimSpace(string(said))), append(more, keys...)
	}
	if err := p.Check(); err != nil {
		return p, err
	}
	if p.keys, err = machine.ParseKeys(more); err != nil {
		return p, fmt.Errorf("keys for node configs: %w", err)
	}
	keys, err := readKeys(trust)
	if err != nil && p.Policy == machine.PolicySigned && len(p.keys) == 0 {
		return p, err
	}
	p.keys = append(p.keys, keys...)
	return p, nil
}

func readOptional(fsys fs.FS, name string) ([]byte, error) {
	data, err := fs.ReadFile(fsys, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return data, err
}

// decode makes a config of a file and its signature, by the image's policy.
func (p policy) decode(name string, data, sig []byte) (*machine.Config, error) {
	if p.Policy == machine.PolicySigned || len(sig) > 0 && len(p.keys) > 0 {
		// A signature that is there must be right, whatever the policy: it says that somebody meant to guard the file.
		if _, err := machine.VerifyConfig(data, sig, p.keys); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	return machine.Decode(name, data)
}

// readTold mounts the partition anew, so that what a PC or another machine wrote is seen, and reads.
func (s *system) readTold(ctx context.Context) (t told) {
	if s.id.Boot.Netboot { // stage 1 put it in place
		return readToldFrom(os.DirFS(configDir), s.policy)
	}
	limited, cancel := context.WithTimeoutCause(ctx, 20*time.Second, errors.New("waited 20s"))
	defer cancel()
	p, err := s.partition(limited, "config")
	if err != nil {
		return told{err: err}
	}
	if there, err := linux.Mounted(configDir); err == nil && there {
		if err := linux.UnmountBelow(configDir); err != nil {
			return told{err: err}
		}
	}
	// Only root may read it: it holds the token.
	m := linux.Mount{Source: p.Dev(), Target: configDir, FS: "vfat", Flags: unix.MS_RDONLY | unix.MS_NODEV | unix.MS_NOSUID | unix.MS_NOEXEC, Data: "umask=0077"}
	if err := m.Do(); err != nil {
		return told{err: fmt.Errorf("the config partition cannot be read: %w", err)}
	}
	return readToldFrom(os.DirFS(configDir), s.policy)
}

func readToldFrom(dir fs.FS, p policy) (t told) {
	t.data, t.err = fs.ReadFile(dir, configName)
	if errors.Is(t.err, fs.ErrNotExist) {
		t.err = fmt.Errorf("the config partition holds no %s; write one", configName)
	}
	if t.err != nil {
		return t
	}
	if t.sig, t.err = fs.ReadFile(dir, configName+machine.SignatureSuffix); errors.Is(t.err, fs.ErrNotExist) {
		t.err = nil
	}
	if t.err == nil {
		t.config, t.err = p.decode(configName, t.data, t.sig)
	}
	return t
}

// settleConfig decides what this start runs with: what the partition says, or the last good config, or nothing until a person
// has written one. A slot on trial must like the config that the slot before it likes.
func settleConfig(ctx context.Context, s *system) error {
	err := s.settle(ctx)
	if err == nil && !s.id.Release.Debug {
		s.missSSH(s.config.SSH)
	}
	return err
}

func (s *system) settle(ctx context.Context) error {
	if s.platform != "" {
		return s.askPlatform(ctx)
	}
	if s.told.err == nil {
		return s.take(s.told)
	}
	if s.id.Boot.Trial {
		return s.told.err
	}
	good, err := loadGood(goodConfig, s.policy)
	if err != nil {
		s.console.sayf("config: the last good one: %s", oneLine(err))
	}
	if good != nil {
		s.config = good
		s.complain("%s; the last good config goes on. Edit it on a PC: volume %s", oneLine(s.told.err), configVolume)
		return nil
	}
	if err := s.waitForConfig(ctx); err != nil {
		return err
	}
	return s.take(s.told)
}

// configVolume is what a PC calls the config partition.
const configVolume = "SKERRYCFG"

// take makes a config the one of this start, and the last good one.
func (s *system) take(t told) error {
	s.config = t.config
	s.inForce.Store(&t)
	if err := keepGood(goodConfig, t); err != nil {
		s.console.sayf("config: keeping it as the last good one: %s", oneLine(err))
	}
	return nil
}

// complain says on console and display what is wrong with the config.
func (s *system) complain(format string, a ...any) {
	text := fmt.Sprintf(format, a...)
	s.note("config", text)
	s.console.say("config: " + text)
}

// goodMark begins the first line of a kept config, which has its signature, if any: in one file they change in one step.
const goodMark = "# signature: "

// loadGood gives the last config that was good; nil for none. It is held to the policy as one on the config partition is: whoever
// has the disk in hand can write either. A release may have learned to refuse it.
func loadGood(name string, p policy) (*machine.Config, error) {
	data, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var sig []byte
	if rest, ok := bytes.CutPrefix(data, []byte(goodMark)); ok { // older releases wrote none
		sig, data, _ = bytes.Cut(rest, []byte("\n"))
	}
	return p.decode(filepath.Base(name), data, sig)
}

func keepGood(name string, t told) error {
	var sig bytes.Buffer
	if len(t.sig) > 0 {
		if err := json.Compact(&sig, t.sig); err != nil { // of one line; one that is none was not needed, or the config were refused
			sig.Reset()
		}
	}
	data := slices.Concat([]byte(goodMark), sig.Bytes(), []byte("\n"), t.data)
	if old, err := os.ReadFile(name); err == nil && bytes.Equal(old, data) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return err
	}
	return atomicfile.Write(name, data, 0o600)
}

// signedNetwork remembers the network config that worked last on a machine that takes signed configs alone: with the config that it
// is part of, and that one's signature.
type signedNetwork struct {
	s    *system
	file string
}

func (n signedNetwork) Last() (*machine.Network, error) {
	c, err := loadGood(n.file, n.s.policy)
	if c == nil || err != nil {
		return nil, err
	}
	return &c.Network, nil
}

func (n signedNetwork) Keep(cfg machine.Network) error {
	t := n.s.inForce.Load()
	if t == nil || !reflect.DeepEqual(t.config.Network, cfg) {
		return nil // the machine waits for a config, or has a newer one by now
	}
	return keepGood(n.file, *t)
}
