package datastore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"
)

const (
	// compactBatch is how many revisions kine compacts in one transaction. A thousand, kine's own figure, keep the file locked
	// for tens of milliseconds, hundreds do so for a few.
	compactBatch = 250

	vacuumEvery = 5 * time.Minute
	vacuumPages = 64 // in one transaction: 256 KiB

	// spare is the share of free pages that is left for what is written next: to give them back and take them again would only
	// wear the disk.
	spare = 5 // a fifth
)

// enableVacuum lets a database give unused pages back step by step, which has to be decided when it is made. An older one is
// written anew once.
func enableVacuum(ctx context.Context, file string) error {
	db, err := openSQLite(file)
	if err != nil {
		return err
	}
	defer db.Close() //nolint:errcheck // Exec has said it all
	const incremental = 2
	var mode int
	if err := db.QueryRowContext(ctx, "PRAGMA auto_vacuum").Scan(&mode); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	if mode == incremental {
		return nil
	}
	if _, err := db.ExecContext(ctx, "PRAGMA auto_vacuum=INCREMENTAL"); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	if _, err := db.ExecContext(ctx, "VACUUM"); err != nil {
		slog.Warn("datastore: the file keeps its size for now", "file", file, "err", err)
	}
	return nil
}

// vacuum gives pages back to the file system until no more than a fifth of the file is unused. Each step is a short
// transaction, and between two of them others may write.
func vacuum(ctx context.Context, file string, turn func(write func() error) error) error {
	info, err := os.Stat(file)
	if err != nil {
		return err
	}
	db, err := openSQLite(file, "synchronous(NORMAL)")
	if err != nil {
		return err
	}
	defer db.Close() //nolint:errcheck // Exec has said it all
	var last int64 = -1
	for ctx.Err() == nil {
		var free, pages int64
		err := errors.Join(db.QueryRowContext(ctx, "PRAGMA freelist_count").Scan(&free), db.QueryRowContext(ctx, "PRAGMA page_count").Scan(&pages))
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		if free <= pages/spare || free < 4*vacuumPages || free == last {
			break
		}
		last = free
		err = turn(func() error {
			rows, err := db.QueryContext(ctx, fmt.Sprintf("PRAGMA incremental_vacuum(%d)", vacuumPages))
			if err != nil {
				return err
			}
			for rows.Next() { // each step of the statement frees one page
				continue
			}
			return errors.Join(rows.Err(), rows.Close())
		})
		if err != nil {
			return fmt.Errorf("%s: giving unused space back: %w", file, err)
		}
	}
	if last >= 0 {
		slog.Info("datastore: unused space given back", "file", file, "before", info.Size())
	}
	return ctx.Err()
}
