package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skerry-os/skerry/image/datafs"
	"github.com/skerry-os/skerry/pkg/linux"
	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/supervise/process"
)

const (
	dataDir   = machine.DataDir
	logDir    = "/var/log/skerry"
	configDir = "/run/skerry/config"
	nodePath  = "/usr/bin:/usr/sbin:/usr/libexec/skerry"
)

// mountNode makes the filesystems that stage 1 did not need.
func mountNode(_ context.Context, s *system) error {
	s.console.open(linux.Consoles(os.DirFS("/sys")))
	mounts := linux.NodeMounts()
	if m := linux.EFIVars(); exists(m.Target) {
		if there, err := linux.Mounted(m.Target); err == nil && !there {
			mounts = append(mounts, m)
		}
	}
	var errs []error
	for _, m := range mounts {
		err := m.Do()
		if optionalFS(m.FS) && errors.Is(err, unix.ENODEV) {
			continue
		}
		errs = append(errs, err)
	}
	return errors.Join(append(errs, linux.ShareAll(), linux.DelegateCgroups("/sys/fs/cgroup"), linux.CatchCtrlAltDel())...)
}

// optionalFS names filesystems that a kernel may be built without.
func optionalFS(name string) bool {
	return name == "securityfs" || name == "bpf" || name == "mqueue" || name == "efivarfs"
}

func exists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

func readIdentity(_ context.Context, s *system) (err error) {
	s.id, err = machine.ReadIdentity(os.DirFS("/"))
	return err
}

// partition waits for a partition of the disk we booted from.
func (s *system) partition(ctx context.Context, label string) (linux.Partition, error) {
	for {
		came := s.deviceCame()
		parts, err := linux.Partitions(os.DirFS("/sys"))
		if err != nil {
			return linux.Partition{}, err
		}
		for _, p := range parts {
			if p.Label == label && p.DiskDev() == s.id.Boot.Disk {
				return p, nil
			}
		}
		select {
		case <-came:
		case <-ctx.Done():
			return linux.Partition{}, fmt.Errorf("%w: no partition called %s on %s", context.Cause(ctx), label, s.id.Boot.Disk)
		}
	}
}

// run runs one of the root's programs to its end.
func (s *system) run(ctx context.Context, path string, args ...string) error {
	_, err := s.reaper.Output(ctx, process.Spec{Path: path, Args: args, Env: []string{"PATH=" + nodePath}})
	return err
}

// mountData makes the last partition as large as the disk, makes or checks its filesystem, and mounts it at /var.
func mountData(ctx context.Context, s *system) error {
	if s.id.Boot.Netboot && s.id.Boot.Disk == "" {
		return memoryData(s)
	}
	p, err := s.partition(ctx, "data")
	if err != nil {
		return err
	}
	if err := s.growData(p); err != nil {
		// A disk that is full to its end as it is serves too.
		s.console.sayf("mount data: growing %s: %s; using it as it is", p.Dev(), oneLine(err))
	}
	state, err := s.prepareData(ctx, p)
	if err != nil {
		return err
	}
	m := dataMount(p.Dev())
	if err := m.Do(); err != nil {
		return err
	}
	if wiped, err := s.wipeData(ctx, m); err != nil || wiped {
		if err != nil {
			return err
		}
		state = datafs.New
	}
	if state != datafs.Used {
		if err := markData(p); err != nil {
			return err
		}
	}
	if state != datafs.New {
		// The disk may have grown since (a larger card, a larger virtual disk). Nothing to do is no error.
		if err := s.run(ctx, "/usr/sbin/resize2fs", p.Dev()); err != nil {
			s.console.sayf("mount data: growing the filesystem: %s; using it as it is", oneLine(err))
		}
	}
	if err := makeDirs("/"); err != nil {
		return err
	}
	if err := s.dataOptions().keepWord("/"); err != nil {
		return err
	}
	log, err := s.logs.Open("init.log", initLogSize)
	if err != nil {
		return err
	}
	s.console.logTo(log)
	return nil
}

