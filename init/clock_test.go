package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skerry-os/skerry/pkg/machine"
)

func TestHasClock(t *testing.T) {
	sys := t.TempDir()
	if hasClock(sys) {
		t.Error("a board without one has one")
	}
	if err := os.MkdirAll(filepath.Join(sys, "class/rtc/rtc0"), 0o755); err != nil {
		t.Fatal(err)
	}
	if !hasClock(sys) {
		t.Error("a board with one has none")
	}
}

// An agent whose clock cannot be trusted waits, and says for what; a server, which everybody else waits for, does not.
func TestAgentsWaitForTheTime(t *testing.T) {
	c, read := pipeConsole(t)
	s := &system{console: c, time: newTimekeeper(), config: &machine.Config{Role: machine.RoleAgent}}
	s.screen = newScreen(s)
	done := make(chan struct{})
	go func() { s.awaitTime(t.Context()); close(done) }()
	for end := time.Now().Add(10 * time.Second); !strings.Contains(read(false), "waiting: the time"); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("it says\n%s", read(false))
		}
	}
	select {
	case <-done:
		t.Fatal("it did not wait")
	default:
	}
	s.time.trust()
	s.time.trust() // NTP says so as well
	<-done
	s.awaitTime(t.Context())

	server := &system{console: c, time: newTimekeeper(), config: &machine.Config{Role: machine.RoleServer}}
	server.awaitTime(t.Context())
}
