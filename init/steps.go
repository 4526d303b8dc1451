package main

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"
)

// step is one thing the boot does.
type step struct {
	name  string
	must  bool // or else the machine restarts
	debug bool // of debug releases; others have no such step
	do    func(context.Context, *system) error
	limit time.Duration
}

func must(name string, do func(context.Context, *system) error, limit time.Duration) step {
	return step{name: name, must: true, do: do, limit: limit}
}

func may(name string, do func(context.Context, *system) error, limit time.Duration) step {
	return step{name: name, do: do, limit: limit}
}

func onDebug(name string, do func(context.Context, *system) error, limit time.Duration) step {
	return step{name: name, debug: true, do: do, limit: limit}
}

// restartWait is how long a failure stays on the screen before the machine restarts.
const restartWait = 10 * time.Second

// runSteps runs the steps in order and returns the error of the first that had to succeed and did not. say gets one line for
// each step. A step that ends the sequence's ctx from outside (somebody pressed the power button) is not a failure.
func runSteps(ctx context.Context, s *system, steps []step, say func(string)) error {
	for _, st := range steps {
		if st.debug && !s.id.Release.Debug {
			continue
		}
		start := time.Now()
		s.begins(st.name)
		err := runStep(ctx, s, st)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err == nil:
			say(fmt.Sprintf("%s: ok (%v)", st.name, time.Since(start).Round(time.Millisecond)))
		case st.must:
			say(fmt.Sprintf("%s: %s; restart in %v", st.name, oneLine(err), restartWait))
			s.failed(err)
			return fmt.Errorf("%s: %w", st.name, err)
		default:
			say(fmt.Sprintf("%s: %s; going on without", st.name, oneLine(err)))
		}
	}
	return nil
}

// runStep runs one step. One that does not come back in time is left behind: the machine must not hang on it.
func runStep(ctx context.Context, s *system, st step) error {
	errLate := fmt.Errorf("not done after %v", st.limit)
	ctx, cancel := context.WithTimeoutCause(ctx, st.limit, errLate)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		defer func() {
			if r := recover(); r != nil {
				done <- fmt.Errorf("panic: %v\n%s", r, debug.Stack())
			}
		}()
		done <- st.do(ctx, s)
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	// It gets a moment to say what it was waiting for.
	select {
	case err := <-done:
		if err != nil && !errors.Is(err, errLate) {
			err = fmt.Errorf("%w: %w", errLate, err)
		}
		return err
	case <-time.After(time.Second):
		return context.Cause(ctx)
	}
}
