package main

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skerry-os/skerry/pkg/kmod"
	"github.com/skerry-os/skerry/pkg/linux"
	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/network"
	"github.com/skerry-os/skerry/pkg/release"
	"github.com/skerry-os/skerry/pkg/supervise/process"
	"github.com/skerry-os/skerry/pkg/update/record"
)

const (
	noCTTY   = unix.O_NOCTTY
	nonBlock = unix.O_NONBLOCK
)

// system is what the steps have made of the machine so far; each field is set by one step and read by later ones.
type system struct {
	console  *console
	logs     *process.Logs // on the data partition
	devices  devices
	loader   *kmod.Loader
	watchdog *linux.Watchdog

	// Stage 1.
	cmdline cmdline
	keys    []ed25519.PublicKey
	root    linux.Partition
	release *release.Release
	device  string // the verity device
	boot    machine.Boot
	netboot machine.Netboot // of a machine that was started over the network

	// Stage 2.
	reaper    *process.Reaper
	id        machine.Identity
	policy    policy
	told      told                 // by the config partition
	inForce   atomic.Pointer[told] // the newest that was good
	platform  string               // who tells the rest of the config; "" for nobody
	configURL string
	config    *machine.Config
	hostname  string
	network   *network.Manager
	screen    *screen
	health    *health
	time      *timekeeper
	readers   *linux.Readers // of the logs; nil while nothing is held
	ssh       sshService     // of a debug release
	trial     *record.Trial  // nil unless the slot is on trial and the record is there

	notesMu sync.Mutex
	notes   map[string]string // what is not as the config says, by kind

	// life ends when the machine is to stop; what runs in the background ends with it.
	life       context.Context
	end        context.CancelCauseFunc
	background sync.WaitGroup
}

func newSystem() *system {
	s := &system{console: &console{shells: machine.OpenShells}, logs: process.NewLogs(logDir), reaper: process.NewReaper(), health: newHealth(), time: newTimekeeper()}
	s.life, s.end = context.WithCancelCause(context.Background())
	s.console.open([]string{"/dev/console"})
	return s
}

// inInitramfs tells the stages apart: the first runs on the kernel's own root filesystem in memory.
func inInitramfs() bool {
	var st unix.Statfs_t
	if err := unix.Statfs("/", &st); err != nil {
		return false
	}
	// The width of both differs between architectures.
	return uint32(st.Type) == unix.TMPFS_MAGIC || uint32(st.Type) == unix.RAMFS_MAGIC
}

// behind runs f in the background until the machine stops.
func (s *system) behind(f func(context.Context)) {
	s.background.Go(func() { f(s.life) })
}

// runStage1 ends by becoming stage 2, or by a restart.
func (s *system) runStage1(steps []step) {
	err := runSteps(s.life, s, steps, s.console.say)
	if err == nil {
		s.console.sayf("switch root: came back; restart in %v", restartWait)
	}
	time.Sleep(restartWait)
	s.console.sayf("restart: %v", linux.Restart())
	select {} // the watchdog's turn
}

// note puts what is not as the config says on the display; "" takes it off.
func (s *system) note(kind, text string) {
	s.notesMu.Lock()
	if s.notes == nil {
		s.notes = map[string]string{}
	}
	s.notes[kind] = text
	s.notesMu.Unlock()
	if s.screen != nil {
		s.screen.refresh()
	}
}

// stop is the cause that ends life.
type stop struct {
	off bool // power off, not restart
	why string
}

func (e stop) Error() string { return e.why }

// runStage2 runs the node until somebody or something stops the machine.
func (s *system) runStage2(steps []step) {
	go s.reaper.Run(context.Background()) // to the very end: shutdown waits for children too
	s.behind(s.signals)
	s.behind(s.watchPowerKeys)
	err := runSteps(s.life, s, steps, s.console.say)
	if err != nil && s.life.Err() == nil {
		s.console.plain()
		time.Sleep(restartWait)
		s.end(stop{why: "a step of the boot did not succeed"})
	}
	<-s.life.Done()
	s.shutdown(context.Cause(s.life))
}

// signals maps what others send to process 1: reboot(8) habits for restart and power off.
func (s *system) signals(ctx context.Context) {
	c := make(chan os.Signal, 4)
	signal.Notify(c, unix.SIGTERM, unix.SIGINT, unix.SIGUSR1, unix.SIGUSR2)
	defer signal.Stop(c)
	select {
	case <-ctx.Done():
	case sig := <-c:
		switch sig {
		case unix.SIGINT:
			s.end(stop{why: "Ctrl-Alt-Del was pressed"})
		case unix.SIGTERM:
			s.end(stop{why: "a restart was asked for"})
		default:
			s.end(stop{off: true, why: "power off was asked for"})
		}
	}
}

// sincePowerOn is how long the kernel runs.
func sincePowerOn() time.Duration {
	data, err := os.ReadFile("/proc/uptime")
	if err != nil {
		return 0
	}
	first, _, _ := strings.Cut(string(data), " ")
	sec, err := strconv.ParseFloat(first, 64)
	if err != nil {
		return 0
	}
	return time.Duration(sec * float64(time.Second))
}

func afterPowerOn() string { return fmt.Sprintf("(%.1fs after power on)", sincePowerOn().Seconds()) }
