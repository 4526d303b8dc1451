package server

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/endpoints/request"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/client-go/rest"
)

func ask(t *testing.T, h http.Handler, path string) string {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil))
	return w.Body.String()
}

func says(text string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, text) })
}

// stubbed has texts for the descriptions and counts how often each kind was made.
func stubbed() (s *specs, made map[string]int) {
	made = map[string]int{}
	s = emptySpecs()
	s.v2 = func() http.Handler { made["v2"]++; return says("two") }
	s.v3 = func() http.Handler { made["v3"]++; return says("three") }
	return s, made
}

// The aggregator looks once a second and finds nothing, until a client asks; the client then waits for what it has found.
func TestDescriptionsAreMadeWhenAClientAsks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, made := stubbed()
		aggregator := ""
		look := func() { aggregator = ask(t, http.HandlerFunc(s.serve), openAPIV3) }
		for range 3 {
			look()
		}
		if aggregator != `{"paths":{}}` || made["v3"] != 0 {
			t.Fatalf("nobody asked, and the aggregator heard %q; made %d times", aggregator, made["v3"])
		}
		client := make(chan string)
		go func() {
			client <- ask(t, s.clients(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, aggregator) })), openAPIV3)
		}()
		synctest.Wait()
		look()
		if got := <-client; got != "three" {
			t.Errorf("the client got %q", got)
		}
		start := time.Now()
		if got := ask(t, s.clients(says("later")), openAPIV3+"/apis/apps/v1"); got != "later" || time.Since(start) != 0 {
			t.Errorf("the second client got %q after %v", got, time.Since(start))
		}
	})
}

func TestV2IsMadeWhenTheAggregatorIsAsked(t *testing.T) {
	s, made := stubbed()
	if got := ask(t, http.HandlerFunc(s.serve), openAPIV2); got != "two" || made["v3"] != 0 {
		t.Errorf("got %q, v3 was made %d times", got, made["v3"])
	}
}

// If the aggregator never comes, a client gets what there is.
func TestAClientDoesNotWaitForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := stubbed()
		start := time.Now()
		if got := ask(t, s.clients(says("empty")), openAPIV3); got != "empty" || time.Since(start) != specWait {
			t.Errorf("got %q after %v", got, time.Since(start))
		}
	})
}

// The server's own look is no reason to make them: it is held, and hears of an empty list after that.
func TestTheServersOwnLookWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, made := stubbed()
		start := time.Now()
		if got := ask(t, s.ourselves(says("empty")), openAPIV3); got != "empty" || time.Since(start) != ownWait {
			t.Errorf("got %q after %v", got, time.Since(start))
		}
		if closed(s.asked) || closed(s.taken) || made["v3"] != 0 {
			t.Error("the look alone had the descriptions made")
		}
	})
}

// Who writes a policy waits until the server itself has the descriptions, or the policy would refuse what it is for.
func TestAPolicyWaitsForTheDescriptions(t *testing.T) {
	for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodPatch} {
		t.Run(method, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, _ := stubbed()
				written, look := make(chan struct{}), make(chan string)
				go func() { look <- ask(t, s.ourselves(says("list")), openAPIV3) }()
				go func() {
					defer close(written)
					w := httptest.NewRecorder()
					s.before(says("done")).ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), method, "/", nil))
				}()
				synctest.Wait()
				if closed(written) || !closed(s.asked) {
					t.Fatal("the policy was written before there were descriptions")
				}
				if got := ask(t, http.HandlerFunc(s.serve), openAPIV3); got != "three" {
					t.Fatalf("the aggregator got %q", got)
				}
				start := time.Now()
				<-look
				<-written
				if took := time.Since(start); took != settle {
					t.Errorf("the policy was written %v after the descriptions were there, want %v", took, settle)
				}
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		s, _ := stubbed()
		start := time.Now()
		if got := ask(t, s.before(says("none")), "/"); got != "none" || time.Since(start) != 0 || closed(s.asked) {
			t.Errorf("who only reads policies got %q after %v", got, time.Since(start))
		}
	})
}

