package main

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// Two programs in one process register the same collector; a collector that contradicts another is still a fault.
func TestARegistryIsShared(t *testing.T) {
	r := sharedRegistry{prometheus.NewRegistry()}
	counter := func(help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "handled_total", Help: help})
	}
	r.MustRegister(counter("same"))
	r.MustRegister(counter("same"), prometheus.NewCounter(prometheus.CounterOpts{Name: "other_total"}))
	defer func() {
		if recover() == nil {
			t.Error("a metric of the same name and another meaning was accepted")
		}
	}()
	r.MustRegister(counter("different"))
}
