package machine_test

import (
	"strings"
	"testing"
	"time"

	"github.com/skerry-os/skerry/pkg/machine"
)

func TestUpdateWindows(t *testing.T) {
	at := func(text string) time.Time {
		v, err := time.Parse("15:04", text)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	for _, tt := range []struct {
		windows, open, shut string
	}{
		{"", "00:00 12:00 23:59", ""},
		{"02:00-05:00", "02:00 04:59", "01:59 05:00 12:00"},
		{"22:00-01:00", "22:00 23:59 00:59", "01:00 21:59"},
		{"02:00-03:00 12:00-13:00", "02:30 12:30", "03:00 11:59"},
	} {
		u := machine.Update{Windows: strings.Fields(tt.windows)}
		for when := range strings.FieldsSeq(tt.open) {
			if !u.Open(at(when)) {
				t.Errorf("%q: is shut at %s", tt.windows, when)
			}
		}
		for when := range strings.FieldsSeq(tt.shut) {
			if u.Open(at(when)) {
				t.Errorf("%q: is open at %s", tt.windows, when)
			}
		}
	}
}

func TestUpdateOpens(t *testing.T) {
	u := machine.Update{Windows: []string{"22:00-01:00", "02:00-03:00"}}
	for at, want := range map[string]time.Duration{
		"22:00:00": 0, "00:30:00": 0, "01:00:00": time.Hour, "01:59:30": 30 * time.Second, "12:00:00": 10 * time.Hour, "03:00:01": 19*time.Hour - time.Second,
	} {
		now, err := time.Parse("15:04:05", at)
		if err != nil {
			t.Fatal(err)
		}
		got := u.Opens(now.In(time.FixedZone("", 3600)))
		if got != want || got > 0 && !u.Open(now.Add(got)) {
			t.Errorf("%s: opens in %v, want %v", at, got, want)
		}
	}
	if d := (machine.Update{}).Opens(time.Now()); d != 0 {
		t.Errorf("without windows: %v", d)
	}
}

func TestUpdateProblems(t *testing.T) {
	const head = "apiVersion: skerry/v1alpha1\nkind: NodeConfig\nrole: server\nupdate: "
	for text, want := range map[string]string{
		"{source: https://u.example.org/skerry, channel: beta, policy: check, interval: 1h, deadline: 5m, windows: [\"02:00-05:00\"], stick: true}": "",
		"{source: /srv/updates}":                 "",
		"{source: u.example.org}":                "update.source",
		"{source: \"https://a@b/\"}":             "update.source",
		"{source: /srv/../etc}":                  "update.source",
		"{channel: Stable}":                      "update.channel",
		"{policy: sometimes}":                    "write auto or check",
		"{interval: 1s}":                         "from 10s to 720h",
		"{deadline: soon}":                       "from 1m to 2h",
		"{windows: [\"2-5\", \"03:00-03:00\"]}":  "update.windows[1]",
		"{drain: {deadline: 10m, stuck: force}}": "",
		"{drain: {deadline: 0s}}":                "update.drain",
		"{drain: {stuck: perhaps}}":              "write one of skip, force, stop",
		"{sauce: x}":                             "sauce",
	} {
		_, err := machine.Decode("c.yaml", []byte(head+text+"\n"))
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v; want %q", text, err, want)
		}
	}
}
