package compose

import (
	"debug/buildinfo"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/skerry-os/skerry/pkg/debian"
)

// The parts of SPDX 2.3 that are written here.
type spdxDocument struct {
	Version       string             `json:"spdxVersion"`
	DataLicense   string             `json:"dataLicense"`
	ID            string             `json:"SPDXID"`
	Name          string             `json:"name"`
	Namespace     string             `json:"documentNamespace"`
	Creation      spdxCreation       `json:"creationInfo"`
	Packages      []spdxPackage      `json:"packages"`
	Relationships []spdxRelationship `json:"relationships"`
	Licences      []spdxLicence      `json:"hasExtractedLicensingInfos,omitempty"`
}

// spdxLicence is a licence that has no name in SPDX's list, with its text.
type spdxLicence struct {
	ID   string `json:"licenseId"`
	Name string `json:"name"`
	Text string `json:"extractedText"`
}

type spdxCreation struct {
	Created  string   `json:"created"`
	Creators []string `json:"creators"`
}

type spdxPackage struct {
	ID           string         `json:"SPDXID"`
	Name         string         `json:"name"`
	Version      string         `json:"versionInfo"`
	Download     string         `json:"downloadLocation"`
	Analyzed     bool           `json:"filesAnalyzed"`
	Concluded    string         `json:"licenseConcluded"`
	Declared     string         `json:"licenseDeclared"`
	Copyright    string         `json:"copyrightText"`
	SourceInfo   string         `json:"sourceInfo,omitempty"`
	Checksums    []spdxChecksum `json:"checksums,omitempty"`
	ExternalRefs []spdxRef      `json:"externalRefs,omitempty"`
}

type spdxChecksum struct {
	Algorithm string `json:"algorithm"`
	Value     string `json:"checksumValue"`
}

type spdxRef struct {
	Category string `json:"referenceCategory"`
	Type     string `json:"referenceType"`
	Locator  string `json:"referenceLocator"`
}

type spdxRelationship struct {
	From string `json:"spdxElementId"`
	Type string `json:"relationshipType"`
	To   string `json:"relatedSpdxElement"`
}

// declaredLicences are what packages say of themselves, where we looked: of those that not every release has.
var declaredLicences = map[string]string{shellPackage: "GPL-2.0-only"}

const noAssertion = "NOASSERTION" // SPDX's word for "not looked into"

// sbom lists what the release is made of: Debian packages that something was taken from, and the Go modules that each program
// says it was built of.
func (b *build) sbom() ([]byte, error) {
	const top = "SPDXRef-release"
	doc := spdxDocument{
		Version: "SPDX-2.3", DataLicense: "CC0-1.0", ID: "SPDXRef-DOCUMENT", Name: fmt.Sprintf("skerry-%s-%s", b.Source.Version, b.Arch),
		Namespace: fmt.Sprintf("https://%s/sbom/%s/%s/%s", Module, url.PathEscape(b.Source.Version), b.Arch, b.Source.Commit),
		Creation:  spdxCreation{Created: b.Source.Time.Format(time.RFC3339), Creators: []string{"Tool: skerry-" + b.Source.Version}},
		Packages: []spdxPackage{{
			ID: top, Name: "skerry", Version: b.Source.Version, Download: noAssertion, Concluded: "Apache-2.0", Declared: "Apache-2.0", Copyright: noAssertion,
		}},
		Relationships: []spdxRelationship{{"SPDXRef-DOCUMENT", "DESCRIBES", top}},
	}
	debArch, err := debian.Arch(b.Arch)
	if err != nil {
		return nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(b.packages.used)) {
		p, arch := b.packages.used[name], debArch
		if strings.HasSuffix(p.File, "_all.deb") {
			arch = "all"
		}
		id := "SPDXRef-deb-" + spdxID(name)
		declared := noAssertion
		if l, known := declaredLicences[name]; known {
			declared = l
		}
		if strings.HasPrefix(p.File, "pool/non-free-firmware/") { // whoever passes a release on must know these terms
			l, err := b.licence(name)
			if err != nil {
				return nil, err
			}
			doc.Licences = append(doc.Licences, l)
			declared = l.ID
		}
		doc.Packages = append(doc.Packages, spdxPackage{
			ID: id, Name: name, Version: p.Version, Download: noAssertion, Concluded: declared, Declared: declared, Copyright: noAssertion,
			SourceInfo:   "Debian source package " + p.Source + "; licence in /usr/share/doc/" + name + "/copyright",
			Checksums:    []spdxChecksum{{"SHA256", p.SHA256}},
			ExternalRefs: []spdxRef{{"PACKAGE-MANAGER", "purl", "pkg:deb/debian/" + purl(name) + "@" + purl(p.Version) + "?arch=" + arch}},
		})
		doc.Relationships = append(doc.Relationships, spdxRelationship{top, "CONTAINS", id})
	}
	if err := b.sbomModules(&doc, top); err != nil {
		return nil, err
	}
	data, err := json.MarshalIndent(doc, "", " ")
	return append(data, '\n'), err
}

// licence is what a package says of its terms.
func (b *build) licence(name string) (spdxLicence, error) {
	dir, pkg, err := b.packages.dir(name)
	if err != nil {
		return spdxLicence{}, err
	}
	text, err := os.ReadFile(filepath.Join(dir, "usr/share/doc", pkg.Name, "copyright"))
	if err != nil {
		return spdxLicence{}, fmt.Errorf("package %s is not free and says no terms: %w", name, err)
	}
	return spdxLicence{ID: "LicenseRef-deb-" + spdxID(name), Name: "terms of Debian's package " + name + " " + pkg.Version, Text: string(text)}, nil
}

func (b *build) sbomModules(doc *spdxDocument, top string) error {
	modules := map[string]string{} // path@version -> what the checksum database calls it
	for _, p := range programsOf(b.Debug) {
		info, err := buildinfo.ReadFile(filepath.Join(b.programs, p.out))
		if err != nil {
			return fmt.Errorf("%s: %w", p.out, err)
		}
		modules["stdlib@"+strings.TrimPrefix(info.GoVersion, "go")] = ""
		deps := info.Deps
		if info.Main.Path != Module { // a program of another module, such as runc
			deps = append(slices.Clone(deps), &info.Main)
		}
		for _, m := range deps {
			if m.Replace != nil {
				m = m.Replace
			}
			if m.Path != Module {
				modules[m.Path+"@"+m.Version] = m.Sum
			}
		}
	}
	for _, key := range slices.Sorted(maps.Keys(modules)) {
		at := strings.LastIndexByte(key, '@')
		name, version := key[:at], key[at+1:]
		id := "SPDXRef-go-" + spdxID(key)
		pkg := spdxPackage{
			ID: id, Name: name, Version: version, Download: noAssertion, Concluded: noAssertion, Declared: noAssertion, Copyright: noAssertion,
			ExternalRefs: []spdxRef{{"PACKAGE-MANAGER", "purl", "pkg:golang/" + purl(name) + "@" + purl(version)}},
		}
		if sum := modules[key]; sum != "" {
			pkg.SourceInfo = "go.sum " + sum
		}
		doc.Packages = append(doc.Packages, pkg)
		doc.Relationships = append(doc.Relationships, spdxRelationship{top, "CONTAINS", id})
	}
	return nil
}

// purl escapes a part of a package URL. Slashes separate parts of a name and stay.
func purl(s string) string {
	return strings.NewReplacer("%2F", "/", "+", "%2B").Replace(url.PathEscape(s))
}

// spdxID keeps the letters that an SPDX identifier may have.
func spdxID(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '.', r == '-':
			return r
		}
		return '-'
	}, s)
}
