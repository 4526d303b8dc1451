package settings

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"gopkg.in/yaml.v3"
)

// readFiles reads the file of settings and lays over it those of the folder beside it, NAME.d/*.yaml, in the order of their names, as
// K3s does: what a later one says holds, and a list whose key ends in + is appended. The error is fs.ErrNotExist if there is none.
func readFiles(name string, v any) (label string, data []byte, err error) {
	data, err = readFile(name, v)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", nil, err
	}
	over, gerr := filepath.Glob(filepath.Join(name+".d", "*.yaml")) // in order
	if gerr != nil || len(over) == 0 {
		return name, data, errors.Join(err, gerr)
	}
	all := map[string]any{}
	if err := yaml.Unmarshal(data, &all); err != nil {
		return "", nil, fmt.Errorf("%s: %w", name, err)
	}
	for _, file := range over {
		data, err := readFile(file, v)
		if err != nil {
			return "", nil, err
		}
		var more map[string]any
		if err := yaml.Unmarshal(data, &more); err != nil {
			return "", nil, fmt.Errorf("%s: %w", file, err)
		}
		for key, value := range more {
			key, appended := strings.CutSuffix(key, "+")
			if appended {
				value = append(list(all[key]), list(value)...)
			}
			all[key] = value
		}
	}
	data, err = yaml.Marshal(all)
	return name + " with " + name + ".d", data, err
}

func readFile(name string, v any) ([]byte, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	return translate(name, data, v)
}

func list(v any) []any {
	switch v := v.(type) {
	case nil:
		return nil
	case []any:
		return v
	default:
		return []any{v}
	}
}
