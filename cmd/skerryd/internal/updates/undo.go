package updates

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/skerry-os/skerry/pkg/update/record"
)

// Datastore is what Undo asks of a server's. Schema gives "" for one that is not this machine's alone.
type Datastore struct {
	Schema  func(context.Context) (string, error)
	Restore func(ctx context.Context, snapshot string) (aside string, err error)
}

// Undo is for the start of a server that nobody uses yet: it takes the datastore back to before the update that failed last, if
// the release that was tried may have written it in a form that this one does not read. A datastore that others use too stays:
// they went on with it. What cannot be taken back is told, and does not keep the server from starting.
func Undo(ctx context.Context, log *slog.Logger, st record.Store, d Datastore) {
	if err := undo(ctx, log, st, d); err != nil {
		log.Error("the datastore stays as the release that failed left it", "err", err)
	}
}

func undo(ctx context.Context, log *slog.Logger, st record.Store, d Datastore) error {
	r, err := st.Load()
	if err != nil || r.Undo == nil {
		return err
	}
	if r.Undo.Schema != "" {
		schema, err := d.Schema(ctx)
		if err != nil {
			return err
		}
		if r.Undo.Moved(schema) {
			aside, err := d.Restore(ctx, r.Undo.Snapshot)
			if err != nil {
				return fmt.Errorf("snapshot %s: %w", r.Undo.Snapshot, err)
			}
			log.Warn("the datastore is taken back to before the update", "snapshot", r.Undo.Snapshot, "of before is kept as", aside)
			r.Reason += "; the datastore is as it was before, from snapshot " + r.Undo.Snapshot
		}
	}
	r.Undo = nil
	return st.Save(r)
}
