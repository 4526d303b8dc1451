package debian

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/skerry-os/skerry/pkg/strictyaml"
)

// Want is the list that a lock is made from.
type Want struct {
	Suite      string       `yaml:"suite"`      // where packages come from that name no suite; its security updates count too
	Components []string     `yaml:"components"` // main, non-free-firmware
	Arches     []string     `yaml:"arches"`
	Packages   []WantedItem `yaml:"packages"`
}

// WantedItem is one package to lock.
type WantedItem struct {
	Name   string   `yaml:"name"`
	Suite  string   `yaml:"suite"`  // such as bookworm-backports
	Follow []string `yaml:"follow"` // of a meta package, lock the dependencies that start with one of these instead, and theirs
	Arches []string `yaml:"arches"` // none means all
	Part   string   `yaml:"part"`   // of a release, that not every release has; none is what all have
}

// ParseWant reads the list.
func ParseWant(name string, data []byte) (*Want, error) {
	w := new(Want)
	doc, err := strictyaml.Decode(name, data, w)
	if err != nil {
		return nil, err
	}
	if w.Suite == "" || len(w.Components) == 0 || len(w.Arches) == 0 || len(w.Packages) == 0 {
		return nil, doc.At("needs suite, components, arches and packages")
	}
	for i, a := range w.Arches {
		if _, err := Arch(a); err != nil {
			return nil, doc.At(err.Error(), "arches", i)
		}
	}
	return w, nil
}

func (w *Want) suites() []string {
	out := []string{w.Suite}
	for _, p := range w.Packages {
		if p.Suite != "" && !slices.Contains(out, p.Suite) {
			out = append(out, p.Suite)
		}
	}
	return out
}

// Resolve asks the mirrors for the newest version of every wanted package. It keeps its lists below dir.
func Resolve(ctx context.Context, w *Want, m Mirrors, dir string, progress func(string)) (*Lock, error) {
	l := &Lock{Arches: map[string][]Package{}}
	for _, arch := range w.Arches {
		progress("package lists for " + arch)
		a, err := newApt(w, m, filepath.Join(dir, arch), arch)
		if err != nil {
			return nil, err
		}
		if err := a.update(ctx, progress); err != nil {
			return nil, err
		}
		var errs []error
		for _, item := range w.Packages {
			if len(item.Arches) > 0 && !slices.Contains(item.Arches, arch) {
				continue
			}
			found, err := a.resolve(ctx, item)
			if err != nil {
				errs = append(errs, fmt.Errorf("%s for %s: %w", item.Name, arch, err))
				continue
			}
			l.Arches[arch] = append(l.Arches[arch], found...)
		}
		if err := errors.Join(errs...); err != nil {
			return nil, err
		}
		slices.SortFunc(l.Arches[arch], func(a, b Package) int { return strings.Compare(a.Name, b.Name) })
	}
	return l, nil
}

// apt is apt with all its state in a folder of ours.
type apt struct {
	options []string
}

const keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

