package conformance

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/skerry-os/skerry/e2e/conformance/images"
	"github.com/skerry-os/skerry/e2e/conformance/journal"
	"github.com/skerry-os/skerry/e2e/nodes"
)

//go:embed quick.txt
var quickList string

var (
	enabled  = flag.Bool("conformance", false, "run upstream's tests on this host; needs root and programs in -out")
	outDir   = flag.String("out", "../../out", "the Makefile's out folder")
	quick    = flag.Bool("quick", false, "run the tests that quick.txt lists, all of them")
	focus    = flag.String("focus", "", "run only tests whose names match this regular expression (default: [Conformance])")
	skip     = flag.String("skip", "", "do not run tests whose names match this regular expression")
	parallel = flag.Int("parallel", 4, "how many tests run at once; those called [Serial] run alone, at the end")
	fresh    = flag.Bool("fresh", false, "run what passed before, too")
	agents   = flag.Int("agents", 1, "how many nodes join the server")
)

// TestConformance builds what is missing, starts a cluster, runs what has not passed yet, and writes the reports.
func TestConformance(t *testing.T) {
	if !*enabled {
		t.Skip("runs upstream's tests on this host as root: make conformance, or make conformance-quick")
	}
	if err := run(t); err != nil {
		t.Fatal(err)
	}
}

