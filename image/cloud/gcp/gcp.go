// Package gcp brings disk images to Google Compute Engine: a tar.gz into a bucket, resumable and checked by CRC32C, then an
// image made of it that starts by UEFI, with the release's Secure Boot keys.
//
// It is a dozen calls of the JSON APIs. Google's own client would make the program a fifth larger and cannot go on with an upload
// that another process began. Credentials are those of Google's tools: GOOGLE_APPLICATION_CREDENTIALS, gcloud auth
// application-default login, the metadata server, workload identity.
package gcp

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/google"
)

const scope = "https://www.googleapis.com/auth/cloud-platform"

// services are the APIs' addresses, and the variables by which gcloud is led to others.
var services = map[string]struct{ variable, address string }{
	"compute":   {"CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE", "https://compute.googleapis.com/compute/v1/"},
	"storage":   {"CLOUDSDK_API_ENDPOINT_OVERRIDES_STORAGE", "https://storage.googleapis.com/storage/v1/"},
	"resources": {"CLOUDSDK_API_ENDPOINT_OVERRIDES_CLOUDRESOURCEMANAGER", "https://cloudresourcemanager.googleapis.com/"},
}

// Publisher speaks to one project.
type Publisher struct {
	project string
	client  *http.Client
	tokens  tokens
	log     func(format string, a ...any)
	pause   time.Duration // before the second try of a request
}

// Open finds credentials. Without a project it is the one that they or GOOGLE_CLOUD_PROJECT name.
func Open(ctx context.Context, project string, log func(string, ...any)) (*Publisher, error) {
	p := &Publisher{client: &http.Client{Timeout: 5 * time.Minute}, log: log, pause: 200 * time.Millisecond}
	p.tokens.find = func() (oauth2.TokenSource, error) {
		c, err := google.FindDefaultCredentials(context.WithoutCancel(ctx), scope)
		if err != nil {
			return nil, err
		}
		p.project = cmp.Or(project, os.Getenv("GOOGLE_CLOUD_PROJECT"), c.ProjectID)
		return c.TokenSource, nil
	}
	if _, err := p.tokens.get(); errors.As(err, new(*expired)) {
		return nil, fmt.Errorf("gcp: %w", err)
	} else if err != nil {
		return nil, fmt.Errorf("gcp: %w; log in by: gcloud auth application-default login", err)
	}
	if p.project == "" {
		return nil, errors.New("gcp: no project is set; name it by --project or GOOGLE_CLOUD_PROJECT")
	}
	return p, nil
}

// Project is where the publisher works.
func (p *Publisher) Project() string { return p.project }

// tokens keeps an access token until it ends, or until a server says that it has.
type tokens struct {
	mu     sync.Mutex
	find   func() (oauth2.TokenSource, error)
	source oauth2.TokenSource
}

func (t *tokens) get() (*oauth2.Token, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.source == nil {
		var err error
		if t.source, err = t.find(); err != nil {
			return nil, err
		}
	}
	tok, err := t.source.Token()
	var refused *oauth2.RetrieveError
	if errors.As(err, &refused) && refused.Response != nil && refused.Response.StatusCode/100 == 4 {
		var in struct {
			Error string `json:"error"`
		}
		_ = json.Unmarshal(refused.Body, &in) // the status says enough
		return nil, &expired{cmp.Or(in.Error, refused.Response.Status)}
	}
	return tok, err
}

// expired are credentials that are not taken, which no second try changes.
type expired struct{ why string }

func (e *expired) Error() string {
	return fmt.Sprintf("the credentials are not accepted any more (%s); log in by: gcloud auth application-default login", e.why)
}

func (t *tokens) forget() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.source = nil
}

// Fault is an answer that is no success.
type Fault struct {
	Status  int
	Reason  string // such as notFound, SERVICE_DISABLED
	Message string
}

func (f *Fault) Error() string {
	if f.Message == "" {
		return fmt.Sprintf("HTTP status %d", f.Status)
	}
	return fmt.Sprintf("%d %s: %s", f.Status, f.Reason, f.Message)
}

func status(err error) int {
	var f *Fault
	if errors.As(err, &f) {
		return f.Status
	}
	return 0
}

