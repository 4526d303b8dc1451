package machine

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/skerry-os/skerry/pkg/size"
)

// Data says what becomes of the data partition, where everything is that the machine must not lose.
type Data struct {
	Size size.Bytes `yaml:"size" pattern:"^[0-9]+(\\.[0-9]+)? ?[KMGT]iB$" default:"the rest of the disk" help:"how far the partition grows, as in 20GiB; it never shrinks"`
	Wipe string     `yaml:"wipe" help:"a word; when it is another than at the last start, everything on the partition is lost and the machine begins anew"`
}

// Logs says how the machine keeps its own logs.
type Logs struct {
	Flush string `yaml:"flush" default:"5m on a memory card, eMMC or removable disk; 10s on others" help:"how long lines stay in memory, up to 64KiB of a log, before they are written, as in 30s; 0s writes each at once; a power cut loses what was not written. Whoever reads a log sees all of it, and what tells of a crash is written at once"`
}

// Hold is how long lines stay in memory; otherwise stands for what the config leaves open.
func (l Logs) Hold(otherwise time.Duration) time.Duration { return duration(l.Flush, otherwise) }

func (l Logs) problems(p *problems) {
	if l.Flush == "" {
		return
	}
	if d, err := time.ParseDuration(l.Flush); err != nil || d < 0 || d > time.Hour {
		p.addf([]any{"logs", "flush"}, "%q is not a time from 0s to 1h, as in 5m", l.Flush)
	}
}

// Volume is one more filesystem to mount.
type Volume struct {
	Device   string   `yaml:"device" help:"a partition, as PARTLABEL=name, PARTUUID=uuid or /dev/sdb1"`
	Path     string   `yaml:"path" help:"folder below /var to mount it at, as in /var/mnt/photos"`
	Type     string   `yaml:"type" enum:"ext4,vfat,xfs,btrfs" default:"ext4" help:"the filesystem, which the release's kernel must have"`
	Options  []string `yaml:"options" help:"the filesystem's mount options"`
	ReadOnly bool     `yaml:"read-only" help:"do not write to it"`
	Format   bool     `yaml:"format" help:"make the filesystem (ext4) where the first MiB is empty; what holds anything is never formatted"`
}

// File is a file that the config brings along.
type File struct {
	Path    string `yaml:"path" help:"where it goes: below /var, or below /etc, where it is laid over the release's files"`
	Content string `yaml:"content" help:"its text"`
	Mode    string `yaml:"mode" pattern:"^0?[0-7]{3}$" default:"0644" help:"its permissions, in octal"`
}

// Registries says how registries are reached: registries.yaml, in K3s's format.
type Registries struct {
	Mirrors map[string]Mirror       `yaml:"mirrors" help:"where a registry's images are fetched, by registry; \"*\" is every registry without an entry of its own"`
	Configs map[string]RegistryHost `yaml:"configs" help:"how to speak to a host, or host:port, of a registry or an endpoint; \"*\" is every other"`
	Auths   map[string]RegistryAuth `yaml:"auths" help:"K3s's older way to write configs' auth"`
}

// Mirror says where a registry's images are fetched. The registry itself comes last, unless it is one of the endpoints.
type Mirror struct {
	Endpoint []string          `yaml:"endpoint" help:"addresses to fetch from, tried in order"`
	Rewrite  map[string]string `yaml:"rewrite" help:"regular expressions and their replacements, for the repository's name at the endpoints"`
}

// RegistryHost says how to speak to one host.
type RegistryHost struct {
	Auth RegistryAuth `yaml:"auth" help:"who one is"`
	TLS  RegistryTLS  `yaml:"tls" help:"whom to believe, and who one is"`
}

// RegistryAuth is a user, as a name and password, as both in base64 with a colon between, or as a token.
type RegistryAuth struct {
	Username      string `yaml:"username" help:"the user"`
	Password      string `yaml:"password" help:"the user's password"`
	Auth          string `yaml:"auth" help:"both in base64, with a colon between"`
	IdentityToken string `yaml:"identity_token" help:"a token in their place"`
}

// RegistryTLS says whom to believe and who one is.
type RegistryTLS struct {
	CAFile             string `yaml:"ca_file" help:"certificate authority, as a PEM file of the node"`
	CertFile           string `yaml:"cert_file" help:"certificate to show, as a PEM file of the node"`
	KeyFile            string `yaml:"key_file" help:"key of that certificate, as a PEM file of the node"`
	InsecureSkipVerify bool   `yaml:"insecure_skip_verify" help:"trust any certificate"`
}

// Empty says whether there is nothing in it.
func (r *Registries) Empty() bool { return len(r.Mirrors)+len(r.Configs)+len(r.Auths) == 0 }

var (
	moduleForm   = regexp.MustCompile(`^[A-Za-z0-9_-]+( [^\x00-\x1f]+)?$`)
	manifestName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	partForm     = regexp.MustCompile(`^(PARTLABEL=[^\s/]{1,36}|PARTUUID=[0-9A-Fa-f-]{4,36}|/dev/[A-Za-z0-9_./-]+)$`)
	optionForm   = regexp.MustCompile(`^[a-zA-Z0-9_.:=/-]+$`)
	volumeTypes  = []string{"ext4", "vfat", "xfs", "btrfs"}
)

