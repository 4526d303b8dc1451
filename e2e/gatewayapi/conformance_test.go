package gatewayapi

import (
	"context"
	"encoding/xml"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/gateway-api/conformance"
	confv1 "sigs.k8s.io/gateway-api/conformance/apis/v1"
	"sigs.k8s.io/gateway-api/conformance/utils/suite"
	"sigs.k8s.io/yaml"

	"github.com/skerry-os/skerry/e2e/nodes"
	"github.com/skerry-os/skerry/image/oci"
)

var (
	out     = flag.String("out", "", "folder of what was built; nothing runs without it")
	results = flag.String("results", "", "folder for report.yaml and junit.xml (default: in -out)")
	focus   = flag.String("focus", "", "short name of the one test to run")
)

// insideEnv tells the second run of this program, on the node, where its report goes.
const insideEnv = "SKERRY_GATEWAY_CONFORMANCE"

// Upstream's suite, with every feature that the GatewayClass says it has. Core must pass whole; so must all that is claimed.
func TestConformance(t *testing.T) {
	if *out == "" {
		t.Skip("runs a server on this host as root: add -out (or run make gateway-conformance)")
	}
	if report := os.Getenv(insideEnv); report != "" {
		o := conformance.DefaultOptions(t)
		o.GatewayClassName = "skerry"
		o.RunTest = *focus
		o.CleanupBaseResources = false // the node goes with all of it
		o.ReportOutputPath = report
		o.ConformanceProfiles = []suite.ConformanceProfileName{
			suite.GatewayHTTPConformanceProfileName, suite.GatewayGRPCConformanceProfileName, suite.GatewayTLSConformanceProfileName,
		}
		o.Implementation = confv1.Implementation{
			Organization: "skerry-os", Project: "skerry", URL: "https://github.com/skerry-os/skerry", Version: "development",
			Contact: []string{"https://github.com/skerry-os/skerry/issues"},
		}
		conformance.RunConformanceWithOptions(t, o)
		return
	}
	if *results == "" {
		*results = filepath.Join(*out, "gateway-conformance")
	}
	if err := os.MkdirAll(*results, 0o755); err != nil {
		t.Fatal(err)
	}
	s := server(t)
	log := run(t, s)
	if err := writeJUnit(filepath.Join(*results, "junit.xml"), log); err != nil {
		t.Error(err)
	}
	if *focus == "" {
		check(t)
	}
}

// server is a node with the ingress and the images that the suite's pods run from.
func server(t *testing.T) *nodes.Node {
	w := nodes.New(t, filepath.Join(*out, "amd64/usr/bin"))
	s := w.Node("gateway")
	s.Start("server")
	t.Logf("Ready after %v", s.Ready())
	s.ReadyInAPI(s)
	images(t, s)
	s.Becomes("1", "-n", "ingress", "get", "daemonset", "ingress", "-o", "jsonpath={.status.numberReady}")
	return s
}

// images gives the node what the suite would pull: upstream's echo server, built from the suite's own module, and CoreDNS.
func images(t *testing.T, s *nodes.Node) {
	t.Helper()
	dir := t.TempDir()
	echo := filepath.Join(dir, "echo-basic")
	if text, err := exec.Command("go", "build", "-ldflags", "-s -w", "-o", echo, "sigs.k8s.io/gateway-api/conformance/echo-basic").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	type image struct {
		ref, program, binary string
		args                 []string
	}
	list := []image{{"registry.k8s.io/coredns/coredns:v1.12.2", "skerry-addons", filepath.Join(*out, "amd64/components/addons"), []string{"coredns"}}}
	for _, tag := range []string{"v1.5.1", "v1.6.0-dev.2", "v1.6.0-dev.3"} {
		list = append(list, image{"registry.k8s.io/gateway-api/echo-basic:" + tag, "echo-basic", echo, nil})
	}
	for i, one := range list {
		binary, err := os.ReadFile(one.binary)
		if err != nil {
			t.Fatal(err)
		}
		archive := filepath.Join(dir, fmt.Sprint(i, ".tar"))
		f, err := os.Create(archive)
		if err != nil {
			t.Fatal(err)
		}
		err = oci.Image{Ref: one.ref, Arch: "amd64", Program: one.program, Binary: binary, Args: one.args, User: "65532:65532"}.Write(f)
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
		// The node has a /run of its own.
		const load = `exec "$0" ctr --address "$(echo /run/skerry*/containerd.sock)" -n k8s.io images import "$1"`
		program, err := filepath.Abs(filepath.Join(*out, "amd64/usr/bin/skerryd"))
		if err != nil {
			t.Fatal(err)
		}
		if text, err := s.Command(t.Context(), "sh", "-c", load, program, archive).CombinedOutput(); err != nil {
			t.Fatalf("importing %s: %v: %s", one.ref, err, text)
		}
	}
}