// address gives the URL of something below a service.
func address(service string, path ...string) string {
	s := services[service]
	for i := range path {
		path[i] = url.PathEscape(path[i])
	}
	return strings.TrimSuffix(cmp.Or(os.Getenv(s.variable), s.address), "/") + "/" + strings.Join(path, "/")
}

func (p *Publisher) images(path ...string) string {
	return address("compute", append([]string{"projects", p.project, "global", "images"}, path...)...)
}

// call sends in as JSON and reads the answer into out; both may be nil.
func (p *Publisher) call(ctx context.Context, method, to string, in, out any) error {
	var body []byte
	head := http.Header{}
	if in != nil {
		var err error
		if body, err = json.Marshal(in); err != nil {
			return err
		}
		head.Set("Content-Type", "application/json; charset=UTF-8")
	}
	a, err := p.send(ctx, method, to, head, body)
	if err != nil {
		return err
	}
	if a.status/100 != 2 {
		return a.fault()
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(a.body, out); err != nil {
		return fmt.Errorf("%s: answered with something that is no JSON: %w", service(to), err)
	}
	return nil
}

type answer struct {
	status int
	head   http.Header
	body   []byte
}

func (a *answer) fault() *Fault {
	f := &Fault{Status: a.status}
	var in struct {
		Error struct {
			Message string `json:"message"`
			Status  string `json:"status"`
			Errors  []struct {
				Reason string `json:"reason"`
			} `json:"errors"`
			Details []struct {
				Reason string `json:"reason"`
			} `json:"details"`
		} `json:"error"`
	}
	if json.Unmarshal(a.body, &in) != nil {
		f.Message = strings.TrimSpace(string(a.body[:min(200, len(a.body))]))
		return f
	}
	f.Message, f.Reason = in.Error.Message, in.Error.Status
	for _, e := range in.Error.Errors {
		f.Reason = e.Reason
	}
	for _, d := range in.Error.Details {
		f.Reason = cmp.Or(d.Reason, f.Reason)
	}
	return f
}

// tries of one request, about a minute in all.
const tries = 10

// send sends a request until something answers that knows. A token that is not taken is renewed once.
func (p *Publisher) send(ctx context.Context, method, to string, head http.Header, body []byte) (*answer, error) {
	pause, renewed := p.pause, false
	for try := 1; ; try++ {
		a, err := p.once(ctx, method, to, head, body)
		switch {
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case err == nil && a.status == http.StatusUnauthorized && !renewed:
			renewed = true
			p.tokens.forget()
			continue
		case err == nil && a.status == http.StatusUnauthorized:
			return nil, &expired{a.fault().Message}
		case errors.As(err, new(*expired)):
			return nil, err
		case err == nil && a.status != http.StatusTooManyRequests && a.status != http.StatusRequestTimeout && a.status < 500:
			return a, nil
		case try == tries:
			if err == nil {
				err = a.fault()
			}
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(pause):
		}
		pause = min(pause*2, 10*time.Second)
	}
}

func (p *Publisher) once(ctx context.Context, method, to string, head http.Header, body []byte) (*answer, error) {
	tok, err := p.tokens.get()
	if err != nil {
		return nil, err
	}
	r, err := http.NewRequestWithContext(ctx, method, to, bytes.NewReader(body))
	if err != nil {
		return nil, hide(err)
	}
	for k, v := range head {
		r.Header[k] = v
	}
	r.Header.Set("User-Agent", "skerry")
	tok.SetAuthHeader(r)
	resp, err := p.client.Do(r)
	if err != nil {
		return nil, hide(err)
	}
	defer func() { _ = resp.Body.Close() }()
	data, err := io.ReadAll(io.LimitReader(resp.Body, 8<<20))
	if err != nil {
		return nil, err
	}
	return &answer{resp.StatusCode, resp.Header, data}, nil
}

// hide takes the address out of an error: that of an upload lets anybody go on with it.
func hide(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return fmt.Errorf("%s: %w", service(u.URL), u.Err)
	}
	return err
}

// service is a URL's host, for messages.
func service(to string) string {
	u, err := url.Parse(to)
	if err != nil {
		return "the service"
	}
	return u.Host
}
