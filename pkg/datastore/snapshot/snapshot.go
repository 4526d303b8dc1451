// Package snapshot saves, lists, restores and prunes copies of a datastore, in a folder and on an S3 server, by hand and by
// the clock.
//
// A snapshot is one tar file: snapshot.json, which says what it is, and data.zst, the live objects: a SQLite file with kine's
// table for SQLite, PostgreSQL and MariaDB alike, an etcd snapshot for etcd. The checksum of the data is in the description, and
// is compared when a snapshot has been written and before anything is restored from it.
//
// Secrets are in it as they are in the datastore, encrypted, and so are the cluster's authorities and keys, sealed with its token
// (pkg/server/bootstrapdata): who restores it on a new machine needs the token.
package snapshot

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/robfig/cron/v3"

	"github.com/skerry-os/skerry/pkg/datastore"
)

// The beginnings of names.
const (
	Scheduled = "scheduled"
	OnDemand  = "on-demand"
)

// The reasons of events.
const (
	ReasonSaved  = "SnapshotSaved"
	ReasonFailed = "SnapshotFailed"
)

// Config says where snapshots are kept, and for whom.
type Config struct {
	Dir        string
	Retention  int // of those of one beginning and node, in each place
	S3         *S3 // nil: nowhere else
	Node       string
	Skerry     string // versions
	Kubernetes string

	Tell func(datastore.Event) // may be nil
	Now  func() time.Time      // nil is time.Now
}

// Snapshots are those of one datastore.
type Snapshots struct {
	Config
	places []place // the folder is the first
}

// New reads the config. It calls nobody yet.
func New(c Config) (*Snapshots, error) {
	if c.Now == nil {
		c.Now = time.Now
	}
	s := &Snapshots{Config: c, places: []place{folder(c.Dir)}}
	if c.S3 != nil {
		b, err := newBucket(*c.S3)
		if err != nil {
			return nil, err
		}
		s.places = append(s.places, b)
	}
	return s, nil
}

// Save makes a snapshot and puts it into every place; afterwards it prunes. An error about a place beside the folder comes
// with the snapshot that the folder has.
func (s *Snapshots) Save(ctx context.Context, store datastore.Store, prefix string) (Entry, error) {
	if !validName.MatchString(prefix) {
		return Entry{}, fmt.Errorf("%q is not a name for a snapshot; use letters, digits, dashes and dots", prefix)
	}
	sweep(s.Dir)
	now := s.Now()
	m := Meta{
		Format: format, Node: s.Node, Datastore: store.Kind(), Content: contentOf(store.Kind()), Created: now.UTC().Truncate(time.Second),
		Skerry: s.Skerry, Kubernetes: s.Kubernetes, Name: newName(prefix, s.Node, now),
	}
	for i := 1; ; i++ { // two in one second
		if _, err := os.Stat(filepath.Join(s.Dir, m.Name)); err != nil { // what it is beside that it is not there, shows next
			break
		}
		m.Name = newName(prefix, s.Node, now.Add(time.Duration(i)*time.Second))
	}
	file := filepath.Join(s.Dir, m.Name)
	err := inFolder(s.Dir, func(tmp string) (err error) {
		data := filepath.Join(tmp, "data")
		if m.Revision, err = store.Snapshot(ctx, data); err != nil {
			return err
		}
		packed := filepath.Join(tmp, "packed")
		if err := pack(m, data, packed); err != nil {
			return err
		}
		if _, err := verify(ctx, packed); err != nil {
			return err
		}
		return s.places[0].put(ctx, m.Name, packed)
	})
	if err != nil {
		return Entry{}, fmt.Errorf("snapshot: %w", err)
	}
	info, err := os.Stat(file)
	if err != nil {
		return Entry{}, err
	}
	e := Entry{Name: m.Name, Place: s.Dir, Size: info.Size(), Created: m.Created}
	var errs []error
	for _, p := range s.places[1:] {
		if err := p.put(ctx, m.Name, file); err != nil {
			errs = append(errs, fmt.Errorf("snapshot %s is in %s, but not in %w", m.Name, s.Dir, err))
		}
	}
	if _, err := s.Prune(ctx, prefix); err != nil {
		errs = append(errs, err)
	}
	return e, errors.Join(errs...)
}

// List gives the snapshots of all places, newest first. What it can give comes beside an error about a place.
func (s *Snapshots) List(ctx context.Context) ([]Entry, error) {
	var all []Entry
	var errs []error
	for _, p := range s.places {
		list, err := p.list(ctx)
		if err != nil {
			errs = append(errs, err)
		}
		all = append(all, list...)
	}
	slices.SortStableFunc(all, func(a, b Entry) int {
		return cmp.Or(b.Created.Compare(a.Created), strings.Compare(b.Name, a.Name))
	})
	return all, errors.Join(errs...)
}

