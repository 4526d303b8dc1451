package machine

import (
	"embed"
	"fmt"
	"strings"
)

//go:embed examples/*.yaml
var examples embed.FS

//go:embed manual.md
var manual string

// Example is a commented node config to begin with.
func Example(r Role) ([]byte, error) {
	data, err := examples.ReadFile("examples/" + string(r) + ".yaml")
	if err != nil {
		return nil, fmt.Errorf("role %q: write %s or %s", r, RoleServer, RoleAgent)
	}
	return data, nil
}

// Manual is CONFIG.md: every key of the node config, from the same tags as the schema, behind
// what manual.md says of the whole.
func Manual() ([]byte, error) {
	var b strings.Builder
	b.WriteString(manual)
	for _, r := range []Role{RoleServer, RoleAgent} {
		data, err := Example(r)
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(&b, "## %s\n\n```yaml\n%s```\n\n", map[Role]string{RoleServer: "A server", RoleAgent: "An agent"}[r], data)
	}
	b.WriteString("## Keys\n\n")
	list(&b, "", Keys())
	return []byte(strings.TrimRight(b.String(), "\n") + "\n"), nil
}

// list writes the keys of a section, then the sections in it.
func list(b *strings.Builder, where string, keys []Key) {
	var below []Key
	for _, k := range keys {
		if k.Keys != nil {
			fmt.Fprintf(b, "- `%s` (%s, below): %s.\n", k.Name, k.Kind, k.Help)
			below = append(below, k)
			continue
		}
		fmt.Fprintf(b, "- `%s` (%s): %s.", k.Name, k.shape(), k.Help)
		if k.Default != "" {
			fmt.Fprintf(b, " Default: %s.", k.Default)
		}
		if k.Also != "" {
			fmt.Fprintf(b, " `%s` is taken for it too.", k.Also)
		}
		b.WriteString("\n")
	}
	b.WriteString("\n")
	for _, k := range below {
		path := where + k.Name
		switch k.Kind {
		case SectionList:
			path += "[]"
		case SectionMap:
			path += ".NAME"
		}
		fmt.Fprintf(b, "### %s\n\n%s.", path, strings.ToUpper(k.Help[:1])+k.Help[1:])
		if k.Default != "" {
			fmt.Fprintf(b, " Default: %s.", k.Default)
		}
		b.WriteString("\n\n")
		list(b, path+".", k.Keys)
	}
}

// shape is the kind, or the values where there are few.
func (k Key) shape() string {
	switch {
	case k.Enum != nil:
		return strings.Join(k.Enum, " or ")
	case k.Max != 0:
		return fmt.Sprintf("%s, %d to %d", k.Kind, k.Min, k.Max)
	}
	return k.Kind.String()
}
