package datastore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"time"

	"github.com/k3s-io/kine/pkg/drivers"
	"github.com/k3s-io/kine/pkg/drivers/generic"
	"github.com/k3s-io/kine/pkg/server"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
)

// maxSocketPath is what fits into sockaddr_un, with the final zero.
const maxSocketPath = 107

// Each SQLite connection has a page cache of its own, each PostgreSQL one a process.
const (
	idleConnections = 4
	idleTime        = time.Minute
)

// kineConfig is what all of kine's databases have in common.
func kineConfig(dsn string) *drivers.Config {
	return &drivers.Config{
		DataSourceName:       dsn,
		ConnectionPoolConfig: generic.ConnectionPoolConfig{MaxIdle: idleConnections, MaxIdleTime: idleTime},
		// What is compacted is as old as one interval and at most two; a client's list may go on for ten minutes, and not longer
		// (upstream's conformance test of continued lists).
		CompactInterval:  4 * time.Minute,
		CompactTimeout:   5 * time.Second,
		CompactMinRetain: 100, // a quiet cluster would else keep old revisions for hours
		CompactBatchSize: 1000,
		// Our own writes wake the loop; but the first one only makes it ready, so the second look must not be far.
		PollInterval:  time.Second,
		PollBatchSize: 500,
	}
}

// checkSocket is called before any work is done.
func checkSocket(c Config) error {
	if n := len(c.socket()); n > maxSocketPath {
		return fmt.Errorf("%s: a socket's path may have %d characters and this has %d; use a shorter data directory", c.socket(), maxSocketPath, n)
	}
	return os.MkdirAll(c.Dir, 0o700)
}

// serve offers a started backend on the socket until ctx ends or lost yields an error.
func serve(ctx context.Context, c Config, backend server.Backend, intercept grpc.UnaryServerInterceptor, lost <-chan error, ready func()) error {
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
	options := []grpc.ServerOption{
		grpc.WaitForHandlers(true), // the database is closed after the last
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 2 * time.Hour, Timeout: 20 * time.Second}),
		grpc.ReadBufferSize(4 << 10), // the API server has a connection for each of its ninety kinds of objects
		grpc.MaxRecvMsgSize(2 << 20), // etcd's limit of a request, with room for the envelope
		grpc.MaxSendMsgSize(1 << 30), // a list of everything is one message
	}
	if intercept != nil {
		options = append(options, grpc.UnaryInterceptor(intercept))
	}
	srv := grpc.NewServer(options...)
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
	if end := <-served; !errors.Is(end, grpc.ErrServerStopped) { // which it says if it was stopped before it began
		err = errors.Join(err, end)
	}
	return err
}