// Prune removes the oldest snapshots of this node whose names begin with prefix, until each place has no more than it may.
func (s *Snapshots) Prune(ctx context.Context, prefix string) (removed []Entry, err error) {
	var errs []error
	for i, p := range s.places {
		keep := s.Retention
		if i > 0 {
			keep = cmp.Or(s.S3.Retention, s.Retention)
		}
		if keep <= 0 {
			continue
		}
		list, err := p.list(ctx)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		list = slices.DeleteFunc(list, func(e Entry) bool { return !strings.HasPrefix(e.Name, prefix+"-"+s.Node+"-") })
		slices.SortFunc(list, func(a, b Entry) int {
			return cmp.Or(b.Created.Compare(a.Created), strings.Compare(b.Name, a.Name))
		})
		// One that is known to be damaged does not count, or it would push a good one out.
		good := 0
		for _, e := range list {
			if e.Problem == "" {
				good++
			}
			if good <= keep {
				continue
			}
			if err := p.remove(ctx, e.Name); err != nil {
				errs = append(errs, err)
				continue
			}
			removed = append(removed, e)
		}
	}
	return removed, errors.Join(errs...)
}

// fetch calls f with the snapshot's data. name is one of List's, or a file's path.
func (s *Snapshots) fetch(ctx context.Context, kind, name string, f func(data string) error) (Meta, error) {
	var m Meta
	err := inFolder(s.Dir, func(tmp string) error {
		file := name
		if !strings.ContainsRune(name, filepath.Separator) {
			file = filepath.Join(tmp, "packed")
			if err := s.find(ctx, name, file); err != nil {
				return err
			}
		}
		data := filepath.Join(tmp, "data")
		var err error
		if m, err = unpack(file, data); err != nil {
			return err
		}
		if err := m.fits(s.Kubernetes, kind); err != nil {
			return err
		}
		return f(data)
	})
	return m, err
}

func (s *Snapshots) find(ctx context.Context, name, file string) error {
	if !validName.MatchString(name) {
		return fmt.Errorf("%q is not the name of a snapshot; see skerryd snapshot list", name)
	}
	var errs []error
	for _, p := range s.places {
		list, err := p.list(ctx)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for _, e := range list {
			if e.Name == name || e.Name == name+suffix {
				return p.get(ctx, e.Name, file)
			}
		}
	}
	return errors.Join(append(errs, fmt.Errorf("there is no snapshot %s; see skerryd snapshot list", name))...)
}

// Restore makes a snapshot the content of the store, which nobody may be using, and says where the old content is kept.
func (s *Snapshots) Restore(ctx context.Context, store datastore.Store, name string) (m Meta, aside string, err error) {
	m, err = s.fetch(ctx, store.Kind(), name, func(data string) (err error) {
		aside, err = store.Restore(ctx, data)
		return err
	})
	return m, aside, err
}

// Stage lets the store restore a snapshot when it starts next. Only stores with files of their own can.
func (s *Snapshots) Stage(ctx context.Context, store datastore.Store, name string) (Meta, error) {
	stager, ok := store.(datastore.Stager)
	if !ok {
		return Meta{}, fmt.Errorf("a %s datastore cannot restore at its next start; stop the server and restore without --at-next-start", store.Kind())
	}
	return s.fetch(ctx, store.Kind(), name, func(data string) error { return stager.Stage(ctx, data) })
}

// Recover hands out the snapshots, newest first, until restore takes one. It is made for datastore.Config.
func (s *Snapshots) Recover(kind string) func(ctx context.Context, restore func(file string) error) (string, error) {
	return func(ctx context.Context, restore func(file string) error) (string, error) {
		list, err := s.List(ctx)
		tried := map[string]bool{}
		for _, e := range list {
			if e.Problem != "" || tried[e.Name] {
				continue
			}
			tried[e.Name] = true
			_, rerr := s.fetch(ctx, kind, e.Name, restore)
			if rerr == nil {
				return e.Name, nil
			}
			slog.Warn("datastore: this snapshot is of no use; trying the one before", "snapshot", e.Name, "err", rerr)
			err = errors.Join(err, rerr)
		}
		if err != nil {
			return "", err
		}
		return "", fmt.Errorf("there is no snapshot in %s", s.Dir)
	}
}

// ParseSchedule reads the five fields of cron, or @hourly and the like.
func ParseSchedule(text string) (cron.Schedule, error) {
	schedule, err := cron.ParseStandard(text)
	if err != nil {
		return nil, fmt.Errorf("%q is not a schedule; write five fields as in cron, or @daily: %w", text, err)
	}
	return schedule, nil
}

// Run saves a snapshot whenever the schedule says so, until ctx ends.
func (s *Snapshots) Run(ctx context.Context, store datastore.Store, schedule cron.Schedule) {
	for {
		now := s.Now()
		timer := time.NewTimer(schedule.Next(now).Sub(now))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		e, err := s.Save(ctx, store, Scheduled)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			s.tell(datastore.Event{Warning: true, Reason: ReasonFailed, Message: err.Error()})
		default:
			s.tell(datastore.Event{Reason: ReasonSaved, Message: fmt.Sprintf("snapshot %s saved (%d KiB)", e.Name, e.Size>>10)})
		}
	}
}

func (s *Snapshots) tell(e datastore.Event) {
	level := slog.LevelInfo
	if e.Warning {
		level = slog.LevelWarn
	}
	slog.Log(context.Background(), level, e.Message, "reason", e.Reason)
	if s.Tell != nil {
		s.Tell(e)
	}
}
