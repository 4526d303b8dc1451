package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/skerry-os/skerry/pkg/machine"
)

// waitForConfig keeps a machine without a usable config alive: it shows what is wrong on its consoles and to whoever asks it over
// HTTP, and goes on when the config partition holds a good one. It is on the network by DHCP, as a machine that is told nothing.
func (s *system) waitForConfig(ctx context.Context) error {
	page, done := s.openPage(machine.Network{})
	defer done()
	said := ""
	look := time.NewTicker(lookAtConfig)
	defer look.Stop()
	for {
		if s.told.err == nil {
			s.console.say("config: is good now")
			return nil
		}
		if text := oneLine(s.told.err); text != said {
			said = text
			page.set("a node config", s.told.err.Error(), editConfig)
			s.screen.waits(fmt.Sprintf("a node config: %s. Edit it on a PC: volume %s", text, configVolume))
			s.screen.show()
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-look.C:
			s.told = s.readTold(ctx)
		}
	}
}

// openPage makes a machine that cannot go on reachable, and says over HTTP why, until done. Network and display stay.
func (s *system) openPage(cfg machine.Network) (page *waitingPage, done func()) {
	if s.network == nil {
		s.keepNetwork(cfg)
	}
	if s.screen == nil {
		s.screen = newScreen(s)
		s.behind(s.screen.run)
	}
	page = &waitingPage{identity: s.id}
	return page, page.serve(s)
}

// waitsFor gives what tells everybody, again and again, what the machine waits for; the first time it opens the page, which done
// closes.
func (s *system) waitsFor(cfg machine.Network, what string) (tell func(why string), done func()) {
	var page *waitingPage
	done, said := func() {}, ""
	return func(why string) {
		if page == nil {
			page, done = s.openPage(cfg)
		}
		page.set(what, why, "Then start the machine with it.")
		if why == said {
			s.console.say("waiting: " + why) // for whoever comes to look
			return
		}
		said = why
		s.screen.waits(why)
		s.screen.show()
	}, func() { done() }
}

// waitingPage tells a browser what the machine waits for. It holds nothing that a person typed: a secret may stand in the wrong
// place of a config.
type waitingPage struct {
	identity          machine.Identity
	mu                sync.Mutex
	what, faults, fix string
}

func (p *waitingPage) set(what, faults, fix string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.what, p.faults, p.fix = what, machine.Redact(faults), fix
}

var editConfig = fmt.Sprintf("Edit %s on the volume %s, on any PC. The machine looks at it every %v.\n"+
	"What stands in place of … is shown on the machine's own console.", configName, configVolume, lookAtConfig)

// serve answers until stop. A port that is taken is no reason to stop waiting.
func (p *waitingPage) serve(s *system) (stop func()) {
	l, err := net.Listen("tcp", ":80")
	if err != nil {
		s.console.sayf("config: the page about it cannot be had over the network: %s", oneLine(err))
		return func() {}
	}
	srv := &http.Server{Handler: p, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 5 * time.Second, WriteTimeout: 10 * time.Second, MaxHeaderBytes: 8 << 10}
	s.background.Go(func() {
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			s.console.sayf("config: the page about it: %s", oneLine(err))
		}
	})
	return func() { _ = srv.Close() }
}

func (p *waitingPage) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "only GET", http.StatusMethodNotAllowed)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(http.StatusServiceUnavailable) // a health check must not take it for a node
	_, _ = fmt.Fprint(w, p.text())               // whoever asked may have gone
}

func (p *waitingPage) text() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	release, slot := describeIdentity(p.identity)
	return fmt.Sprintf("Skerry %s, slot %s\n\nThis machine waits for %s.\n\n%s\n\n%s\n", release, slot, p.what, indent(p.faults), p.fix)
}

func indent(text string) string {
	return "    " + strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n    ")
}
