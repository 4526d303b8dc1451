package datastore

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
)

// syncer makes writes durable right after they were answered.
//
// SQLite could sync its log at every commit, before the answer (synchronous=FULL). On an SD card that is 20 ms and more, with
// the database locked, three hundred times in a row on a first start. Without any sync (NORMAL) a power cut would take back
// up to half a minute, which is when the kernel writes by itself. So the log is synced by us, at once, and all commits that
// happen meanwhile share the next sync: a cut takes back what was answered during the last one, and the database is whole
// in every case.
type syncer struct {
	log   *os.File
	dirty chan struct{}
}

func newSyncer(file string) (*syncer, error) {
	// SQLite keeps this very file until its last connection closes.
	f, err := os.OpenFile(file+"-wal", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	return &syncer{log: f, dirty: make(chan struct{}, 1)}, nil
}

// intercept notes that something was written. Reads are not worth a sync; all of etcd's writing methods are, whatever they did.
func (s *syncer) intercept(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	resp, err := handler(ctx, req)
	if strings.HasPrefix(info.FullMethod, "/etcdserverpb.KV/") && !strings.HasSuffix(info.FullMethod, "/Range") {
		select {
		case s.dirty <- struct{}{}:
		default: // a sync is due anyway, and has not begun
		}
	}
	return resp, err
}

// run syncs until the channel is closed. The error is the first that a sync met: the disk does not keep what it is given.
func (s *syncer) run() error {
	for range s.dirty {
		if err := unix.Fdatasync(int(s.log.Fd())); err != nil {
			return fmt.Errorf("%s: making it durable: %w", s.log.Name(), err)
		}
	}
	return nil
}

// start runs the syncer beside its caller. The channel yields run's error, if there is one; stop ends it and waits.
func (s *syncer) start() (failed <-chan error, stop func()) {
	out := make(chan error, 1)
	var done sync.WaitGroup
	done.Go(func() {
		if err := s.run(); err != nil {
			out <- err
		}
	})
	return out, func() {
		close(s.dirty)
		done.Wait()
		_ = s.log.Close()
	}
}
