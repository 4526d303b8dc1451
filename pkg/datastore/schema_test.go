package datastore

import (
	"errors"
	"path/filepath"
	"testing"
)

// The digest is that of the tables' form: it does not change with their content.
func TestSchema(t *testing.T) {
	c := Config{Dir: filepath.Join(t.TempDir(), "db")}
	client, stop := running(t, c)
	store := open(t, c).(Schemer)
	before, err := store.Schema(t.Context())
	if err != nil || before == "" {
		t.Fatal(before, err)
	}
	create(t, client, "/registry/a", "one")
	stop()
	if now, err := store.Schema(t.Context()); now != before || err != nil {
		t.Errorf("after a write %q, %v; before %q", now, err, before)
	}
	db, err := openSQLite(c.File())
	if err != nil {
		t.Fatal(err)
	}
	_, err = db.Exec("ALTER TABLE kine ADD COLUMN colour TEXT")
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	if now, err := store.Schema(t.Context()); now == before || err != nil {
		t.Errorf("after a new column %q, %v", now, err)
	}
}
