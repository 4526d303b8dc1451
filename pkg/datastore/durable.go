package datastore

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// syncer holds the answer to a write back until the write is on the disk, so that a power cut takes back nothing that a client
// was told is stored.
//
// SQLite would do the same with synchronous=FULL, but one commit at a time and with the database locked meanwhile: on an SD
// card 20 ms each. Here the commit itself does not wait (NORMAL), the log is synced outside the lock, and all commits of that
// time share the next sync. A watch may show a write before it is durable; its answer never does.
type syncer struct {
	log     *os.File
	dirty   chan struct{}       // a batch waits
	observe func(time.Duration) // gets how long each sync took

	mu   sync.Mutex
	next *batch // what is written now belongs to it, until its sync begins
}

// batch is the writes that one sync makes durable.
type batch struct {
	done chan struct{}
	err  error // valid once done is closed
}

func newBatch() *batch { return &batch{done: make(chan struct{})} }

func newSyncer(file string) (*syncer, error) {
	// SQLite keeps this very file until its last connection closes.
	f, err := os.OpenFile(file+"-wal", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	return &syncer{log: f, dirty: make(chan struct{}, 1), observe: func(time.Duration) {}, next: newBatch()}, nil
}

// intercept waits for the disk where something may have been written: after all of etcd's KV methods but Range. Writers take
// turns: SQLite has one at a time anyway, and those that find it locked would sleep and wake to find it locked again.
func (s *syncer) intercept(h *health) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		if !strings.HasPrefix(info.FullMethod, "/etcdserverpb.KV/") || strings.HasSuffix(info.FullMethod, "/Range") {
			return handler(ctx, req)
		}
		var resp any
		err := h.turn(func() (err error) {
			resp, err = handler(ctx, req)
			return err
		})
		if err != nil {
			h.failed(err)
			return resp, err
		}
		if err := s.wait(ctx); err != nil {
			return nil, status.Error(codes.Unavailable, err.Error())
		}
		return resp, nil
	}
}

// wait returns once a sync that began after the call has ended.
func (s *syncer) wait(ctx context.Context) error {
	s.mu.Lock()
	b := s.next
	s.mu.Unlock()
	select {
	case s.dirty <- struct{}{}:
	default: // a sync is due anyway, and has not begun
	}
	select {
	case <-b.done:
		return b.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// run syncs a batch whenever one waits, until the channel is closed. After the first error, the disk does not keep what it is
// given: that batch and every later one fail.
func (s *syncer) run() error {
	for range s.dirty {
		s.mu.Lock()
		b := s.next
		s.next = newBatch()
		s.mu.Unlock()
		began := time.Now()
		err := unix.Fdatasync(int(s.log.Fd()))
		s.observe(time.Since(began))
		if err != nil {
			b.err = fmt.Errorf("%s: making it durable: %w", s.log.Name(), err)
			s.mu.Lock()
			s.next.err = b.err
			close(s.next.done)
			s.mu.Unlock()
			close(b.done)
			return b.err
		}
		close(b.done)
	}
	return nil
}

// start runs the syncer beside its caller. The channel yields run's error, if there is one; stop ends it and waits. No write may
// be under way any more when stop is called.
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
