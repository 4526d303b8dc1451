package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skerry-os/skerry/pkg/atomicfile"
	"github.com/skerry-os/skerry/pkg/linux"
	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/platform"
)

const (
	platformFile = dataDir + "/platform/instance.json"
	volumeDir    = runDir + "/volume"

	// badConfigWait is how long a node config that cannot be used stays on the console before it is fetched again.
	badConfigWait = 30 * time.Second
	// addressWait is how long the first question waits for an address.
	addressWait = 20 * time.Second
	// noVolumeWait is how long a machine that can do without waits for a volume.
	noVolumeWait = 15 * time.Second
	// platformWait is how long a machine asks before it starts anew: nobody is near it, and what keeps it from an answer may be a
	// card or a driver that only a restart gets going.
	platformWait = time.Hour
	// reportWait is between two tries to report.
	reportWait = 10 * time.Second
)

// platformOf gives the platform that the kernel was told of, and the address of a node config, if any.
func platformOf(cmdline string) (name, url string) {
	if url = linux.Cmdline(cmdline, "skerry.config"); url != "" {
		return "url", url
	}
	return linux.Cmdline(cmdline, "skerry.platform"), ""
}

// askPlatform makes the node config of a machine in a cloud: the image's, if it has one, and over it what the platform says.
// It asks at the first boot; later ones find the answer on the data partition and need no network for it.
func (s *system) askPlatform(ctx context.Context) error {
	if len(s.told.data) > 0 && s.told.err != nil {
		return s.told.err // the image was not built like this
	}
	id := platform.Machine(os.DirFS("/sys"))
	kept, err := platform.Load(platformFile, id)
	if err != nil {
		s.console.sayf("config: %s; asking anew", oneLine(err))
	}
	if kept == nil {
		if kept, err = s.fetchInstance(ctx, id); err != nil {
			return err
		}
	}
	if kept == nil { // nobody says anything, and the image's config will do
		s.config = s.told.config
		return nil
	}
	if s.config, _, err = s.configFrom(&kept.Instance); err != nil {
		return err
	}
	if !kept.Reported {
		s.behind(func(ctx context.Context) { s.report(ctx, kept, platformFile, platform.Report) })
	}
	return nil
}

// fetchInstance asks until the platform gives a node config that can be used, and keeps it.
func (s *system) fetchInstance(ctx context.Context, id string) (*platform.Kept, error) {
	s.keepNetwork(machine.Network{}) // every wired link by DHCP, whatever the config will say of them
	wait, stop := context.WithTimeout(ctx, addressWait)
	_ = s.network.WaitAddress(wait) // without one, whoever asks says what is wrong
	stop()
	place := &platform.Place{Volume: findVolume, URL: s.configURL, Log: s.console.sayf, SSHKeys: s.id.Release.Debug}
	i, user, err := s.usableInstance(ctx, func(ctx context.Context) (*platform.Instance, error) { return platform.Ask(ctx, s.platform, place) })
	if i == nil || err != nil {
		return nil, err
	}
	if len(user.SSHKeys) > 0 && !s.id.Release.Debug {
		user.Warnings = append(user.Warnings, "user data: cloud-config: ssh_authorized_keys: this release has no SSH")
	}
	for _, w := range user.Warnings {
		s.console.sayf("config: %s", w)
	}
	kept := &platform.Kept{Machine: id, Instance: *i, Reported: s.platform != "azure"}
	return kept, errors.Join(writeFiles("/", user.Files), kept.Save(platformFile))
}

// usableInstance asks until what is answered makes a node config; nil where the image's own will do.
func (s *system) usableInstance(ctx context.Context, ask func(context.Context) (*platform.Instance, error)) (*platform.Instance, *platform.Config, error) {
	ctx, stop := context.WithTimeoutCause(ctx, platformWait, fmt.Errorf("waited %v", platformWait))
	defer stop()
	limit := ctx
	if s.told.config != nil && s.platform == "proxmox" {
		var cancel context.CancelFunc
		limit, cancel = context.WithTimeout(ctx, noVolumeWait)
		defer cancel()
	}
	for {
		i, err := ask(limit)
		switch {
		case err != nil && ctx.Err() == nil:
			s.console.sayf("config: %s; the image's own node config will do", oneLine(err))
			return nil, nil, nil //nolint:nilerr // said above
		case err != nil:
			return nil, nil, err
		}
		limit = ctx // there is a volume: what is wrong on it is waited for
		_, user, err := s.configFrom(i)
		if err == nil {
			return i, user, nil
		}
		s.console.sayf("config: %s; correct it there, asking again in %v", oneLine(err), badConfigWait)
		select {
		case <-ctx.Done():
			return nil, nil, fmt.Errorf("%w (%w)", err, context.Cause(ctx))
		case <-time.After(badConfigWait):
		}
	}
}