// run runs this program again on the node, where the cluster's addresses can be reached, and returns what it wrote.
func run(t *testing.T, s *nodes.Node) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	cmd := s.Command(ctx, self, "-test.v", "-test.run", "^TestConformance$", "-test.timeout", "1h", "-out", *out, "-focus", *focus)
	cmd.Env = append(os.Environ(), insideEnv+"="+reportFile(), "KUBECONFIG="+s.Kubeconfig())
	file := filepath.Join(*results, "log.txt")
	log, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close() //nolint:errcheck // read below
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Run(); err != nil {
		t.Errorf("the suite: %v; see %s", err, file)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func reportFile() string { return filepath.Join(*results, "report.yaml") }

// check reads the report: no profile may have a failure or a skip.
func check(t *testing.T) {
	t.Helper()
	data, err := os.ReadFile(reportFile())
	if err != nil {
		t.Fatal(err)
	}
	var r confv1.ConformanceReport
	if err := yaml.Unmarshal(data, &r); err != nil {
		t.Fatal(err)
	}
	if len(r.ProfileReports) != 3 {
		t.Errorf("the report has %d profiles, want 3", len(r.ProfileReports))
	}
	for _, p := range r.ProfileReports {
		report := func(kind string, s confv1.Status) {
			t.Logf("%s %s: %d passed, %d failed, %d skipped %v", p.Name, kind, s.Passed, s.Failed, s.Skipped, append(s.FailedTests, s.SkippedTests...))
			if s.Failed > 0 || s.Skipped > 0 || s.Passed == 0 {
				t.Errorf("%s %s is not whole: %+v", p.Name, kind, s)
			}
		}
		report("core", p.Core)
		if p.Extended != nil {
			report("extended", p.Extended.Status)
		}
	}
}

type junitCase struct {
	Name    string  `xml:"name,attr"`
	Class   string  `xml:"classname,attr"`
	Seconds float64 `xml:"time,attr"`
	Failure *string `xml:"failure"`
	Skipped *string `xml:"skipped"`
}

type junitSuite struct {
	XMLName  xml.Name    `xml:"testsuite"`
	Name     string      `xml:"name,attr"`
	Tests    int         `xml:"tests,attr"`
	Failures int         `xml:"failures,attr"`
	Cases    []junitCase `xml:"testcase"`
}

var outcome = regexp.MustCompile(`^\s*--- (PASS|FAIL|SKIP): TestConformance/(\S+) \(([0-9.]+)s\)`)

// writeJUnit writes the suite's tests, without those inside them, as JUnit's XML.
func writeJUnit(name, log string) error {
	s := junitSuite{Name: "gateway-api"}
	for line := range strings.Lines(log) {
		m := outcome.FindStringSubmatch(line)
		if m == nil || strings.Contains(m[2], "/") {
			continue
		}
		c := junitCase{Name: m[2], Class: "gateway-api"}
		if _, err := fmt.Sscan(m[3], &c.Seconds); err != nil {
			return err
		}
		text := "see log.txt"
		switch m[1] {
		case "FAIL":
			c.Failure = &text
			s.Failures++
		case "SKIP":
			c.Skipped = new(string)
		}
		s.Cases = append(s.Cases, c)
		s.Tests++
	}
	data, err := xml.MarshalIndent(s, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(name, append([]byte(xml.Header), data...), 0o600)
}
