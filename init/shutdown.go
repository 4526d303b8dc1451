package main

import (
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skerry-os/skerry/pkg/clock"
	"github.com/skerry-os/skerry/pkg/linux"
	"github.com/skerry-os/skerry/pkg/machine"
)

// Limits of a shutdown. Beyond them the machine goes down all the same.
const (
	stopBackground = nodeGrace + 10*time.Second
	stopOthers     = 10 * time.Second
)

// shutdown takes the machine down in order: skerryd, then every other process, then the filesystems. life has ended.
func (s *system) shutdown(cause error) {
	s.console.plain()
	var how stop
	if !errors.As(cause, &how) {
		how.why = cause.Error()
	}
	word := "restart"
	if how.off {
		word = "power off"
	}
	s.console.sayf("%s: %s; stopping skerryd", word, oneLine(cause))
	quiet := make(chan struct{})
	go func() { s.background.Wait(); close(quiet) }()
	select {
	case <-quiet:
	case <-time.After(stopBackground):
		s.console.sayf("%s: skerryd did not stop in %v; going on", word, stopBackground)
	}
	if s.config != nil { // the data partition is there
		if err := clock.System().Save(clockFile, 0); err != nil {
			s.console.sayf("%s: saving the time: %s", word, oneLine(err))
		}
	}
	s.console.sayf("%s: stopping all processes", word)
	endProcesses(stopOthers)
	s.console.sayf("%s: unmounting", word)
	s.console.logTo(nil)
	_ = s.logs.Sync() // skerryd's may be open still
	for _, dir := range []string{"/var", configDir} {
		if err := linux.UnmountBelow(dir); err != nil {
			s.console.sayf("%s: %s", word, oneLine(err))
		}
	}
	unix.Sync()
	s.console.sayf("%s: now", word)
	do := linux.PowerOff
	if !how.off {
		arg, _ := os.ReadFile("/" + machine.RestartFile) // most firmware is told nothing
		do = func() error { return linux.RestartWith(string(arg)) }
	}
	s.console.sayf("%s: %v", word, do())
	time.Sleep(restartWait)
	s.console.sayf("restart: %v", linux.Restart())
	select {} // the watchdog's turn
}

// endProcesses asks every other process to end, and ends those that did not in time. Pods' processes are among them.
func endProcesses(limit time.Duration) {
	for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
		if errors.Is(unix.Kill(-1, sig), unix.ESRCH) {
			return
		}
		// The kernel gives no event for "all gone"; the reaper empties the table meanwhile.
		for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			if !anyProcess() {
				return
			}
		}
	}
}

// anyProcess says whether a process other than this one and the kernel's own threads is there.
func anyProcess() bool {
	names, err := os.ReadDir("/proc")
	if err != nil {
		return false
	}
	for _, n := range names {
		if c := n.Name()[0]; c < '0' || c > '9' || n.Name() == "1" {
			continue
		}
		// A kernel thread and a zombie have no program.
		if _, err := os.Readlink("/proc/" + n.Name() + "/exe"); err == nil {
			return true
		}
	}
	return false
}
