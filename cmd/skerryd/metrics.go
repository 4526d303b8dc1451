package main

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

// sharedRegistry lets several programs live in one process: containerd and etcd both bring gRPC's metrics to Prometheus'
// default registry, and whoever comes second would end the process. The second is told nothing and its counters are not shown.
type sharedRegistry struct{ prometheus.Registerer }

// shareRegistry must be called before anything that registers starts.
func shareRegistry() {
	if _, done := prometheus.DefaultRegisterer.(sharedRegistry); !done {
		prometheus.DefaultRegisterer = sharedRegistry{prometheus.DefaultRegisterer}
	}
}

func (r sharedRegistry) MustRegister(collectors ...prometheus.Collector) {
	for _, c := range collectors {
		var taken prometheus.AlreadyRegisteredError
		if err := r.Register(c); err != nil && !errors.As(err, &taken) {
			panic(err)
		}
	}
}
