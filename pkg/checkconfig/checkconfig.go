// Package checkconfig looks at a machine and says what Skerry would miss on it, and what to do: kernel options, modules, cgroup
// controllers, programs, ports, memory, swap, clock. It changes nothing and needs no root.
//
// Everything is read below a root folder, so that tests (and people with a mounted image) can point it elsewhere.
package checkconfig

import (
	"encoding/json"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"
)

// Level says how bad a finding is.
type Level string

// The levels. Missing means that the engine or pods will not work.
const (
	OK      Level = "ok"
	Warn    Level = "warn"
	Missing Level = "missing"
)

// Finding is one thing that was looked at.
type Finding struct {
	Area  string `json:"area"`
	Name  string `json:"name"`
	Level Level  `json:"level"`
	Found string `json:"found"`         // what is there
	Do    string `json:"do,omitempty"`  // what to do about it; empty when it is fine
	Need  string `json:"for,omitempty"` // what it is needed for
}

// Options say where to look. The zero value is this machine with a server's usual ports.
type Options struct {
	Root    string    // "/" if empty
	DataDir string    // whose filesystem has to have room; not looked at if empty
	Libexec string    // folder of helper programs, looked into before PATH's folders
	Ports   []Port    // DefaultPorts if nil
	Agent   bool      // it is to be an agent, which takes less memory than a server
	Now     time.Time // time.Now() if zero
	Built   time.Time // of the release; the clock cannot be right before it
}

// Port is one that the engine will listen on.
type Port struct {
	Number int
	For    string
}

// DefaultPorts are a server's.
func DefaultPorts() []Port {
	return []Port{
		{6443, "the Kubernetes API"},
		{10248, "kubelet's health"},
		{10249, "kube-proxy's metrics"},
		{10250, "kubelet"},
		{10256, "kube-proxy's health"},
		{10257, "the controller-manager"},
		{10259, "the scheduler"},
	}
}

// Report is the outcome.
type Report struct {
	Kernel   string    `json:"kernel"`
	Findings []Finding `json:"findings"`
}

// host is the machine while it is looked at.
type host struct {
	Options
	report Report
}

func (h *host) path(parts ...string) string {
	return filepath.Join(append([]string{h.Root}, parts...)...)
}

func (h *host) add(area, name string, level Level, found, need, do string) {
	if level == OK {
		do = ""
	}
	h.report.Findings = append(h.report.Findings, Finding{Area: area, Name: name, Level: level, Found: found, Do: do, Need: need})
}

// Run looks at everything. What cannot be read is a finding, not an error.
func Run(o Options) Report {
	if o.Root == "" {
		o.Root = "/"
	}
	if o.Ports == nil {
		o.Ports = DefaultPorts()
	}
	if o.Now.IsZero() {
		o.Now = time.Now()
	}
	h := &host{Options: o}
	h.kernel()
	h.cgroups()
	h.programs()
	h.capabilities()
	h.ports()
	h.limits()
	h.memory()
	h.disk()
	h.clock()
	h.console()
	return h.report
}

// Count counts the findings of a level.
func (r Report) Count(level Level) int {
	n := 0
	for _, f := range r.Findings {
		if f.Level == level {
			n++
		}
	}
	return n
}

// Summary is the report in one line: how many checks passed and what is to be looked at. The error names what is missing, and what to
// do about it.
func (r Report) Summary() (string, error) {
	var missing, look []string
	for _, f := range r.Findings {
		text := fmt.Sprintf("%s %s: %s; %s", f.Area, f.Name, f.Found, f.Do)
		switch f.Level {
		case Missing:
			missing = append(missing, text)
		case Warn:
			look = append(look, text)
		}
	}
	if len(missing) > 0 {
		return "", fmt.Errorf("%d of %d checks failed: %s", len(missing), len(r.Findings), strings.Join(missing, " | "))
	}
	text := fmt.Sprintf("%d checks passed", r.Count(OK))
	if len(look) > 0 {
		text += fmt.Sprintf(", %d to look at: %s", len(look), strings.Join(look, " | "))
	}
	return text, nil
}

// WriteText prints the report for a person: what is wrong first in each line, and what to do below it.
func (r Report) WriteText(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "kernel %s\n", r.Kernel)
	area := ""
	for _, f := range r.Findings {
		if f.Area != area {
			area = f.Area
			fmt.Fprintf(&b, "\n%s\n", area)
		}
		fmt.Fprintf(&b, "  %-8s %-36s %s\n", f.Level, f.Name, f.Found)
		if f.Level == OK {
			continue
		}
		if f.Need != "" {
			fmt.Fprintf(&b, "  %-8s needed for %s\n", "", f.Need)
		}
		fmt.Fprintf(&b, "  %-8s %s\n", "", f.Do)
	}
	fmt.Fprintf(&b, "\n%d missing, %d to look at, %d fine\n", r.Count(Missing), r.Count(Warn), r.Count(OK))
	_, err := io.WriteString(w, b.String())
	return err
}

// WriteJSON prints the report for a program.
func (r Report) WriteJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(r)
}