// holdLogs keeps lines of the logs in memory for a while, as the config says, so that a node that has little to say does not wear
// its card. Where the kernel tells nobody who reads a log, each line is written at once: a reader must see the last ones.
func (s *system) holdLogs(c machine.Logs) {
	hold := c.Hold(usualHold(os.DirFS("/sys"), s.id.Boot.Disk))
	if hold > 0 && s.readers == nil {
		r, err := linux.HearReaders(logDir)
		if err != nil {
			s.console.sayf("logs: %s; writing each line at once", oneLine(err))
			return
		}
		s.readers = r
		s.behind(func(ctx context.Context) {
			context.AfterFunc(ctx, func() { _ = r.Close() })
			if err := r.Run(s.logs.Flush); err != nil {
				s.logs.Hold(0)
				_ = r.Close() // nobody waits for us any more
			}
		})
	}
	s.logs.Hold(hold)
}

// usualHold is long for what wears out soon.
func usualHold(sys fs.FS, disk string) time.Duration {
	name := filepath.Base(disk)
	removable, err := fs.ReadFile(sys, "block/"+name+"/removable")
	if strings.HasPrefix(name, "mmcblk") || err == nil && strings.TrimSpace(string(removable)) == "1" {
		return 5 * time.Minute
	}
	return 10 * time.Second
}

// dataMount spares the flash below. Nobody asks when a file was read, so that is not written; when it was changed is written with
// what else there is to write of it (lazytime), not for each line that a container logs. The journal is committed each half minute
// instead of each five seconds: that is what a power cut takes of files that were not synced. Whatever syncs, the datastore above all,
// is on the disk when it says so, as before.
func dataMount(dev string) linux.Mount {
	return linux.Mount{
		Source: dev, Target: "/var", FS: "ext4", Flags: unix.MS_NOATIME | unix.MS_LAZYTIME | unix.MS_NODEV | unix.MS_NOSUID,
		Data: "errors=remount-ro,commit=30",
	}
}

