package updates

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/skerry-os/skerry/pkg/update/record"
)

// Datastore is what Undo asks of a server's. Schema gives "" for one that is not this machine's alone.
type Datastore struct {
	Schema  func(context.Context) (string, error)
	Restore func(ctx context.Context, snapshot string) (aside string, err error)
}

// undoTries and undoPause are for a disk that stops for a while.
const (
	undoTries = 3
	undoPause = 2 * time.Second
)

// Undo is for the start of a server that nobody uses yet: it takes the datastore back to before the update that failed last, if
// the release that was tried may have written it in a form that this one, running, does not read. A datastore that others use too
// stays: they went on with it.
//
// What cannot be taken back now is told and then never is: the server goes on, and a later start would throw away what it wrote.
// So it may serve only when the record says that nothing is to be undone any more; an error means that it does not.
func Undo(ctx context.Context, log *slog.Logger, st record.Store, running string, d Datastore) error {
	r, err := st.Load()
	if err != nil || r.Undo == nil {
		return err
	}
	if saver := r.Undo.Release; saver != "" && saver != running {
		return nil // the release that failed, on its way out: what it does is undone by the one before
	}
	for n := 1; ; n++ {
		note, err := undo(ctx, r.Undo, d)
		switch {
		case err == nil && note != "":
			log.Warn("the datastore is taken back to before the update", "snapshot", r.Undo.Snapshot, "how", note)
			r.Reason += "; " + note
		case err != nil && ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil && n < undoTries:
			select {
			case <-time.After(undoPause):
			case <-ctx.Done():
			}
			continue
		case err != nil:
			log.Error("the datastore stays as the release that failed left it", "err", err)
			r.Reason += fmt.Sprintf("; the datastore stays as that release left it, for it cannot be taken back: %v; skerryd snapshot restore %s does it by hand", err, r.Undo.Snapshot)
		}
		r.Undo = nil
		return st.Save(r)
	}
}

// undo takes the datastore back, if need be, and says so.
func undo(ctx context.Context, u *record.Saved, d Datastore) (note string, err error) {
	if u.Schema == "" {
		return "", nil
	}
	schema, err := d.Schema(ctx)
	if err != nil || !u.Moved(schema) {
		return "", err
	}
	aside, err := d.Restore(ctx, u.Snapshot)
	if err != nil {
		return "", fmt.Errorf("snapshot %s: %w", u.Snapshot, err)
	}
	return fmt.Sprintf("the datastore is as it was before, from snapshot %s; what it was is in %s", u.Snapshot, aside), nil
}