func newApt(w *Want, m Mirrors, dir, arch string) (*apt, error) {
	deb, err := Arch(arch)
	if err != nil {
		return nil, err
	}
	for _, d := range []string{"lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	var sources bytes.Buffer
	line := func(uris []string, suite string) {
		for _, uri := range uris {
			fmt.Fprintf(&sources, "deb [arch=%s signed-by=%s] %s %s %s\n", deb, keyring, uri, suite, strings.Join(w.Components, " "))
		}
	}
	for _, suite := range w.suites() {
		line(m.Main, suite)
	}
	line(m.Security, w.Suite+"-security")
	list := filepath.Join(dir, "sources.list")
	if err := os.WriteFile(list, sources.Bytes(), 0o644); err != nil {
		return nil, err
	}
	// What names no suite comes from the list's, though others have newer ones.
	var pins bytes.Buffer
	for _, suite := range []string{w.Suite, w.Suite + "-security"} {
		fmt.Fprintf(&pins, "Package: *\nPin: release n=%s\nPin-Priority: 990\n\n", suite) // as much as -t gives to one that is named
	}
	preferences := filepath.Join(dir, "preferences")
	if err := os.WriteFile(preferences, pins.Bytes(), 0o644); err != nil {
		return nil, err
	}
	status := filepath.Join(dir, "status") // nothing is installed: a candidate is then the archive's
	if err := os.WriteFile(status, nil, 0o644); err != nil {
		return nil, err
	}
	a := new(apt)
	for _, o := range []string{
		"Dir::State::Lists=" + filepath.Join(dir, "lists"), "Dir::Cache=" + filepath.Join(dir, "cache"), "Dir::State::status=" + status,
		"Dir::Etc::sourcelist=" + list, "Dir::Etc::sourceparts=/dev/null", "Dir::Etc::preferences=" + preferences, "Dir::Etc::preferencesparts=/dev/null",
		"APT::Architecture=" + deb, "APT::Architectures=" + deb, "APT::Default-Release=", "Acquire::Languages=none", "APT::Sandbox::User=",
		"Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false", "APT::Update::Error-Mode=any",
	} {
		a.options = append(a.options, "-o", o)
	}
	return a, nil
}

// update fetches the lists. A mirror may be half-way through its own update: then an index does not have the size or hash
// that the signed Release says, and a little later it does.
func (a *apt) update(ctx context.Context, progress func(string)) error {
	for try := 1; ; try++ {
		_, err := run(ctx, "apt-get", append(slices.Clone(a.options), "-q", "update")...)
		if err == nil {
			return nil
		}
		if try == 4 {
			return fmt.Errorf("package lists: %w", err)
		}
		progress(fmt.Sprintf("the mirror's lists do not fit together, asking again in %d s", 15*try))
		if err := wait(ctx, time.Duration(15*try)*time.Second); err != nil {
			return err
		}
	}
}

func (a *apt) resolve(ctx context.Context, item WantedItem) ([]Package, error) {
	s, err := a.show(ctx, item.Name, item.Suite)
	if err != nil {
		return nil, err
	}
	var out []Package
	seen := map[string]bool{}
	var follow func(stanza) error
	follow = func(s stanza) error {
		for dep := range strings.SplitSeq(s["Depends"], ",") {
			name, _, _ := strings.Cut(strings.TrimSpace(dep), " ")
			if seen[name] || !slices.ContainsFunc(item.Follow, func(prefix string) bool { return strings.HasPrefix(name, prefix) }) {
				continue
			}
			seen[name] = true
			next, err := a.show(ctx, name, item.Suite)
			if err != nil {
				return err
			}
			p, err := next.lock()
			if err != nil {
				return err
			}
			p.For = item.Name + "/" + item.Suite
			out = append(out, p)
			if err := follow(next); err != nil {
				return err
			}
		}
		return nil
	}
	if err := follow(s); err != nil || len(out) > 0 {
		return out, err
	}
	p, err := s.lock() // no meta package after all
	return []Package{p}, err
}

// stanza is one paragraph of a package list.
type stanza map[string]string

func (a *apt) show(ctx context.Context, name, suite string) (stanza, error) {
	args := slices.Clone(a.options)
	if suite != "" {
		args = append(args, "-t", suite)
	}
	out, err := run(ctx, "apt-cache", append(args, "show", "--no-all-versions", name)...)
	if err != nil {
		return nil, err
	}
	s := stanza{}
	sc := bufio.NewScanner(bytes.NewReader(out))
	sc.Buffer(nil, 1<<20)
	for sc.Scan() && sc.Text() != "" {
		if k, v, ok := strings.Cut(sc.Text(), ": "); ok && !strings.HasPrefix(k, " ") {
			s[k] = v
		}
	}
	if sc.Err() != nil || s["Package"] != name {
		return nil, fmt.Errorf("apt-cache showed %q: %w", s["Package"], errors.Join(sc.Err(), errors.New("not a package of that name")))
	}
	return s, nil
}

func (s stanza) lock() (Package, error) {
	size, err := strconv.ParseInt(s["Size"], 10, 64)
	if err != nil {
		return Package{}, fmt.Errorf("size %q: %w", s["Size"], err)
	}
	source, _, _ := strings.Cut(s["Source"], " ")
	if source == "" {
		source = s["Package"]
	}
	p := Package{Name: s["Package"], Version: s["Version"], Source: source, File: s["Filename"], Size: size, SHA256: s["SHA256"]}
	if !hex64.MatchString(p.SHA256) || !poolFile.MatchString(p.File) {
		return Package{}, fmt.Errorf("the list names file %q with sha256 %q", p.File, p.SHA256)
	}
	return p, nil
}

func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
