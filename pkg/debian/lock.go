// Package debian takes single packages from a Debian archive, without touching the host's own packages: a lock file pins each
// by version and sha256, Fetch brings exactly those bytes into a cache, Unpack lays them out as a folder. Resolve, which alone
// asks an archive what is newest, renews the lock.
package debian

import (
	"bytes"
	"fmt"
	"regexp"
	"slices"

	"gopkg.in/yaml.v3"

	"github.com/skerry-os/skerry/pkg/strictyaml"
)

// Lock pins packages, by Skerry's name of the architecture they are for.
type Lock struct {
	Arches map[string][]Package `yaml:"arches"`
}

// Package is one file of the archive.
type Package struct {
	Name    string `yaml:"name"`
	For     string `yaml:"for,omitempty"` // what was asked for, name/suite, where Name is what that one depends on (a kernel's meta package)
	Version string `yaml:"version"`
	Source  string `yaml:"source"` // source package, for the SBOM
	File    string `yaml:"file"`   // path below the archive's root: pool/…
	Size    int64  `yaml:"size"`
	SHA256  string `yaml:"sha256"`
}

// Arch is Debian's name for one of Skerry's architectures.
func Arch(arch string) (string, error) {
	switch arch {
	case "amd64", "arm64":
		return arch, nil
	case "arm":
		return "armhf", nil
	}
	return "", fmt.Errorf("architecture %q: is not one of amd64, arm64, arm", arch)
}

const lockHead = "# Debian packages that releases are made from. Written by `make lock`; do not edit.\n"

// Marshal gives the lock file's bytes.
func (l *Lock) Marshal() ([]byte, error) {
	buf := bytes.NewBufferString(lockHead)
	enc := yaml.NewEncoder(buf)
	enc.SetIndent(2)
	if err := enc.Encode(l); err != nil {
		return nil, fmt.Errorf("lock file: %w", err)
	}
	return buf.Bytes(), enc.Close()
}

var (
	hex64    = regexp.MustCompile(`^[0-9a-f]{64}$`)
	poolFile = regexp.MustCompile(`^pool/([A-Za-z0-9][A-Za-z0-9.+~_-]*/)+[A-Za-z0-9][A-Za-z0-9.+~:%_-]*\.deb$`)
)

// ParseLock reads a lock file.
func ParseLock(name string, data []byte) (*Lock, error) {
	l := new(Lock)
	doc, err := strictyaml.Decode(name, data, l)
	if err != nil {
		return nil, err
	}
	for arch, pkgs := range l.Arches {
		if _, err := Arch(arch); err != nil {
			return nil, doc.At(err.Error(), "arches", arch)
		}
		for i, p := range pkgs {
			if p.Name == "" || p.Version == "" || p.Size <= 0 || !hex64.MatchString(p.SHA256) || !poolFile.MatchString(p.File) {
				return nil, doc.At(fmt.Sprintf("package %q: needs name, version, size, sha256 and a file below pool/", p.Name), "arches", arch, i)
			}
		}
	}
	return l, nil
}

// Find gives the package locked for arch under a name, its own or the one it stands in for.
func (l *Lock) Find(arch, name string) (Package, error) {
	pkgs, ok := l.Arches[arch]
	if !ok {
		return Package{}, fmt.Errorf("lock file: has no packages for %s; add the architecture and run `make lock`", arch)
	}
	i := slices.IndexFunc(pkgs, func(p Package) bool { return p.Name == name })
	if i < 0 {
		return Package{}, missing(arch, name)
	}
	return pkgs[i], nil
}

// Followed gives the packages that stand in for the meta package name of a suite.
func (l *Lock) Followed(arch, name, suite string) ([]Package, error) {
	var out []Package
	for _, p := range l.Arches[arch] {
		if p.For == name+"/"+suite {
			out = append(out, p)
		}
	}
	if len(out) == 0 {
		p, err := l.Find(arch, name) // no meta package after all
		if err != nil {
			return nil, missing(arch, name+"/"+suite)
		}
		out = append(out, p)
	}
	return out, nil
}

func missing(arch, name string) error {
	return fmt.Errorf("lock file: has no package %s for %s; add it to the list of packages and run `make lock`", name, arch)
}
