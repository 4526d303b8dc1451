package datastore

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	kinesqlite "github.com/k3s-io/kine/pkg/drivers/sqlite"
	"github.com/k3s-io/kine/pkg/logstructured"
	"github.com/k3s-io/kine/pkg/logstructured/sqllog"
	"golang.org/x/sys/unix"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

const (
	// checkAtStart bounds what the check adds to a start; a larger database is checked to its end beside the running server.
	checkAtStart = 2 * time.Second

	// retryWhenFull is how often a start is tried again on a full disk.
	retryWhenFull = 5 * time.Second
)

// ErrDamaged is in the error of a check that found the data itself at fault, not the way to it.
var ErrDamaged = errors.New("is damaged")

type sqliteStore struct {
	Config
	compactEvery time.Duration // 0 is kine's usual interval
}

func (s *sqliteStore) Kind() string     { return SQLite }
func (s *sqliteStore) Endpoint() string { return "unix://" + s.socket() }

// Run opens, checks and serves the database until ctx ends. When it returns, the write-ahead log has been moved into the
// database file and everything is closed. A damaged file is replaced by the newest good snapshot, if there is one; a full disk
// is waited for.
func (s *sqliteStore) Run(ctx context.Context, ready func()) error {
	if err := checkSocket(s.Config); err != nil {
		return err
	}
	told := false
	for {
		err := s.runOnce(ctx, ready)
		if !s.noRoom(err) || ctx.Err() != nil {
			return err
		}
		if !told {
			told = true
			s.tell(Event{true, ReasonDiskFull, fmt.Sprintf("datastore: cannot start: %v; waiting for room: delete something on the disk of %s", err, s.Dir)})
		}
		if err := os.Remove(s.reserve()); err == nil {
			continue // this was enough, perhaps
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(retryWhenFull):
		}
	}
}

func (s *sqliteStore) runOnce(ctx context.Context, ready func()) (err error) {
	checked, err := s.prepare(ctx)
	if errors.Is(err, ErrDamaged) {
		err = s.recover(ctx, err)
	}
	if err != nil {
		return err
	}

	// kine's connections and loops end with this context, which must outlive the last request.
	backendCtx, closeBackend := context.WithCancel(context.WithoutCancel(ctx))
	var loops sync.WaitGroup
	var statements *sql.DB
	defer func() {
		closeBackend()
		loops.Wait()
		if statements != nil {
			err = errors.Join(err, statements.Close())
		}
		err = errors.Join(err, checkpoint(s.File()))
	}()
	// No VACUUM at every start: it writes the whole file. No FULL checkpoint behind a compaction: it keeps writers waiting for
	// the disk, and SQLite checkpoints by itself every thousand pages.
	dsn := s.File() + "?_journal_mode=WAL&_busy_timeout=30000&_synchronous=NORMAL&_txlock=immediate&_kine_disable_startup_vacuum&_kine_disable_compact_wal_checkpoint"
	config := kineConfig(dsn)
	config.CompactBatchSize = compactBatch
	config.CompactInterval = cmp.Or(s.compactEvery, config.CompactInterval)
	_, dialect, err := kinesqlite.NewVariant(backendCtx, &loops, "sqlite3", config)
	if err != nil {
		return fmt.Errorf("%s: %w", s.File(), err)
	}
	if statements, err = remembering(dialect.DB, s.File()); err != nil {
		return err
	}
	dialect.DB = statements
	backend := honest{logstructured.New(logOf{sqllog.New(dialect, &loops, config)})}
	if err := backend.Start(backendCtx); err != nil {
		return fmt.Errorf("%s: %w", s.File(), err)
	}
	syncer, err := newSyncer(s.File())
	if err != nil {
		return err
	}
	h := newHealth(s.Config)
	syncer.observe = h.Synced
	lost, stopSyncer := syncer.start()
	defer stopSyncer()

	serveCtx, stop := context.WithCancel(ctx)
	defer stop()
	damaged := make(chan error, 1)
	var beside sync.WaitGroup
	defer beside.Wait()
	defer stop()
	beside.Go(func() { h.watch(serveCtx) })
	if !checked {
		beside.Go(func() {
			// The file goes on being served: stopping would help nobody, and the next start finds the same.
			if err := s.Check(serveCtx); errors.Is(err, ErrDamaged) {
				damaged <- err
			}
		})
	}
	failed := make(chan error, 1)
	beside.Go(func() {
		select {
		case err := <-lost:
			failed <- err
		case err := <-damaged:
			s.tell(Event{true, ReasonDamaged, fmt.Sprintf("datastore: %v; the server stops, and restores it from a snapshot when it starts", err)})
			failed <- errors.Join(err, s.markDamaged())
		case <-serveCtx.Done():
		}
	})
	return serve(serveCtx, s.Config, backend, syncer.intercept(h), failed, ready)
}

