package server

import (
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/server/mux"
	"k8s.io/apiserver/pkg/server/routes"
	"k8s.io/kube-openapi/pkg/common"
)

const (
	openAPIV2 = "/openapi/v2"
	openAPIV3 = "/openapi/v3"
)

// specWait bounds how long a client's question for descriptions waits for them. Upstream's aggregator looks once a second.
const specWait = 30 * time.Second

// settle is a moment for the aggregator to take in what it has just been given: it shows in nothing that can be waited for.
const settle = 100 * time.Millisecond

// specs are the descriptions of the built-in APIs (OpenAPI), made when somebody asks for them. Upstream makes and renders them
// while it starts, which is a fifth of the work of a start and a third of the live memory after it, and on most nodes nobody
// ever reads them.
//
// Clients ask the aggregator, and that asks here. For v2 it does so when a client asks it. For v3 it looks once a second,
// and so hears of an empty list until the first client has asked.
type specs struct {
	asked    atomic.Bool
	rendered chan struct{} // closed when the aggregator has had the first answer that is not empty
	once     sync.Once
	v2, v3   func() http.Handler
}

// newSpecs serves the descriptions of the APIs that server has, which must have been told to leave them out itself
// (SkipOpenAPIInstallation).
func newSpecs(server *genericapiserver.APIServerHandler, v2 *common.Config, v3 *common.OpenAPIV3Config) *specs {
	s := &specs{rendered: make(chan struct{})}
	s.v2 = sync.OnceValue(func() http.Handler {
		m := mux.NewPathRecorderMux("openapi-v2")
		routes.OpenAPI{Config: v2}.InstallV2(server.GoRestfulContainer, m)
		return m
	})
	s.v3 = sync.OnceValue(func() http.Handler {
		m := mux.NewPathRecorderMux("openapi-v3")
		routes.OpenAPI{V3Config: v3}.InstallV3(server.GoRestfulContainer, m)
		return m
	})
	server.NonGoRestfulMux.Handle(openAPIV2, http.HandlerFunc(s.serve))
	server.NonGoRestfulMux.Handle(openAPIV3, http.HandlerFunc(s.serve))
	server.NonGoRestfulMux.HandlePrefix(openAPIV3+"/", http.HandlerFunc(s.serve))
	return s
}

// serve answers the aggregator.
func (s *specs) serve(w http.ResponseWriter, r *http.Request) {
	switch {
	case !strings.HasPrefix(r.URL.Path, openAPIV3):
		s.v2().ServeHTTP(w, r)
	case !s.asked.Load():
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"paths":{}}`)
	default:
		s.v3().ServeHTTP(w, r)
		s.once.Do(func() { time.AfterFunc(settle, func() { close(s.rendered) }) })
	}
}

// clients stands in front of the aggregator: it takes a client's question for v3 down and holds it until there is an answer.
func (s *specs) clients(aggregator http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.asked.Store(true)
		patience := time.NewTimer(specWait)
		defer patience.Stop()
		select {
		case <-s.rendered:
		case <-patience.C:
		case <-r.Context().Done():
		}
		aggregator.ServeHTTP(w, r)
	})
}