// growData makes the partition reach to the end of the disk, on the disk and in the kernel.
func (s *system) growData(p linux.Partition) error {
	disk, err := os.OpenFile(p.DiskDev(), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer disk.Close()
	size, err := linux.DeviceSize(disk)
	if err != nil {
		return err
	}
	num, entry, _, err := linux.GrowLastTo(disk, size, p.Label, s.dataOptions().most())
	if err != nil {
		return err
	}
	if num != p.Num {
		return fmt.Errorf("is partition %d for the kernel and %d in the table", p.Num, num)
	}
	if entry.Size == p.Size {
		return nil
	}
	return linux.ResizePartition(disk, num, entry.Start, entry.Size)
}

// prepareData makes the filesystem, or checks and repairs it, as what is there demands.
func (s *system) prepareData(ctx context.Context, p linux.Partition) (datafs.State, error) {
	state, err := probeData(p)
	if err != nil {
		return state, err
	}
	if state != datafs.New {
		err = s.checkData(ctx, p, state)
		if err == nil || state != datafs.Made {
			return state, err
		}
		s.console.sayf("mount data: %s; it was never used, making it anew", oneLine(err))
	}
	s.console.sayf("mount data: making the filesystem on %s (first boot)", p.Dev())
	return datafs.New, s.makeData(ctx, p.Dev())
}

// makeData writes what a filesystem needs and no more: cards that take minutes to discard all their blocks are not rare, and the
// first boot waits for this. The kernel writes the tables of inodes in the background, once, 1.6 % of the partition: a
// filesystem without them cannot be repaired as well. Until the new filesystem is marked, the partition counts as fresh.
func (s *system) makeData(ctx context.Context, dev string) error {
	if err := clearData(dev); err != nil {
		return err
	}
	f, err := os.Open(dev)
	if err != nil {
		return err
	}
	size, err := linux.DeviceSize(f)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	return s.run(ctx, "/usr/sbin/mke2fs", makeDataArgs(dev, size)...)
}

// makeDataArgs bounds the journal, which mke2fs makes up to 1 GiB large: it takes room, and after a power cut all of it is read.
func makeDataArgs(dev string, size int64) []string {
	args := []string{"-q", "-F", "-t", "ext4", "-b", "4096", "-m", "1", "-L", datafs.Label, "-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=1"}
	if size > 16<<30 {
		args = append(args, "-J", "size=64")
	}
	return append(args, dev)
}

func probeData(p linux.Partition) (datafs.State, error) {
	f, err := os.Open(p.Dev())
	if err != nil {
		return datafs.New, err
	}
	defer f.Close()
	size, err := linux.DeviceSize(f)
	if err != nil {
		return datafs.New, err
	}
	return datafs.Probe(f, size)
}

func clearData(dev string) error {
	f, err := os.OpenFile(dev, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	size, err := linux.DeviceSize(f)
	if err != nil {
		return err
	}
	return datafs.Clear(f, size)
}

func markData(p linux.Partition) error {
	f, err := os.OpenFile(p.Dev(), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	return datafs.MarkUsed(f)
}

// e2fsck's exit status is a sum of these.
const (
	fsckRepaired  = 1
	fsckRebootToo = 2
)

// checkData replays the journal and repairs what can be repaired without asking; then, if need be, everything.
func (s *system) checkData(ctx context.Context, p linux.Partition, state datafs.State) error {
	err := fsckResult(s.run(ctx, "/usr/sbin/e2fsck", "-p", p.Dev()))
	if err == nil {
		return nil
	}
	s.console.sayf("mount data: %s; repairing everything", oneLine(err))
	args := []string{"-y", "-f", p.Dev()}
	if state == datafs.Torn {
		args = append([]string{"-b", "32768", "-B", "4096"}, args...)
	}
	if err := fsckResult(s.run(ctx, "/usr/sbin/e2fsck", args...)); err != nil {
		return fmt.Errorf("%s cannot be repaired; put in a new disk, or write the image anew to lose what is on it: %w", p.Dev(), err)
	}
	return nil
}

func fsckResult(err error) error {
	var exit *process.ExitError
	if errors.As(err, &exit) && exit.Status.Code() > 0 && exit.Status.Code()&^(fsckRepaired|fsckRebootToo) == 0 {
		return nil
	}
	return err
}

// makeDirs makes the folders and links that the node expects below /var. root is / but for tests.
func makeDirs(root string) error {
	var errs []error
	for _, d := range []struct {
		name string
		mode fs.FileMode
	}{
		{dataDir, 0o711}, {dataDir + "/etc", 0o755}, {dataDir + "/server", 0o700}, {"/var/log", 0o755}, {logDir, 0o755}, {"/var/tmp", 0o1777},
		{"/var/cache", 0o755}, {"/var/lib/rancher/k3s/server", 0o755},
		{"/var/lib/rancher/k3s/agent", 0o755}, {dataDir + "/agent", 0o711}, {dataDir + "/agent/images", 0o755},
	} {
		name := filepath.Join(root, d.name)
		err := os.MkdirAll(name, 0o755)
		if err == nil {
			mode := d.mode & fs.ModePerm
			if d.mode&0o1000 != 0 {
				mode |= fs.ModeSticky
			}
			err = os.Chmod(name, mode)
		}
		errs = append(errs, err)
	}
	// Where K3s has them, for scripts and habits that look there.
	for link, to := range map[string]string{
		"/var/lib/rancher/k3s/server/node-token": dataDir + "/server/node-token",
		"/var/lib/rancher/k3s/server/manifests":  dataDir + "/server/manifests",
		"/var/lib/rancher/k3s/agent/images":      dataDir + "/agent/images",
		"/var/run":                               "/run",
	} {
		if err := os.Symlink(to, filepath.Join(root, link)); err != nil && !errors.Is(err, fs.ErrExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