// Only who is let in waits: a stranger is refused at once, and has nothing made. The server's own look waits in front of the chain,
// which would count it as a request under way: neither is it cut off there, nor does the end of the server wait for it.
func TestAStrangerIsRefusedAtOnce(t *testing.T) {
	const stranger, client = "", "somebody"
	for _, c := range []struct {
		who, method, path string
		took              time.Duration
		asked             bool
	}{
		{stranger, http.MethodGet, openAPIV3, 0, false},
		{stranger, http.MethodGet, openAPIV3 + "/apis/apps/v1", 0, false},
		{stranger, http.MethodPost, "/apis/admissionregistration.k8s.io/v1/mutatingadmissionpolicies", 0, false},
		{stranger, http.MethodPut, "/apis/admissionregistration.k8s.io/v1/mutatingadmissionpolicies/a", 0, false},
		{client, http.MethodGet, openAPIV3, specWait, true},
		{client, http.MethodPost, "/apis/admissionregistration.k8s.io/v1/mutatingadmissionpolicies", specWait, true},
		{client, http.MethodGet, "/api/v1/pods", 0, false},
		{user.APIServerUser, http.MethodGet, openAPIV3, ownWait, false},
	} {
		t.Run(c.who+" "+c.method+" "+c.path, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := &apiServer{cfg: Config{Join: says("join")}}
				s, _ := stubbed()
				a.specs.Store(s)
				start := time.Now()
				var inFront time.Duration
				h := a.guarded(func(h http.Handler, _ *genericapiserver.Config) http.Handler {
					return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						inFront = time.Since(start)
						if c.who == stranger {
							w.WriteHeader(http.StatusUnauthorized)
							return
						}
						h.ServeHTTP(w, r.WithContext(request.WithUser(r.Context(), &user.DefaultInfo{Name: c.who})))
					})
				})(says("done"), &genericapiserver.Config{LoopbackClientConfig: &rest.Config{BearerToken: "own"}})
				w, r := httptest.NewRecorder(), httptest.NewRequestWithContext(t.Context(), c.method, c.path, nil)
				r.Header.Set("Authorization", "Bearer "+c.who)
				var before time.Duration
				if c.who == user.APIServerUser {
					r.Header.Set("Authorization", "Bearer own")
					before = ownWait
				}
				h.ServeHTTP(w, r)
				if inFront != before {
					t.Errorf("waited %v in front of authentication, want %v", inFront, before)
				}
				if took := time.Since(start); took != c.took || closed(s.asked) != c.asked || (w.Code == http.StatusOK) != (c.who != stranger) {
					t.Errorf("answered %d after %v; descriptions wanted: %v", w.Code, took, closed(s.asked))
				}
			})
		})
	}
}

// Answers count for who asked after they were there, and nobody waits who has gone.
func TestWhoHasTheDescriptions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := stubbed()
		ask(t, s.ourselves(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
			s.ask()
			s.render()
			time.Sleep(2 * settle)
		})), openAPIV3)
		if !closed(s.rendered) || closed(s.taken) {
			t.Error("a look that began before the descriptions were there is taken for one that has them")
		}
		start := time.Now()
		s.before(says("done")).ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/", nil))
		if time.Since(start) != specWait {
			t.Errorf("the policy was written after %v, and the server itself has not looked", time.Since(start))
		}
		ask(t, s.ourselves(says("list")), openAPIV3)
		if !closed(s.taken) {
			t.Error("the server has looked, and does not know")
		}
	})
	synctest.Test(t, func(t *testing.T) {
		s, _ := stubbed()
		s.v3 = func() http.Handler {
			return http.HandlerFunc(func(http.ResponseWriter, *http.Request) { time.Sleep(2 * settle) })
		}
		s.ask()
		ask(t, http.HandlerFunc(s.serve), openAPIV3)
		if closed(s.rendered) {
			t.Error("the aggregator is taken to have what is still being made")
		}
		time.Sleep(2 * settle)
		synctest.Wait()
		if !closed(s.rendered) {
			t.Error("the aggregator has them, and nobody knows")
		}
	})
	synctest.Test(t, func(t *testing.T) {
		s, _ := stubbed()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		start := time.Now()
		for _, h := range []http.Handler{s.clients(says("")), s.ourselves(says("")), s.before(says(""))} {
			h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(ctx, http.MethodPost, "/", nil))
		}
		if time.Since(start) != 0 {
			t.Errorf("waited %v for somebody who has gone", time.Since(start))
		}
	})
	synctest.Test(t, func(t *testing.T) {
		s, _ := stubbed()
		start := time.Now()
		s.before(says("")).ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(t.Context(), http.MethodDelete, "/", nil))
		if time.Since(start) != 0 || closed(s.asked) {
			t.Errorf("who takes a policy away waited %v for descriptions", time.Since(start))
		}
	})
}
