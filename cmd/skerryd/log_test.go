package main

import (
	"testing"

	"github.com/sirupsen/logrus"
)

// While everything stops, a component that wants to end the process ends its own goroutine instead.
func TestNobodyEndsWhatStops(t *testing.T) {
	before := logrus.StandardLogger().ExitFunc
	defer func() { logrus.StandardLogger().ExitFunc = before }()
	g := new(gate)
	lastWords(g)
	stopping := func() bool { return true }
	g.ending.Store(&stopping)
	done := make(chan struct{})
	go func() {
		defer close(done)
		logrus.StandardLogger().Exit(1)
		t.Error("it goes on")
	}()
	<-done
}
