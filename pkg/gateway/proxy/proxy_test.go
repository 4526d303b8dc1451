package proxy

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"testing"
)

// action has a name that says which rule was found.
func action(name string) *Action { return &Action{Name: name} }

func ask(method, host, target string, headers ...string) *question {
	r := httptest.NewRequest(method, "http://"+host+target, nil)
	r.Host = host
	for i := 0; i+1 < len(headers); i += 2 {
		r.Header.Add(headers[i], headers[i+1])
	}
	return &question{Request: r, host: hostOf(r.Host), path: r.URL.Path}
}

func find(t *table, q *question) string {
	_, r := t.find(q)
	if r == nil {
		return ""
	}
	return r.action.Name
}

func one(routes ...Route) *table {
	return newTable(&Port{Sites: []Site{{Listeners: []Listener{{Routes: routes}}}}})
}

func TestPrecedence(t *testing.T) {
	table := one(
		Route{Match: Match{Path: "/"}, Action: action("root")},
		Route{Match: Match{Path: "/a"}, Action: action("a")},
		Route{Match: Match{Path: "/a/b/"}, Action: action("ab")},
		Route{Match: Match{Path: "/a/b", PathKind: Exact}, Action: action("ab exact")},
		Route{Match: Match{Path: "/a", Headers: []Pair{{Name: "X-One", Value: "1"}}}, Action: action("a with header")},
		Route{Match: Match{Path: "/a", Headers: []Pair{{Name: "X-One", Value: "1"}, {Name: "X-Two", Value: "2"}}}, Action: action("a with headers")},
		Route{Match: Match{Path: "/a", Method: "PUT"}, Action: action("a with method")},
		Route{Match: Match{Path: "/a", Query: []Pair{{Name: "q", Value: "x"}}}, Action: action("a with query")},
		Route{Match: Match{PathKind: Regexp, Path: "/r[0-9]+", Regexp: regexp.MustCompile("^/r[0-9]+$")}, Action: action("expression")},
		Route{Match: Match{Path: "/grpc", GRPC: true}, Action: action("grpc")},
		Route{Hostnames: []string{"h.test"}, Match: Match{Path: "/a"}, Action: action("host")},
		Route{Hostnames: []string{"*.test"}, Match: Match{Path: "/w"}, Action: action("wildcard")},
		Route{Hostnames: []string{"*.one.test"}, OneLabel: true, Match: Match{Path: "/only"}, Action: action("one label")},
	)
	for _, c := range []struct {
		q    *question
		want string
	}{
		{ask("GET", "x", "/"), "root"},
		{ask("GET", "x", "/ab"), "root"},
		{ask("GET", "x", "/a"), "a"},
		{ask("GET", "x", "/a/"), "a"},
		{ask("GET", "x", "/a/c/d"), "a"},
		{ask("GET", "x", "/a/b"), "ab exact"},
		{ask("GET", "x", "/a/b/"), "ab"},
		{ask("GET", "x", "/a/bc"), "a"},
		{ask("GET", "x", "/a", "X-One", "1"), "a with header"},
		{ask("GET", "x", "/a", "X-One", "1", "X-Two", "2"), "a with headers"},
		{ask("GET", "x", "/a", "X-One", "2"), "a"},
		{ask("PUT", "x", "/a", "X-One", "1"), "a with method"},
		{ask("GET", "x", "/a?q=x"), "a with query"},
		{ask("GET", "x", "/a?q=y&q=x"), "a"},
		{ask("GET", "x", "/r12"), "expression"},
		{ask("GET", "x", "/r12x"), "root"},
		{ask("POST", "x", "/grpc/m", "Content-Type", "application/grpc+proto"), "grpc"},
		{ask("POST", "x", "/grpc/m"), "root"},
		{ask("GET", "H.test:8080", "/a"), "host"},
		{ask("GET", "h.test", "/w"), "wildcard"}, // the closer host has no rule for it
		{ask("GET", "h.test", "/z"), "root"},
		{ask("GET", "a.b.test", "/w"), "wildcard"},
		{ask("GET", "test", "/w"), "root"},
		{ask("GET", "a.one.test", "/only"), "one label"},
		{ask("GET", "a.b.one.test", "/only"), "root"},
	} {
		if got := find(table, c.q); got != c.want {
			t.Errorf("%s %s %s %v: %q, want %q", c.q.Method, c.q.Host, c.q.URL, c.q.Header, got, c.want)
		}
	}
}

