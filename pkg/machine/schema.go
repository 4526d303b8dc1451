package machine

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strconv"
	"strings"
)

// Key is one key of the node config: what Config's tags say of it.
type Key struct {
	Name    string // one part of the path
	Kind    KeyKind
	Help    string
	Default string // what a missing key means, as text; "" for nothing
	Also    string // another name that is taken for it
	Enum    []string
	Pattern string // of the value, or of each value of a list or map
	Names   string // pattern of a map's keys
	Min     int
	Max     int   // 0 for no bounds
	Keys    []Key // of a section, or of each one in a list or map
}

// KeyKind is what a key's value looks like.
type KeyKind int

// The kinds.
const (
	Text KeyKind = iota
	Number
	Switch
	TextList
	TextMap
	Section
	SectionList
	SectionMap
)

var kindNames = [...]string{"text", "number", "true or false", "list of texts", "names and texts", "section", "list of sections", "names and sections"}

func (k KeyKind) String() string { return kindNames[k] }

// Keys lists the keys of a node config, in the order they are declared.
func Keys() []Key {
	return keysOf(reflect.ValueOf(Config{Server: DefaultServer(), Agent: DefaultAgent()}))
}

func keysOf(v reflect.Value) []Key {
	var out []Key
	for f, fv := range v.Fields() {
		name, opts, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		if strings.Contains(opts, "inline") {
			out = append(out, keysOf(fv)...)
			continue
		}
		if f.Tag.Get("moved") == "" {
			out = append(out, keyOf(name, f, fv))
		}
	}
	return out
}

func keyOf(name string, f reflect.StructField, v reflect.Value) Key {
	k := Key{
		Name: name, Help: f.Tag.Get("help"), Default: f.Tag.Get("default"), Also: f.Tag.Get("also"),
		Pattern: f.Tag.Get("pattern"), Names: f.Tag.Get("key"),
	}
	k.Help, k.Default = splitDefault(k.Help, k.Default)
	if e := f.Tag.Get("enum"); e != "" {
		k.Enum = strings.Split(e, ",")
	}
	k.Min, _ = strconv.Atoi(f.Tag.Get("min")) // TestKeys looks at the tags
	k.Max, _ = strconv.Atoi(f.Tag.Get("max"))
	k.Kind = kindOf(f.Type)
	switch k.Kind {
	case Section:
		if v.Kind() == reflect.Pointer {
			v = reflect.New(f.Type.Elem()).Elem()
		}
		k.Keys = keysOf(v)
	case SectionList, SectionMap:
		k.Keys = keysOf(reflect.New(f.Type.Elem()).Elem())
	default:
		if k.Default == "" && !v.IsZero() {
			k.Default = fmt.Sprint(v.Interface())
		}
	}
	return k
}

// splitDefault takes the default out of a flag's text, where flags show it.
func splitDefault(help, given string) (text, def string) {
	text, def, ok := strings.Cut(strings.TrimSuffix(help, ")"), " (default: ")
	if !ok {
		return help, given
	}
	return text, def
}

func kindOf(t reflect.Type) KeyKind {
	switch t.Kind() {
	case reflect.Int:
		return Number
	case reflect.Bool:
		return Switch
	case reflect.Struct, reflect.Pointer:
		return Section
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Struct {
			return SectionList
		}
		return TextList
	case reflect.Map:
		if t.Elem().Kind() == reflect.Struct {
			return SectionMap
		}
		return TextMap
	}
	return Text
}

// SchemaID names the schema; nothing need be there.
const SchemaID = "https://skerry-os.dev/schema/v1alpha1/node-config.json"

// Schema is the JSON Schema (2020-12) of a node config, for editors. It knows the shape: keys, kinds, and what a single value
// looks like. Decode also knows what goes with what.
func Schema() ([]byte, error) {
	s := section("Skerry's node config: what one machine is told.", Keys())
	s["$schema"], s["$id"], s["title"] = "https://json-schema.org/draft/2020-12/schema", SchemaID, Kind
	s["type"] = "object"
	s["required"] = []string{"apiVersion", "kind", "role"}
	// What is only for the other role may be there, but must say nothing.
	silent := func(key string) object { return object{key: object{"maxProperties": 0}} }
	s["if"] = object{"properties": object{"role": object{"const": RoleAgent}}, "required": []string{"role"}}
	agent := silent("server")
	agent["cluster"] = object{"type": "object", "required": []string{"server", "token"}}
	s["then"] = object{"required": []string{"cluster"}, "properties": agent}
	s["else"] = object{"properties": silent("agent")}
	return indented(s)
}

type object = map[string]any

func indented(v any) ([]byte, error) {
	out, err := json.MarshalIndent(v, "", "  ")
	return append(out, '\n'), err
}

func section(help string, keys []Key) object {
	props := object{}
	for _, k := range keys {
		props[k.Name] = k.schema()
		if k.Also != "" {
			also := k.schema()
			also["deprecated"], also["description"] = true, "The same as "+k.Name+"."
			props[k.Also] = also
		}
	}
	return object{"type": orNull("object"), "description": help, "properties": props, "additionalProperties": false}
}

// orNull lets a key be there without a value: everything below it is commented out.
func orNull(kind ...string) []string { return append(kind, "null") }

func (k Key) schema() object {
	s := object{}
	switch k.Kind {
	case Text:
		s = k.value("string")
	case Number:
		s = k.value("integer")
	case Switch:
		s = k.value("boolean")
	case TextList:
		s["type"], s["items"] = orNull("array"), k.value("string")
	case TextMap:
		// Kernel settings are mostly numbers, and nobody should have to quote them.
		s["type"], s["additionalProperties"] = orNull("object"), k.value("string", "number", "boolean")
	case Section:
		s = section("", k.Keys)
	case SectionList:
		s["type"], s["items"] = orNull("array"), section("", k.Keys)
	case SectionMap:
		s["type"], s["additionalProperties"] = orNull("object"), section("", k.Keys)
	}
	if k.Names != "" {
		s["propertyNames"] = object{"pattern": k.Names}
	}
	s["description"] = k.text()
	for _, in := range []string{"items", "additionalProperties"} {
		if o, ok := s[in].(object); ok {
			delete(o, "description")
		}
	}
	return s
}

// value is the schema of a single value.
func (k Key) value(kind ...string) object {
	if k.Enum != nil {
		return object{"enum": k.Enum}
	}
	s := object{"type": orNull(kind...)}
	if k.Pattern != "" {
		// An empty text is no text, as for Decode.
		s["pattern"] = "^$|" + k.Pattern
	}
	if k.Max != 0 {
		s["maximum"] = k.Max
		s["anyOf"] = []object{{"minimum": k.Min}, {"enum": []any{0, nil}}}
	}
	return s
}

// text is what a person reads of a key.
func (k Key) text() string {
	t := strings.ToUpper(k.Help[:1]) + k.Help[1:] + "."
	if k.Default != "" {
		t += " Default: " + k.Default + "."
	}
	return t
}
