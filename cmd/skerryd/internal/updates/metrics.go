package updates

import (
	"sync"

	"k8s.io/component-base/metrics"
	"k8s.io/component-base/metrics/legacyregistry"

	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/update/record"
)

// They are served where Kubernetes' own are: by kubelet, and by a server's API.
var (
	infoGauge = metrics.NewGaugeVec(&metrics.GaugeOpts{
		Name: "skerry_update_info", Help: "The release that runs, its slot, and the phase of the update that is under way, if one is.", StabilityLevel: metrics.ALPHA,
	}, []string{"version", "slot", "phase"})
	trialGauge = metrics.NewGauge(&metrics.GaugeOpts{
		Name: "skerry_update_trial", Help: "Whether the release that runs is on trial.", StabilityLevel: metrics.ALPHA,
	})
	checkedGauge = metrics.NewGaugeVec(&metrics.GaugeOpts{
		Name: "skerry_update_last_check_timestamp_seconds", Help: "When a source was looked at last.", StabilityLevel: metrics.ALPHA,
	}, []string{"source"})
	problemGauge = metrics.NewGaugeVec(&metrics.GaugeOpts{
		Name: "skerry_update_source_problem", Help: "1 while the last look at a source ended with a problem, of this kind.", StabilityLevel: metrics.ALPHA,
	}, []string{"source", "kind"})
	refusedCounter = metrics.NewCounterVec(&metrics.CounterOpts{
		Name: "skerry_update_refusals_total", Help: "Looks and updates that ended with a problem, by its kind.", StabilityLevel: metrics.ALPHA,
	}, []string{"kind"})
	failedGauge = metrics.NewGauge(&metrics.GaugeOpts{
		Name: "skerry_update_failed_releases", Help: "Releases that were tried, failed, and are not tried again.", StabilityLevel: metrics.ALPHA,
	})
	registerMetrics = sync.OnceFunc(func() {
		legacyregistry.MustRegister(infoGauge, trialGauge, checkedGauge, problemGauge, refusedCounter, failedGauge)
	})
)

// show makes the record visible.
func show(id machine.Identity, r record.Record) {
	phase := r.Phase
	if phase == record.Idle {
		phase = "idle"
	}
	infoGauge.Reset()
	infoGauge.WithLabelValues(id.Release.Version, string(id.Boot.Slot), string(phase)).Set(1)
	trialGauge.Set(0)
	if id.Boot.Trial && r.Phase == record.Trying {
		trialGauge.Set(1)
	}
	checkedGauge.Reset()
	problemGauge.Reset()
	for name, s := range r.Sources {
		checkedGauge.WithLabelValues(name).Set(float64(s.Checked.Unix()))
		if s.Problem != "" {
			problemGauge.WithLabelValues(name, s.Kind).Set(1)
		}
	}
	failedGauge.Set(float64(len(r.Failed)))
}

// refused counts.
func refused(kind string) {
	if kind != "" {
		refusedCounter.WithLabelValues(kind).Inc()
	}
}
