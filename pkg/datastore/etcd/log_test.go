package etcd

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"

	"go.uber.org/zap"
)

// What a healthy member says at each start and end is no news; what else it says is.
func TestLog(t *testing.T) {
	var out bytes.Buffer
	log := zap.New(&core{log: slog.New(slog.NewTextHandler(&out, nil))})
	for _, m := range meant {
		log.Warn(m)
	}
	for _, err := range []error{fmt.Errorf("accept tcp 127.0.0.1:2380: %w", net.ErrClosed), http.ErrServerClosed, errors.New("mux: server closed")} {
		log.Error("setting up serving from embedded etcd failed.", zap.Error(err))
	}
	log.Info("a word")
	if out.Len() > 0 {
		t.Errorf("said %s", &out)
	}
	log.Error("setting up serving from embedded etcd failed.", zap.Error(errors.New("accept tcp 127.0.0.1:2380: too many open files")))
	log.With(zap.String("member", "a")).Warn("lost the leader")
	for _, want := range []string{`level=ERROR msg="etcd: setting up serving from embedded etcd failed." error="accept tcp 127.0.0.1:2380: too many open files"`, `level=WARN msg="etcd: lost the leader" member=a`} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("not said: %s; but %s", want, &out)
		}
	}
}
