package enrol

import (
	"slices"
	"testing"
)

// The setting server may name several; what is known already is not asked twice.
func TestAddresses(t *testing.T) {
	for server, want := range map[string][]string{
		"":                            nil,
		"https://a":                   {"a:6443"},
		"https://a:7443":              {"a:7443"},
		"https://a,https://[2001::1]": {"a:6443", "[2001::1]:6443"},
		"https://b:6443,https://a:1":  {"b:6443", "a:1"},
	} {
		if got, err := Addresses(server); err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: %q, %v", server, got, err)
		}
	}
	for _, server := range []string{",", "https://a,", ",https://a", "https://a,,https://b", "a:6443"} {
		if got, err := Addresses(server); err == nil {
			t.Errorf("%q: %q", server, got)
		}
	}
	known := []string{"10.0.0.1:6443", "a:6443"}
	if got, err := (Config{Server: "https://a,https://c"}).withOwn(known); err != nil || !slices.Equal(got, []string{"10.0.0.1:6443", "a:6443", "c:6443"}) {
		t.Errorf("%q, %v", got, err)
	}
}
