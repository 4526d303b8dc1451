package etcd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/go-logr/logr"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"k8s.io/klog/v2"
)

// logger sends what etcd says to where the other components' lines go, which is klog's.
func logger() *zap.Logger {
	return zap.New(&core{log: slog.New(logr.ToSlogHandler(klog.Background()))})
}

// heard is the logger of a member, whose lines mean something to its Store: that a write took long, and that etcd cannot go on. Where
// it cannot, etcd ends the process: here Run ends instead, and says why. What called stays where it is for as long as the process
// lives, because it may return as little as it may go on.
func (s *Store) heard() *zap.Logger {
	c := &core{log: slog.New(logr.ToSlogHandler(klog.Background())), slow: s.disk.Synced}
	return zap.New(c, zap.WithFatalHook(hook(func(e *zapcore.CheckedEntry, fields []zapcore.Field) {
		err := errors.New(e.Message)
		for _, f := range fields {
			if cause, ok := f.Interface.(error); ok {
				err = fmt.Errorf("%s: %w", e.Message, cause)
			}
		}
		select {
		case s.fatal <- err:
		default: // the first is the cause
		}
		select {}
	})))
}

type hook func(*zapcore.CheckedEntry, []zapcore.Field)

func (h hook) OnWrite(e *zapcore.CheckedEntry, fields []zapcore.Field) { h(e, fields) }

// core is a zapcore.Core on slog. etcd tells very much below warnings; only its warnings are passed on.
type core struct {
	log    *slog.Logger
	fields []zapcore.Field
	slow   func(took time.Duration) // is told of slow syncs; may be nil
}

func (c *core) Enabled(l zapcore.Level) bool { return l >= zapcore.WarnLevel }

func (c *core) With(f []zapcore.Field) zapcore.Core {
	return &core{log: c.log, fields: append(append([]zapcore.Field(nil), c.fields...), f...), slow: c.slow}
}

func (c *core) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

// meant are warnings of every start, about what this package decides on purpose: a socket that its mode guards, one port, and no
// users of etcd's own.
var meant = []string{
	"Running http and grpc server on single port. This is not recommended for production.",
	"scheme is http or unix while key and cert files are present; ignoring key and cert files",
	"scheme is http or unix while --client-cert-auth is enabled; ignoring client cert auth for this URL",
	"simple token is not cryptographically signed",
}

// closes reports whether a line says that a listener was closed, which is what a member's end begins with.
func closes(fields map[string]any) bool {
	text, _ := fields["error"].(string)
	return slices.ContainsFunc([]string{net.ErrClosed.Error(), http.ErrServerClosed.Error(), "mux: server closed"}, func(end string) bool { return strings.HasSuffix(text, end) })
}

func (c *core) Write(e zapcore.Entry, fields []zapcore.Field) error {
	m := zapcore.NewMapObjectEncoder()
	for _, f := range append(append([]zapcore.Field(nil), c.fields...), fields...) {
		f.AddTo(m)
	}
	if took, ok := m.Fields["took"].(time.Duration); ok && c.slow != nil && e.Message == "slow fdatasync" {
		c.slow(took)
	}
	if slices.Contains(meant, e.Message) || closes(m.Fields) {
		return nil
	}
	level := slog.LevelWarn
	if e.Level >= zapcore.ErrorLevel {
		level = slog.LevelError
	}
	attrs := make([]slog.Attr, 0, len(m.Fields))
	for k, v := range m.Fields {
		attrs = append(attrs, slog.Any(k, v))
	}
	c.log.LogAttrs(context.Background(), level, "etcd: "+e.Message, attrs...)
	return nil
}

func (c *core) Sync() error { return nil }