// A listener that names a host more closely keeps its requests to itself, within a site and not across sites.
func TestListeners(t *testing.T) {
	routes := func(name, path string) []Route { return []Route{{Match: Match{Path: path}, Action: action(name)}} }
	table := newTable(&Port{Sites: []Site{
		{Listeners: []Listener{
			{Hostname: "", Routes: routes("any", "/any")},
			{Hostname: "*.example.com", Routes: routes("wild", "/wild")},
			{Hostname: "*.foo.example.com", Routes: routes("foo", "/foo")},
			{Hostname: "abc.foo.example.com", Routes: routes("abc", "/abc")},
		}},
		{Listeners: []Listener{{Routes: routes("second", "/")}}},
		{Listeners: []Listener{{Hostname: "x.example.com", Routes: routes("third", "/third")}}},
	}})
	for target, want := range map[string]string{
		"bar.com/any": "any", "bar.com/wild": "second", "bar.example.com/any": "second", "bar.example.com/wild": "wild",
		"b.foo.example.com/foo": "foo", "b.foo.example.com/wild": "second", "abc.foo.example.com/abc": "abc", "abc.foo.example.com/foo": "second",
		"x.example.com/third": "third", "x.example.com/wild": "wild", "example.com/wild": "second",
	} {
		host, path, _ := strings.Cut(target, "/")
		if got := find(table, ask("GET", host, "/"+path)); got != want {
			t.Errorf("%s: %q, want %q", target, got, want)
		}
	}
}

func TestWeights(t *testing.T) {
	backends := []Backend{{Name: "a", Weight: 70}, {Name: "b", Weight: 30}, {Name: "c", Weight: 0}}
	var n turn
	got := map[string]int{}
	for range 1000 {
		got[weighted(&n, backends).Name]++
	}
	if got["c"] != 0 || got["a"] < 695 || got["a"] > 705 {
		t.Errorf("of 1000 choices: %v", got)
	}
	if b := weighted(&n, []Backend{{Weight: 0}}); b != nil {
		t.Errorf("without weight: %v", b)
	}
}

func TestPathChange(t *testing.T) {
	for _, c := range []struct{ match, value, path, want string }{
		{"/old", "/new", "/old", "/new"},
		{"/old", "/new", "/old/x", "/new/x"},
		{"/old/", "/new", "/old/x", "/new/x"},
		{"/old", "/", "/old", "/"},
		{"/old", "/", "/old/x", "/x"},
		{"/", "/new", "/x", "/new/x"},
		{"/old", "", "/old/x", "/x"},
		{"/old", "/new/", "/old", "/new/"},
		{"/old", "/new/", "/old/x", "/new/x"},
	} {
		r := &rule{Match: &Match{Path: c.match}}
		if got, _ := r.change(&PathChange{Prefix: true, Value: c.value}, c.path, c.path); got != c.want {
			t.Errorf("%s with %s for %s: %s, want %s", c.path, c.value, c.match, got, c.want)
		}
	}
	r := &rule{Match: &Match{Path: "/a"}}
	if plain, raw := r.change(&PathChange{Prefix: true, Value: "/b"}, "/a/x/y", "/a/x%2Fy"); plain != "/b/x/y" || raw != "/b/x%2Fy" {
		t.Errorf("%s %s", plain, raw)
	}
}

func TestClean(t *testing.T) {
	for in, want := range map[string]string{
		"": "/", "/a/b": "/a/b", "/a/../b": "/b", "/a/./b/": "/a/b/", "/../../x": "/x", "/a/..": "/", "/a/b/..": "/a/", "/a//b": "/a//b", "/.well-known/x": "/.well-known/x", "/a/.hidden": "/a/.hidden",
	} {
		r := &http.Request{URL: &url.URL{Path: in}}
		if clean(r); r.URL.Path != want {
			t.Errorf("%q: %q, want %q", in, r.URL.Path, want)
		}
	}
}

func FuzzFind(f *testing.F) {
	table := one(
		Route{Match: Match{Path: "/"}, Action: action("root")},
		Route{Hostnames: []string{"*.a.test", "b.test"}, Match: Match{Path: "/p/q"}, Action: action("p")},
	)
	f.Add("x.a.test", "/p/q/r", "q=1")
	f.Add("", "", "")
	f.Fuzz(func(t *testing.T, host, path, query string) {
		r := &http.Request{Method: "GET", Host: host, URL: &url.URL{Path: path, RawQuery: query}, Header: http.Header{}}
		clean(r)
		q := &question{Request: r, host: hostOf(host), path: r.URL.Path}
		if _, got := table.find(q); got == nil {
			t.Errorf("%q %q: no rule, although one takes everything", host, path)
		}
		if strings.Contains(r.URL.Path+"/", "/../") {
			t.Errorf("%q stays %q", path, r.URL.Path)
		}
		_ = fmt.Sprint(query)
	})
}
