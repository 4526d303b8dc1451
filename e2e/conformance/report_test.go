package conformance

import (
	"cmp"
	"encoding/xml"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/skerry-os/skerry/e2e/conformance/journal"
)

type junit struct {
	XMLName  xml.Name    `xml:"testsuite"`
	Name     string      `xml:"name,attr"`
	Tests    int         `xml:"tests,attr"`
	Failures int         `xml:"failures,attr"`
	Skipped  int         `xml:"skipped,attr"`
	Cases    []junitCase `xml:"testcase"`
}

type junitCase struct {
	Name    string        `xml:"name,attr"`
	Class   string        `xml:"classname,attr"`
	Time    float64       `xml:"time,attr"`
	Failure *junitFailure `xml:"failure,omitempty"`
	Skipped *junitFailure `xml:"skipped,omitempty"`
	Output  string        `xml:"system-out,omitempty"`
}

type junitFailure struct {
	Message string `xml:"message,attr"`
	Text    string `xml:",chardata"`
}

// outcome is the last result of each test that is wanted; a test that has none was not run.
func outcome(wanted []string, results []journal.Entry) map[string]journal.Entry {
	last := map[string]journal.Entry{}
	for _, e := range results {
		if old := last[e.Name]; !old.Passed() || e.Passed() {
			last[e.Name] = e
		}
	}
	out := map[string]journal.Entry{}
	for _, name := range wanted {
		out[name] = cmp.Or(last[name], journal.Entry{Name: name, State: "not run"})
	}
	return out
}

// report writes junit.xml and report.txt, prints the latter, and is an error unless everything passed.
func report(t *testing.T, dir string, wanted []string, results []journal.Entry) error {
	last := outcome(wanted, results)
	suite := junit{Name: "Kubernetes e2e suite", Tests: len(wanted)}
	var text strings.Builder
	passed := 0
	for _, name := range slices.Sorted(maps.Keys(last)) {
		e := last[name]
		c := junitCase{Name: name, Class: suite.Name, Time: e.Seconds}
		switch e.State {
		case "passed":
			passed++
		case "skipped", "not run":
			suite.Skipped++
			c.Skipped = &junitFailure{Message: e.Message}
			fmt.Fprintf(&text, "%s: %s\n    %s\n", e.State, name, first(e.Message))
		default:
			suite.Failures++
			c.Failure = &junitFailure{Message: first(e.Message), Text: e.Message + "\n" + e.Where}
			c.Output = strings.ToValidUTF8(e.Output, "?")
			fmt.Fprintf(&text, "%s: %s\n    %s\n    %s\n", e.State, name, first(e.Message), e.Where)
		}
		suite.Cases = append(suite.Cases, c)
	}
	fmt.Fprintf(&text, "%d of %d tests passed, %d failed, %d did not run\n", passed, len(wanted), suite.Failures, suite.Skipped)
	data, err := xml.MarshalIndent(suite, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "junit.xml"), append([]byte(xml.Header), data...), 0o644); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "report.txt"), []byte(text.String()), 0o644); err != nil {
		return err
	}
	t.Logf("%s\n(%s, and junit.xml beside it)", text.String(), filepath.Join(dir, "report.txt"))
	if passed < len(wanted) {
		return fmt.Errorf("%d of %d tests did not pass", len(wanted)-passed, len(wanted))
	}
	return nil
}

// first is the first line of a message that says something.
func first(message string) string {
	for line := range strings.Lines(message) {
		if line = strings.TrimSpace(line); line != "" {
			return line
		}
	}
	return ""
}

// A result counts once, the best of all runs; what was cut short by a kill is no result.
func TestJournal(t *testing.T) {
	file := filepath.Join(t.TempDir(), "journal.jsonl")
	for _, e := range []journal.Entry{{Name: "a", State: "failed", Message: "\n why\nmore"}, {Name: "a", State: "passed"}, {Name: "b", State: "passed"}, {Name: "b", State: "failed"}, {Name: "c", State: "timedout"}, {Name: "old", State: "failed"}} {
		if err := journal.Append(file, e); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.OpenFile(file, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(`{"name":"d","sta`); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	results, err := journal.Read(file)
	if err != nil {
		t.Fatal(err)
	}
	wanted := []string{"a", "b", "c", "d"}
	if got := remaining(wanted, results); !slices.Equal(got, []string{"c", "d"}) {
		t.Errorf("still to run: %v", got)
	}
	got := outcome(wanted, results)
	for name, state := range map[string]string{"a": "passed", "b": "passed", "c": "timedout", "d": "not run"} {
		if got[name].State != state {
			t.Errorf("%s: %s; want %s", name, got[name].State, state)
		}
	}
	dir := t.TempDir()
	if err := report(t, dir, wanted, results); err == nil || !strings.Contains(err.Error(), "2 of 4") {
		t.Errorf("report says %v", err)
	}
	if data, err := os.ReadFile(filepath.Join(dir, "junit.xml")); err != nil || !strings.Contains(string(data), `tests="4" failures="1" skipped="1"`) {
		t.Errorf("junit.xml: %v\n%s", err, data)
	}
}

// Names are texts, not expressions; one that ends on the tag is a whole end, others may go on; nothing but [Conformance] runs.
func TestFocused(t *testing.T) {
	if got := focused("own.*", true); got != "own.*" {
		t.Errorf("a person's expression became %s", got)
	}
	if got := focused("", false); got != `\[Conformance\]` {
		t.Errorf("the default is %s", got)
	}
	quick := regexp.MustCompile(focused("", true))
	for name, want := range map[string]bool{
		"[sig-network] DNS should provide DNS for services [Conformance]":                                             true,
		"[sig-network] DNS should provide DNS for services that are headless [Conformance]":                           false,
		"[sig-storage] EmptyDir volumes should support (root,0644,tmpfs) [LinuxOnly] [Conformance] [NodeConformance]": true,
		"[sig-storage] EmptyDir volumes should support root,0644,tmpfs [Conformance]":                                 false,
		"[sig-storage] EmptyDir volumes should support (root,0644,tmpfs) [LinuxOnly]":                                 false,
	} {
		if quick.MatchString(name) != want {
			t.Errorf("%s: %v", name, !want)
		}
	}
}
