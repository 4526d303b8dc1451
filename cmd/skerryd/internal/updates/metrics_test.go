package updates

import (
	"slices"
	"testing"
	"time"

	"k8s.io/component-base/metrics/legacyregistry"

	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/slot"
	"github.com/skerry-os/skerry/pkg/update/record"
)

// counts is how many looks were refused for a reason.
func counts(t *testing.T, kind string) float64 {
	t.Helper()
	all, err := legacyregistry.DefaultGatherer.Gather()
	check(t, err)
	for _, f := range all {
		if f.GetName() != "skerry_update_refusals_total" {
			continue
		}
		for _, m := range f.GetMetric() {
			if m.GetLabel()[0].GetValue() == kind {
				return m.GetCounter().GetValue()
			}
		}
	}
	return 0
}

// What runs, whether it is on trial, when which source was looked at and what was wrong: all of it is a metric.
func TestMetrics(t *testing.T) {
	registerMetrics()
	id := machine.Identity{Release: machine.Release{Version: "1.1.0"}, Boot: machine.Boot{Slot: slot.B, Trial: true}}
	r := record.Record{Phase: record.Trying, Failed: []record.Failure{{}, {}}}
	r.Looked("https://u", "it is old", "expired", time.Unix(1000, 0))
	show(id, r)
	all, err := legacyregistry.DefaultGatherer.Gather()
	check(t, err)
	var got []string
	for _, f := range all {
		for _, m := range f.GetMetric() {
			text := f.GetName()
			for _, l := range m.GetLabel() {
				text += " " + l.GetValue()
			}
			if m.GetGauge() != nil {
				got = append(got, text+" "+time.Duration(m.GetGauge().GetValue()).String())
			}
		}
	}
	for _, want := range []string{
		"skerry_update_info trying b 1.1.0 1ns", "skerry_update_trial 1ns", "skerry_update_last_check_timestamp_seconds https://u 1µs",
		"skerry_update_source_problem expired https://u 1ns", "skerry_update_failed_releases 2ns",
	} {
		if !slices.Contains(got, want) {
			t.Errorf("there is no %q in %q", want, got)
		}
	}
}
