package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/skerry-os/skerry/pkg/atomicfile"
	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/notify"
	"github.com/skerry-os/skerry/pkg/supervise/process"
)

const (
	engineYAML   = runDir + "/engine.yaml"
	notifySocket = runDir + "/notify.sock"
	nodeCgroup   = "/sys/fs/cgroup/skerryd"
	nodeLog      = logDir + "/skerryd.log"
	nodeLogSize  = 8 << 20
	lastWords    = 15 // lines of skerryd's that the console shows when it dies

	// nodeGrace is how long skerryd has to stop. Pods keep running while it does.
	nodeGrace = 60 * time.Second
	// openFiles is what skerryd and, through it, containers may open; the kernel starts process 1 with 4096.
	openFiles = 1 << 20
)

// startNode starts skerryd and keeps it running. Whether the node becomes Ready is not this step's concern: a node that
// waits for its server is a good machine.
func startNode(_ context.Context, s *system) error {
	conf, err := machine.EngineYAML(s.config, s.hostname)
	if err != nil {
		return err
	}
	if err := atomicfile.Write(engineYAML, conf, 0o600); err != nil {
		return err
	}
	if err := tellUpdates(s.config); err != nil {
		return err
	}
	hearHealth(s)
	listener, err := notify.Listen(notifySocket)
	if err != nil {
		return err
	}
	s.holdLogs(s.config.Logs)
	log, err := s.logs.Open(filepath.Base(nodeLog), nodeLogSize)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(nodeCgroup, 0o755); err != nil {
		return err
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: openFiles, Max: openFiles}); err != nil {
		return fmt.Errorf("allowing %d open files: %w", openFiles, err)
	}
	shown := s.screen != nil // the machine waited for its config
	if !shown {
		s.screen = newScreen(s)
	}
	s.screen.named()
	node := &process.Service{
		Spec: process.Spec{
			Path: "/usr/bin/skerryd", Args: []string{string(s.config.Role), "--config", engineYAML}, Dir: "/", Cgroup: nodeCgroup,
			Env: []string{"PATH=" + nodePath, "HOME=" + runDir, notify.SocketEnv + "=" + notifySocket},
		},
		Log:     log,
		Backoff: process.Backoff{First: time.Second, Most: time.Minute, Reset: 10 * time.Minute},
		Grace:   nodeGrace,
		Started: s.screen.started,
		Ended: func(how string, again time.Duration) {
			s.console.sayf("skerryd: %s; again in %v; its last lines (all in %s):", how, again, nodeLog)
			for _, l := range log.Last(lastWords) {
				s.console.sayf("skerryd| %s", l)
			}
			s.screen.waits(fmt.Sprintf("skerryd to start again (it ended: %s)", how))
			if l := log.Last(1); len(l) > 0 {
				how += ": " + l[0]
			}
			s.health.ended(how)
		},
	}
	s.behind(func(ctx context.Context) {
		s.awaitTime(ctx)
		node.Run(ctx, s.reaper)
		_ = listener.Close()
		_ = log.Close()
	})
	s.behind(func(context.Context) {
		for {
			m, err := listener.Next()
			if err != nil {
				return
			}
			s.screen.heard(m)
		}
	})
	if !shown {
		s.behind(s.screen.run)
	}
	if s.platform == "" {
		s.behind(s.watchConfig)
	}
	return nil
}

// status is what the display shows.
type status struct {
	release, slot, role, name, addresses, state string
	notes                                       []string // what is not as the config says
}

func (st status) lines() []string {
	out := []string{
		"Skerry " + st.release,
		"slot      " + st.slot,
		"node      " + st.name + ", " + st.role,
		"address   " + st.addresses,
		"state     " + st.state,
	}
	for _, n := range st.notes {
		out = append(out, "note      "+n)
	}
	return out
}

// describeIdentity gives the two lines of the display that do not change.
func describeIdentity(id machine.Identity) (release, slot string) {
	release = fmt.Sprintf("%s, Kubernetes %s, %s", id.Release.Version, strings.TrimPrefix(id.Release.Kubernetes, "v"), id.Boot.Board)
	slot = string(id.Boot.Slot)
	if id.Boot.Netboot {
		slot = "none (runs from memory)"
	}
	if id.Boot.Trial {
		slot += " (on trial)"
	}
	if id.Boot.Secure {
		slot += ", Secure Boot on"
	} else {
		slot += ", Secure Boot off"
	}
	if id.Boot.Note != "" {
		slot += " (" + id.Boot.Note + ")"
	}
	return release, slot
}

// watchPowerKeys powers the machine off when its button is pressed: an input device of its own, that may come late.
func (s *system) watchPowerKeys(ctx context.Context) {
	watched := map[string]bool{}
	for ctx.Err() == nil {
		came := s.deviceCame()
		names, err := filepath.Glob("/dev/input/event*")
		if err != nil {
			return
		}
		for _, name := range names {
			if !watched[name] {
				watched[name] = true
				s.behind(func(ctx context.Context) { s.watchPowerKey(ctx, name) })
			}
		}
		for name := range watched {
			if _, err := os.Stat(name); errors.Is(err, os.ErrNotExist) {
				delete(watched, name)
			}
		}
		select {
		case <-came:
		case <-ctx.Done():
		}
	}
}
