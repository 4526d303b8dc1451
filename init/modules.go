package main

import (
	"bufio"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/skerry-os/skerry/pkg/kmod"
	"github.com/skerry-os/skerry/pkg/linux"
)

const modulesDir = "/usr/lib/modules"

// devices hears of hardware that appears, loads its modules, and wakes whoever waits for it.
type devices struct {
	mu   sync.Mutex
	came chan struct{}
}

func (d *devices) next() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.came == nil {
		d.came = make(chan struct{})
	}
	return d.came
}

func (d *devices) wake() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.came != nil {
		close(d.came)
		d.came = nil
	}
}

// deviceCame gives a channel that is closed when a device appears or changes from now on.
func (s *system) deviceCame() <-chan struct{} { return s.devices.next() }

// loadBootModules loads what the initramfs has for this machine.
func loadBootModules(_ context.Context, s *system) error {
	return s.loadModules("/etc/skerry/modules.load")
}

// loadModules loads what the root has for this machine.
func loadModules(_ context.Context, s *system) error {
	return s.loadModules(filepath.Join("/usr/share/skerry/boards", s.id.Boot.Board, "modules.load"))
}

// loadModules loads the modules that the list names, then those that the devices present ask for, and from then on those of
// devices that appear.
func (s *system) loadModules(list string) error {
	var un unix.Utsname
	if err := unix.Uname(&un); err != nil {
		return err
	}
	loader, err := kmod.NewLoader(filepath.Join(modulesDir, unix.ByteSliceToString(un.Release[:])))
	if err != nil {
		return err
	}
	s.loader = loader
	events, err := linux.ListenUevents() // before looking at what is there, so that nothing falls in between
	if err != nil {
		return err
	}
	errs := loadList(loader, list)
	errs = append(errs, s.coldplug())
	s.behind(func(ctx context.Context) {
		context.AfterFunc(ctx, func() { _ = events.Close() })
		s.hotplug(events)
	})
	return errors.Join(errs...)
}

func loadList(loader *kmod.Loader, list string) (errs []error) {
	f, err := os.Open(list)
	if err != nil {
		return []error{err}
	}
	defer f.Close()
	for name, params := range moduleList(f) {
		errs = append(errs, loader.Load(name, params))
	}
	return errs
}

// moduleList reads lines of a module's name and its parameters; # starts a comment.
func moduleList(f fs.File) func(yield func(name, params string) bool) {
	return func(yield func(string, string) bool) {
		lines := bufio.NewScanner(f)
		for lines.Scan() {
			line, _, _ := strings.Cut(lines.Text(), "#")
			name, params, _ := strings.Cut(strings.TrimSpace(line), " ")
			if name != "" && !yield(name, params) {
				return
			}
		}
	}
}

// coldplug loads the modules of the devices that are there. Hardware nobody has a module for is no error, and neither is a
// module that finds it is not wanted: a driver may match a chip it then declines.
func (s *system) coldplug() error {
	aliases, err := linux.Modaliases(os.DirFS("/sys"))
	for _, a := range aliases {
		s.loadAlias(a)
	}
	return err
}

func (s *system) loadAlias(alias string) {
	for _, m := range s.loader.Index().Match(alias) {
		if err := s.loader.Load(m, ""); err != nil && !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.EBUSY) {
			s.console.sayf("device %.60s: %s", alias, oneLine(err))
		}
	}
}

func (s *system) hotplug(events *linux.Uevents) {
	for {
		e, err := events.Next()
		if err != nil {
			return
		}
		if a := e["MODALIAS"]; a != "" && e["ACTION"] == "add" {
			s.loadAlias(a)
		}
		if len(e) == 0 { // some were lost
			_ = s.coldplug()
		}
		s.devices.wake()
	}
}

// modprobe is what the kernel calls: modprobe -q -- ALIAS.
func modprobe(args []string) int {
	var un unix.Utsname
	if err := unix.Uname(&un); err != nil {
		return 1
	}
	loader, err := kmod.NewLoader(filepath.Join(modulesDir, unix.ByteSliceToString(un.Release[:])))
	if err != nil {
		return 1
	}
	code := 0
	for _, a := range args {
		if strings.HasPrefix(a, "-") {
			continue
		}
		if err := loader.Load(a, ""); err != nil {
			code = 1 // the kernel asks for much that nobody has; saying so each time would drown the rest
		}
	}
	return code
}

const watchdogEnv = "SKERRY_WATCHDOG_FD"

// startWatchdog arms the hardware watchdog as early as its driver is there.
func startWatchdog(_ context.Context, s *system) error {
	w, err := linux.OpenWatchdog()
	if errors.Is(err, fs.ErrNotExist) {
		return errors.New("this machine has none")
	}
	if err != nil {
		return err
	}
	s.feed(w)
	return nil
}

// adoptWatchdog takes over the one that stage 1 armed, or finds one whose driver was not in the initramfs.
func adoptWatchdog(ctx context.Context, s *system) error {
	fd, err := strconv.Atoi(os.Getenv(watchdogEnv))
	if err != nil {
		return startWatchdog(ctx, s)
	}
	w, err := linux.AdoptWatchdog(fd)
	if err != nil {
		return err
	}
	s.feed(w)
	return nil
}

// feed feeds it for as long as this program runs at all: also while it shuts down, which must end in a restart.
func (s *system) feed(w *linux.Watchdog) {
	s.watchdog = w
	go w.Run(context.Background())
}
