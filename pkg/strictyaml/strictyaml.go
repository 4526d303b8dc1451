// Package strictyaml decodes YAML that people write: one document, no unknown keys, no duplicate keys, and every fault of the
// file reported at once as "name:line:column: what is wrong".
package strictyaml

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"sort"
	"strings"

	"gopkg.in/yaml.v3"
)

// MaxBytes bounds a file: a config is typed by a person, and an alias bomb is not.
const MaxBytes = 1 << 20

// Fault is one thing wrong in a file. Line and Column count from 1; both are 0 when the place is not known.
type Fault struct {
	Name         string
	Line, Column int
	Msg          string
}

func (f Fault) Error() string {
	if f.Line == 0 {
		return fmt.Sprintf("%s: %s", f.Name, f.Msg)
	}
	return fmt.Sprintf("%s:%d:%d: %s", f.Name, f.Line, f.Column, f.Msg)
}

// Doc is a decoded file that still knows where each value stands.
type Doc struct {
	name string
	root *yaml.Node
}

// Decode reads the one document in data into v, a pointer to a struct with yaml tags. The error joins all Faults found. An
// empty document leaves v as it is.
func Decode(name string, data []byte, v any) (*Doc, error) {
	if len(data) > MaxBytes {
		return nil, Fault{Name: name, Msg: fmt.Sprintf("is %d bytes; at most %d are read", len(data), MaxBytes)}
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var root yaml.Node
	if err := dec.Decode(&root); err != nil {
		if errors.Is(err, io.EOF) {
			return &Doc{name: name}, nil
		}
		return nil, syntaxFault(name, err)
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, Fault{Name: name, Msg: "holds more than one document; write one"}
	}
	return DecodeNode(name, root.Content[0], v)
}

// DecodeNode is Decode for a document that is nodes already, of one file or put together from several places of it; faults
// name the places that the nodes have.
func DecodeNode(name string, root *yaml.Node, v any) (*Doc, error) {
	d := &Doc{name: name, root: root}
	var faults []error
	d.check(d.root, reflect.TypeOf(v).Elem(), "", &faults)
	if len(faults) > 0 {
		return nil, errors.Join(faults...)
	}
	if d.root.Tag == "!!null" {
		return d, nil
	}
	if err := d.root.Decode(v); err != nil {
		return nil, d.typeFaults(err)
	}
	return d, nil
}

// At makes a Fault at the value that path leads to: keys and list indexes, as in At("network", "interfaces", 0, "mac").
// Where the path ends early, the nearest place above it is named.
func (d *Doc) At(msg string, path ...any) error {
	n := d.root
	for _, p := range path {
		next := child(n, p)
		if next == nil {
			break
		}
		n = next
	}
	if n == nil {
		return Fault{Name: d.name, Msg: msg}
	}
	return Fault{Name: d.name, Line: n.Line, Column: n.Column, Msg: msg}
}

// Node gives the value that path leads to, or nil.
func (d *Doc) Node(path ...any) *yaml.Node {
	n := d.root
	for _, p := range path {
		n = child(n, p)
	}
	return n
}

func child(n *yaml.Node, p any) *yaml.Node {
	if n == nil {
		return nil
	}
	switch p := p.(type) {
	case int:
		if n.Kind == yaml.SequenceNode && p < len(n.Content) {
			return n.Content[p]
		}
	case string:
		if n.Kind == yaml.MappingNode {
			for i := 0; i+1 < len(n.Content); i += 2 {
				if n.Content[i].Value == p {
					return n.Content[i+1]
				}
			}
		}
	}
	return nil
}

var unmarshaler = reflect.TypeFor[yaml.Unmarshaler]()

// check walks the nodes beside the type and collects keys that the type does not have, or has twice.
func (d *Doc) check(n *yaml.Node, t reflect.Type, where string, faults *[]error) {
	fault := func(at *yaml.Node, format string, a ...any) {
		*faults = append(*faults, Fault{Name: d.name, Line: at.Line, Column: at.Column, Msg: fmt.Sprintf(format, a...)})
	}
	if n.Kind == yaml.AliasNode || n.Anchor != "" {
		fault(n, "anchors and aliases are not read here; write the value out")
		return
	}
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if n.Tag == "!!null" || reflect.PointerTo(t).Implements(unmarshaler) {
		return
	}
	switch t.Kind() {
	case reflect.Struct:
		if n.Kind != yaml.MappingNode {
			fault(n, "%swants keys and values here", prefix(where))
			return
		}
		fields := fieldsOf(t)
		rename(n, alsoOf(t))
		d.keys(n, func(k, v *yaml.Node) {
			f, ok := fields[k.Value]
			if !ok {
				fault(k, "unknown key %q%s", join(where, k.Value), suggest(k.Value, fields))
				return
			}
			d.check(v, f, join(where, k.Value), faults)
		}, fault)
	case reflect.Map:
		if n.Kind != yaml.MappingNode {
			fault(n, "%swants keys and values here", prefix(where))
			return
		}
		d.keys(n, func(k, v *yaml.Node) { d.check(v, t.Elem(), join(where, k.Value), faults) }, fault)
	case reflect.Slice:
		if n.Kind != yaml.SequenceNode {
			fault(n, "%swants a list here (lines that start with a dash)", prefix(where))
			return
		}
		for _, v := range n.Content {
			d.check(v, t.Elem(), where, faults)
		}
	case reflect.Interface:
	default:
		if n.Kind != yaml.ScalarNode {
			fault(n, "%swants a single value here", prefix(where))
		}
	}
}

func (d *Doc) keys(n *yaml.Node, each func(k, v *yaml.Node), fault func(*yaml.Node, string, ...any)) {
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		if first, dup := seen[k.Value]; dup {
			fault(k, "key %q is here twice; the first is on line %d", k.Value, first)
			continue
		}
		seen[k.Value] = k.Line
		each(k, v)
	}
}

