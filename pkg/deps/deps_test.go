package deps

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/skerry-os/skerry/"

type pkg struct {
	ImportPath string
	Dir        string
	GoFiles    []string
	Imports    []string
	Deps       []string
}

// list asks go for the module's packages, as they are built for nodes. It skips folders that hold no Go file for Linux.
func list(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Dir,GoFiles,Imports,Deps", module+"...")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v: %s", err, stderr.String())
	}
	var all []pkg
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		switch err := dec.Decode(&p); {
		case errors.Is(err, io.EOF):
			return all
		case err != nil:
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

// short is a package's name in the tables: without the module, if it is of ours.
func short(path string) string { return strings.TrimPrefix(path, module) }

func matches(pattern, name string) bool {
	if base, ok := strings.CutSuffix(pattern, "/..."); ok {
		return name == base || strings.HasPrefix(name, base+"/")
	}
	return name == pattern
}

func lines(table string) []string {
	var out []string
	for line := range strings.Lines(table) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			out = append(out, line)
		}
	}
	return out
}

// layersOf parses Layers into a function from a package to its layer's number, -1 for none.
func layersOf(table string) (func(name string) int, []string) {
	var layers [][]string
	var titles []string
	for _, line := range lines(table) {
		title, names, _ := strings.Cut(line, ":")
		layers = append(layers, strings.Fields(names))
		titles = append(titles, title)
	}
	return func(name string) int {
		for i, patterns := range layers {
			if slices.ContainsFunc(patterns, func(p string) bool { return matches(p, name) }) {
				return i
			}
		}
		return -1
	}, titles
}

// faultsInLayers finds imports that do not go up the table.
func faultsInLayers(table string, all []pkg) []string {
	var faults []string
	layer, titles := layersOf(table)
	for _, p := range all {
		name := short(p.ImportPath)
		mine := layer(name)
		if mine < 0 {
			faults = append(faults, name+": is in no layer; add it to Layers in pkg/deps")
			continue
		}
		for _, imp := range p.Imports {
			if !strings.HasPrefix(imp, module) {
				continue
			}
			if other := layer(short(imp)); other >= mine {
				faults = append(faults, fmt.Sprintf("%s (%s) imports %s (%s), which does not stand above it in pkg/deps", name, titles[mine], short(imp), titles[other]))
			}
		}
	}
	return faults
}

func faultsInNever(t *testing.T, table string, all []pkg) []string {
	var faults []string
	for _, line := range lines(table) {
		rule, why, ok := strings.Cut(line, " : ")
		from, to, ok2 := strings.Cut(rule, "->")
		if !ok || !ok2 {
			t.Fatalf("not a rule: %q", line)
		}
		from, to = strings.TrimSpace(from), strings.TrimSpace(to)
		for _, p := range all {
			if !matches(from, short(p.ImportPath)) {
				continue
			}
			for _, dep := range p.Deps {
				if name := short(dep); name == to || strings.HasPrefix(name, to+"/") {
					faults = append(faults, fmt.Sprintf("%s reaches %s: %s", short(p.ImportPath), name, strings.TrimSpace(why)))
					break
				}
			}
		}
	}
	return faults
}

// faultsInCalls reads the sources for calls of unix.X and syscall.X that only some packages may make.
func faultsInCalls(t *testing.T, table string, all []pkg) []string {
	allowed := map[string][]string{}
	for _, line := range lines(table) {
		call, who, _ := strings.Cut(line, ":")
		allowed[strings.TrimSpace(call)] = strings.Fields(who)
	}
	var faults []string
	fset := token.NewFileSet()
	for _, p := range all {
		for _, name := range p.GoFiles {
			f, err := parser.ParseFile(fset, filepath.Join(p.Dir, name), nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(f, func(n ast.Node) bool {
				sel, ok := n.(*ast.SelectorExpr)
				if !ok {
					return true
				}
				x, ok := sel.X.(*ast.Ident)
				if !ok || x.Name != "unix" && x.Name != "syscall" {
					return true
				}
				who, ruled := allowed[sel.Sel.Name]
				if ruled && !slices.ContainsFunc(who, func(w string) bool { return matches(w, short(p.ImportPath)) }) {
					faults = append(faults, fmt.Sprintf("%s/%s calls %s.%s, which is for %s only", short(p.ImportPath), name, x.Name, sel.Sel.Name, strings.Join(who, ", ")))
				}
				return true
			})
		}
	}
	return faults
}

func TestRulesAreKept(t *testing.T) {
	all := list(t)
	if len(all) < 20 {
		t.Fatalf("go list found %d packages", len(all))
	}
	for _, f := range slices.Concat(faultsInLayers(Layers, all), faultsInNever(t, Never, all), faultsInCalls(t, Calls, all)) {
		t.Error(f)
	}
}

// Every rule is tried on packages that break it, so that a slip in the tables' form does not switch a rule off.
func TestABrokenRuleIsFound(t *testing.T) {
	bad := []pkg{
		{ImportPath: module + "pkg/size", Imports: []string{module + "image"}},
		{ImportPath: module + "pkg/token", Imports: []string{module + "pkg/size"}},
		{ImportPath: module + "pkg/unheard-of"},
	}
	for _, f := range []string{"pkg/size (leaves) imports image (build)", "pkg/token (leaves) imports pkg/size (leaves)", "pkg/unheard-of: is in no layer"} {
		if got := strings.Join(faultsInLayers(Layers, bad), "\n"); !strings.Contains(got, f) {
			t.Errorf("%q is not among:\n%s", f, got)
		}
	}
	for _, line := range lines(Never) {
		rule, _, _ := strings.Cut(line, " : ")
		from, to, _ := strings.Cut(rule, "->")
		from, to = strings.TrimSuffix(strings.TrimSpace(from), "/..."), strings.TrimSpace(to)
		if !strings.Contains(to, ".") {
			to = module + to
		}
		p := pkg{ImportPath: module + from, Deps: []string{"fmt", to + "/deep"}}
		if got := faultsInNever(t, Never, []pkg{p}); len(got) == 0 {
			t.Errorf("nobody notices %s reaching %s", from, to)
		}
	}
}

// A variable of the Makefile that a person may give, or else has a default at its use, is set nowhere in it: its default would
// never apply.
func TestMakefileParametersAreNotSet(t *testing.T) {
	text, err := os.ReadFile("../../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	used := regexp.MustCompile(`\$\((?:or|if) \$\(([A-Z_]+)\),`).FindAllSubmatch(text, -1)
	if len(used) < 5 {
		t.Fatalf("the Makefile has %d parameters with a default at their use; they are written in another way now", len(used))
	}
	for _, m := range used {
		if set := regexp.MustCompile(`(?m)^` + string(m[1]) + `\s*[:?]?=.*`).Find(text); set != nil {
			t.Errorf("%s has a default where it is used, and is set by %q", m[1], set)
		}
	}
}
