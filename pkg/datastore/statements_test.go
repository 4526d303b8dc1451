package datastore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"testing"

	_ "modernc.org/sqlite"
)

func openRemembering(t *testing.T) *sql.DB {
	t.Helper()
	file := filepath.Join(t.TempDir(), "x.db")
	raw, err := sql.Open("sqlite", file)
	if err != nil {
		t.Fatal(err)
	}
	db, err := remembering(raw, file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
		_ = raw.Close()
	})
	db.SetMaxOpenConns(1) // one memory for all that follows
	if _, err := db.Exec("CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT)"); err != nil {
		t.Fatal(err)
	}
	for i := range 10 {
		if _, err := db.Exec("INSERT INTO t (id, name) VALUES (?, ?)", i, fmt.Sprint("n", i)); err != nil {
			t.Fatal(err)
		}
	}
	return db
}

func one(t *testing.T, q interface {
	QueryRowContext(context.Context, string, ...any) *sql.Row
}, query string, args ...any) (out string) {
	t.Helper()
	if err := q.QueryRowContext(t.Context(), query, args...).Scan(&out); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return out
}

func TestStatementsAreUsedAgainWithOtherArguments(t *testing.T) {
	db := openRemembering(t)
	for i := range 10 {
		if got, want := one(t, db, "SELECT name FROM t WHERE id = ?", i), fmt.Sprint("n", i); got != want {
			t.Errorf("%d: got %q, want %q", i, got, want)
		}
	}
	conn, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.Raw(func(c any) error {
		if n := len(c.(*remembered).prepared); n != 3 {
			return fmt.Errorf("%d statements are remembered, want 3: create, insert, select", n)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

// In a transaction one connection serves two readers of the same text at a time.
func TestAStatementInUseIsNotDisturbed(t *testing.T) {
	db := openRemembering(t)
	tx, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback() //nolint:errcheck // only read
	const text = "SELECT id FROM t WHERE id >= ? ORDER BY id"
	outer, err := tx.QueryContext(t.Context(), text, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer outer.Close()
	for want := 0; outer.Next(); want++ {
		var got int
		if err := outer.Scan(&got); err != nil || got != want {
			t.Fatalf("outer: got %d, %v, want %d", got, err, want)
		}
		if inner := one(t, tx, text, 7); inner != "7" {
			t.Fatalf("inner: got %s, want 7", inner)
		}
	}
	if err := outer.Err(); err != nil {
		t.Fatal(err)
	}
}

func TestMoreStatementsThanAreRemembered(t *testing.T) {
	db := openRemembering(t)
	for i := range 3 * maxStatements {
		if got := one(t, db, fmt.Sprintf("SELECT name FROM t WHERE id = 3 LIMIT %d", i+1)); got != "n3" {
			t.Fatalf("%d: got %q", i, got)
		}
	}
}

// A change of the tables reaches statements made before it.
func TestStatementsSeeANewSchema(t *testing.T) {
	db := openRemembering(t)
	const text = "SELECT * FROM t WHERE id = 3"
	columns := func() int {
		rows, err := db.QueryContext(t.Context(), text)
		if err != nil {
			t.Fatal(err)
		}
		defer rows.Close()
		names, err := rows.Columns()
		if err != nil || !rows.Next() {
			t.Fatal(err, rows.Err())
		}
		return len(names)
	}
	before := columns()
	if _, err := db.Exec("ALTER TABLE t ADD COLUMN more TEXT"); err != nil {
		t.Fatal(err)
	}
	if after := columns(); before != 2 || after != 3 {
		t.Errorf("%d columns before, %d after; want 2 and 3", before, after)
	}
}

// A query that was given up, and one that fails, leave their statement fit for the next.
func TestAStatementOutlivesItsFailures(t *testing.T) {
	db := openRemembering(t)
	const text = "SELECT id FROM t ORDER BY id"
	ctx, cancel := context.WithCancel(t.Context())
	rows, err := db.QueryContext(ctx, text)
	if err != nil || !rows.Next() {
		t.Fatal(err)
	}
	cancel()
	_ = rows.Close()
	if got := one(t, db, text); got != "0" {
		t.Errorf("after a cancelled query: got %s", got)
	}
	const insert = "INSERT INTO t (id, name) VALUES (?, ?)"
	if _, err := db.Exec(insert, 3, "again"); err == nil {
		t.Error("a key was inserted twice")
	}
	if _, err := db.Exec(insert, 11, "new"); err != nil {
		t.Errorf("after a failed insert: %v", err)
	}
	if _, err := db.Exec("this is no SQL"); err == nil {
		t.Error("nonsense was accepted")
	}
}

// What a small query of kine's kind costs with the memory and without.
func BenchmarkStatements(b *testing.B) {
	const text = `SELECT (SELECT MAX(rkv.id) AS id FROM kine AS rkv), (SELECT MAX(crkv.prev_revision) AS prev_revision FROM kine AS crkv WHERE crkv.name = 'compact_rev_key'),
		maxkv.* FROM (SELECT kv.id AS theid, kv.name AS thename, kv.created, kv.deleted, kv.create_revision, kv.prev_revision, kv.lease, kv.value
			FROM kine AS kv JOIN (SELECT MAX(mkv.id) AS id FROM kine AS mkv WHERE mkv.name LIKE ? GROUP BY mkv.name) AS maxkv ON maxkv.id = kv.id
			WHERE kv.deleted = 0 OR 0 = 1) AS maxkv ORDER BY maxkv.thename ASC LIMIT 1`
	file := filepath.Join(b.TempDir(), "x.db")
	raw, err := sql.Open("sqlite", "file://"+file+"?_pragma=journal_mode(WAL)")
	if err != nil {
		b.Fatal(err)
	}
	defer raw.Close()
	for _, s := range []string{
		"CREATE TABLE kine (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT, created INTEGER, deleted INTEGER, create_revision INTEGER, prev_revision INTEGER, lease INTEGER, value BLOB, old_value BLOB)",
		"CREATE INDEX kine_name_index ON kine (name)", "CREATE INDEX kine_name_id_index ON kine (name,id)",
		"INSERT INTO kine (name, created, deleted, create_revision, prev_revision, lease, value) VALUES ('/registry/x', 1, 0, 1, 0, 0, 'v')",
	} {
		if _, err := raw.Exec(s); err != nil {
			b.Fatal(err)
		}
	}
	with, err := remembering(raw, file)
	if err != nil {
		b.Fatal(err)
	}
	defer with.Close()
	for name, db := range map[string]*sql.DB{"as text": raw, "remembered": with} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				rows, err := db.QueryContext(b.Context(), text, "/registry/x")
				if err != nil {
					b.Fatal(err)
				}
				for rows.Next() {
				}
				if err := errors.Join(rows.Err(), rows.Close()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
