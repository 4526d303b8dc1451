package updates

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skerry-os/skerry/pkg/update/record"
)

// The datastore goes back with the release if its form or Kubernetes moved on, and only then. A server that serves has nothing
// left to undo, whatever became of it.
func TestUndo(t *testing.T) {
	full := errors.New("the disk is full")
	for name, tt := range map[string]struct {
		boots    int
		saved    record.Saved
		now      string // schema
		schema   error
		restore  []error // of each try
		running  string
		restored int // times
		left     bool
		says     string
	}{
		"same":                 {boots: 1, saved: record.Saved{Schema: "a", Next: "v1.37.3"}, now: "a"},
		"Kubernetes":           {boots: 1, saved: record.Saved{Schema: "a", Next: "v1.38.0"}, now: "a", restored: 1, says: "from snapshot s"},
		"schema":               {boots: 1, saved: record.Saved{Schema: "a", Next: "v1.37.2"}, now: "b", restored: 1, says: "from snapshot s"},
		"died before it wrote": {boots: 0, saved: record.Saved{Schema: "a", Next: "v1.38.0"}, now: "a"},
		"shared":               {boots: 1, saved: record.Saved{Next: "v1.38.0"}},
		"after a while":        {boots: 1, saved: record.Saved{Schema: "a", Next: "v1.38.0"}, now: "a", restore: []error{full, full, nil}, restored: 3, says: "from snapshot s"},
		"no way back":          {boots: 1, saved: record.Saved{Schema: "a", Next: "v1.38.0"}, now: "a", restore: []error{full, full, full}, restored: 3, says: "skerryd snapshot restore s"},
		"form is not known":    {boots: 1, saved: record.Saved{Schema: "a", Next: "v1.38.0"}, schema: errors.New("locked"), says: "skerryd snapshot restore s"},
		"the one that failed":  {boots: 1, saved: record.Saved{Schema: "a", Next: "v1.38.0"}, now: "a", running: "1.1.0", left: true},
	} {
		synctest.Test(t, func(t *testing.T) {
			st := record.File(filepath.Join(t.TempDir(), "record.json"))
			tt.saved.Snapshot, tt.saved.Release, tt.saved.Kubernetes = "s", "1.0.0", "v1.37.2"
			r := record.Record{Phase: record.Trying, To: "1.1.0", Boots: tt.boots, Saved: &tt.saved}
			r.Fail("it was no good", time.Unix(0, 0))
			check(t, st.Save(r))
			restored := 0
			d := Datastore{
				Schema: func(context.Context) (string, error) { return tt.now, tt.schema },
				Restore: func(_ context.Context, snapshot string) (string, error) {
					if restored++; snapshot != "s" || restored > max(1, len(tt.restore)) {
						t.Errorf("%s: restores %q for the %dth time", name, snapshot, restored)
					}
					if tt.restore == nil {
						return "aside", nil
					}
					return "aside", tt.restore[restored-1]
				},
			}
			log := slog.New(slog.DiscardHandler)
			check(t, Undo(t.Context(), log, st, cmp.Or(tt.running, "1.0.0"), d))
			got, err := st.Load()
			if err != nil || restored != tt.restored || (got.Undo != nil) != tt.left || !strings.Contains(got.Reason, tt.says) || tt.says == "" && got.Reason != r.Reason {
				t.Errorf("%s: restored %d times, %+v, %v", name, restored, got, err)
			}
			if tt.left {
				return
			}
			// It served; weeks later it starts again, with everything in order.
			d.Restore = func(context.Context, string) (string, error) {
				t.Errorf("%s: what the server wrote since is thrown away", name)
				return "", nil
			}
			d.Schema = func(context.Context) (string, error) { return "c", nil }
			check(t, Undo(t.Context(), log, st, "1.0.0", d))
		})
	}
}

// A server does not serve while the record cannot say that nothing is to be undone.
func TestUndoThatCannotBeNoted(t *testing.T) {
	full := errors.New("the disk is full")
	d := Datastore{
		Schema:  func(context.Context) (string, error) { return "b", nil },
		Restore: func(context.Context, string) (string, error) { return "aside", nil },
	}
	for name, st := range map[string]record.Store{"load": badStore{load: full}, "save": badStore{save: full}} {
		if err := Undo(t.Context(), slog.New(slog.DiscardHandler), st, "1.0.0", d); !errors.Is(err, full) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

type badStore struct{ load, save error }

func (b badStore) Load() (record.Record, error) {
	return record.Record{Undo: &record.Saved{Snapshot: "s", Schema: "a"}}, b.load
}
func (b badStore) Save(record.Record) error { return b.save }
