package settings

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"github.com/spf13/pflag"
	"gopkg.in/yaml.v3"

	"github.com/skerry-os/skerry/pkg/machine"
)

func roleOf(v any) machine.Role {
	if _, ok := v.(*machine.Server); ok {
		return machine.RoleServer
	}
	return machine.RoleAgent
}

// foreign is a flag of K3s that is no setting here: accepted, or refused with what to do instead.
type foreign struct {
	machine.K3sFlag
	given bool
}

func (f *foreign) String() string   { return "" }
func (f *foreign) Type() string     { return "string" }
func (f *foreign) IsBoolFlag() bool { return f.Switch }

func (f *foreign) Set(value string) error {
	if f.Switch && value == "false" {
		return nil // as if it were not there
	}
	if f.Verdict == machine.Refused {
		return errors.New(f.Note)
	}
	f.given = true
	return nil
}

// bindForeign takes K3s's flags, without a word in --help.
func bindForeign(flags *pflag.FlagSet, v any) {
	for _, k := range machine.K3sFlags(roleOf(v)) {
		if k.Verdict == machine.Supported || flags.Lookup(k.Name) != nil {
			continue
		}
		letter := ""
		if len(k.Name) == 1 {
			letter = k.Name
		}
		f := flags.VarPF(&foreign{K3sFlag: k}, k.Name, letter, k.Note)
		f.Hidden = true
		if k.Switch {
			f.NoOptDefVal = "true"
		}
	}
}

// warnForeign says which flags do nothing, and why.
func warnForeign(flags *pflag.FlagSet) {
	flags.VisitAll(func(f *pflag.Flag) {
		if k, ok := f.Value.(*foreign); ok && k.given {
			slog.Warn("this flag of K3s does nothing here", "flag", k.Name, "because", k.Note)
		}
	})
}

// translate gives a file's settings with our names and without those of K3s that do nothing here. Lines keep their numbers,
// for errors. Whatever it does not understand it leaves to the decoder.
func translate(name string, data []byte, v any) ([]byte, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(data, &doc); err != nil || len(doc.Content) != 1 || doc.Content[0].Kind != yaml.MappingNode || doc.Content[0].Style&yaml.FlowStyle != 0 {
		return data, nil //nolint:nilerr // the decoder has the better message
	}
	also := map[string]string{}
	for _, f := range machine.Fields(v) {
		if f.Also != "" {
			also[f.Also] = f.Name
		}
	}
	flags := map[string]machine.K3sFlag{}
	for _, k := range machine.K3sFlags(roleOf(v)) {
		flags[k.Name] = k
	}
	lines := bytes.SplitAfter(data, []byte("\n"))
	content := doc.Content[0].Content
	var errs []error
	for i := 0; i+1 < len(content); i += 2 {
		key, value := content[i], content[i+1]
		end := len(lines)
		if i+2 < len(content) {
			end = content[i+2].Line - 1
		}
		if ours, ok := also[key.Value]; ok {
			lines[key.Line-1] = bytes.Replace(lines[key.Line-1], []byte(key.Value), []byte(ours), 1)
			continue
		}
		k, ok := flags[key.Value]
		if !ok || k.Verdict == machine.Supported || k.Name == "config" {
			continue
		}
		off := k.Switch && value.Value == "false"
		switch {
		case k.Verdict == machine.Refused && !off:
			errs = append(errs, fmt.Errorf("%s:%d: %s: %s", name, key.Line, k.Name, k.Note))
			continue
		case !off:
			slog.Warn("this setting of K3s does nothing here", "file", name, "key", k.Name, "because", k.Note)
		}
		for n := key.Line - 1; n < end; n++ {
			if !strings.HasPrefix(strings.TrimSpace(string(lines[n])), "#") {
				lines[n] = []byte("\n")
			}
		}
	}
	return bytes.Join(lines, nil), errors.Join(errs...)
}
