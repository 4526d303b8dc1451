package datastore

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
)

// Schemer is a Store of this machine's alone that can say which form its tables have.
type Schemer interface {
	// Schema is a digest that changes when a version of the program changes tables or indexes. The store may be running.
	Schema(ctx context.Context) (string, error)
}

// Schema reads SQLite's own list of what there is.
func (s *sqliteStore) Schema(ctx context.Context) (_ string, err error) {
	db, err := sql.Open("sqlite", "file:"+s.File()+"?mode=ro&_pragma=busy_timeout(5000)")
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	rows, err := db.QueryContext(ctx, "SELECT type, name, coalesce(sql, '') FROM sqlite_master ORDER BY type, name")
	if err != nil {
		return "", fmt.Errorf("%s: %w", s.File(), err)
	}
	h := sha256.New()
	for rows.Next() {
		var kind, name, text string
		if err := rows.Scan(&kind, &name, &text); err != nil {
			return "", errors.Join(err, rows.Close())
		}
		fmt.Fprintf(h, "%q %q %q\n", kind, name, text)
	}
	return hex.EncodeToString(h.Sum(nil)), errors.Join(rows.Err(), rows.Close())
}
