package updates

import (
	"context"
	"log/slog"

	"github.com/skerry-os/skerry/pkg/datastore"
	"github.com/skerry-os/skerry/pkg/datastore/snapshot"
	"github.com/skerry-os/skerry/pkg/update"
	"github.com/skerry-os/skerry/pkg/update/record"
)

// Save saves a datastore before an update. What is on this machine is enough to go back to: that an S3 server is away, or that an
// old snapshot cannot be removed, is told and does not keep the update.
func Save(ctx context.Context, log *slog.Logger, to *snapshot.Snapshots, store datastore.Store) (*record.Saved, error) {
	e, err := to.Save(ctx, store, "before-update")
	if e.Name == "" {
		return nil, err
	}
	saved := &record.Saved{Snapshot: e.Name}
	if err != nil {
		log.Warn("the snapshot before the update is on this machine, and that is enough for it", "err", err)
		saved.Note = err.Error()
	}
	saved.Schema, err = Schema(ctx, store)
	return saved, err
}

// Needs is the room that Save takes: the data, and its packed form beside it.
func Needs(ctx context.Context, to *snapshot.Snapshots, store datastore.Store) ([]update.Need, error) {
	n, err := store.Size(ctx)
	return []update.Need{{What: "a snapshot of the datastore", Dir: to.Dir, Bytes: 2*n + 16<<20}}, err
}

// Schema is "" for a datastore that is not this machine's alone.
func Schema(ctx context.Context, store datastore.Store) (string, error) {
	if own, ok := store.(datastore.Schemer); ok {
		return own.Schema(ctx)
	}
	return "", nil
}
