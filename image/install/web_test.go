package install

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// Every answer breaks off after some bytes; the file arrives whole.
func TestAFileIsReadOnAfterALostLink(t *testing.T) {
	want := make([]byte, 300_000)
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(want)
	asked := 0
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/release/f" {
			http.NotFound(w, r)
			return
		}
		asked++
		if asked%5 == 3 {
			http.Error(w, "busy", http.StatusServiceUnavailable)
			return
		}
		at := 0
		_, _ = fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &at)
		rest := want[at:]
		w.Header().Set("Content-Length", fmt.Sprint(len(rest)))
		if at > 0 {
			w.WriteHeader(http.StatusPartialContent)
		}
		_, _ = w.Write(rest[:min(len(rest), 40_000)])
		if len(rest) > 40_000 {
			panic(http.ErrAbortHandler)
		}
	}))
	defer srv.Close()
	var said []string
	w := &web{ctx: t.Context(), base: srv.URL + "/release/", wait: time.Millisecond, log: func(f string, a ...any) { said = append(said, fmt.Sprintf(f, a...)) }}
	f, err := w.Open("f")
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(f)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes of %d, %v", len(got), len(want), err)
	}
	lost, back := 0, 0
	for _, line := range said {
		switch {
		case strings.HasPrefix(line, "the link to the server is lost at byte ") && strings.Contains(line, " of f: ") && strings.Contains(line, "is the cable in, and does skerry pxe serve run? Trying again"):
			lost++
		case strings.HasPrefix(line, "the link is back; going on with f at byte "):
			back++
		default:
			t.Errorf("said %s", line)
		}
	}
	if lost == 0 || lost != back {
		t.Errorf("lost %d times, back %d times: %q", lost, back, said)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	// A cable that is pulled says nothing: the connection stays, and nothing comes.
	var silent atomic.Bool
	quiet := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "4")
		if r.Header.Get("Range") != "" {
			w.Header().Set("Content-Length", "2")
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write([]byte("cd"))
			return
		}
		_, _ = w.Write([]byte("ab"))
		_ = http.NewResponseController(w).Flush()
		silent.Store(true)
		<-r.Context().Done()
	}))
	defer quiet.Close()
	said = nil
	w = &web{ctx: t.Context(), base: quiet.URL + "/", wait: time.Millisecond, stall: 300 * time.Millisecond, log: w.log}
	if f, err = w.Open("f"); err != nil {
		t.Fatal(err)
	}
	if got, err = io.ReadAll(f); err != nil || string(got) != "abcd" || !silent.Load() {
		t.Errorf("%s, %v", got, err)
	}
	if text := strings.Join(said, "\n"); !strings.Contains(text, "the link to the server is lost at byte 2 of f: nothing came for 300ms; is the cable in") || !strings.Contains(text, "is back") {
		t.Errorf("said %s", text)
	}
	w.base = srv.URL + "/release/"
	for _, name := range []string{"missing", "../etc/passwd"} {
		if _, err := w.Open(name); err == nil {
			t.Errorf("%s was opened", name)
		}
	}
}
