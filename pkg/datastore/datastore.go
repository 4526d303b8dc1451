// Package datastore keeps the cluster's state: one SQLite file, spoken to by the Kubernetes API in etcd's language over a
// socket that only this user can open. The translation is kine's; opening, checking and closing are here.
package datastore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/k3s-io/kine/pkg/drivers"
	"github.com/k3s-io/kine/pkg/drivers/generic"
	"github.com/k3s-io/kine/pkg/drivers/sqlite"
	"github.com/k3s-io/kine/pkg/server"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"github.com/skerry-os/skerry/pkg/supervise"
)

// Name is what other services need.
const Name = "datastore"

// maxSocketPath is what fits into sockaddr_un, with the final zero.
const maxSocketPath = 107

// Config says where the files are.
type Config struct {
	Dir string // holds state.db and the socket
}

// File is the database.
func (c Config) File() string { return filepath.Join(c.Dir, "state.db") }

// Endpoint is what the API's --etcd-servers gets.
func (c Config) Endpoint() string { return "unix://" + c.socket() }

func (c Config) socket() string { return filepath.Join(c.Dir, "kine.sock") }

// Service is the datastore as a part of the node's graph.
func Service(c Config) supervise.Service {
	return supervise.Service{
		Name:  Name,
		Grace: 10 * time.Second, // a checkpoint of a large log on an SD card
		Run:   func(ctx context.Context, ready func()) error { return Run(ctx, c, ready) },
	}
}

// Run opens, checks and serves the database until ctx ends. When it returns, the write-ahead log has been moved into the
// database file and everything is closed.
func Run(ctx context.Context, c Config, ready func()) (err error) {
	if n := len(c.socket()); n > maxSocketPath {
		return fmt.Errorf("%s: a socket's path may have %d characters and this has %d; use a shorter data directory", c.socket(), maxSocketPath, n)
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return err
	}
	if err := prepare(ctx, c.File()); err != nil {
		return err
	}

	// kine's connections and loops end with this context, which must outlive the last request.
	backendCtx, closeBackend := context.WithCancel(context.WithoutCancel(ctx))
	var loops sync.WaitGroup
	defer func() {
		closeBackend()
		loops.Wait()
		err = errors.Join(err, checkpoint(c.File()))
	}()
	_, backend, err := sqlite.New(backendCtx, &loops, config(c.File()))
	if err != nil {
		return fmt.Errorf("%s: %w", c.File(), err)
	}
	if err := backend.Start(backendCtx); err != nil {
		return fmt.Errorf("%s: %w", c.File(), err)
	}

	if err := os.Remove(c.socket()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "unix", c.socket())
	if err != nil {
		return err
	}
	if err := os.Chmod(c.socket(), 0o600); err != nil {
		_ = listener.Close()
		return err
	}
	syncer, err := newSyncer(c.File())
	if err != nil {
		_ = listener.Close()
		return err
	}
	lost, stopSyncer := syncer.start()
	defer stopSyncer()
	srv := grpc.NewServer(
		grpc.UnaryInterceptor(syncer.intercept),
		grpc.WaitForHandlers(true), // the syncer and the database are closed after the last
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 2 * time.Hour, Timeout: 20 * time.Second}),
		grpc.MaxRecvMsgSize(2<<20), // etcd's limit of a request, with room for the envelope
		grpc.MaxSendMsgSize(1<<30), // a list of everything is one message
	)
	server.New(backend, "unix", 5*time.Second, "3.6.11").Register(srv)
	served := make(chan error, 1)
	go func() { served <- srv.Serve(listener) }()
	ready()

	select {
	case err := <-served:
		return fmt.Errorf("%s: %w", c.socket(), err)
	case err = <-lost:
	case <-ctx.Done():
	}
	// At a stop the API is gone by now; what is left are watches, which never end by themselves.
	srv.Stop()
	return errors.Join(err, <-served)
}

func config(file string) *drivers.Config {
	return &drivers.Config{
		// No VACUUM at every start: it writes the whole file, and free pages are used again anyway. NORMAL: the
		// syncer makes commits durable, many with one sync.
		DataSourceName: file + "?_journal_mode=WAL&_busy_timeout=30000&_synchronous=NORMAL&_txlock=immediate&_kine_disable_startup_vacuum",
		// Each SQLite connection has a page cache of its own.
		ConnectionPoolConfig: generic.ConnectionPoolConfig{MaxIdle: 4, MaxIdleTime: time.Minute},
		CompactInterval:      5 * time.Minute,
		CompactTimeout:       5 * time.Second,
		CompactMinRetain:     1000,
		CompactBatchSize:     1000,
		// Our own writes wake the loop; but the first one only makes it ready, so the second look must not be far.
		PollInterval:  time.Second,
		PollBatchSize: 500,
	}
}

// prepare creates the file for this user alone, or checks the one that is there.
func prepare(ctx context.Context, file string) error {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_RDWR, 0o600) // SQLite gives its log and index the same mode
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err == nil {
		err = f.Chmod(0o600)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil || info.Size() == 0 {
		return err
	}
	return Check(ctx, file)
}

// Check reads the whole database and returns an error if SQLite finds it damaged.
func Check(ctx context.Context, file string) error {
	db, err := sql.Open("sqlite", "file:"+file+"?_pragma=busy_timeout(30000)")
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
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
	if err != nil {
		return fmt.Errorf("%s: is damaged: %w; restore it from a backup", file, err)
	}
	if len(found) != 1 || found[0] != "ok" {
		return fmt.Errorf("%s: is damaged: %s; restore it from a backup", file, strings.Join(found, "; "))
	}
	return nil
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
