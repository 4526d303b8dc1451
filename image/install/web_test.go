package install

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
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
	if text := strings.Join(said, "\n"); !strings.Contains(text, "is lost") || !strings.Contains(text, "is back") {
		t.Errorf("said %s", text)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"missing", "../etc/passwd"} {
		if _, err := w.Open(name); err == nil {
			t.Errorf("%s was opened", name)
		}
	}
}
