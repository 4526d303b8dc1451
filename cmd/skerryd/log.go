package main

import (
	"context"
	"flag"
	"io"
	"log/slog"
	"os"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/sirupsen/logrus"
	"k8s.io/klog/v2"
)

// setUpLogging sends everything to stderr through one handler: our own lines, Kubernetes' (klog) and those of containerd and
// kine (logrus). It is called once, before anything else of the engine.
//
// The components say a great deal when all is well, and complain loudly while the others are not there yet. So they are
// heard from warnings upwards, and through the gate that is returned; with debug, everything is written at once.
func setUpLogging(debug bool) (*slog.Logger, *gate, error) {
	g := &gate{}
	lastWords(g)
	if debug {
		log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
		g.mode = passing
		redirect(log)
		flags := flag.NewFlagSet("klog", flag.ContinueOnError)
		klog.InitFlags(flags)
		logrus.SetLevel(logrus.InfoLevel)
		slog.SetDefault(log)
		return log, g, flags.Set("v", "1")
	}
	text := slog.NewTextHandler(os.Stderr, nil)
	redirect(slog.New(&component{Handler: text, gate: g}))
	logrus.SetLevel(logrus.WarnLevel)
	log := slog.New(text)
	slog.SetDefault(log)
	return log, g, nil
}

// lastWords lets the lines pass that were kept when a component ends the process by itself: without them nobody knows which did.
// While everything stops, none may: containerd does so when it is stopped before it has begun to serve.
func lastWords(g *gate) {
	end := func(code int) {
		if ending := g.ending.Load(); ending != nil && (*ending)() {
			runtime.Goexit()
		}
		g.open(true)
		slog.Error("a component has ended everything", "code", code)
		os.Exit(code)
	}
	klog.OsExit = end
	logrus.StandardLogger().ExitFunc = end
}

func redirect(log *slog.Logger) {
	klog.SetSlogLogger(log)
	logrus.SetOutput(io.Discard)
	logrus.AddHook(logrusHook{log})
}

// gate decides what becomes of the components' lines.
type gate struct {
	mu   sync.Mutex
	mode gateMode
	held []func()

	ending atomic.Pointer[func() bool] // says whether everything stops
}

type gateMode int

const (
	holding gateMode = iota // while the node starts: kept, and written only if the start goes wrong
	passing
	dropping // while it stops: everybody misses what has stopped before them
)

// maxHeld bounds what is kept; the first complaints are the telling ones.
const maxHeld = 1000

func (g *gate) handle(write func() error) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch g.mode {
	case passing:
		return write()
	case holding:
		if len(g.held) < maxHeld {
			g.held = append(g.held, func() { _ = write() })
		}
	}
	return nil
}

// open lets the lines pass from now on. Those kept so far are written if something went wrong.
func (g *gate) open(wrong bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.mode != holding {
		return
	}
	if wrong {
		for _, write := range g.held {
			write()
		}
	}
	g.mode, g.held = passing, nil
}

// shut drops the lines from now on.
func (g *gate) shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.mode, g.held = dropping, nil
}

// component is the handler of the components' lines.
type component struct {
	slog.Handler
	gate *gate
}

func (c *component) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelWarn }

func (c *component) Handle(ctx context.Context, r slog.Record) error {
	r = r.Clone()
	return c.gate.handle(func() error { return c.Handler.Handle(ctx, r) })
}

func (c *component) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &component{Handler: c.Handler.WithAttrs(attrs), gate: c.gate}
}

func (c *component) WithGroup(name string) slog.Handler {
	return &component{Handler: c.Handler.WithGroup(name), gate: c.gate}
}

type logrusHook struct{ log *slog.Logger }

func (logrusHook) Levels() []logrus.Level { return logrus.AllLevels }

func (h logrusHook) Fire(e *logrus.Entry) error {
	level := slog.LevelInfo
	switch {
	case e.Level <= logrus.ErrorLevel:
		level = slog.LevelError
	case e.Level == logrus.WarnLevel:
		level = slog.LevelWarn
	}
	attrs := make([]slog.Attr, 0, len(e.Data))
	for k, v := range e.Data {
		attrs = append(attrs, slog.Any(k, v))
	}
	h.log.LogAttrs(context.Background(), level, e.Message, attrs...)
	return nil
}
