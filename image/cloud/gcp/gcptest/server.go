// Package gcptest is as much of Google's token service, Cloud Storage, Resource Manager and Compute Engine as it takes to publish
// an image: a server that checks what the real ones check (tokens and the signatures they are given for, checksums, ranges, the
// order of things, rights) and fails as the real ones do, when told to.
package gcptest

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// What the server knows of its only user and project.
const (
	Project = "north-1"
	Bucket  = "north-images"
	email   = "publisher@north-1.iam.gserviceaccount.com"
)

// Object is an object of the bucket.
type Object struct {
	Data     []byte
	CRC32C   string
	Metadata map[string]string
}

// Image is an image as the server has it.
type Image struct {
	Body       map[string]any // as it was sent
	Data       []byte         // of the object it was made from
	Policy     map[string]any
	Deprecated map[string]string
}

// Server is the test's cloud. Its fields are read and set with Lock held, or before and after.
type Server struct {
	sync.Mutex
	URL     string
	Objects map[string]*Object
	Images  map[string]*Image
	Denied  map[string]bool // permissions the user does not have
	Refused string          // setIamPolicy of an image or delete of an object is refused, though the right is there
	Faults  bool            // drop every 7th request unheard, lose the answer of every 11th, fail every 5th, take half of every 3rd chunk
	Stop    int             // after so many chunks no token is taken any more; 0 for never
	Expire  int             // the token ends after so many requests, once; 0 for never
	Damage  int             // change a byte of so many uploads' first chunks
	Quota   bool            // no more images
	NoAPI   bool            // Resource Manager is off
	Calls   map[string]int  // by method and kind
	Writes  int             // requests that change something
	Wrong   []string        // requests that were not as they must be

	t        testing.TB
	file     string
	key      *rsa.PublicKey
	n        int
	token    string
	tokens   int
	chunks   int
	sessions map[string]*session
	ops      map[string]*op
	asked    map[string]string // requestId -> operation
}

type session struct {
	name, crc string
	size      int64
	data      []byte
	meta      map[string]string
	ended     bool
}

type op struct {
	progress int
	do       func()
	err      string
}

// New starts a server that ends with the test.
func New(t testing.TB) *Server {
	t.Helper()
	s := &Server{
		Objects: map[string]*Object{}, Images: map[string]*Image{}, Denied: map[string]bool{}, Calls: map[string]int{}, t: t,
		sessions: map[string]*session{}, ops: map[string]*op{}, asked: map[string]string{}, file: filepath.Join(t.TempDir(), "credentials.json"),
	}
	h := httptest.NewServer(s)
	t.Cleanup(h.Close)
	s.URL = h.URL
	key, err := userKey()
	if err != nil {
		t.Fatal(err)
	}
	s.key = &key.PublicKey
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(map[string]string{
		"type": "service_account", "project_id": Project, "private_key_id": "k1", "client_email": email, "client_id": "1", "token_uri": s.URL + "/token",
		"private_key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})),
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return s
}

// userKey is the same for all servers of a process: making one takes a while.
var userKey = sync.OnceValues(func() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, 2048) })

// Env is what leads Google's tools to this server.
func (s *Server) Env() map[string]string {
	return map[string]string{
		"GOOGLE_APPLICATION_CREDENTIALS": s.file, "GOOGLE_CLOUD_PROJECT": "", "CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE": s.URL + "/compute/v1/",
		"CLOUDSDK_API_ENDPOINT_OVERRIDES_STORAGE": s.URL + "/storage/v1/", "CLOUDSDK_API_ENDPOINT_OVERRIDES_CLOUDRESOURCEMANAGER": s.URL + "/",
	}
}

type fault struct {
	status          int
	reason, message string
}

func bad(format string, a ...any) *fault {
	return &fault{http.StatusBadRequest, "invalid", fmt.Sprintf(format, a...)}
}

func missing(what string) *fault {
	return &fault{http.StatusNotFound, "notFound", what + " was not found"}
}

func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	s.Lock()
	defer s.Unlock()
	if r.URL.Path == "/token" {
		s.grant(w, r, body)
		return
	}
	s.n++
	if s.Expire > 0 && s.n > s.Expire {
		s.token, s.Expire = "none", 0
	}
	if s.Stop > 0 && s.chunks >= s.Stop {
		s.token = "none"
	}
	if r.Header.Get("Authorization") != "Bearer "+s.token {
		refuse(w, &fault{http.StatusUnauthorized, "authError", "Request had invalid authentication credentials."})
		return
	}
	if s.Faults {
		switch {
		case s.n%7 == 0:
			hangUp(w)
			return
		case s.n%5 == 0:
			refuse(w, &fault{http.StatusServiceUnavailable, "backendError", "Backend Error"})
			return
		case s.n%11 == 0:
			out := httptest.NewRecorder()
			s.serve(out, r, body)
			hangUp(w)
			return
		}
	}
	s.serve(w, r, body)
}

