// Package azuretest is as much of Azure's managed identities, resource manager and blob storage as it takes to publish an image:
// a server that checks what the real ones check (tokens and what they are for, checksums, ranges, the order of things, rights)
// and fails as the real ones do, when told to.
package azuretest

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
)

// What the server knows of its only user.
const (
	Subscription = "00000000-0000-4000-8000-0000000000aa"
	Group        = "images-rg"
	Account      = "northimages"
	Gallery      = "north"
	Location     = "westeurope"
	secret       = "identity-header-secret"
)

// Blob is a page blob.
type Blob struct {
	Size  int64
	Pages map[int64][]byte // written, by offset
	Meta  map[string]string
}

// Server is the test's cloud. Its fields are read and set with Lock held, or before and after.
type Server struct {
	sync.Mutex
	URL       string
	Blobs     map[string]*Blob          // by container/name
	Resources map[string]map[string]any // images, galleries, definitions, versions by their path in the resource group
	Shared    []string
	Denied    map[string]bool // actions the user has no right to
	Refused   string          // share of a gallery, copy of a version or delete of a blob is refused, though the right is there
	Faults    bool            // drop every 7th request unheard, lose the answer of every 11th, throttle every 5th
	Stop      int             // after so many pages no token is taken any more; 0 for never
	Damage    int             // change a byte of so many pages
	Quota     bool            // no more images
	Calls     map[string]int  // by method and kind
	Writes    int             // requests that change something
	Wrong     []string        // requests that were not as they must be

	t          testing.TB
	n, pages   int
	containers map[string]bool
	ops        map[string]*op
	asked      map[string]int // for what is being made, by path
}

// New starts a server that ends with the test.
func New(t testing.TB) *Server {
	t.Helper()
	s := &Server{Blobs: map[string]*Blob{}, Denied: map[string]bool{}, Calls: map[string]int{}, t: t, containers: map[string]bool{}, ops: map[string]*op{}, asked: map[string]int{}}
	s.Resources = map[string]map[string]any{"Microsoft.Compute/galleries/" + Gallery: {
		"name": Gallery, "location": Location, "properties": map[string]any{"sharingProfile": map[string]any{"permissions": "Groups"}},
	}}
	h := httptest.NewServer(s)
	t.Cleanup(h.Close)
	s.URL = h.URL
	return s
}

// Env is what leads the SDK to this server: a managed identity, as in App Service, and the resource manager's address.
func (s *Server) Env() map[string]string {
	return map[string]string{
		"IDENTITY_ENDPOINT": s.URL + "/msi/token", "IDENTITY_HEADER": secret, "ARM_ENDPOINT": s.URL, "AZURE_TOKEN_CREDENTIALS": "ManagedIdentityCredential",
		"AZURE_ENVIRONMENT": "", "AZURE_SUBSCRIPTION_ID": "",
	}
}

type fault struct {
	status        int
	code, message string
}

func bad(code, format string, a ...any) *fault {
	return &fault{http.StatusBadRequest, code, fmt.Sprintf(format, a...)}
}

func missing(code, what string) *fault {
	return &fault{http.StatusNotFound, code, what + " was not found."}
}

func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	s.Lock()
	defer s.Unlock()
	if r.URL.Path == "/msi/token" {
		s.grant(w, r)
		return
	}
	s.n++
	storage := strings.HasPrefix(r.URL.Path, "/"+Account+"/")
	token := "arm-token"
	if storage {
		token = "storage-token"
	}
	if r.Header.Get("Authorization") != "Bearer "+token || s.Stop > 0 && s.pages >= s.Stop {
		refuse(w, storage, &fault{http.StatusUnauthorized, "InvalidAuthenticationToken", "The access token is invalid or has expired."})
		return
	}
	if s.Faults {
		switch {
		case s.n%7 == 0:
			hangUp(w)
			return
		case s.n%5 == 0:
			refuse(w, storage, &fault{http.StatusServiceUnavailable, "ServerBusy", "The server is busy."})
			return
		case s.n%11 == 0:
			s.serve(httptest.NewRecorder(), r, body, storage)
			hangUp(w)
			return
		}
	}
	s.serve(w, r, body, storage)
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request, body []byte, storage bool) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		s.Writes++
	}
	var f *fault
	if storage {
		f = s.blob(w, r, body)
	} else {
		f = s.manager(w, r, body)
	}
	if f != nil {
		refuse(w, storage, f)
	}
}

func hangUp(w http.ResponseWriter) {
	if c, _, err := w.(http.Hijacker).Hijack(); err == nil {
		_ = c.Close()
	}
}

func refuse(w http.ResponseWriter, storage bool, f *fault) {
	w.Header().Set("x-ms-error-code", f.code)
	if storage {
		w.Header().Set("Content-Type", "application/xml")
		w.WriteHeader(f.status)
		_, _ = fmt.Fprintf(w, "<?xml version=\"1.0\" encoding=\"utf-8\"?><Error><Code>%s</Code><Message>%s\nRequestId:1</Message></Error>", f.code, f.message)
		return
	}
	answer(w, f.status, map[string]any{"error": map[string]any{"code": f.code, "message": f.message}})
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

// grant gives tokens to the managed identity, each for one service.
func (s *Server) grant(w http.ResponseWriter, r *http.Request) {
	token := map[string]string{
		"https://management.core.windows.net/": "arm-token", "https://management.core.windows.net": "arm-token", "https://management.azure.com": "arm-token",
		"https://management.azure.com/": "arm-token", "https://storage.azure.com": "storage-token", "https://storage.azure.com/": "storage-token",
	}[r.URL.Query().Get("resource")]
	if token == "" || r.Header.Get("X-IDENTITY-HEADER") != secret {
		s.Wrong = append(s.Wrong, "a token was asked for "+r.URL.Query().Get("resource"))
		answer(w, http.StatusBadRequest, map[string]any{"error": "invalid_request"})
		return
	}
	answer(w, http.StatusOK, map[string]any{
		"access_token": token, "expires_on": fmt.Sprint(time.Now().Add(time.Hour).Unix()), "resource": r.URL.Query().Get("resource"), "token_type": "Bearer",
	})
}