// configFrom puts the node config together.
func (s *system) configFrom(i *platform.Instance) (*machine.Config, *platform.Config, error) {
	user, err := platform.ReadUserData(i.UserData)
	if err != nil {
		return nil, nil, err
	}
	signed := s.policy.Policy == machine.PolicySigned
	if signed && (len(user.Node) > 0 || len(user.Files) > 0) { // a file may be a manifest, or the node's settings
		return nil, nil, errors.New("user data: this machine takes signed node configs alone, and user data has no signature; leave it away")
	}
	facts := machine.Facts{Hostname: i.Hostname, Labels: i.Labels(), ProviderID: i.ProviderID}
	if s.id.Release.Debug && !signed { // others have no use for keys, and no complaint about them
		facts.SSHKeys = slices.Concat(user.SSHKeys, i.SSHKeys)
	}
	c, err := machine.DecodeLayers(facts,
		machine.Layer{Name: configName, Data: s.told.data}, machine.Layer{Name: "user data", Data: user.Node})
	if err != nil && len(s.told.data) == 0 && len(user.Node) == 0 {
		err = fmt.Errorf("neither the image nor the platform has a node config for this machine (%s %s)", i.Platform, i.ID)
	}
	return c, user, err
}

// findVolume mounts the volume that a hypervisor attached.
func findVolume(_ context.Context, labels ...string) (fs.FS, bool, func(), error) {
	return mountVolume(os.DirFS("/sys"), "/dev/", volumeDir, labels...)
}

// mountVolume mounts the volume with one of the labels, of the devices that sys knows and dev has.
func mountVolume(sys fs.FS, dev, dir string, labels ...string) (fs.FS, bool, func(), error) {
	open := func(name string) (io.ReaderAt, func(), error) {
		f, err := os.OpenFile(dev+name, os.O_RDONLY|nonBlock, 0)
		if err != nil {
			return nil, nil, err
		}
		return f, func() { _ = f.Close() }, nil
	}
	device, kind := platform.FindVolume(sys, open, labels...)
	if device == "" {
		return nil, false, nil, nil
	}
	m := linux.Mount{Source: dev + device, Target: dir, FS: kind, Flags: unix.MS_RDONLY | unix.MS_NODEV | unix.MS_NOSUID | unix.MS_NOEXEC}
	if err := m.Do(); err != nil {
		return nil, false, nil, err
	}
	return os.DirFS(dir), true, func() { _ = unix.Unmount(dir, 0) }, nil
}

// writeFiles writes what user data brings below root, which is / but for tests.
func writeFiles(root string, files []platform.File) error {
	var errs []error
	for _, f := range files {
		name := filepath.Join(root, f.Path)
		err := os.MkdirAll(filepath.Dir(name), 0o700)
		if err == nil {
			err = atomicfile.Write(name, f.Data, f.Mode)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// report tells the platform that the machine is there, until it hears, and notes that in the file.
func (s *system) report(ctx context.Context, kept *platform.Kept, file string, tell func(context.Context, *platform.Instance) error) {
	said := false
	for ctx.Err() == nil {
		err := tell(ctx, &kept.Instance)
		if err == nil {
			kept.Reported = true
			if err := kept.Save(file); err != nil {
				s.console.sayf("config: %s", oneLine(err))
			}
			return
		}
		if !said {
			s.console.sayf("config: reporting that this machine is there: %s; trying on", oneLine(err))
			said = true
		}
		select {
		case <-ctx.Done():
		case <-time.After(reportWait):
		}
	}
}
