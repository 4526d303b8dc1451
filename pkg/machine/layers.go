package machine

import (
	"maps"
	"slices"
	"strings"

	"github.com/skerry-os/skerry/pkg/strictyaml"
)

// Layer is a node config in a file, whole or in part.
type Layer struct {
	Name string
	Data []byte
}

// Facts are what a machine's platform says of it. They fill what its node config leaves open.
type Facts struct {
	Hostname   string
	Labels     map[string]string
	ProviderID string
	SSHKeys    []string // who may log in; for debug releases alone
}

// DecodeLayers reads node configs that are laid one over the other: a key or list of a later one replaces that of an earlier
// one, key by key. Together they must be one good node config; apiVersion and kind need not be repeated, or be there at all.
func DecodeLayers(f Facts, layers ...Layer) (*Config, error) {
	c := &Config{APIVersion: APIVersion, Kind: Kind, Server: DefaultServer(), Agent: DefaultAgent()}
	doc := new(strictyaml.Doc)
	for _, l := range layers {
		var err error
		if doc, err = strictyaml.Decode(l.Name, l.Data, c); err != nil {
			return nil, err
		}
	}
	c.learn(f)
	if err := placed(doc, c.problems()); err != nil {
		return nil, err
	}
	if c.NTP.Servers == nil {
		c.NTP.Servers = DefaultNTP
	}
	return c, nil
}

func (c *Config) learn(f Facts) {
	if c.Hostname == "" {
		c.Hostname = f.Hostname
	}
	if len(c.SSH.Keys) == 0 {
		for _, key := range f.SSHKeys {
			// One that cannot be used is no reason to be without a node.
			if CheckSSHKey(key) == "" && !slices.Contains(c.SSH.Keys, key) {
				c.SSH.Keys = append(c.SSH.Keys, key)
			}
		}
	}
	own := c.Own()
	for _, key := range slices.Sorted(maps.Keys(f.Labels)) {
		has := func(l string) bool { return strings.HasPrefix(l, key+"=") }
		if !slices.ContainsFunc(own.NodeLabel, has) {
			own.NodeLabel = append(own.NodeLabel, key+"="+f.Labels[key])
		}
	}
	const flag = "provider-id="
	if f.ProviderID != "" && !slices.ContainsFunc(own.KubeletArg, func(a string) bool { return strings.HasPrefix(a, flag) }) {
		own.KubeletArg = append(own.KubeletArg, flag+f.ProviderID)
	}
}
