// Package machine is what a machine knows of itself: Config, what a person wrote for it (config.yaml on the config
// partition), and Identity, what the image and this boot say it is.
//
// A Config is decoded strictly, defaulted, validated and then passed on; nobody copies it field by field. Its server and
// agent parts are the engine's settings, and this is the only place that defines them: skerryd makes its flags from them
// (Fields), init writes them for skerryd (EngineYAML), `skerry config check` reads them (Decode).
//
// CONFIG.md beside this file names every key; it and the JSON Schema are made of the fields' tags. examples/ holds files to
// begin with.
package machine

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/skerry-os/skerry/pkg/strictyaml"
)

// The values that the first two keys of a node config must have.
const (
	APIVersion = "skerry/v1alpha1"
	Kind       = "NodeConfig"
)

// Role is what a node does in its cluster.
type Role string

// The two roles. They are skerryd's subcommands.
const (
	RoleServer Role = "server"
	RoleAgent  Role = "agent"
)

// Config is one machine's node config. Decode makes it; nobody changes it afterwards.
//
// The tags of the fields are what `skerry config schema` and CONFIG.md are made of (see Keys): help is the key's text,
// default what a missing one means, and enum, pattern, min and max are its shape.
type Config struct {
	APIVersion string            `yaml:"apiVersion" enum:"skerry/v1alpha1" help:"the version of this format"`
	Kind       string            `yaml:"kind" enum:"NodeConfig" help:"what this file is"`
	Role       Role              `yaml:"role" enum:"server,agent" help:"a server runs the control plane and pods; an agent joins a server and runs pods"`
	Hostname   string            `yaml:"hostname" pattern:"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*$" default:"as hostname-from says" help:"name of the machine, and of its node"`
	NameFrom   NameFrom          `yaml:"hostname-from" enum:"mac,serial" default:"mac" help:"what a machine without a hostname is called by, behind skerry-: mac is the end of a network card's address at its first start, serial its serial number at every start, or mac where it has none"`
	Cluster    Cluster           `yaml:"cluster" help:"which cluster the node belongs to"`
	Network    Network           `yaml:"network" help:"how the machine talks to others"`
	NTP        NTP               `yaml:"ntp" help:"whom to ask the time"`
	Data       Data              `yaml:"data" help:"the data partition"`
	Logs       Logs              `yaml:"logs" help:"the machine's own logs, in /var/log/skerry"`
	Mounts     []Volume          `yaml:"mounts" help:"more filesystems to mount"`
	Modules    []string          `yaml:"modules" pattern:"^[A-Za-z0-9_-]+( .+)?$" help:"kernel modules to load, with their parameters, as in nbd max_part=8; the release must carry them"`
	Sysctls    map[string]string `yaml:"sysctls" key:"^[a-z0-9_]+([./][A-Za-z0-9_*-]+)+$" help:"kernel settings, by name, as in net.core.somaxconn"`
	Files      []File            `yaml:"files" help:"files to write"`
	// Each text may hold several.
	Certificates []string          `yaml:"certificates" help:"certificate authorities to trust besides the web's, in PEM form: for image pulls, Helm charts and updates"`
	Registries   Registries        `yaml:"registries" help:"how image registries are reached, in the format of registries.yaml, which it becomes"`
	Manifests    map[string]string `yaml:"manifests" key:"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$" help:"Kubernetes objects for a server to apply and keep applied, as YAML texts by name; what goes takes with it what it made"`
	Update       Update            `yaml:"update" help:"where new releases come from, and when; without a source and without sticks a machine stays as it is"`
	SSH          SSH               `yaml:"ssh" help:"root over SSH, for releases that were built with it (skerry release build --debug); others say so and go on without"`
	Install      Install           `yaml:"install" help:"what the machine does when it is started over the network (image/netboot/PXE.md)"`
	Server       Server            `yaml:"server" help:"the engine's settings of a server, named as skerryd's flags"`
	Agent        Agent             `yaml:"agent" help:"the engine's settings of an agent, named as skerryd's flags"`
}

// NameFrom is what a machine without a hostname is called by.
type NameFrom string

// The two ways.
const (
	NameFromMAC    NameFrom = "mac"
	NameFromSerial NameFrom = "serial"
)

// Cluster says which cluster the node belongs to.
type Cluster struct {
	Token  string `yaml:"token" help:"secret that lets nodes join, at least 16 characters; an agent needs one, a server makes one"`
	Server string `yaml:"server" help:"server to join, as https://HOST:6443, or several, joined by commas, of which any that runs will do; an agent needs one"`
}

