package etcd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/etcdutl/v3/snapshot"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"

	"github.com/skerry-os/skerry/pkg/atomicfile"
	"github.com/skerry-os/skerry/pkg/datastore"
)

// Restore makes a snapshot the data of a new cluster with this member alone.
func (s *Store) Restore(ctx context.Context, file string) (aside string, err error) {
	if err := s.Stage(ctx, file); err != nil {
		return "", err
	}
	return s.swap()
}

// Stage does all of a restore but taking the old folder's place.
func (s *Store) Stage(_ context.Context, file string) error {
	return s.stage(file, datastore.RevisionGap)
}

func (s *Store) stage(file string, gap uint64) error {
	if err := os.MkdirAll(s.Dir, 0o700); err != nil {
		return err
	}
	partial := filepath.Join(s.Dir, "etcd.partial")
	for _, d := range []string{partial, s.restored()} {
		if err := os.RemoveAll(d); err != nil {
			return err
		}
	}
	err := snapshot.NewV3(logger()).Restore(snapshot.RestoreConfig{
		SnapshotPath: file, Name: s.Name, OutputDataDir: partial, PeerURLs: []string{s.peerURL()},
		InitialCluster: s.Name + "=" + s.peerURL(), InitialClusterToken: fmt.Sprintf("skerry-%d", time.Now().UnixNano()),
		RevisionBump: gap, MarkCompacted: true,
	})
	if err != nil {
		return errors.Join(fmt.Errorf("%s: %w", file, err), os.RemoveAll(partial))
	}
	err = filepath.WalkDir(partial, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			return atomicfile.SyncDir(path)
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		return errors.Join(f.Sync(), f.Close())
	})
	if err != nil {
		return err
	}
	if err := os.Rename(partial, s.restored()); err != nil {
		return err
	}
	return atomicfile.SyncDir(s.Dir)
}

// finishSwap completes a restore that was staged or cut short.
func (s *Store) finishSwap() error {
	if _, err := os.Stat(s.restored()); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	_, err := s.swap()
	return err
}

// swap puts the staged folder in place of the old one, which it keeps. Cut short, it goes on where it was.
func (s *Store) swap() (aside string, err error) {
	if err := s.forget(); err != nil {
		return "", err
	}
	if _, err := os.Stat(s.data()); err == nil {
		aside = s.data() + ".before-" + time.Now().UTC().Format("20060102T150405")
		if err := os.Rename(s.data(), aside); err != nil {
			return "", err
		}
	}
	if err := os.Rename(s.restored(), s.data()); err != nil {
		return "", err
	}
	return aside, atomicfile.SyncDir(s.Dir)
}

// convert moves a server from SQLite to etcd, if it has a SQLite file: through a member for this purpose alone, whose snapshot is
// restored with revisions that go on behind SQLite's. The file is kept.
func (s *Store) convert(ctx context.Context) error {
	c := datastore.Config{Dir: s.Dir}
	if info, err := os.Stat(c.File()); err != nil || info.Size() == 0 {
		return nil
	}
	slog.Info("etcd: moving the data from SQLite to etcd", "file", c.File())
	tmp, err := os.MkdirTemp(s.Dir, "move-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp) //nolint:errcheck // it is in nobody's way
	config := embed.NewConfig()
	config.Dir, config.ZapLoggerBuilder = filepath.Join(tmp, "etcd"), embed.NewZapLoggerBuilder(logger())
	config.UnsafeNoFsync, config.EnableGRPCGateway = true, false // the restored copy is synced
	config.ListenPeerUrls = []url.URL{{Scheme: "unix", Path: filepath.Join(tmp, "p")}}
	config.ListenClientUrls = []url.URL{{Scheme: "unix", Path: filepath.Join(tmp, "c")}}
	e, err := embed.StartEtcd(config)
	if err != nil {
		return err
	}
	defer shut(e)
	select {
	case <-e.Server.ReadyNotify():
	case <-ctx.Done():
		return nil
	}
	target := &Store{Config: Config{Dir: tmp}}
	endpoint := "unix://" + filepath.Join(tmp, "c")
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, DialTimeout: 10 * time.Second, Logger: zap.NewNop()})
	if err != nil {
		return err
	}
	defer client.Close() //nolint:errcheck // all answers are there
	w := writer{client: client, leases: map[int64]clientv3.LeaseID{}}
	rev, err := datastore.EachObject(ctx, c, func(key string, value []byte, ttl int64) error { return w.put(ctx, key, value, ttl) })
	if err == nil {
		err = w.flush(ctx)
	}
	if err != nil {
		return fmt.Errorf("moving from SQLite to etcd: %w (SQLite is unchanged)", err)
	}
	file := filepath.Join(tmp, "snapshot")
	if err := os.Symlink("c", target.socket()); err != nil {
		return err
	}
	if _, err := target.Snapshot(ctx, file); err != nil {
		return err
	}
	if err := s.stage(file, uint64(rev)+datastore.RevisionGap); err != nil {
		return err
	}
	if _, err := s.swap(); err != nil {
		return err
	}
	slog.Info("etcd: the data has moved; the SQLite file is kept", "objects", w.count, "file", c.File()+".moved")
	return errors.Join(os.Rename(c.File(), c.File()+".moved"), atomicfile.SyncDir(s.Dir))
}

// writer puts objects a hundred at a time.
type writer struct {
	client *clientv3.Client
	leases map[int64]clientv3.LeaseID // one for each time to live
	ops    []clientv3.Op
	count  int
}

func (w *writer) put(ctx context.Context, key string, value []byte, ttl int64) error {
	var options []clientv3.OpOption
	if ttl > 0 {
		id, ok := w.leases[ttl]
		if !ok {
			lease, err := w.client.Grant(ctx, ttl)
			if err != nil {
				return err
			}
			id = lease.ID
			w.leases[ttl] = id
		}
		options = append(options, clientv3.WithLease(id))
	}
	w.ops = append(w.ops, clientv3.OpPut(key, string(value), options...))
	w.count++
	size := 0
	for _, op := range w.ops {
		size += len(op.ValueBytes())
	}
	if len(w.ops) == 100 || size > 512<<10 {
		return w.flush(ctx)
	}
	return nil
}

func (w *writer) flush(ctx context.Context) error {
	if len(w.ops) == 0 {
		return nil
	}
	_, err := w.client.Txn(ctx).Then(w.ops...).Commit()
	w.ops = nil
	return err
}
