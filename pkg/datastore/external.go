package datastore

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/k3s-io/kine/pkg/drivers"
	kinemysql "github.com/k3s-io/kine/pkg/drivers/mysql"
	"github.com/k3s-io/kine/pkg/drivers/pgsql"
	"github.com/k3s-io/kine/pkg/server"
	kinetls "github.com/k3s-io/kine/pkg/tls"
)

// external is a database that runs elsewhere.
type external struct {
	Config
	kind   string
	place  string // host and database, without a password
	config *drivers.Config
	start  func(context.Context, *sync.WaitGroup, *drivers.Config) (bool, server.Backend, error)
	open   func() (*sql.DB, error)

	// refused says in a few words why there is no point in trying again, or nothing.
	refused func(error) string
	// values are the placeholders of a row, and after is what a restore does behind the last row.
	values, after string
}

func newPostgres(c Config, rest string) (Store, error) {
	e := &external{Config: c, kind: PostgreSQL, start: pgsql.New, values: "$1,$2,$3,0,$4,$5,$6,$7"}
	e.after = "SELECT setval('kine_id_seq', (SELECT MAX(id) FROM kine))"
	u, err := url.Parse("postgres://" + rest)
	if err != nil { // its text has the password in it
		return nil, errors.New("the URL cannot be read; write postgres://USER:PASSWORD@HOST:5432/DATABASE, with %XX for special characters of the password")
	}
	if strings.Trim(u.Path, "/") == "" {
		u.Path = "/kubernetes" // K3s's name
	}
	u.Path = strings.ToLower(u.Path) // as kine does
	e.place = u.Host + u.Path
	q := u.Query()
	for key, file := range map[string]string{"sslrootcert": c.CAFile, "sslcert": c.CertFile, "sslkey": c.KeyFile} {
		if file != "" && !q.Has(key) {
			q.Set(key, file)
			if !q.Has("sslmode") {
				q.Set("sslmode", "verify-full")
			}
		}
	}
	u.RawQuery = q.Encode()
	parsed, err := pgx.ParseConfig(u.String())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", e.place, withoutSecret(err, u))
	}
	parsed.ConnectTimeout = 10 * time.Second
	e.config = kineConfig(strings.TrimPrefix(u.String(), "postgres://"))
	e.open = func() (*sql.DB, error) { return stdlib.OpenDB(*parsed), nil }
	e.refused = func(err error) string {
		var p *pgconn.PgError
		if !errors.As(err, &p) {
			return ""
		}
		switch p.Code {
		case "28000", "28P01": // invalid_authorization_specification, invalid_password
			return "user or password are wrong"
		case "42501":
			return "the user may not use this database"
		}
		return ""
	}
	return e, nil
}

// withoutSecret is for errors that repeat the URL.
func withoutSecret(err error, u *url.URL) error {
	text := err.Error()
	if p, ok := u.User.Password(); ok && p != "" {
		text = strings.ReplaceAll(strings.ReplaceAll(text, url.QueryEscape(p), "xxxxx"), p, "xxxxx")
	}
	return errors.New(text)
}

func newMySQL(c Config, rest string) (Store, error) {
	e := &external{Config: c, kind: MySQL, start: kinemysql.New, values: "?,?,?,0,?,?,?,?"}
	parsed, err := mysql.ParseDSN(rest)
	if err != nil {
		return nil, errors.New("the URL cannot be read; write mysql://USER:PASSWORD@tcp(HOST:3306)/DATABASE")
	}
	if parsed.DBName == "" {
		parsed.DBName = "kubernetes" // K3s's name
	}
	e.place = parsed.Addr + "/" + parsed.DBName
	if parsed.Timeout == 0 {
		parsed.Timeout = 10 * time.Second
	}
	e.config = kineConfig(parsed.FormatDSN())
	e.config.BackendTLSConfig = kinetls.Config{CAFile: c.CAFile, CertFile: c.CertFile, KeyFile: c.KeyFile}
	ours := parsed.Clone()
	ours.TLS, err = clientTLS(c)
	if err != nil {
		return nil, err
	}
	connector, err := mysql.NewConnector(ours)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", e.place, err)
	}
	e.open = func() (*sql.DB, error) { return sql.OpenDB(connector), nil }
	e.refused = func(err error) string {
		var m *mysql.MySQLError
		if !errors.As(err, &m) {
			return ""
		}
		switch m.Number {
		case 1045, 1698: // access denied
			return "user or password are wrong"
		case 1044:
			return "the user may not use this database"
		}
		return ""
	}
	return e, nil
}

// clientTLS is nil without files.
func clientTLS(c Config) (*tls.Config, error) {
	if c.CAFile == "" && c.CertFile == "" {
		return nil, nil
	}
	t := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.CAFile != "" {
		data, err := os.ReadFile(c.CAFile)
		if err != nil {
			return nil, err
		}
		t.RootCAs = x509.NewCertPool()
		if !t.RootCAs.AppendCertsFromPEM(data) {
			return nil, fmt.Errorf("%s: holds no certificate", c.CAFile)
		}
	}
	if c.CertFile != "" {
		pair, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
		if err != nil {
			return nil, err
		}
		t.Certificates = []tls.Certificate{pair}
	}
	return t, nil
}

func (e *external) Kind() string     { return e.kind }
func (e *external) Endpoint() string { return "unix://" + e.socket() }

