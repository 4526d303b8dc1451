package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/skerry-os/skerry/pkg/linux"
	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/notify"
)

// screen keeps the status display right.
type screen struct {
	sys *system

	mu    sync.Mutex
	st    status
	ready bool
	pid   int // of the skerryd whose messages count
}

func newScreen(s *system) *screen {
	sc := &screen{sys: s}
	sc.st.release, sc.st.slot = describeIdentity(s.id)
	sc.named()
	sc.st.addresses = "none yet"
	sc.st.state = "waiting for skerryd to start"
	return sc
}

// named takes up who the machine is, once it knows.
func (sc *screen) named() {
	sc.mu.Lock()
	defer sc.mu.Unlock()
	sc.st.role, sc.st.name = "not told its role", "nameless"
	if sc.sys.config != nil {
		sc.st.role, sc.st.name = string(sc.sys.config.Role), sc.sys.hostname
	}
	sc.st.notes = sc.sys.allNotes()
}

// refresh shows notes that changed.
func (sc *screen) refresh() {
	sc.mu.Lock()
	sc.st.notes = sc.sys.allNotes()
	sc.mu.Unlock()
	sc.show()
}

// allNotes lists what is not as the config says.
func (s *system) allNotes() (out []string) {
	s.notesMu.Lock()
	defer s.notesMu.Unlock()
	if s.id.Release.Debug {
		out = append(out, machine.DebugNotice+" (press Enter; on a screen Alt-F2 first)")
	}
	for _, kind := range []string{"config", "hostname", "check-config", "restart", "ssh"} {
		if text := s.notes[kind]; text != "" {
			out = append(out, text)
		}
	}
	if s.network != nil {
		out = append(out, s.network.Notes()...)
	}
	return out
}

// run follows the addresses.
func (sc *screen) run(ctx context.Context) {
	for ctx.Err() == nil {
		changed := sc.sys.network.Changed()
		if list, err := sc.sys.network.Addresses(); err == nil {
			var texts []string
			for _, a := range list {
				texts = append(texts, a.IP.String())
			}
			sc.mu.Lock()
			sc.st.addresses = "none yet"
			if len(texts) > 0 {
				sc.st.addresses = strings.Join(texts, ", ")
			}
			sc.st.notes = sc.sys.allNotes()
			sc.mu.Unlock()
		}
		sc.show()
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
}

func (sc *screen) show() {
	sc.mu.Lock()
	lines := sc.st.lines()
	sc.mu.Unlock()
	sc.sys.console.show(lines)
}

func (sc *screen) started(pid int) {
	sc.mu.Lock()
	sc.pid, sc.ready = pid, false
	sc.mu.Unlock()
}

// waits says what stands between the node and Ready.
func (sc *screen) waits(what string) {
	sc.mu.Lock()
	sc.ready = false
	same := sc.st.state == "waiting: "+what
	sc.st.state = "waiting: " + what
	sc.mu.Unlock()
	if !same {
		sc.sys.console.say("waiting: " + what)
	}
}

// heard takes a message of skerryd's; others' are not listened to.
func (sc *screen) heard(m notify.Message) {
	sc.mu.Lock()
	ours := m.PID == sc.pid
	news := m.Ready() && ours && !sc.ready
	if news {
		sc.ready = true
		sc.st.state = "Ready"
	}
	ready := sc.ready
	sc.mu.Unlock()
	switch {
	case !ours:
	case news:
		sc.sys.console.say("node: Ready " + afterPowerOn())
		if err := firmwareStarts().clear(); err != nil {
			sc.sys.console.sayf("count start: %s", oneLine(err))
		}
		sc.show()
	case !ready && m.Fields["STATUS"] != "":
		sc.waits(strings.TrimPrefix(m.Fields["STATUS"], "waiting for "))
		sc.sys.console.redraw(sc.lines())
	}
}

func (sc *screen) lines() []string {
	sc.mu.Lock()
	defer sc.mu.Unlock()
	return sc.st.lines()
}

// watchPowerKey ends the machine's life when the key of one input device is pressed. A device without the key is left alone.
func (s *system) watchPowerKey(ctx context.Context, name string) {
	if !linux.HasPowerKey(os.DirFS("/sys"), filepath.Base(name)) {
		return
	}
	f, err := os.OpenFile(name, os.O_RDONLY|nonBlock, 0)
	if err != nil {
		return
	}
	defer f.Close()
	defer context.AfterFunc(ctx, func() { _ = f.Close() })()
	if linux.PowerPressed(ctx, f) == nil {
		s.end(stop{off: true, why: "the power button was pressed"})
	}
}
