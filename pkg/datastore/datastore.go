// Package datastore keeps the cluster's state and offers it to the Kubernetes API in etcd's language, over a socket that only
// this user can open. There are several kinds of it behind one interface, Store: a SQLite file (the default), PostgreSQL and
// MariaDB or MySQL, all three translated by kine, and an embedded etcd (pkg/datastore/etcd).
//
// # What is on the disk when a write is answered
//
// SQLite runs with a write-ahead log and PRAGMA synchronous=NORMAL, which by itself would let a power cut take back the last
// commits. So the log is synced here instead, by fdatasync, before a write is answered, and all commits of that time share one
// sync (see syncer). The promise is that of synchronous=FULL, one sync per commit, and so is what a power cut can do: nothing
// that was answered is lost, and the file is whole, because NORMAL still syncs the log before a checkpoint and the database after
// it. FULL would do it with the database locked meanwhile, 20 ms for each commit on an SD card.
//
// PostgreSQL and MariaDB keep the promise of their own settings (synchronous_commit, innodb_flush_log_at_trx_commit); both
// wait for the disk unless told otherwise. etcd syncs its log before it answers.
package datastore

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"time"

	"github.com/skerry-os/skerry/pkg/supervise"
)

// Name is what other services need.
const Name = "datastore"

// The kinds, as snapshots and messages name them.
const (
	SQLite     = "sqlite"
	PostgreSQL = "postgresql"
	MySQL      = "mysql" // and MariaDB
	Etcd       = "etcd"
)

// Store is one kind of datastore.
type Store interface {
	// Kind is one of the constants.
	Kind() string

	// Endpoint is what the API's --etcd-servers gets.
	Endpoint() string

	// Run opens, checks and serves the data until ctx ends, and calls ready once the API can use it. A database that is away
	// is waited for, before and after.
	Run(ctx context.Context, ready func()) error

	// Check reads the data and returns an error if it is damaged. The store may be running.
	Check(ctx context.Context) error

	// Snapshot writes a consistent copy of the live objects to a new file. The store may be running, here or in another process.
	Snapshot(ctx context.Context, file string) (Revision, error)

	// Restore makes the content of a file that Snapshot wrote the content of the store. Nobody may be using the store. What was
	// there before is kept, at the place that is returned; it is empty if there was nothing.
	Restore(ctx context.Context, file string) (aside string, err error)

	// Size is the number of bytes that the data takes.
	Size(ctx context.Context) (int64, error)
}

// Revision counts the writes since the cluster began.
type Revision int64

// RevisionGap is added to the revision at a restore, and everything before is marked as compacted. So a client that saw later
// revisions than the snapshot's is told to list again, instead of waiting for changes that have long happened.
const RevisionGap = 1_000_000_000

// Event is something that an operator should see.
type Event struct {
	Warning bool
	Reason  string // in CamelCase, for programs
	Message string // for people
}

// Config says where the data is.
type Config struct {
	Dir      string // the socket, and the files of the kinds that have some
	Endpoint string // of PostgreSQL or MySQL; empty is SQLite

	CAFile, CertFile, KeyFile string // for the connection to Endpoint

	// Recover unpacks snapshots, newest first, until restore takes one, and returns its name. It is asked when SQLite's file is
	// damaged. It may be nil.
	Recover func(ctx context.Context, restore func(file string) error) (name string, err error)

	// Tell gets what an operator should see, beside the log. It must not block. It may be nil.
	Tell func(Event)
}

func (c Config) tell(e Event) {
	level := slog.LevelInfo
	if e.Warning {
		level = slog.LevelWarn
	}
	slog.Log(context.Background(), level, e.Message, "reason", e.Reason)
	if c.Tell != nil {
		c.Tell(e)
	}
}

// File is the database of SQLite.
func (c Config) File() string { return filepath.Join(c.Dir, "state.db") }

func (c Config) socket() string { return filepath.Join(c.Dir, "kine.sock") }

// Open reads the config; it does not touch the data yet.
func Open(c Config) (Store, error) {
	scheme, rest, _ := strings.Cut(c.Endpoint, "://")
	if c.Endpoint == "" || (scheme == "sqlite" && rest == "") {
		return &sqliteStore{Config: c}, nil
	}
	switch scheme {
	case "postgres", "postgresql":
		return newPostgres(c, rest)
	case "mysql", "mariadb":
		return newMySQL(c, rest)
	}
	return nil, fmt.Errorf("%q is not a kind of datastore; write postgres://USER:PASSWORD@HOST:5432/DATABASE or mysql://USER:PASSWORD@tcp(HOST:3306)/DATABASE", scheme)
}

// Service is a store as a part of the node's graph.
func Service(s Store) supervise.Service {
	return supervise.Service{
		Name:  Name,
		Grace: 10 * time.Second, // a checkpoint of a large log on an SD card
		Run:   s.Run,
	}
}
