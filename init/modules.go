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
	names, err := loadList(loader, list)
	errs := []error{err, s.coldplug(names)}
	s.behind(func(ctx context.Context) {
		context.AfterFunc(ctx, func() { _ = events.Close() })
		s.hotplug(events)
	})
	return errors.Join(errs...)
}

// loadList loads those of the list that have parameters, and gives the names of the others.
func loadList(loader *kmod.Loader, list string) (names []string, err error) {
	f, err := os.Open(list)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var errs []error
	for name, params := range moduleList(f) {
		if params == "" {
			names = append(names, name)
			continue
		}
		errs = append(errs, loader.Load(name, params))
	}
	return names, errors.Join(errs...)
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

// coldplug loads the named modules and those of the devices that are there, side by side.
func (s *system) coldplug(names []string) error {
	aliases, err := linux.Modaliases(os.DirFS("/sys"))
	return errors.Join(err, s.loadFor(names, aliases))
}

// loadFor loads named modules and those of devices. Hardware nobody has a module for is no error, and neither is a module
// that finds nothing to do: a driver may match a chip it then declines.
func (s *system) loadFor(names, aliases []string) error {
	for _, a := range aliases {
		names = append(names, s.loader.Index().Match(a)...)
	}
	var errs []error
	for _, err := range split(s.loader.LoadAll(names)) {
		if !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.EBUSY) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// split takes joined errors apart.
func split(err error) []error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return joined.Unwrap()
	}
	if err == nil {
		return nil
	}
	return []error{err}
}

func (s *system) hotplug(events *linux.Uevents) {
	for {
		e, err := events.Next()
		if err != nil {
			return
		}
		if a := e["MODALIAS"]; a != "" && e["ACTION"] == "add" {
			if err := s.loadFor(nil, []string{a}); err != nil {
				s.console.sayf("driver for %.60s: %s; going on without", a, oneLine(err))
			}
		}
		if len(e) == 0 { // some were lost
			_ = s.coldplug(nil)
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
		toKernelLog("modprobe: " + err.Error())
		return 1
	}
	code := 0
	for _, a := range args {
		if strings.HasPrefix(a, "-") {
			continue
		}
		if err := loader.Load(a, ""); err != nil {
			code = 1
			if !errors.Is(err, kmod.ErrUnknown) { // the kernel asks for much that nobody has; saying so each time would drown the rest
				toKernelLog("modprobe " + a + ": " + err.Error())
			}
		}
	}
	return code
}

// toKernelLog is for the kernel's helpers, which nobody reads the output of.
func toKernelLog(text string) {
	f, err := os.OpenFile("/dev/kmsg", os.O_WRONLY, 0)
	if err != nil {
		return
	}
	_, _ = f.WriteString("<3>skerry: " + joinLines(text) + "\n")
	_ = f.Close()
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
