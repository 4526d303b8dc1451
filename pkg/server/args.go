package server

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/spf13/pflag"
	cliflag "k8s.io/component-base/cli/flag"
)

// arg is a flag of a component.
type arg struct{ name, value string }

// parse gives a component's options our arguments, and after them the operator's, which replace ours of the same name. What
// the component does not know, or cannot read, is an error that names the setting it came from.
func parse(setting string, sets cliflag.NamedFlagSets, ours []arg, theirs []string) error {
	fs := pflag.NewFlagSet(setting, pflag.ContinueOnError)
	fs.SetNormalizeFunc(cliflag.WordSepNormalizeFunc)
	for _, s := range sets.FlagSets {
		fs.AddFlagSet(s)
	}
	for _, a := range ours {
		if slices.ContainsFunc(theirs, func(t string) bool { name, _, _ := strings.Cut(t, "="); return name == a.name }) {
			continue
		}
		if err := fs.Set(a.name, a.value); err != nil {
			return fmt.Errorf("%s: %s=%s: %w", setting, a.name, a.value, err)
		}
	}
	for _, t := range theirs {
		name, value, ok := strings.Cut(t, "=")
		f := fs.Lookup(name)
		if f == nil {
			return fmt.Errorf("%s: %s: there is no such flag in this version of Kubernetes", setting, name)
		}
		if !ok {
			value = f.NoOptDefVal
		}
		if err := fs.Set(name, value); err != nil {
			return fmt.Errorf("%s: %s: %w", setting, t, err)
		}
	}
	return nil
}

// firstPrefix reads the first network of a comma-separated list, and says whether there are more.
func firstPrefix(list string) (netip.Prefix, bool, error) {
	first, _, more := strings.Cut(list, ",")
	p, err := netip.ParsePrefix(strings.TrimSpace(first))
	if err != nil {
		return netip.Prefix{}, false, fmt.Errorf("%q is not a network: %w", first, err)
	}
	return p, more, nil
}