// prepare finishes an interrupted restore, creates the file for this user alone or checks the one that is there, as far as the
// time allows.
func (s *sqliteStore) prepare(ctx context.Context) (checked bool, err error) {
	file := s.File()
	if err := finishSwap(s.Dir); err != nil {
		return false, err
	}
	info, err := os.Stat(file)
	if errors.Is(err, os.ErrNotExist) || (err == nil && info.Size() == 0) {
		return true, s.create()
	}
	if err != nil {
		return false, err
	}
	if err := os.Chmod(file, 0o600); err != nil { // SQLite gives its log and index the same mode
		return false, err
	}
	if s.markedDamaged() {
		return false, fmt.Errorf("%s: %w, as a check found while it was in use", file, ErrDamaged)
	}
	bounded, cancel := context.WithTimeout(ctx, checkAtStart)
	defer cancel()
	err = s.Check(bounded)
	if bounded.Err() != nil && ctx.Err() == nil {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, enableVacuum(ctx, file)
}

// create makes an empty database under its name only once it is whole.
func (s *sqliteStore) create() error {
	staged := s.File() + ".new"
	for _, f := range []string{staged, s.File()} { // the latter is empty, or not there
		if err := os.Remove(f); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	db, err := createFile(staged)
	if err != nil {
		return err
	}
	if err := errors.Join(db.Close(), syncFile(staged)); err != nil {
		return err
	}
	return os.Rename(staged, s.File())
}

// recover replaces a damaged file by the newest snapshot that is whole.
func (s *sqliteStore) recover(ctx context.Context, damage error) error {
	if s.Recover == nil {
		return fmt.Errorf("%w; restore it: skerryd snapshot list, skerryd snapshot restore NAME", damage)
	}
	var aside string
	name, err := s.Recover(ctx, func(file string) (err error) {
		aside, err = s.Restore(ctx, file)
		return err
	})
	if err != nil {
		return fmt.Errorf("%w; %w; restore one yourself: skerryd snapshot restore NAME", damage, err)
	}
	s.tell(Event{true, ReasonRestored, fmt.Sprintf("datastore: %v; restored from snapshot %s, what was written after it is gone; the damaged file is kept as %s", damage, name, aside)})
	return nil
}

// Check reads the whole database and returns an error if SQLite finds it damaged.
func (s *sqliteStore) Check(ctx context.Context) error { return checkFile(ctx, s.File()) }

func checkFile(ctx context.Context, file string) error {
	db, err := openSQLite(file)
	if err != nil {
		return err
	}
	defer db.Close() //nolint:errcheck // nothing was written
	var found []string
	rows, err := db.QueryContext(ctx, "PRAGMA quick_check(3)")
	for err == nil && rows.Next() {
		var line string
		err = rows.Scan(&line)
		found = append(found, line)
	}
	if err == nil {
		err = errors.Join(rows.Err(), rows.Close())
	}
	if isDamage(err) {
		return fmt.Errorf("%s: %w: %w", file, ErrDamaged, err)
	}
	if err != nil {
		return fmt.Errorf("%s: checking it: %w", file, err)
	}
	if len(found) != 1 || found[0] != "ok" {
		return fmt.Errorf("%s: %w: %s", file, ErrDamaged, strings.Join(found, "; "))
	}
	return nil
}

// Snapshot reads through a connection of its own; writers go on meanwhile.
func (s *sqliteStore) Snapshot(ctx context.Context, file string) (Revision, error) {
	if _, err := os.Stat(s.File()); err != nil {
		return 0, err
	}
	db, err := openSQLite(s.File())
	if err != nil {
		return 0, err
	}
	defer db.Close() //nolint:errcheck // only read
	return copyOutTx(ctx, db, &sql.TxOptions{ReadOnly: true}, file)
}

func copyOutTx(ctx context.Context, db *sql.DB, options *sql.TxOptions, file string) (Revision, error) {
	tx, err := db.BeginTx(ctx, options)
	if err != nil {
		return 0, err
	}
	defer tx.Rollback() //nolint:errcheck // only read
	return copyOut(ctx, tx, file)
}

// Size is the file and its log.
func (s *sqliteStore) Size(context.Context) (int64, error) {
	info, err := os.Stat(s.File())
	if err != nil {
		return 0, err
	}
	size := info.Size()
	if log, err := os.Stat(s.File() + "-wal"); err == nil {
		size += log.Size()
	}
	return size, nil
}

// openSQLite opens a database with one connection, outside kine.
func openSQLite(file string, pragmas ...string) (*sql.DB, error) {
	dsn := "file:" + file + "?_pragma=busy_timeout(30000)"
	for _, p := range pragmas {
		dsn += "&_pragma=" + p
	}
	db, err := sql.Open("sqlite", dsn)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	db.SetMaxOpenConns(1)
	return db, nil
}

// checkpoint moves the write-ahead log into the database. SQLite does so itself when its last connection closes, but kine may
// have one that is still busy with a cancelled query then; here we wait for it.
func checkpoint(file string) error {
	db, err := sql.Open("sqlite", "file:"+file+"?_pragma=busy_timeout(5000)")
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	_, err = db.Exec("PRAGMA wal_checkpoint(TRUNCATE)")
	if err = errors.Join(err, db.Close()); err != nil {
		return fmt.Errorf("%s: moving the write-ahead log into it: %w (nothing is lost: the next start reads both)", file, err)
	}
	return nil
}

// code is SQLite's primary result code, or 0.
func code(err error) int {
	var e *sqlite.Error
	if errors.As(err, &e) {
		return e.Code() & 0xff
	}
	return 0
}

func isDamage(err error) bool {
	c := code(err)
	return c == sqlite3.SQLITE_CORRUPT || c == sqlite3.SQLITE_NOTADB
}

// noRoom is isFull, and knows that a full disk may look like a broken one: SQLite's index of the log is mapped memory.
func (s *sqliteStore) noRoom(err error) bool {
	var st unix.Statfs_t
	return isFull(err) || code(err) == sqlite3.SQLITE_IOERR && unix.Statfs(s.Dir, &st) == nil && int64(st.Bavail)*int64(st.Bsize) < 1<<20 //nolint:unconvert // 32 bits on arm
}

func isFull(err error) bool {
	return err != nil && (code(err) == sqlite3.SQLITE_FULL || errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT))
}
