package datastore

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"path/filepath"
)

// maxStatements bounds what one connection remembers. kine has some thirty different texts; a few hold a number and vary.
const maxStatements = 64

// remembering opens a database as kine has opened db, with a memory for prepared statements: kine hands over its queries as
// text each time, and parsing and planning them anew is half of what a small SQLite query costs. The caller closes both.
func remembering(db *sql.DB, file string) (*sql.DB, error) {
	file, err := filepath.Abs(file)
	if err != nil {
		return nil, err
	}
	dsn := "file://" + file + "?_pragma=journal_mode(WAL)&_pragma=busy_timeout(30000)&_pragma=synchronous(NORMAL)&_txlock=immediate"
	with := sql.OpenDB(&connector{driver: db.Driver(), dsn: dsn})
	with.SetMaxIdleConns(idleConnections)
	with.SetConnMaxIdleTime(idleTime)
	return with, nil
}

type connector struct {
	driver driver.Driver
	dsn    string
}

func (c *connector) Driver() driver.Driver { return c.driver }

func (c *connector) Connect(context.Context) (driver.Conn, error) {
	inner, err := c.driver.Open(c.dsn)
	if err != nil {
		return nil, err
	}
	return &remembered{Conn: inner, prepared: map[string]*statement{}}, nil
}

// remembered is a connection that keeps its statements. database/sql gives a connection to one user at a time.
type remembered struct {
	driver.Conn
	prepared map[string]*statement
}

// statement is in use while its rows are being read; a second user in the same transaction gets one of its own.
type statement struct {
	driver.Stmt
	busy bool
}

// take returns the statement for a text, and done to give it back.
func (c *remembered) take(ctx context.Context, query string) (s driver.Stmt, done func() error, err error) {
	if s, ok := c.prepared[query]; ok && !s.busy {
		s.busy = true
		return s.Stmt, func() error { s.busy = false; return nil }, nil
	}
	inner, err := c.PrepareContext(ctx, query)
	if err != nil {
		return nil, nil, err
	}
	if _, taken := c.prepared[query]; taken {
		return inner, inner.Close, nil
	}
	if len(c.prepared) >= maxStatements {
		if err := c.forget(); err != nil {
			return nil, nil, err
		}
	}
	kept := &statement{Stmt: inner, busy: true}
	c.prepared[query] = kept
	return inner, func() error { kept.busy = false; return nil }, nil
}

// forget closes the statements that nobody reads from.
func (c *remembered) forget() error {
	for text, s := range c.prepared {
		if s.busy {
			continue
		}
		delete(c.prepared, text)
		if err := s.Close(); err != nil {
			return err
		}
	}
	return nil
}

func (c *remembered) Close() error {
	err := c.forget()
	if e := c.Conn.Close(); err == nil {
		err = e
	}
	return err
}

func (c *remembered) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	s, done, err := c.take(ctx, query)
	if err != nil {
		return nil, err
	}
	r, err := s.(driver.StmtQueryContext).QueryContext(ctx, args)
	if err != nil {
		_ = done()
		return nil, err
	}
	return &rows{Rows: r, done: done}, nil
}

func (c *remembered) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	s, done, err := c.take(ctx, query)
	if err != nil {
		return nil, err
	}
	r, err := s.(driver.StmtExecContext).ExecContext(ctx, args)
	if e := done(); err == nil {
		err = e
	}
	return r, err
}

// rows give their statement back when they are closed, which database/sql does in every case, once or more.
type rows struct {
	driver.Rows
	done   func() error
	broken error // see Next
}

func (r *rows) Close() error {
	err := r.Rows.Close()
	if r.done != nil {
		if e := r.done(); err == nil {
			err = e
		}
		r.done = nil
	}
	return err
}

// The rest is handed through: database/sql looks for these methods.

func (c *remembered) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	return c.Conn.(driver.ConnPrepareContext).PrepareContext(ctx, query)
}

func (c *remembered) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	return c.Conn.(driver.ConnBeginTx).BeginTx(ctx, opts)
}

func (c *remembered) Ping(ctx context.Context) error { return c.Conn.(driver.Pinger).Ping(ctx) }

func (c *remembered) ResetSession(ctx context.Context) error {
	return c.Conn.(driver.SessionResetter).ResetSession(ctx)
}

func (c *remembered) IsValid() bool { return c.Conn.(driver.Validator).IsValid() }
