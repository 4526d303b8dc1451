package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"gopkg.in/yaml.v3"

	"github.com/skerry-os/skerry/pkg/atomicfile"
	"github.com/skerry-os/skerry/pkg/checkconfig"
	"github.com/skerry-os/skerry/pkg/linux"
	"github.com/skerry-os/skerry/pkg/machine"
)

// checkMachine says what the engine would miss here. Nothing else listens on a node's ports.
func checkMachine(_ context.Context, s *system) error {
	text, err := checkconfig.Run(checkconfig.Options{
		DataDir: dataDir, Ports: []checkconfig.Port{}, Agent: s.config.Role == machine.RoleAgent, Built: s.id.Release.BuildTime,
	}).Summary()
	if err != nil {
		s.note("check-config", oneLine(err))
		return fmt.Errorf("check-config: %w", err)
	}
	s.console.say("check-config: " + text)
	return nil
}

// loadConfigured loads the modules that the config names.
func loadConfigured(_ context.Context, s *system) error {
	return s.loadNamed(s.config.Modules)
}

func (s *system) loadNamed(modules []string) error {
	if len(modules) > 0 && s.loader == nil {
		return errors.New("modules: there is no list of the release's")
	}
	var errs []error
	for _, m := range modules {
		name, params, _ := strings.Cut(m, " ")
		errs = append(errs, s.loader.Load(name, strings.TrimSpace(params)))
	}
	return errors.Join(errs...)
}

// volumePatience is how long a disk may take to show itself.
const volumePatience = 30 * time.Second

// mountVolumes mounts what the config names besides the data partition. A disk that is missing does not keep the node down.
func mountVolumes(ctx context.Context, s *system) error {
	var errs []error
	for _, v := range s.config.Mounts {
		if err := s.mountVolume(ctx, v); err != nil {
			errs = append(errs, fmt.Errorf("%s at %s: %w", v.Device, v.Path, err))
		}
	}
	return errors.Join(errs...)
}

func (s *system) mountVolume(ctx context.Context, v machine.Volume) error {
	dev, err := s.volumeDevice(ctx, v.Device)
	if err != nil {
		return err
	}
	kind := v.Type
	if kind == "" {
		kind = "ext4"
	}
	if v.Format {
		blank, err := isBlank(dev)
		if err != nil {
			return err
		}
		if blank {
			s.console.sayf("mount volumes: making a filesystem on %s, which is empty", dev)
			if err := s.run(ctx, "/usr/sbin/mke2fs", "-q", "-F", "-t", "ext4", "-E", "nodiscard", dev); err != nil {
				return err
			}
		}
	}
	if kind == "ext4" && !v.ReadOnly {
		if err := fsckResult(s.run(ctx, "/usr/sbin/e2fsck", "-p", dev)); err != nil {
			return err
		}
	}
	m := linux.Mount{Source: dev, Target: v.Path, FS: kind, Flags: unix.MS_NODEV | unix.MS_NOSUID | unix.MS_NOATIME, Data: strings.Join(kept(v.Options), ",")}
	if v.ReadOnly {
		m.Flags |= unix.MS_RDONLY
	}
	return m.Do()
}

// kept leaves out options that are flags of the mount itself, which has them or must not.
func kept(options []string) (out []string) {
	for _, o := range options {
		if !slices.Contains([]string{"defaults", "noatime", "nodev", "nosuid", "rw", "ro"}, o) {
			out = append(out, o)
		}
	}
	return out
}

// volumeDevice waits for a partition and gives its device file.
func (s *system) volumeDevice(ctx context.Context, name string) (string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, volumePatience, fmt.Errorf("is not there after %v", volumePatience))
	defer cancel()
	for {
		came := s.deviceCame()
		parts, err := linux.Partitions(os.DirFS("/sys"))
		if err != nil {
			return "", err
		}
		linux.ReadUUIDs(parts)
		if dev := pickVolume(parts, name); dev != "" {
			return dev, nil
		}
		if strings.HasPrefix(name, "/dev/") && exists(name) {
			return name, nil
		}
		select {
		case <-came:
		case <-ctx.Done():
			return "", context.Cause(ctx)
		}
	}
}

// pickVolume finds PARTLABEL= and PARTUUID= among the partitions. Two of a label are one too many to guess.
func pickVolume(parts []linux.Partition, name string) string {
	key, value, _ := strings.Cut(name, "=")
	var found []string
	for _, p := range parts {
		if key == "PARTLABEL" && p.Label == value || key == "PARTUUID" && strings.EqualFold(p.UUID, value) {
			found = append(found, p.Dev())
		}
	}
	if len(found) == 1 {
		return found[0]
	}
	return ""
}

// isBlank says whether the first MiB holds nothing: no filesystem, no table, nobody's data.
func isBlank(dev string) (bool, error) {
	f, err := os.Open(dev)
	if err != nil {
		return false, err
	}
	defer f.Close()
	head := make([]byte, 1<<20)
	n, err := f.ReadAt(head, 0)
	if n < len(head) {
		return false, fmt.Errorf("%s: %w", dev, err)
	}
	return bytes.Equal(head, make([]byte, len(head))), nil
}

