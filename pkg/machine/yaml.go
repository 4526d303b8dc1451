package machine

import (
	"reflect"
	"strconv"

	"gopkg.in/yaml.v3"
)

func defaultAgent() *Agent   { a := DefaultAgent(); return &a }
func defaultServer() *Server { s := DefaultServer(); return &s }

// yamlOf gives the keys and values of the settings v that differ from those of base, which is of v's type.
func yamlOf(v, base any) []*yaml.Node {
	var out []*yaml.Node
	from := Fields(base)
	for i, f := range Fields(v) {
		if reflect.DeepEqual(f.Ptr, from[i].Ptr) {
			continue
		}
		out = append(out, text(f.Name))
		switch p := f.Ptr.(type) {
		case *string:
			out = append(out, text(*p))
		case *int:
			out = append(out, &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!int", Value: strconv.Itoa(*p)})
		case *bool:
			out = append(out, &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!bool", Value: strconv.FormatBool(*p)})
		case *[]string:
			list := &yaml.Node{Kind: yaml.SequenceNode}
			for _, s := range *p {
				list.Content = append(list.Content, text(s))
			}
			out = append(out, list)
		}
	}
	return out
}

func text(s string) *yaml.Node { return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: s} }
