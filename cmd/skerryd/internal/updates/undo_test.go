package updates

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skerry-os/skerry/pkg/update/record"
)

// The datastore goes back with the release if its form or Kubernetes moved on, and only then.
func TestUndo(t *testing.T) {
	for name, tt := range map[string]struct {
		boots    int
		saved    record.Saved
		now      string // schema
		broken   bool
		restored bool
		left     bool // for the next start
	}{
		"same":                 {1, record.Saved{Snapshot: "s", Schema: "a", Kubernetes: "v1.37.2", Next: "v1.37.3"}, "a", false, false, false},
		"Kubernetes":           {1, record.Saved{Snapshot: "s", Schema: "a", Kubernetes: "v1.37.2", Next: "v1.38.0"}, "a", false, true, false},
		"schema":               {1, record.Saved{Snapshot: "s", Schema: "a", Kubernetes: "v1.37.2", Next: "v1.37.2"}, "b", false, true, false},
		"died before it wrote": {0, record.Saved{Snapshot: "s", Schema: "a", Kubernetes: "v1.37.2", Next: "v1.38.0"}, "a", false, false, false},
		"shared":               {1, record.Saved{Snapshot: "s", Kubernetes: "v1.37.2", Next: "v1.38.0"}, "", false, false, false},
		"no way back":          {1, record.Saved{Snapshot: "s", Schema: "a", Kubernetes: "v1.37.2", Next: "v1.38.0"}, "a", true, true, true},
	} {
		st := record.File(filepath.Join(t.TempDir(), "record.json"))
		r := record.Record{Phase: record.Trying, To: "1.1.0", Boots: tt.boots, Saved: &tt.saved}
		r.Fail("it was no good", time.Unix(0, 0))
		if err := st.Save(r); err != nil {
			t.Fatal(err)
		}
		restored := ""
		Undo(t.Context(), slog.New(slog.DiscardHandler), st, Datastore{
			Schema: func(context.Context) (string, error) { return tt.now, nil },
			Restore: func(_ context.Context, snapshot string) (string, error) {
				restored = snapshot
				if tt.broken {
					return "", errors.New("the disk is full")
				}
				return "aside", nil
			},
		})
		got, err := st.Load()
		if err != nil || (restored == "s") != tt.restored || (got.Undo != nil) != tt.left {
			t.Errorf("%s: restored %q, %+v, %v", name, restored, got, err)
		}
		if strings.Contains(got.Reason, "from snapshot s") != (tt.restored && !tt.broken) {
			t.Errorf("%s: reason %q", name, got.Reason)
		}
	}
}