// Where the config's files go, below the root.
const (
	etcLayer    = runDir + "/etc" // over the root's /etc: upper and work
	certsFile   = "etc/ssl/certs/ca-certificates.crt"
	certsBundle = runDir + "/ca-certificates.crt"
	writtenFile = dataDir + "/config/written.json" // files on data that the config brought, to be taken away when it does not any more
)

// layFiles writes what the config brings along: files, registries, manifests, and the certificates that everything on the node
// believes.
func layFiles(_ context.Context, s *system) error {
	errs := []error{writeKept("/", s.config)}
	if layer := layered(s.config); len(layer) > 0 {
		errs = append(errs, layEtc(layer))
	}
	if len(s.config.Certificates) > 0 {
		errs = append(errs, layCertificates(s.config.Certificates))
	}
	return errors.Join(errs...)
}

// laid is a file and what is in it.
type laid struct {
	data []byte
	mode fs.FileMode
}

// lasting lists the config's files that are on the data partition, by path.
func lasting(c *machine.Config) (map[string]laid, error) {
	out := map[string]laid{}
	for _, f := range c.Files {
		if name, on := onData(f.Path); on {
			out[name] = laid{[]byte(f.Content), modeOf(f)}
		}
	}
	if !c.Registries.Empty() {
		data, err := yaml.Marshal(c.Registries)
		if err != nil {
			return nil, err
		}
		out[dataDir+"/etc/registries.yaml"] = laid{data, 0o600}
	}
	for name, text := range c.Manifests {
		out[filepath.Join(c.Own().DataDir, "server/manifests/config-"+name+".yaml")] = laid{[]byte(text), 0o600}
	}
	return out, nil
}

// onData gives the real place of a path on the data partition; /etc/skerry leads there.
func onData(name string) (string, bool) {
	if rest, ok := strings.CutPrefix(name, "/etc/skerry/"); ok {
		return dataDir + "/etc/" + rest, true
	}
	return name, strings.HasPrefix(name, "/var/")
}

// layered lists the config's files that lie over the root's /etc, by path.
func layered(c *machine.Config) map[string]laid {
	out := map[string]laid{}
	for _, f := range c.Files {
		if _, on := onData(f.Path); !on {
			out[f.Path] = laid{[]byte(f.Content), modeOf(f)}
		}
	}
	return out
}

func modeOf(f machine.File) fs.FileMode {
	if m, err := strconv.ParseUint(f.Mode, 8, 32); err == nil {
		return fs.FileMode(m)
	}
	return 0o644
}

// writeKept writes the files on data, and takes away those that an earlier config brought and this one does not. What a power
// cut leaves half done, the next start finishes: a file is on the list before it is on the disk. root is / but for tests.
func writeKept(root string, c *machine.Config) error {
	want, err := lasting(c)
	if err != nil {
		return err
	}
	list := filepath.Join(root, writtenFile)
	before, err := readWritten(list)
	if err != nil {
		return err
	}
	var names []string
	for name := range want {
		names = append(names, name)
	}
	slices.Sort(names)
	all := slices.Concat(before, names)
	slices.Sort(all)
	if err := saveWritten(list, before, slices.Compact(all)); err != nil {
		return err
	}
	var errs []error
	for _, name := range before {
		if _, stays := want[name]; !stays {
			if err := os.Remove(filepath.Join(root, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, err)
			}
		}
	}
	for _, name := range names {
		errs = append(errs, put(filepath.Join(root, name), want[name]))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return saveWritten(list, all, names)
}

func put(name string, f laid) error {
	if old, err := os.ReadFile(name); err == nil && bytes.Equal(old, f.data) {
		if st, err := os.Stat(name); err == nil && st.Mode().Perm() == f.mode {
			return nil // flash does not last for ever
		}
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	return atomicfile.Write(name, f.data, f.mode)
}

func readWritten(name string) (list []string, err error) {
	data, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &list)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return list, nil
}

func saveWritten(name string, before, now []string) error {
	if slices.Equal(before, now) {
		return nil
	}
	data, err := json.Marshal(now)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return err
	}
	return atomicfile.Write(name, append(data, '\n'), 0o600)
}

// layEtc lays files over the root's /etc. Nothing can be written there afterwards either.
func layEtc(files map[string]laid) error {
	upper, work := etcLayer+"/upper", etcLayer+"/work"
	errs := []error{os.MkdirAll(upper, 0o755), os.MkdirAll(work, 0o755)}
	for name, f := range files {
		errs = append(errs, put(filepath.Join(upper, strings.TrimPrefix(name, "/etc/")), f))
	}
	m := linux.Mount{Source: "overlay", Target: "/etc", FS: "overlay", Flags: unix.MS_RDONLY | unix.MS_NODEV | unix.MS_NOSUID,
		Data: "lowerdir=/etc,upperdir=" + upper + ",workdir=" + work}
	return errors.Join(append(errs, m.Do())...)
}

// layCertificates puts authorities beside those of the web, for every program on the node.
func layCertificates(more []string) error {
	bundle, err := os.ReadFile("/" + certsFile)
	if err != nil {
		return err
	}
	for _, c := range more {
		bundle = append(append(bytes.TrimRight(bundle, "\n"), '\n'), strings.TrimSpace(c)+"\n"...)
	}
	if err := os.WriteFile(certsBundle, bundle, 0o644); err != nil {
		return err
	}
	return linux.Mount{Source: certsBundle, Target: "/" + certsFile}.Bind()
}