func hangUp(w http.ResponseWriter) {
	if c, _, err := w.(http.Hijacker).Hijack(); err == nil {
		_ = c.Close()
	}
}

func refuse(w http.ResponseWriter, f *fault) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(f.status)
	_ = json.NewEncoder(w).Encode(map[string]any{"error": map[string]any{
		"code": f.status, "message": f.message, "errors": []any{map[string]any{"reason": f.reason, "message": f.message}},
	}})
}

// grant gives a token to who signs for it: RFC 7523.
func (s *Server) grant(w http.ResponseWriter, r *http.Request, body []byte) {
	r.Body = io.NopCloser(strings.NewReader(string(body)))
	if err := s.assertion(r); err != nil {
		s.Wrong = append(s.Wrong, err.Error())
	} else if s.Stop == 0 || s.chunks < s.Stop {
		s.tokens++
		s.token = fmt.Sprintf("ya29.%d", s.tokens)
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]any{"access_token": s.token, "token_type": "Bearer", "expires_in": 3600})
		return
	}
	w.WriteHeader(http.StatusBadRequest)
	_, _ = io.WriteString(w, `{"error":"invalid_grant","error_description":"Invalid JWT."}`)
}

func (s *Server) assertion(r *http.Request) error {
	parts := strings.Split(r.FormValue("assertion"), ".")
	if r.FormValue("grant_type") != "urn:ietf:params:oauth:grant-type:jwt-bearer" || len(parts) != 3 {
		return fmt.Errorf("a token was asked for without an assertion")
	}
	sig, err := base64.RawURLEncoding.DecodeString(parts[2])
	if err != nil {
		return err
	}
	sum := sha256.Sum256([]byte(parts[0] + "." + parts[1]))
	if err := rsa.VerifyPKCS1v15(s.key, crypto.SHA256, sum[:], sig); err != nil {
		return err
	}
	text, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return err
	}
	var claims struct {
		Issuer   string `json:"iss"`
		Scope    string `json:"scope"`
		Audience string `json:"aud"`
		Expires  int64  `json:"exp"`
	}
	if err := json.Unmarshal(text, &claims); err != nil {
		return err
	}
	if claims.Issuer != email || claims.Scope != "https://www.googleapis.com/auth/cloud-platform" || claims.Audience != s.URL+"/token" || time.Unix(claims.Expires, 0).Before(time.Now()) {
		return fmt.Errorf("claims %+v", claims)
	}
	return nil
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request, body []byte) {
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	if r.Method != http.MethodGet && !strings.HasSuffix(r.URL.Path, ":testIamPermissions") {
		s.Writes++
	}
	var out any
	var f *fault
	switch {
	case r.URL.Path == "/v3/projects/"+Project+":testIamPermissions" && r.Method == http.MethodPost:
		out, f = s.rights(body)
	case strings.HasPrefix(r.URL.Path, "/v3/projects/"):
		f = &fault{http.StatusForbidden, "forbidden", "The caller does not have permission"}
	case strings.HasPrefix(r.URL.Path, "/upload/storage/v1/b/"+Bucket+"/o") && r.Method == http.MethodPost:
		f = s.begin(w, r, body)
	case strings.HasPrefix(r.URL.Path, "/session/") && r.Method == http.MethodPut:
		s.chunk(w, r, parts[1], body)
		return
	case strings.HasPrefix(r.URL.Path, "/storage/v1/b/"):
		out, f = s.storage(r, parts[3:])
	case strings.HasPrefix(r.URL.Path, "/compute/v1/projects/"+Project+"/global/"):
		out, f = s.compute(r, parts[5:], body)
	default:
		f = missing(r.URL.Path)
	}
	if f != nil {
		refuse(w, f)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if out != nil {
		_ = json.NewEncoder(w).Encode(out)
	}
}

func (s *Server) denied(right string) *fault {
	if s.Denied[right] {
		return &fault{http.StatusForbidden, "forbidden", "Required '" + right + "' permission"}
	}
	return nil
}

func (s *Server) rights(body []byte) (any, *fault) {
	if s.NoAPI {
		return nil, &fault{http.StatusForbidden, "SERVICE_DISABLED", "Cloud Resource Manager API has not been used in project before or it is disabled."}
	}
	var in struct{ Permissions []string }
	if err := json.Unmarshal(body, &in); err != nil {
		return nil, bad("%v", err)
	}
	return map[string]any{"permissions": slices.DeleteFunc(in.Permissions, func(r string) bool { return s.Denied[r] })}, nil
}