func run(t *testing.T) error {
	ctx := t.Context()
	out, err := filepath.Abs(*outDir)
	if err != nil {
		return err
	}
	dir := filepath.Join(out, "conformance")
	if *quick {
		dir = filepath.Join(out, "conformance-quick")
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	s, err := build(t, out, dir)
	if err != nil {
		return err
	}
	wanted, err := s.list(ctx)
	if err != nil {
		return err
	}
	if len(wanted) == 0 {
		return errors.New("no test has such a name; see the names in upstream's test/conformance/testdata/conformance.yaml")
	}
	if *fresh || *quick {
		if err := os.Remove(s.journal()); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	results, err := journal.Read(s.journal())
	if err != nil {
		return err
	}
	open := remaining(wanted, results)
	t.Logf("%d tests wanted, %d of them passed before", len(wanted), len(wanted)-len(open))
	if len(open) > 0 {
		if err := s.run(t, open, results); err != nil {
			t.Log(err) // the journal says which
		}
		if results, err = journal.Read(s.journal()); err != nil {
			return err
		}
	}
	return report(t, dir, wanted, results)
}

// remaining lists the tests that have not passed.
func remaining(wanted []string, results []journal.Entry) []string {
	passed := map[string]bool{}
	for _, e := range results {
		if e.Passed() {
			passed[e.Name] = true
		}
	}
	return slices.DeleteFunc(slices.Clone(wanted), func(name string) bool { return passed[name] })
}

// suite is upstream's tests as programs.
type suite struct {
	out, dir string
	program  string
	ginkgo   string
}

func build(t *testing.T, out, dir string) (*suite, error) {
	work := filepath.Join(out, "conformance", "work")
	b := images.Builder{Source: "../..", Work: work, Arch: runtime.GOARCH, Log: t.Logf}
	if err := b.Archive(t.Context(), imageArchive(out)); err != nil {
		return nil, err
	}
	kubernetes, err := images.Kubernetes(t.Context(), b.Source)
	if err != nil {
		return nil, err
	}
	s := &suite{out: out, dir: dir, program: filepath.Join(work, "bin", "e2e.test"), ginkgo: filepath.Join(work, "bin", "ginkgo")}
	t.Log("building the suite (the first time it takes minutes)")
	for _, args := range [][]string{
		{"test", "-c", "-ldflags", "-s -w " + versionFlags(kubernetes), "-o", s.program, "./suite"},
		{"build", "-ldflags", "-s -w", "-o", s.ginkgo, "github.com/onsi/ginkgo/v2/ginkgo"},
	} {
		cmd := exec.CommandContext(t.Context(), "go", args...)
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		if err := cmd.Run(); err != nil {
			return nil, fmt.Errorf("go %s: %w", strings.Join(args, " "), err)
		}
	}
	return s, nil
}

// versionFlags tell the suite which Kubernetes it belongs to: it asks for pods as that version's security standards want them.
func versionFlags(kubernetes string) string {
	part := strings.Split(strings.TrimPrefix(kubernetes, "v"), ".")
	const pkg = "k8s.io/component-base/version"
	return fmt.Sprintf("-X %[1]s.gitVersion=%[2]s -X %[1]s.gitMajor=%[3]s -X %[1]s.gitMinor=%[4]s", pkg, kubernetes, part[0], part[1])
}

func imageArchive(out string) string { return filepath.Join(out, "conformance", "images.tar") }

func (s *suite) journal() string { return filepath.Join(s.dir, "journal.jsonl") }

// selection is ginkgo's two expressions.
func (s *suite) selection() []string {
	args := []string{"--ginkgo.focus=" + focused(*focus, *quick)}
	if *skip != "" {
		args = append(args, "--ginkgo.skip="+*skip)
	}
	return args
}

const tag = "[Conformance]"

// focused is the expression for the names of the tests wanted: a person's own, or that of tests upstream calls [Conformance],
// all or the quick ones.
func focused(own string, quick bool) string {
	switch {
	case own != "":
		return own
	case !quick:
		return regexp.QuoteMeta(tag)
	}
	var names []string
	for line := range strings.Lines(quickList) {
		if line = strings.TrimSpace(line); line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, whole := strings.CutSuffix(line, tag)
		if name = regexp.QuoteMeta(name); !whole {
			name += ".*"
		}
		names = append(names, name)
	}
	return "(" + strings.Join(names, "|") + ")" + regexp.QuoteMeta(tag)
}

// list gives the names of the tests that are wanted, as the suite itself counts them.
func (s *suite) list(ctx context.Context) ([]string, error) {
	file := filepath.Join(s.dir, "list.json")
	args := append(s.selection(), "--ginkgo.dry-run", "--ginkgo.silence-skips", "--ginkgo.succinct", "--ginkgo.json-report="+file, "--kubeconfig=/dev/null", "--provider=skeleton")
	cmd := exec.CommandContext(ctx, s.program, args...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("listing the tests: %w: %s", err, out)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var reports []struct {
		SpecReports []struct {
			LeafNodeType            string
			State                   string
			ContainerHierarchyTexts []string
			LeafNodeText            string
		}
	}
	if err := json.Unmarshal(data, &reports); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	var names []string
	for _, r := range reports {
		for _, spec := range r.SpecReports {
			if spec.LeafNodeType == "It" && spec.State == "passed" {
				names = append(names, strings.Join(append(spec.ContainerHierarchyTexts, spec.LeafNodeText), " "))
			}
		}
	}
	return names, os.Remove(file)
}

// run runs the suite in a cluster of its own; the tests that passed before skip themselves.
func (s *suite) run(t *testing.T, open []string, results []journal.Entry) error {
	var passed bytes.Buffer
	for _, e := range results {
		if e.Passed() {
			fmt.Fprintln(&passed, e.Name)
		}
	}
	passedFile := filepath.Join(s.dir, "passed.txt")
	if err := os.WriteFile(passedFile, passed.Bytes(), 0o644); err != nil {
		return err
	}
	server, err := s.cluster(t)
	if err != nil {
		return err
	}
	procs := min(*parallel, len(open))
	t.Logf("running %d tests, %d at once; their output is in %s", len(open), procs, filepath.Join(s.dir, "output.log"))
	args := []string{"--procs=" + strconv.Itoa(procs), "--no-color", "--timeout=24h", "--silence-skips"}
	for _, a := range s.selection() {
		args = append(args, strings.Replace(a, "--ginkgo.", "--", 1))
	}
	args = append(args, s.program, "--", "--kubeconfig="+server.Kubeconfig(), "--provider=skeleton", "--kubectl-path="+filepath.Join(s.programs(), "kubectl"), "--disable-log-dump=true")
	output, err := os.Create(filepath.Join(s.dir, "output.log"))
	if err != nil {
		return err
	}
	defer func() { _ = output.Close() }()
	cmd := server.Command(t.Context(), s.ginkgo, args...)
	cmd.Env = append(os.Environ(), journal.FileEnv+"="+s.journal(), journal.PassedEnv+"="+passedFile)
	cmd.Stdout, cmd.Stderr = output, output
	return cmd.Run()
}

func (s *suite) programs() string { return filepath.Join(s.out, runtime.GOARCH, "usr/bin") }

// cluster is a server and its agents, with the test images on each, and on the wire a registry that has them too.
func (s *suite) cluster(t *testing.T) (*nodes.Node, error) {
	w := nodes.New(t, s.programs())
	mirrors, err := s.registry(t, w)
	if err != nil {
		return nil, err
	}
	server := w.Node("c1")
	server.Start("server", "--private-registry", mirrors)
	server.Ready()
	all := []*nodes.Node{server}
	for i := range *agents {
		n := w.Node(fmt.Sprintf("c%d", i+2))
		n.Start("agent", "--server", server.URL(), "--token", server.Token(), "--private-registry", mirrors)
		n.Ready()
		all = append(all, n)
	}
	var work errgroup.Group
	for _, n := range all {
		work.Go(func() error {
			cmd := n.Command(t.Context(), "sh", "-c", `CONTAINERD_ADDRESS=$(ls /run/skerry*/containerd.sock) exec "$0" images import --digests "$1"`,
				filepath.Join(s.programs(), "ctr"), imageArchive(s.out))
			if out, err := cmd.CombinedOutput(); err != nil {
				return fmt.Errorf("images of the tests: %w: %s", err, out)
			}
			return nil
		})
	}
	return server, work.Wait()
}

// registry serves the test images in place of registry.k8s.io, and gives the registries.yaml that says so.
func (s *suite) registry(t *testing.T, w *nodes.Network) (string, error) {
	r, err := images.OpenRegistry(imageArchive(s.out))
	if err != nil {
		return "", err
	}
	address := net.JoinHostPort(nodes.Gateway.String(), "5000")
	l, err := w.Listen("tcp", address)
	if err != nil {
		return "", err
	}
	server := &http.Server{Handler: r}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	t.Cleanup(func() {
		if err := errors.Join(server.Close(), r.Close()); err != nil {
			t.Error(err)
		}
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	file := filepath.Join(s.dir, "registries.yaml")
	return file, os.WriteFile(file, fmt.Appendf(nil, "mirrors:\n  registry.k8s.io: {endpoint: [\"http://%s\"]}\n", address), 0o600)
}
