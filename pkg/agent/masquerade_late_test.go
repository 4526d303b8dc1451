package agent

import (
	"context"
	"errors"
	"testing"
	"time"
)

// What is late is done again; what fails by itself fails, and so does everything at the end.
func TestInTime(t *testing.T) {
	fault, killed := errors.New("no such table"), errors.New("signal: killed")
	for name, c := range map[string]struct {
		do    func(context.Context, int) error
		ended bool // before it begins
		calls int
		want  error
	}{
		"works": {func(context.Context, int) error { return nil }, false, 1, nil},
		"late twice": {func(ctx context.Context, call int) error {
			if call > 2 {
				return nil
			}
			<-ctx.Done()
			return killed
		}, false, 3, nil},
		"fails": {func(context.Context, int) error { return fault }, false, 1, fault},
		"late, then not": {func(ctx context.Context, call int) error {
			if call > 1 {
				return fault
			}
			<-ctx.Done()
			return killed
		}, false, 2, fault},
		"the node ends": {func(ctx context.Context, _ int) error { <-ctx.Done(); return killed }, true, 1, killed},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if c.ended {
				cancel()
			}
			calls := 0
			err := inTime(ctx, 10*time.Millisecond, func(ctx context.Context) error { calls++; return c.do(ctx, calls) })
			if !errors.Is(err, c.want) || calls != c.calls {
				t.Errorf("%v after %d calls", err, calls)
			}
		})
	}
}