// Run waits for the database, and serves it until ctx ends. While it is away later on, requests fail and the server lives.
func (e *external) Run(ctx context.Context, ready func()) error {
	if err := checkSocket(e.Config); err != nil {
		return err
	}
	backendCtx, closeBackend := context.WithCancel(context.WithoutCancel(ctx))
	var loops sync.WaitGroup
	defer func() {
		closeBackend()
		loops.Wait()
	}()
	var backend server.Backend
	for {
		if err := e.await(ctx); err != nil || ctx.Err() != nil {
			return err
		}
		// It may go away again in the middle of this.
		_, b, err := e.start(backendCtx, &loops, e.config)
		if err == nil {
			if err = b.Start(backendCtx); err == nil {
				backend = b
				break
			}
		}
		if why := e.refused(err); why != "" {
			return e.refusal(why, err)
		}
		slog.Warn("datastore: opening it did not work; trying again", "datastore", e.place, "err", brief(err))
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return nil
		}
	}
	h := newHealth(e.Config)
	serveCtx, stop := context.WithCancel(ctx)
	var beside sync.WaitGroup
	defer beside.Wait()
	defer stop()
	beside.Go(func() { h.watchSize(serveCtx, e) })
	return serve(serveCtx, e.Config, verified{backend}, nil, nil, ready)
}

func (e *external) refusal(why string, err error) error {
	return fmt.Errorf("--datastore-endpoint: %s: %s (%s)", e.place, why, brief(err))
}

// brief is one line: pgx puts each address it has tried on a line of its own, and the last tells most.
func brief(err error) string {
	lines := strings.Split(strings.TrimSpace(err.Error()), "\n")
	return strings.TrimSpace(lines[len(lines)-1])
}

// await returns once the database answers, or has refused us for good.
func (e *external) await(ctx context.Context) error {
	const slowest = 10 * time.Second
	pause, last, said := time.Second, "", time.Time{}
	for {
		err := e.ping(ctx)
		if err == nil || ctx.Err() != nil {
			return nil //nolint:nilerr // a stop is no fault
		}
		if why := e.refused(err); why != "" {
			return e.refusal(why, err)
		}
		if text := brief(err); text != last || time.Since(said) > time.Minute {
			last, said = text, time.Now()
			slog.Warn("waiting for the datastore: it cannot be reached; see that it runs and that --datastore-endpoint is right", "datastore", e.place, "err", text)
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil
		}
		pause = min(2*pause, slowest)
	}
}

func (e *external) ping(ctx context.Context) error {
	db, err := e.open()
	if err != nil {
		return err
	}
	defer db.Close() //nolint:errcheck // it has answered
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	err = db.PingContext(ctx)
	var p *pgconn.PgError
	var m *mysql.MySQLError
	if (errors.As(err, &p) && p.Code == "3D000") || (errors.As(err, &m) && m.Number == 1049) {
		return nil // there is no such database yet: kine makes it
	}
	return err
}

func (e *external) with(f func(*sql.DB) error) error {
	db, err := e.open()
	if err != nil {
		return err
	}
	defer db.Close() //nolint:errcheck // f has said it all
	if err := f(db); err != nil {
		return fmt.Errorf("%s: %w", e.place, err)
	}
	return nil
}

// Check asks whether kine's table can be read; what is below it is the database's own business.
func (e *external) Check(ctx context.Context) error {
	return e.with(func(db *sql.DB) error {
		_, err := latest(ctx, db)
		return err
	})
}

func (e *external) Snapshot(ctx context.Context, file string) (rev Revision, err error) {
	err = e.with(func(db *sql.DB) error {
		rev, err = copyOutTx(ctx, db, &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true}, file)
		return err
	})
	return rev, err
}

// Restore replaces all rows in one transaction, behind a snapshot of what was there.
func (e *external) Restore(ctx context.Context, file string) (aside string, err error) {
	from, err := openSnapshot(ctx, file)
	if err != nil {
		return "", err
	}
	defer from.Close() //nolint:errcheck // only read
	if err := os.MkdirAll(e.Dir, 0o700); err != nil {
		return "", err
	}
	if err := e.table(ctx); err != nil {
		return "", err
	}
	err = e.with(func(db *sql.DB) error {
		old, err := latest(ctx, db)
		if err != nil {
			return err
		}
		if old > 0 {
			kept := filepath.Join(e.Dir, "kine.before-"+time.Now().UTC().Format("20060102T150405.000"))
			if _, err := e.Snapshot(ctx, kept); err != nil {
				return err
			}
			aside = kept
		}
		if err := insertAll(ctx, db, e.values, func(insert func(row) error) error { return restored(ctx, from, insert) }, "DELETE FROM kine"); err != nil {
			return err
		}
		if e.after != "" {
			_, err = db.ExecContext(ctx, e.after)
		}
		return err
	})
	return aside, err
}

// table lets kine make its database and table.
func (e *external) table(ctx context.Context) error {
	if err := e.ping(ctx); err != nil {
		return fmt.Errorf("%s: %w", e.place, err)
	}
	ctx, cancel := context.WithCancel(ctx)
	var loops sync.WaitGroup
	defer loops.Wait()
	defer cancel()
	_, _, err := e.start(ctx, &loops, e.config)
	return err
}

func (e *external) Size(ctx context.Context) (size int64, err error) {
	query := "SELECT pg_total_relation_size('kine')"
	if e.kind == MySQL {
		query = "SELECT COALESCE(SUM(data_length + index_length), 0) FROM information_schema.TABLES WHERE table_schema = DATABASE() AND table_name = 'kine'"
	}
	err = e.with(func(db *sql.DB) error { return db.QueryRowContext(ctx, query).Scan(&size) })
	return size, err
}

// openSnapshot opens a file that Snapshot wrote and makes sure of it.
func openSnapshot(ctx context.Context, file string) (*sql.DB, error) {
	if _, err := os.Stat(file); err != nil { // SQLite would make it
		return nil, err
	}
	if err := checkFile(ctx, file); err != nil {
		return nil, err
	}
	return openSQLite(file)
}