// rename gives keys with a name that is taken too the one that the struct has.
func rename(n *yaml.Node, also map[string]string) {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if name, ok := also[n.Content[i].Value]; ok {
			n.Content[i].Value = name
		}
	}
}

// alsoOf maps the also tags of a struct to its yaml keys, inline structs included.
func alsoOf(t reflect.Type) map[string]string {
	out := map[string]string{}
	for f := range t.Fields() {
		name, opts, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		if strings.Contains(opts, "inline") {
			for k, v := range alsoOf(f.Type) {
				out[k] = v
			}
		} else if also := f.Tag.Get("also"); also != "" {
			out[also] = name
		}
	}
	return out
}

// fieldsOf maps each yaml key of a struct to its type, inline structs included.
func fieldsOf(t reflect.Type) map[string]reflect.Type {
	out := map[string]reflect.Type{}
	for f := range t.Fields() {
		tag := f.Tag.Get("yaml")
		name, opts, _ := strings.Cut(tag, ",")
		if strings.Contains(opts, "inline") {
			for k, v := range fieldsOf(f.Type) {
				out[k] = v
			}
			continue
		}
		if !f.IsExported() || name == "-" {
			continue
		}
		if name == "" {
			name = strings.ToLower(f.Name)
		}
		out[name] = f.Type
	}
	return out
}

// suggest names a key that differs in case, dashes or a letter or two, if there is one.
func suggest(key string, fields map[string]reflect.Type) string {
	known := make([]string, 0, len(fields))
	for k := range fields {
		known = append(known, k)
	}
	sort.Strings(known)
	best, least := "", 3
	for _, k := range known {
		if d := distance(strings.ToLower(key), strings.ToLower(k)); d < least {
			best, least = k, d
		}
	}
	if best != "" {
		return fmt.Sprintf("; did you mean %q?", best)
	}
	if len(known) <= 12 {
		return "; known here: " + strings.Join(known, ", ")
	}
	return ""
}

// distance is the Levenshtein distance of a and b.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diag := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diag
			if a[i] != b[j] {
				cost++
			}
			diag = row[j+1]
			row[j+1] = min(cost, row[j+1]+1, row[j]+1)
		}
	}
	return row[len(b)]
}

func join(where, key string) string {
	if where == "" {
		return key
	}
	return where + "." + key
}

func prefix(where string) string {
	if where == "" {
		return ""
	}
	return where + ": "
}

// syntaxFault turns yaml.v3's "yaml: line 3: ..." into a Fault. It has no columns for these.
func syntaxFault(name string, err error) error {
	msg := strings.TrimPrefix(err.Error(), "yaml: ")
	var line int
	if _, e := fmt.Sscanf(msg, "line %d:", &line); e == nil {
		_, msg, _ = strings.Cut(msg, ": ")
		return Fault{Name: name, Line: line, Column: 1, Msg: msg}
	}
	return Fault{Name: name, Msg: msg}
}

// typeFaults splits what yaml.v3 found while decoding values: a TypeError holds "line N: cannot unmarshal ..." lines, an
// UnmarshalYAML of ours "line N: column N: ...".
func (d *Doc) typeFaults(err error) error {
	lines := []string{err.Error()}
	var te *yaml.TypeError
	if errors.As(err, &te) {
		lines = te.Errors
	}
	var out []error
	for _, l := range lines {
		f := Fault{Name: d.name}
		l = strings.TrimPrefix(l, "yaml: ")
		if _, e := fmt.Sscanf(l, "line %d:", &f.Line); e == nil {
			_, l, _ = strings.Cut(l, ": ")
			f.Column = 1
			if _, e := fmt.Sscanf(l, "column %d:", &f.Column); e == nil {
				_, l, _ = strings.Cut(l, ": ")
			} else {
				f.Column = d.columnOf(f.Line, l)
			}
		}
		f.Msg = plain(l)
		out = append(out, f)
	}
	return errors.Join(out...)
}

// columnOf finds the value on a line that yaml.v3 quotes as `value` in its message.
func (d *Doc) columnOf(line int, msg string) int {
	column := 1
	var walk func(*yaml.Node)
	walk = func(n *yaml.Node) {
		if n.Line == line && n.Kind == yaml.ScalarNode && (column == 1 || strings.Contains(msg, "`"+n.Value+"`")) {
			column = n.Column
		}
		for _, c := range n.Content {
			walk(c)
		}
	}
	walk(d.root)
	return column
}

// plain says in a person's words what yaml.v3 says in Go's.
func plain(msg string) string {
	rest, ok := strings.CutPrefix(msg, "cannot unmarshal ")
	if !ok {
		return msg
	}
	got, want, ok := strings.Cut(rest, " into ")
	if !ok {
		return msg
	}
	if _, value, ok := strings.Cut(got, " "); ok {
		got = value
	}
	switch {
	case strings.HasPrefix(want, "int"), strings.HasPrefix(want, "uint"):
		want = "a whole number"
	case want == "bool":
		want = "true or false"
	case want == "string":
		want = "a text"
	}
	return fmt.Sprintf("%s is not %s", got, want)
}
