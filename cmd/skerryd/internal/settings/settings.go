// Package settings reads what a person decided about a node: defaults, a file, the environment, flags. It makes all of them
// from the one definition in pkg/machine.
package settings

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"reflect"
	"strings"

	"github.com/spf13/pflag"

	"github.com/skerry-os/skerry/pkg/machine"
)

// k3sConfig is where K3s has it.
const k3sConfig = "/etc/rancher/k3s/config.yaml"

// defaultConfig is read when --config is not given, if it is there.
const defaultConfig = "/etc/skerry/config.yaml"

// environment names the variables of settings that have special ones; K3s's are aliases. All others are variables.
var environment = map[string][]string{
	"token":                  {"SKERRY_TOKEN", "K3S_TOKEN"},
	"server":                 {"SKERRY_URL", "K3S_URL"},
	"node-name":              {"SKERRY_NODE_NAME", "K3S_NODE_NAME"},
	"data-dir":               {"SKERRY_DATA_DIR", "K3S_DATA_DIR"},
	"datastore-endpoint":     {"SKERRY_DATASTORE_ENDPOINT", "K3S_DATASTORE_ENDPOINT"},
	"datastore-cafile":       {"SKERRY_DATASTORE_CAFILE", "K3S_DATASTORE_CAFILE"},
	"datastore-certfile":     {"SKERRY_DATASTORE_CERTFILE", "K3S_DATASTORE_CERTFILE"},
	"datastore-keyfile":      {"SKERRY_DATASTORE_KEYFILE", "K3S_DATASTORE_KEYFILE"},
	"s3-access-key":          {"SKERRY_S3_ACCESS_KEY"},
	"s3-secret-key":          {"SKERRY_S3_SECRET_KEY"},
	"s3-session-token":       {"SKERRY_S3_SESSION_TOKEN"},
	"write-kubeconfig":       {"SKERRY_KUBECONFIG_OUTPUT", "K3S_KUBECONFIG_OUTPUT"},
	"write-kubeconfig-mode":  {"SKERRY_KUBECONFIG_MODE", "K3S_KUBECONFIG_MODE"},
	"write-kubeconfig-group": {"SKERRY_KUBECONFIG_GROUP", "K3S_KUBECONFIG_GROUP"},
}

// variables names those of a setting, the strongest first: every setting has one.
func variables(name string) []string {
	if special := environment[name]; special != nil {
		return special
	}
	name = strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
	return []string{"SKERRY_" + name, "K3S_" + name}
}

// letters are K3s's, for what people type often.
var letters = map[string]string{"token": "t", "data-dir": "d", "server": "s", "write-kubeconfig": "o", "node-ip": "i"}

// ErrUsage is in every error about something that a person wrote.
var ErrUsage = errors.New("")

// Usage marks err as one.
func Usage(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w%w", ErrUsage, err)
}

// problemer is *machine.Server or *machine.Agent.
type problemer interface{ Problems() []machine.Problem }

// Bind makes a flag of every setting of v, with v's values as defaults, and --config.
func Bind(flags *pflag.FlagSet, v any) (config *string) {
	config = BindSome(flags, v, func(string) bool { return true })
	bindForeign(flags, v)
	return config
}

// BindSome is Bind for the settings that a command needs.
func BindSome(flags *pflag.FlagSet, v any, wanted func(name string) bool) (config *string) {
	config = flags.StringP("config", "c", "", "file of settings with the flags' names as keys (default: "+defaultConfig+", if it is there); those in a folder beside it, FILE.d/*.yaml, are laid over it")
	for _, f := range machine.Fields(v) {
		if !wanted(f.Name) {
			continue
		}
		help := f.Help
		if names := environment[f.Name]; names != nil {
			help += " [$" + strings.Join(names, ", $") + "]"
		}
		bind(flags, f.Name, f.Ptr, help)
		if f.Also != "" {
			bind(flags, f.Also, f.Ptr, help)
			flags.Lookup(f.Also).Hidden = true
		}
	}
	return config
}

func bind(flags *pflag.FlagSet, name string, ptr any, help string) {
	switch p := ptr.(type) {
	case *string:
		flags.StringVarP(p, name, letters[name], *p, help)
	case *int:
		flags.IntVar(p, name, *p, help)
	case *bool:
		flags.BoolVar(p, name, *p, help)
	case *[]string:
		if strings.HasSuffix(name, "-arg") { // their values have commas of their own
			flags.StringArrayVar(p, name, *p, help)
		} else {
			flags.StringSliceVar(p, name, *p, help)
		}
	default:
		panic(fmt.Sprintf("setting %s has a type that cannot be a flag: %T", name, p))
	}
}

// Load reads the settings in the order of their strength: defaults, file, environment, flags. flags were bound to typed, which
// is of v's type; decode reads a file into v over the defaults. What is wrong afterwards, and was not in the file, was typed.
func Load(flags *pflag.FlagSet, config string, typed any, v problemer, decode func(name string, data []byte) error) error {
	name := config
	if name == "" {
		name = defaultConfig
	}
	label, data, err := readFiles(name, v)
	switch {
	case err == nil:
		if err := decode(label, data); err != nil {
			return Usage(err)
		}
	case config == "" && errors.Is(err, fs.ErrNotExist):
		if _, err := os.Stat(k3sConfig); err == nil {
			slog.Warn("K3s's settings are not read: give them with --config, or move them to "+defaultConfig, "file", k3sConfig)
		}
	default:
		return Usage(err)
	}
	warnForeign(flags)
	from := machine.Fields(typed)
	parsed := pflag.NewFlagSet("environment", pflag.ContinueOnError)
	for i, f := range machine.Fields(v) {
		for _, env := range variables(f.Name) {
			if value := os.Getenv(env); value != "" {
				bind(parsed, f.Name, f.Ptr, "")
				if err := parsed.Set(f.Name, value); err != nil {
					return Usage(fmt.Errorf("$%s: %w", env, err))
				}
				break
			}
		}
		if flags.Changed(f.Name) || f.Also != "" && flags.Changed(f.Also) {
			reflect.ValueOf(f.Ptr).Elem().Set(reflect.ValueOf(from[i].Ptr).Elem())
		}
	}
	var errs []error
	for _, p := range v.Problems() {
		errs = append(errs, fmt.Errorf("--%w", p))
	}
	return Usage(errors.Join(errs...))
}
