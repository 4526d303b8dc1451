package server

import (
	"context"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/server/mux"
	"k8s.io/apiserver/pkg/server/routes"
	"k8s.io/kube-openapi/pkg/common"
	"k8s.io/kube-openapi/pkg/validation/spec"
)

const (
	openAPIV2 = "/openapi/v2"
	openAPIV3 = "/openapi/v3"
	policies  = "/apis/admissionregistration.k8s.io/{version}/mutatingadmissionpolicies"
)

// specWait bounds how long a client's question for descriptions waits for them. Upstream's aggregator looks once a second.
const specWait = 30 * time.Second

// ownWait is for the server's own look, twice at most: it gives up after 32 s.
const ownWait = 14 * time.Second

// settle is a moment for the aggregator to take in what it has just been given: it shows in nothing that can be waited for.
const settle = 100 * time.Millisecond

// specs are the descriptions of the built-in APIs (OpenAPI), made when somebody asks for them. Upstream makes and renders them
// while it starts, which is a fifth of the work of a start and a third of the live memory after it, and on most nodes nobody
// ever reads them.
//
// Clients ask the aggregator, and that asks here. For v2 it does so when a client asks it. For v3 it looks once a second,
// and so hears of an empty list until the first client has asked.
//
// The server is a client of itself: what applies MutatingAdmissionPolicies looks for the list every five seconds, and refuses
// what a policy is for while it is empty. That look is held back until the list is wanted, by somebody else or by a policy; and
// who writes a policy waits until the look has been answered.
type specs struct {
	ask      func()        // from now on there are descriptions
	asked    chan struct{} // closed by ask
	rendered chan struct{} // closed when the aggregator has had the first answer that is not empty
	taken    chan struct{} // closed when the server itself has had an answer after that
	render   func()        // closes rendered, a moment later
	take     func()        // closes taken
	v2, v3   func() http.Handler
}

func emptySpecs() *specs {
	s := &specs{asked: make(chan struct{}), rendered: make(chan struct{}), taken: make(chan struct{})}
	s.ask = sync.OnceFunc(func() { close(s.asked) })
	s.render = sync.OnceFunc(func() { time.AfterFunc(settle, func() { close(s.rendered) }) })
	s.take = sync.OnceFunc(func() { close(s.taken) })
	return s
}

// newSpecs serves the descriptions of the APIs that server has, which must have been told to leave them out itself
// (SkipOpenAPIInstallation).
func newSpecs(server *genericapiserver.APIServerHandler, v2 *common.Config, v3 *common.OpenAPIV3Config) *specs {
	s := emptySpecs()
	s.v2 = sync.OnceValue(func() http.Handler {
		m := mux.NewPathRecorderMux("openapi-v2")
		routes.OpenAPI{Config: v2}.InstallV2(server.GoRestfulContainer, m)
		return m
	})
	s.v3 = sync.OnceValue(func() http.Handler {
		m := mux.NewPathRecorderMux("openapi-v3")
		config := *v3
		if config.Definitions == nil { // or they are made again for each of the fifty groups and versions
			config.Definitions = config.GetDefinitions(func(name string) spec.Ref {
				name, _ = config.GetDefinitionName(name)
				return spec.MustCreateRef("#/components/schemas/" + common.EscapeJsonPointer(name))
			})
		}
		routes.OpenAPI{V3Config: &config}.InstallV3(server.GoRestfulContainer, m)
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
	case !closed(s.asked):
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"paths":{}}`)
	default:
		s.v3().ServeHTTP(w, r)
		s.render()
	}
}

// clients stands in front of the aggregator: it takes a client's question for v3 down and holds it until there is an answer.
func (s *specs) clients(aggregator http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.ask()
		wait(r.Context(), s.rendered, specWait)
		aggregator.ServeHTTP(w, r)
	})
}

// ourselves is clients for the server's own look.
func (s *specs) ourselves(aggregator http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		wait(r.Context(), s.asked, ownWait)
		if closed(s.asked) {
			wait(r.Context(), s.rendered, ownWait)
		}
		there := closed(s.rendered)
		aggregator.ServeHTTP(w, r)
		if there {
			s.take()
		}
	})
}

// before holds what would make the server need the descriptions, until it has them.
func (s *specs) before(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodDelete {
			s.ask()
			wait(r.Context(), s.taken, specWait)
		}
		next.ServeHTTP(w, r)
	})
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// wait returns when c is closed, when ctx ends, or after the patience, whatever comes first.
func wait(ctx context.Context, c <-chan struct{}, patience time.Duration) {
	if closed(c) {
		return
	}
	t := time.NewTimer(patience)
	defer t.Stop()
	select {
	case <-c:
	case <-t.C:
	case <-ctx.Done():
	}
}