// NTP says whom to ask the time. After Decode, no servers means off.
type NTP struct {
	Servers []string `yaml:"servers" default:"[0.pool.ntp.org, 1.pool.ntp.org, 2.pool.ntp.org, 3.pool.ntp.org]" help:"names or addresses of time servers; an empty list turns it off"`
}

// DefaultNTP are the servers asked when the config names none.
var DefaultNTP = []string{"0.pool.ntp.org", "1.pool.ntp.org", "2.pool.ntp.org", "3.pool.ntp.org"}

// Load reads and decodes a node config file.
func Load(name string) (*Config, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	return Decode(name, data)
}

// Decode reads a node config. The error joins every fault of the file, each as "name:line:column: what is wrong".
func Decode(name string, data []byte) (*Config, error) {
	return decode(func(c *Config) (*strictyaml.Doc, error) { return strictyaml.Decode(name, data, c) })
}

// DecodeNode is Decode for a config that is YAML nodes already, such as one that a fleet was asked for.
func DecodeNode(name string, root *yaml.Node) (*Config, error) {
	return decode(func(c *Config) (*strictyaml.Doc, error) { return strictyaml.DecodeNode(name, root, c) })
}

func decode(read func(*Config) (*strictyaml.Doc, error)) (*Config, error) {
	c := &Config{Server: DefaultServer(), Agent: DefaultAgent()}
	doc, err := read(c)
	if err != nil {
		return nil, err
	}
	if err := placed(doc, c.problems()); err != nil {
		return nil, err
	}
	if c.NTP.Servers == nil {
		c.NTP.Servers = DefaultNTP
	}
	return c, nil
}

// DecodeServer reads a file of server settings over the defaults, as skerryd's --config and the config's server part have them.
func DecodeServer(name string, data []byte) (*Server, error) {
	s := DefaultServer()
	return &s, decodeSettings(name, data, &s, func() []Problem { return s.Problems() })
}

// DecodeAgent is DecodeServer for an agent.
func DecodeAgent(name string, data []byte) (*Agent, error) {
	a := DefaultAgent()
	return &a, decodeSettings(name, data, &a, func() []Problem { return a.Problems() })
}

func decodeSettings(name string, data []byte, v any, problems func() []Problem) error {
	doc, err := strictyaml.Decode(name, data, v)
	if err != nil {
		return err
	}
	return placed(doc, problems())
}

// placed joins the problems, each with its place in the file, in the file's order.
func placed(doc *strictyaml.Doc, list []Problem) error {
	errs := make([]error, 0, len(list))
	for _, p := range list {
		at := slices.Clone(p.Path)
		for i, e := range at {
			if key, ok := e.(typed); ok {
				at[i] = string(key)
			}
		}
		errs = append(errs, doc.At(p.Error(), at...))
	}
	slices.SortStableFunc(errs, func(a, b error) int {
		var x, y strictyaml.Fault
		if !errors.As(a, &x) || !errors.As(b, &y) {
			return 0
		}
		return cmp.Or(cmp.Compare(x.Line, y.Line), cmp.Compare(x.Column, y.Column), strings.Compare(x.Msg, y.Msg))
	})
	return errors.Join(errs...)
}

var (
	sysctlKey = regexp.MustCompile(`^[a-z0-9_]+([./][A-Za-z0-9_*-]+)+$`)
)

func (c *Config) problems() []Problem {
	var p problems
	if c.APIVersion != APIVersion {
		p.addf([]any{"apiVersion"}, "is %q; this release reads %s", c.APIVersion, APIVersion)
	}
	if c.Kind != Kind {
		p.addf([]any{"kind"}, "is %q; write %s", c.Kind, Kind)
	}
	if c.Hostname != "" {
		if msg := checkHostname(c.Hostname); msg != "" {
			p.add(msg, "hostname")
		}
	}
	if n := c.NameFrom; n != "" && n != NameFromMAC && n != NameFromSerial {
		p.addf([]any{"hostname-from"}, "%q is no way to a name; write mac or serial", string(n))
	} else if n != "" && c.Hostname != "" {
		p.add("the machine has its name from hostname; take one of the two out", "hostname-from")
	}
	if c.Cluster.Token != "" {
		if msg := checkToken(c.Cluster.Token); msg != "" {
			p.add(msg, "cluster", "token")
		}
	}
	if c.Cluster.Server != "" {
		if msg := checkServer(c.Cluster.Server); msg != "" {
			p.add(msg, "cluster", "server")
		}
	}
	c.Update.problems(&p)
	c.Install.problems(&p)
	p.below("ssh", c.SSH.problems)
	c.hostProblems(&p)
	c.roleProblems(&p)
	p.below("network", c.Network.problems)
	for i, s := range c.NTP.Servers {
		if _, err := netip.ParseAddr(s); err != nil && !domain.MatchString(s) {
			p.addf([]any{"ntp", "servers", i}, "%q is neither an IP address nor a host name", s)
		}
	}
	for k, v := range c.Sysctls {
		if !sysctlKey.MatchString(k) {
			p.addf([]any{"sysctls", typed(k)}, "is not the name of a kernel setting, as in net.core.somaxconn")
		}
		if strings.ContainsAny(v, "\n\x00") {
			p.add("has more than one line", "sysctls", typed(k))
		}
	}
	return p.list
}

