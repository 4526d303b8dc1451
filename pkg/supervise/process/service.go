package process

import (
	"context"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Service is a program kept running.
type Service struct {
	Spec    Spec
	Log     io.Writer     // gets what the program writes to both outputs; one with a Sync, as LogFile, is synced at its end
	Backoff Backoff       // between its end and its next start
	Grace   time.Duration // from SIGTERM to SIGKILL when it has to stop

	Started func(pid int)                                    // after each start; may be nil
	Ended   func(how string, again time.Duration)            // after each end that was not asked for; may be nil
	After   func(d time.Duration) (<-chan time.Time, func()) // a timer and its stop; nil means the real one
}

// Run keeps the program running until ctx ends, then stops it and returns when it has ended. How each run ends is told to
// Ended; a program that cannot be started counts as one that ended at once.
func (s *Service) Run(ctx context.Context, r *Reaper) {
	after := s.After
	if after == nil {
		after = func(d time.Duration) (<-chan time.Time, func()) {
			t := time.NewTimer(d)
			return t.C, func() { t.Stop() }
		}
	}
	for ctx.Err() == nil {
		start := time.Now()
		how := s.once(ctx, r)
		if ctx.Err() != nil {
			return
		}
		wait := s.Backoff.Next(time.Since(start))
		if s.Ended != nil {
			s.Ended(how, wait)
		}
		c, stop := after(wait)
		select {
		case <-ctx.Done():
		case <-c:
		}
		stop()
	}
}

// once runs the program once and says how it ended.
func (s *Service) once(ctx context.Context, r *Reaper) string {
	pr, pw, err := os.Pipe()
	if err != nil {
		return err.Error()
	}
	spec := s.Spec
	spec.Stdout, spec.Stderr = pw, pw
	c, err := r.Start(spec)
	_ = pw.Close()
	if err != nil {
		_ = pr.Close()
		return err.Error()
	}
	copied := make(chan struct{})
	go func() {
		_, _ = io.Copy(s.Log, pr)
		close(copied)
	}()
	if s.Started != nil {
		s.Started(c.PID())
	}
	select {
	case <-c.Done():
	case <-ctx.Done():
		_ = c.Signal(unix.SIGTERM)
		select {
		case <-c.Done():
		case <-time.After(s.Grace):
			_ = c.Signal(unix.SIGKILL)
			<-c.Done()
		}
	}
	// Children that outlive the program (shims do) may hold the pipe; what they say later is not worth waiting for.
	select {
	case <-copied:
	case <-time.After(time.Second):
	}
	_ = pr.Close()
	<-copied
	if l, ok := s.Log.(interface{ Sync() error }); ok {
		_ = l.Sync() // its last lines say why it ended; the log itself does what it can
	}
	return c.Status().String()
}
