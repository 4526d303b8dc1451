package datastore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"strings"
)

// A snapshot of every kind that kine translates is a SQLite file with kine's table and one row for each live object, so that a
// snapshot of one kind can be restored into another.

const (
	// createTable is kine's own text for SQLite; kine adds the indexes when it opens the file.
	createTable = `CREATE TABLE kine (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT, created INTEGER, deleted INTEGER,
		create_revision INTEGER, prev_revision INTEGER, lease INTEGER, value BLOB, old_value BLOB)`

	selectLive = `SELECT id, name, created, create_revision, prev_revision, lease, value FROM kine
		WHERE id IN (SELECT MAX(id) FROM kine GROUP BY name) AND deleted = 0 ORDER BY id`

	// compactKey is the row in which kine keeps how far it has compacted.
	compactKey = "compact_rev_key"
)

// row is a live object. The value before it is history, and no part of a snapshot.
type row struct {
	id                      int64
	name                    string
	created                 sql.NullInt64
	createRevision, prevRev sql.NullInt64
	lease                   sql.NullInt64
	value                   []byte
}

// querier is a *sql.DB, *sql.Tx or *sql.Conn.
type querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// eachLive calls f for every live row in the order of revisions.
func eachLive(ctx context.Context, q querier, f func(row) error) error {
	rows, err := q.QueryContext(ctx, selectLive)
	if err != nil {
		return err
	}
	defer rows.Close() //nolint:errcheck // Err says it all
	for rows.Next() {
		var r row
		if err := rows.Scan(&r.id, &r.name, &r.created, &r.createRevision, &r.prevRev, &r.lease, &r.value); err != nil {
			return err
		}
		if err := f(r); err != nil {
			return err
		}
	}
	return rows.Err()
}

func latest(ctx context.Context, q querier) (Revision, error) {
	var n sql.NullInt64
	err := q.QueryRowContext(ctx, "SELECT MAX(id) FROM kine").Scan(&n)
	return Revision(n.Int64), err
}

// copyOut writes what q shows into a new SQLite file and makes it durable.
func copyOut(ctx context.Context, q querier, file string) (rev Revision, err error) {
	db, err := createFile(file)
	if err != nil {
		return 0, err
	}
	defer func() {
		if err = errors.Join(err, db.Close()); err != nil {
			err = errors.Join(err, os.Remove(file))
		}
	}()
	if rev, err = latest(ctx, q); err != nil {
		return 0, err
	}
	err = insertAll(ctx, db, "?,?,?,0,?,?,?,?", func(insert func(row) error) error { return eachLive(ctx, q, insert) })
	if err != nil {
		return 0, err
	}
	return rev, syncFile(file)
}

// createFile makes an empty SQLite database with kine's table, which gives unused space back step by step (see vacuum.go).
func createFile(file string) (*sql.DB, error) {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := f.Close(); err != nil {
		return nil, err
	}
	db, err := openSQLite(file, "journal_mode(MEMORY)", "synchronous(FULL)", "auto_vacuum(INCREMENTAL)")
	if err != nil {
		return nil, err
	}
	if _, err := db.Exec(createTable); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", file, err), db.Close())
	}
	return db, nil
}

// insertAll inserts what each hands out, in one transaction; values are the placeholders of a row's seven values.
func insertAll(ctx context.Context, db *sql.DB, values string, each func(insert func(row) error) error, before ...string) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() //nolint:errcheck // nothing to roll back after a commit
	for _, statement := range before {
		if _, err := tx.ExecContext(ctx, statement); err != nil {
			return err
		}
	}
	stmt, err := tx.PrepareContext(ctx, "INSERT INTO kine (id, name, created, deleted, create_revision, prev_revision, lease, value) VALUES ("+values+")")
	if err != nil {
		return err
	}
	defer stmt.Close() //nolint:errcheck // ends with the transaction
	err = each(func(r row) error {
		if _, err := stmt.ExecContext(ctx, r.id, r.name, r.created, r.createRevision, r.prevRev, r.lease, r.value); err != nil {
			return fmt.Errorf("%s: %w", r.name, err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return tx.Commit()
}

// restored hands out the rows of a snapshot as a store must have them: at a revision that nobody has seen yet, and with
// everything before it marked as compacted.
func restored(ctx context.Context, snapshot querier, insert func(row) error) error {
	rev, err := latest(ctx, snapshot)
	if err != nil {
		return err
	}
	if rev == 0 {
		return errors.New("holds no objects")
	}
	err = eachLive(ctx, snapshot, func(r row) error {
		if r.name == compactKey {
			return nil
		}
		return insert(r)
	})
	if err != nil {
		return err
	}
	now := int64(rev) + RevisionGap
	return insert(row{
		id: now, name: compactKey, created: sql.NullInt64{Int64: 1, Valid: true},
		createRevision: sql.NullInt64{Int64: 0, Valid: true}, prevRev: sql.NullInt64{Int64: now, Valid: true}, lease: sql.NullInt64{Int64: 0, Valid: true}, value: []byte{},
	})
}

func syncFile(name string) error {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // nothing was written through it
	if err := f.Sync(); err != nil {
		return fmt.Errorf("%s: making it durable: %w", name, err)
	}
	return nil
}

// EachObject calls f for every object of a SQLite store that does not run, and returns the revision it had.
func EachObject(ctx context.Context, c Config, f func(key string, value []byte, ttl int64) error) (Revision, error) {
	if err := checkFile(ctx, c.File()); err != nil {
		return 0, err
	}
	db, err := openSQLite(c.File())
	if err != nil {
		return 0, err
	}
	defer db.Close() //nolint:errcheck // only read
	rev, err := latest(ctx, db)
	if err != nil {
		return 0, err
	}
	return rev, eachLive(ctx, db, func(r row) error {
		if !strings.HasPrefix(r.name, "/") { // kine's own
			return nil
		}
		return f(r.name, r.value, r.lease.Int64)
	})
}