func (c *Config) roleProblems(p *problems) {
	settings := []any{string(c.Role)}
	own := &c.Agent
	switch c.Role {
	case RoleServer:
		own = &c.Server.Agent
		for _, q := range c.Server.Problems() {
			p.add(q.Msg, append(settings, q.Path...)...)
		}
		if len(yamlOf(&c.Agent, defaultAgent())) > 0 {
			p.add("belongs to role agent, and this is a server; write it under server", "agent")
		}
	case RoleAgent:
		for _, q := range c.Agent.Problems() {
			p.add(q.Msg, append(settings, q.Path...)...)
		}
		if len(yamlOf(&c.Server, defaultServer())) > 0 {
			p.add("belongs to role server, and this is an agent; write it under agent", "server")
		}
		if c.Cluster.Server == "" {
			p.add("an agent needs cluster.server, the server to join, as https://HOST:6443", "cluster")
		}
		if c.Cluster.Token == "" {
			p.add("an agent needs cluster.token, the token of the cluster to join", "cluster")
		}
	default:
		p.addf([]any{"role"}, "is %q; write server or agent", string(c.Role))
		return
	}
	if own.NodeName == "" {
		p.withID(own, c.Hostname, "hostname")
	}
	if own.Token != "" {
		p.add("write it as cluster.token", append(settings, "token")...)
	}
	if own.Server != "" {
		p.add("write it as cluster.server", append(settings, "server")...)
	}
	if d := path.Clean(own.DataDir); !strings.HasPrefix(d, "/var/") {
		p.addf(append(settings, "data-dir"), "%q is not below /var, where the data partition is", own.DataDir)
	}
}

// Own gives the part of the engine's settings that every node has, from the section of the node's role.
func (c *Config) Own() *Agent {
	if c.Role == RoleServer {
		return &c.Server.Agent
	}
	return &c.Agent
}

// EngineYAML gives the file that skerryd reads with --config: the settings of the node's role that differ from the
// defaults, with the token and server of its cluster and the network's proxy. hostname names the node unless the settings do.
func EngineYAML(c *Config, hostname string) ([]byte, error) {
	fill := func(a Agent) Agent {
		a.Token, a.Server = c.Cluster.Token, c.Cluster.Server
		a.NodeName = cmp.Or(a.NodeName, hostname)
		proxy := c.Network.Proxy
		a.HTTPProxy, a.HTTPSProxy, a.NoProxy = cmp.Or(a.HTTPProxy, proxy.HTTP), cmp.Or(a.HTTPSProxy, proxy.HTTPS), cmp.Or(a.NoProxy, proxy.No)
		return a
	}
	var pairs []*yaml.Node
	if c.Role == RoleServer {
		s := c.Server
		s.Agent = fill(s.Agent)
		pairs = yamlOf(&s, defaultServer())
	} else {
		a := fill(c.Agent)
		pairs = yamlOf(&a, defaultAgent())
	}
	return marshal(pairs)
}

// SettingsYAML gives the settings of s that differ from the defaults.
func SettingsYAML(s *Server) ([]byte, error) { return marshal(yamlOf(s, defaultServer())) }

func marshal(pairs []*yaml.Node) ([]byte, error) {
	if len(pairs) == 0 {
		return []byte("{}\n"), nil
	}
	out, err := yaml.Marshal(&yaml.Node{Kind: yaml.MappingNode, Content: pairs})
	if err != nil {
		return nil, fmt.Errorf("settings for skerryd: %w", err)
	}
	return out, nil
}
