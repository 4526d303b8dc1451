package updates

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"
)

// The source is reached through the proxy that the node has, whatever the environment says.
func TestSourceBehindAProxy(t *testing.T) {
	var asked string
	proxy := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { asked = r.URL.String() }))
	defer proxy.Close()
	t.Setenv("HTTP_PROXY", "")
	at, err := url.Parse(proxy.URL)
	if err != nil {
		t.Fatal(err)
	}
	r, err := client(func(*url.URL) (*url.URL, error) { return at, nil }).Get("http://updates.example.org/timestamp.json")
	if err != nil {
		t.Fatal(err)
	}
	_ = r.Body.Close()
	if asked != "http://updates.example.org/timestamp.json" {
		t.Errorf("the proxy was asked for %q", asked)
	}
}
