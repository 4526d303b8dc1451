package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/skerry-os/skerry/pkg/datastore"
	"github.com/skerry-os/skerry/pkg/datastore/etcd"
	"github.com/skerry-os/skerry/pkg/enrol"
	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/server/bootstrapdata"
	"github.com/skerry-os/skerry/pkg/server/secrets"
	"github.com/skerry-os/skerry/pkg/supervise"
	"github.com/skerry-os/skerry/pkg/token"
)

// TakeShared gives a server without authorities those of the cluster whose datastore it is given: a database that other servers use, or
// what was restored from a snapshot on a new machine. A database that is empty becomes that of a new cluster. Of a server that has
// authorities, or neither a database nor data, nothing changes.
func TakeShared(ctx context.Context, c StoredConfig, status func(string)) error {
	s := c.Settings
	elsewhere := s.Multiple() && !UsesEtcd(s)
	if enrol.Joined(s.DataDir) || !elsewhere && !hasData(s) {
		return nil
	}
	files, secret, err := bootstrapdata.New(time.Now())
	if err != nil {
		return err
	}
	given := s.Token
	if given == "" {
		given, _ = secrets.ReadToken(s.DataDir) // not there on a new machine
	}
	if given != "" {
		t, err := token.Parse(given)
		if err != nil {
			return err
		}
		secret = t.Secret
	}
	var proposal *bootstrapdata.Data
	if elsewhere {
		proposal = &bootstrapdata.Data{Files: files, Settings: s.Shared()}
	}
	stored, err := OpenStored(c)
	if err != nil {
		return err
	}
	status("reading the cluster's keys from the datastore")
	var data *bootstrapdata.Data
	err = during(ctx, stored.Store, func(ctx context.Context) (err error) {
		data, err = bootstrapdata.Take(ctx, stored.Store.Endpoint(), secret, proposal)
		return err
	})
	switch {
	case errors.Is(err, bootstrapdata.ErrNone) && elsewhere:
		return fmt.Errorf("--datastore-endpoint: the database %w: join with --server, or start one of its servers with this version first", err)
	case errors.Is(err, bootstrapdata.ErrNone):
		slog.Warn("the data was saved without the cluster's authorities and keys; nodes must join anew, and its Secrets cannot be read: put server/tls and server/encryption.yaml of the server it was saved on back, if you have them")
		return nil
	case err != nil || data == nil:
		return err
	}
	var errs []error
	for _, p := range s.Differences(data.Settings) {
		errs = append(errs, fmt.Errorf("--%w", p))
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	slog.Info("this server has the authorities and keys of the cluster in its datastore")
	return data.Write(s.DataDir, secret)
}

// hasData says whether there is data of a server's own, from a snapshot perhaps.
func hasData(s machine.Server) bool {
	file := datastore.Config{Dir: databaseDir(s)}.File()
	for _, name := range []string{file, file + ".restored"} {
		if _, err := os.Stat(name); err == nil {
			return true
		}
	}
	return etcd.Exists(databaseDir(s))
}

// during calls f while the store runs.
func during(ctx context.Context, store datastore.Store, f func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	up, out := make(chan struct{}), make(chan error, 1)
	go func() { out <- store.Run(ctx, func() { close(up) }) }()
	select {
	case err := <-out:
		return errors.Join(err, ctx.Err())
	case <-up:
	}
	err := f(ctx)
	cancel()
	return errors.Join(err, <-out)
}

// datastoreService is ready, and calls up once, when the data is the cluster's that this server has the keys of: another's would be damaged.
func datastoreService(store datastore.Store, dataDir string, up func()) supervise.Service {
	service := datastore.Service(store)
	service.Run = func(ctx context.Context, ready func()) error {
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		err := store.Run(ctx, func() {
			if err := bootstrapdata.Check(ctx, store.Endpoint(), dataDir); err != nil {
				cancel(err)
				return
			}
			up()
			ready()
		})
		if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
			return errors.Join(cause, err)
		}
		return err
	}
	return service
}

// bootstrapDataService keeps what servers share in the datastore.
func bootstrapDataService(store datastore.Store, s machine.Server) supervise.Service {
	return supervise.Service{Name: "bootstrap-data", Needs: []string{datastore.Name}, Run: func(ctx context.Context, ready func()) error {
		ready()
		bootstrapdata.Keep(ctx, store.Endpoint(), s.DataDir, s.Shared())
		return nil
	}}
}
