package datastore

import (
	"context"
	"errors"
	"fmt"

	"github.com/k3s-io/kine/pkg/logstructured"
	"github.com/k3s-io/kine/pkg/server"
)

// kine answers a create that its database refused (a full disk, a lost connection) as if it had worked, when the question what
// is there instead finds nothing; and it calls an update or a deletion that failed a conflict. What is here makes errors of them.

// logOf keeps the last error of an append in the request's context.
type logOf struct{ logstructured.Log }

type appendError struct{ err error }

type appendKey struct{}

func (l logOf) Append(ctx context.Context, e *server.Event) (int64, error) {
	rev, err := l.Log.Append(ctx, e)
	if a, ok := ctx.Value(appendKey{}).(*appendError); ok {
		a.err = nil
		if !errors.Is(err, server.ErrKeyExists) {
			a.err = err
		}
	}
	return rev, err
}

// honest is a backend on a logOf.
type honest struct{ server.Backend }

func (h honest) Create(ctx context.Context, key string, value []byte, lease int64) (int64, error) {
	var a appendError
	rev, err := h.Backend.Create(context.WithValue(ctx, appendKey{}, &a), key, value, lease)
	if a.err != nil {
		return 0, a.err
	}
	return rev, err
}

func (h honest) Update(ctx context.Context, key string, value []byte, revision, lease int64) (int64, *server.KeyValue, bool, error) {
	var a appendError
	rev, kv, ok, err := h.Backend.Update(context.WithValue(ctx, appendKey{}, &a), key, value, revision, lease)
	if a.err != nil {
		return 0, nil, false, a.err
	}
	return rev, kv, ok, err
}

func (h honest) Delete(ctx context.Context, key string, revision int64) (int64, *server.KeyValue, bool, error) {
	var a appendError
	rev, kv, ok, err := h.Backend.Delete(context.WithValue(ctx, appendKey{}, &a), key, revision)
	if a.err != nil {
		return 0, nil, false, a.err
	}
	return rev, kv, ok, err
}

// verified is a backend whose log is out of reach: it looks for what was created.
type verified struct{ server.Backend }

func (v verified) Create(ctx context.Context, key string, value []byte, lease int64) (int64, error) {
	rev, err := v.Backend.Create(ctx, key, value, lease)
	if err != nil {
		return rev, err
	}
	_, kv, err := v.Get(ctx, key, 0, true)
	if err != nil {
		return 0, err
	}
	if kv == nil || kv.CreateRevision != rev {
		return 0, fmt.Errorf("creating %s: the database did not take it", key)
	}
	return rev, nil
}
