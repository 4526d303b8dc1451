package datastore

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"

	"github.com/k3s-io/kine/pkg/server"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// kine takes rows that broke off in the middle, because a connection was lost or a disk could not be read, for all that there are.
// Whoever lists then believes that the rest was deleted, and a controller acts upon it. What is here makes errors of such answers.

var errBrokenOff = status.Error(codes.Unavailable, "the database's answer broke off in the middle; ask again")

// List counts what must be there, unless the limit says that the answer is whole.
func (v verified) List(ctx context.Context, key, end string, limit, revision int64, keysOnly bool) (int64, []*server.KeyValue, error) {
	rev, kvs, err := v.Backend.List(ctx, key, end, limit, revision, keysOnly)
	got := int64(len(kvs))
	if err != nil || limit > 0 && got >= limit {
		return rev, kvs, err
	}
	at := revision
	if at == 0 {
		at = rev
	}
	_, want, err := v.Count(ctx, key, end, at)
	if err != nil {
		return 0, nil, err
	}
	if limit > 0 {
		want = min(want, limit)
	}
	if got < want {
		return 0, nil, errBrokenOff
	}
	return rev, kvs, nil
}

// Watch looks behind the last of the events that a watch begins with: there must be none that is as old as the answer.
func (v verified) Watch(ctx context.Context, revision int64) server.WatchResult {
	wr := v.Backend.Watch(ctx, revision)
	if revision == 0 || wr.CompactRevision != 0 {
		return wr
	}
	first, ok := <-wr.Eventc // it is there already
	if !ok {
		return wr
	}
	last := revision - 1
	if n := len(first.Events); n > 0 {
		last = first.Events[n-1].KV.ModRevision
	}
	var err error
	if first.CurrentRev == 0 || last < first.CurrentRev {
		err = v.nothingBetween(ctx, last, first.CurrentRev)
	}
	events, errs := make(chan server.EventBatch, 100), make(chan error, 1)
	out := server.WatchResult{CurrentRevision: wr.CurrentRevision, Eventc: events, Errorc: errs}
	if err != nil {
		errs <- err
		close(events)
		return out
	}
	events <- first
	go func() {
		defer close(events)
		for {
			select {
			case err := <-wr.Errorc:
				errs <- err
				return
			case b, ok := <-wr.Eventc:
				if !ok {
					return
				}
				select {
				case events <- b:
				case <-ctx.Done():
					return
				}
			}
		}
	}()
	return out
}

func (v verified) nothingBetween(ctx context.Context, last, current int64) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	again := v.Backend.Watch(ctx, last+1)
	b := <-again.Eventc
	select {
	case err := <-again.Errorc:
		return err
	default:
	}
	if current == 0 && b.CurrentRev > 0 || len(b.Events) > 0 && b.Events[0].KV.ModRevision <= current {
		return errBrokenOff
	}
	return nil
}

// brokenOff is what a row of a broken answer has in its columns. It fits nowhere.
type brokenOff struct{ error }

// Next makes an error that would end the rows one more row, which nobody can read: so everybody notices.
func (r *rows) Next(dest []driver.Value) error {
	if r.broken != nil {
		return r.broken
	}
	err := r.Rows.Next(dest)
	if err == nil || errors.Is(err, io.EOF) || len(dest) == 0 {
		return err
	}
	r.broken = fmt.Errorf("the answer broke off: %w", err)
	for i := range dest {
		dest[i] = brokenOff{r.broken}
	}
	return nil
}
