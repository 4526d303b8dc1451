package token

import (
	"strings"
	"testing"
)

const pin = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

func TestForms(t *testing.T) {
	for text, want := range map[string]Token{
		"K10" + pin + "::server:pass:word":                  {Pin: pin, User: "server", Secret: "pass:word"},
		"K10" + pin + "::abc123." + strings.Repeat("x", 16): {Pin: pin, Secret: "abc123." + strings.Repeat("x", 16)},
		"correct horse":                     {Secret: "correct horse"},
		"K10 is a mountain::no":             {}, // refused below
		"abc123." + strings.Repeat("x", 16): {Secret: "abc123." + strings.Repeat("x", 16)},
		"K10-metres-of-password":            {Secret: "K10-metres-of-password"},
	} {
		got, err := Parse(text)
		if want == (Token{}) {
			if err == nil {
				t.Errorf("%q: taken as %+v", text, got)
			}
			continue
		}
		if err != nil || got != want || got.String() != text {
			t.Errorf("%q: %+v %v, written %q", text, got, err, got.String())
		}
	}
	if Pin(nil) != pin {
		t.Error("the digest is not SHA-256")
	}
}

func TestACutTokenIsRefusedAndNotShown(t *testing.T) {
	whole := "K10" + pin + "::server:hunter2hunter2"
	for _, cut := range []string{"", whole[:67], whole[:69], whole[:75], "K10" + pin[1:] + "::server:hunter2hunter2", "K10" + pin + "::server:"} {
		if got, err := Parse(cut); err == nil || strings.Contains(err.Error(), "hunter") {
			t.Errorf("%q: %+v, %v", cut, got, err)
		}
	}
}

func TestNewTokensAreWhole(t *testing.T) {
	seen := map[string]bool{}
	for range 100 {
		s := New()
		if seen[s] || ID(s) != s[:6] {
			t.Fatalf("%q", s)
		}
		seen[s] = true
	}
	if ID("password.of-my-own") != "" {
		t.Error("a password has an ID")
	}
}

func FuzzParse(f *testing.F) {
	f.Add("K10" + pin + "::server:password")
	f.Add("K10::")
	f.Fuzz(func(t *testing.T, text string) {
		if got, err := Parse(text); err == nil && got.String() != text {
			t.Errorf("%q is written %q", text, got.String())
		}
	})
}
