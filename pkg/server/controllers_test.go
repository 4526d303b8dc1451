package server

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

type api func(*http.Request) (*http.Response, error)

func (a api) RoundTrip(r *http.Request) (*http.Response, error) { return a(r) }

// The controller manager asks once whether the API is healthy, and hears of it when it is, however long that takes.
func TestTheControllerManagerWaitsForTheAPI(t *testing.T) {
	const slow = 3 * time.Minute
	health := func(ctx context.Context, after time.Duration) error {
		began := time.Now()
		config := &rest.Config{Host: "http://api", QPS: -1, Transport: api(func(*http.Request) (*http.Response, error) {
			since := time.Since(began)
			if since < time.Second {
				return nil, errors.New("connection refused")
			}
			code := http.StatusInternalServerError
			if since >= after {
				code = http.StatusOK
			}
			return &http.Response{StatusCode: code, Status: http.StatusText(code), Body: io.NopCloser(strings.NewReader("etcd"))}, nil
		})}
		config.Wrap(func(rt http.RoundTripper) http.RoundTripper { return &starting{rt, ctx, func() {}} })
		client, err := kubernetes.NewForConfig(config)
		if err != nil {
			return err
		}
		return client.Discovery().RESTClient().Get().AbsPath("/healthz").Do(t.Context()).Error()
	}
	synctest.Test(t, func(t *testing.T) {
		if err := health(t.Context(), slow); err != nil {
			t.Error(err)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		start := time.Now()
		if err := health(ctx, slow); err == nil || time.Since(start) != time.Minute {
			t.Errorf("%v, %v after the start, which a stop ended after a minute", err, time.Since(start))
		}
	})
}