// ours are folders that files and volumes of the config must stay out of.
var ours = []string{"/var/lib/skerry/server", "/var/lib/skerry/agent", "/var/lib/skerry/config", "/var/lib/skerry/network", "/var/lib/rancher", "/var/log/skerry"}

func (c *Config) hostProblems(p *problems) {
	for i, m := range c.Modules {
		if !moduleForm.MatchString(m) {
			p.addf([]any{"modules", i}, "%q is not a kernel module with its parameters, as in nbd max_part=8", m)
		}
	}
	if c.Data.Size != 0 && c.Data.Size < size.GiB {
		p.addf([]any{"data", "size"}, "%v is too small; a node needs 1GiB or more", c.Data.Size)
	}
	c.Logs.problems(p)
	seen := map[string]bool{}
	for i := range c.Mounts {
		c.Mounts[i].problems(p, func(key string) []any { return []any{"mounts", i, key} }, seen)
	}
	for i, f := range c.Files {
		at := func(key string) []any { return []any{"files", i, key} }
		switch {
		case !below(f.Path, "/var/") && !below(f.Path, "/etc/"):
			p.addf(at("path"), "%q is neither below /var nor below /etc; the rest of the root is the release's", f.Path)
		case slices.ContainsFunc(ours, func(dir string) bool { return below(f.Path, dir+"/") }):
			p.addf(at("path"), "%q is the engine's own", f.Path)
		case seen[f.Path]:
			p.addf(at("path"), "%s is here twice", f.Path)
		}
		seen[f.Path] = true
		if f.Mode != "" && !fileMode.MatchString(f.Mode) {
			p.addf(at("mode"), "%q is not a file mode, as in 0644", f.Mode)
		}
	}
	for i, text := range c.Certificates {
		if msg := checkCertificate(text); msg != "" {
			p.add(msg, "certificates", i)
		}
	}
	for name, text := range c.Manifests {
		if !manifestName.MatchString(name) {
			p.add("is not a name: small letters, digits and dashes", "manifests", typed(name))
		}
		if msg := checkManifest(text); msg != "" {
			p.add(msg, "manifests", typed(name))
		}
	}
	if c.Role == RoleAgent && len(c.Manifests) > 0 {
		p.add("are applied by servers, and this is an agent", "manifests")
	}
}

func (v *Volume) problems(p *problems, at func(string) []any, seen map[string]bool) {
	if !partForm.MatchString(v.Device) {
		p.addf(at("device"), "%q is not a partition; write PARTLABEL=name, PARTUUID=uuid or /dev/sdb1", v.Device)
	}
	switch {
	case !below(v.Path, "/var/"):
		p.addf(at("path"), "%q is not a folder below /var", v.Path)
	case slices.ContainsFunc(ours, func(dir string) bool { return below(dir+"/", v.Path+"/") || dir == v.Path }):
		p.addf(at("path"), "%q would hide folders of the engine's; mount it elsewhere, as at /var/mnt", v.Path)
	case seen[v.Path]:
		p.addf(at("path"), "%s is here twice", v.Path)
	}
	seen[v.Path] = true
	if v.Type != "" && !slices.Contains(volumeTypes, v.Type) {
		p.addf(at("type"), "%q is not a filesystem; known are %s", v.Type, strings.Join(volumeTypes, ", "))
	}
	if v.Format && (v.ReadOnly || v.Type != "" && v.Type != "ext4") {
		p.add("makes ext4 that can be written; leave it out, or type and read-only", at("format")...)
	}
	for _, o := range v.Options {
		if !optionForm.MatchString(o) {
			p.addf(at("options"), "%q is not a mount option", o)
		}
	}
}

// below says whether name is a clean absolute path inside dir, which ends in a slash.
func below(name, dir string) bool {
	return path.Clean(name) == strings.TrimSuffix(name, "/") && strings.HasPrefix(name, dir) && len(name) > len(dir) && !strings.ContainsAny(name, "\x00\n")
}

func checkCertificate(text string) string {
	rest := []byte(text)
	for n := 0; ; n++ {
		var block *pem.Block
		block, rest = pem.Decode(rest)
		switch {
		case block == nil && n == 0:
			return "is not a certificate in PEM form, -----BEGIN CERTIFICATE-----"
		case block == nil && strings.TrimSpace(string(rest)) != "":
			return "has something behind its certificates that is none"
		case block == nil:
			return ""
		case block.Type != "CERTIFICATE":
			return "holds a " + block.Type + "; a certificate authority's certificate belongs here"
		}
		c, err := x509.ParseCertificate(block.Bytes)
		switch {
		case err != nil:
			return "cannot be read: " + err.Error()
		case !c.IsCA:
			return "is not that of a certificate authority: " + c.Subject.String()
		}
	}
}

func checkManifest(text string) string {
	dec := yaml.NewDecoder(strings.NewReader(text))
	for n := 0; ; n++ {
		var o struct {
			APIVersion string `yaml:"apiVersion"`
			Kind       string `yaml:"kind"`
		}
		err := dec.Decode(&o)
		switch {
		case errors.Is(err, io.EOF) && n == 0:
			return "is empty"
		case errors.Is(err, io.EOF):
			return ""
		case err != nil:
			return "is not YAML: " + strings.TrimPrefix(err.Error(), "yaml: ")
		case (o.APIVersion == "") != (o.Kind == ""):
			return "holds an object without apiVersion or kind"
		}
	}
}
