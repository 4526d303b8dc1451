package addons

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"regexp"
	"strings"
	"text/template"

	"gopkg.in/yaml.v3"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	kyaml "sigs.k8s.io/yaml"
)

// object is one document of a manifest, and the line it starts at.
type object struct {
	*unstructured.Unstructured
	file string
	line int
}

func (o object) String() string {
	name := o.GetName()
	if ns := o.GetNamespace(); ns != "" {
		name = ns + "/" + name
	}
	return o.GetKind() + " " + name
}

// values is all that a component's manifest can have filled in.
type values struct {
	ClusterDomain string
	ClusterDNS    string // the first address
	ClusterDNSs   string // all, with commas between
}

// render fills a component's manifest in. Files of a person are applied as they are.
func render(cfg Config) func(string, []byte) ([]byte, error) {
	v := values{ClusterDomain: cfg.ClusterDomain}
	var all []string
	for _, a := range cfg.ClusterDNS {
		all = append(all, quoted(a))
	}
	if len(all) > 0 {
		v.ClusterDNS, v.ClusterDNSs = all[0], strings.Join(all, ", ")
	}
	return func(name string, data []byte) ([]byte, error) {
		t, err := template.New(name).Option("missingkey=error").Parse(string(data))
		if err != nil {
			return nil, err
		}
		var out bytes.Buffer
		if err := t.Execute(&out, v); err != nil {
			return nil, err
		}
		return out.Bytes(), nil
	}
}

// quoted keeps the colons of an IPv6 address from meaning something to YAML.
func quoted(a netip.Addr) string { return `"` + a.String() + `"` }

// decode reads all objects of a file, lists taken apart. Every fault of the file is told at once.
func decode(name string, data []byte) ([]object, error) {
	var objects []object
	var faults []error
	for decoder := yaml.NewDecoder(bytes.NewReader(data)); ; {
		var doc yaml.Node
		err := decoder.Decode(&doc)
		if errors.Is(err, io.EOF) {
			return objects, errors.Join(faults...)
		}
		if err != nil {
			return nil, errors.Join(append(faults, syntaxFault(name, err))...)
		}
		if len(doc.Content) == 0 || doc.Content[0].Tag == "!!null" {
			continue // nothing but comments
		}
		line := doc.Content[0].Line
		list, err := toObjects(&doc)
		if err != nil {
			faults = append(faults, fmt.Errorf("%s:%d: %w", name, line, err))
			continue
		}
		for _, o := range list {
			objects = append(objects, object{o, name, line})
		}
	}
}

var yamlLine = regexp.MustCompile(`^yaml: line (\d+): (.*)$`)

// syntaxFault puts the line where an editor finds it.
func syntaxFault(name string, err error) error {
	if m := yamlLine.FindStringSubmatch(err.Error()); m != nil {
		return fmt.Errorf("%s:%s: is not YAML: %s", name, m[1], m[2])
	}
	return fmt.Errorf("%s: %w", name, err)
}

func toObjects(doc *yaml.Node) ([]*unstructured.Unstructured, error) {
	text, err := yaml.Marshal(doc)
	if err != nil {
		return nil, err
	}
	data, err := kyaml.YAMLToJSON(text)
	if err != nil {
		return nil, err
	}
	o := &unstructured.Unstructured{}
	if err := o.UnmarshalJSON(data); err != nil {
		return nil, errors.New("is not a Kubernetes object: it needs apiVersion and kind")
	}
	if !o.IsList() {
		return checked(o)
	}
	var all []*unstructured.Unstructured
	err = o.EachListItem(func(item runtime.Object) error {
		u, ok := item.(*unstructured.Unstructured)
		if !ok {
			return fmt.Errorf("%T in a list", item)
		}
		_, err := checked(u)
		all = append(all, u)
		return err
	})
	return all, err
}

func checked(o *unstructured.Unstructured) ([]*unstructured.Unstructured, error) {
	if o.GetAPIVersion() == "" || o.GetName() == "" {
		return nil, fmt.Errorf("%s has no apiVersion or no metadata.name", o.GetKind())
	}
	return []*unstructured.Unstructured{o}, nil
}
