package main

import (
	"context"
	"flag"
	"io"
	"log/slog"
	"os"

	"github.com/sirupsen/logrus"
	"k8s.io/klog/v2"
)

// setUpLogging sends everything to stderr through one handler: our own lines, Kubernetes' (klog) and those of containerd and
// kine (logrus). It is called once, before anything else of the engine.
//
// The components say a great deal when all is well. Unless debug is set, they are heard from warnings upwards, and we tell
// what is going on.
func setUpLogging(debug bool) (*slog.Logger, error) {
	level, components := slog.LevelInfo, slog.LevelWarn
	if debug {
		level, components = slog.LevelDebug, slog.LevelInfo
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	slog.SetDefault(log)

	quiet := slog.New(atLeast{components, slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: components})})
	klog.SetSlogLogger(quiet)
	if debug {
		klogFlags := flag.NewFlagSet("klog", flag.ContinueOnError)
		klog.InitFlags(klogFlags)
		if err := klogFlags.Set("v", "1"); err != nil {
			return nil, err
		}
	}
	logrus.SetOutput(io.Discard)
	logrus.SetLevel(logrus.WarnLevel)
	if debug {
		logrus.SetLevel(logrus.InfoLevel)
	}
	logrus.AddHook(logrusHook{quiet})
	return log, nil
}

// atLeast drops what is below a level, whatever the handler behind it would let through.
type atLeast struct {
	level slog.Level
	slog.Handler
}

func (h atLeast) Enabled(_ context.Context, l slog.Level) bool { return l >= h.level }

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
