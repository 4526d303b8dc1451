// Package helptest checks what --help prints of a program's commands.
package helptest

import (
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

var flagInText = regexp.MustCompile(`--([a-z0-9-]+)`)

// Check wants that the help of every command below root teaches: it has an example of that command, the flags in it
// exist, and what a flag takes is one word.
func Check(t *testing.T, root *cobra.Command) {
	t.Helper()
	n := 0
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		for _, c := range cmd.Commands() {
			walk(c)
		}
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if takes, usage := pflag.UnquoteUsage(f); strings.ContainsAny(takes, " ") || strings.Contains(usage, "`") || usage == "" {
				t.Errorf("%s: --%s %s: %s", cmd.CommandPath(), f.Name, takes, usage)
			}
		})
		if !cmd.Runnable() {
			return
		}
		n++
		if !strings.Contains(cmd.Example, cmd.CommandPath()) {
			t.Errorf("%s: has no example: %q", cmd.CommandPath(), cmd.Example)
		}
		for _, part := range regexp.MustCompile(`\n|&&|\||;`).Split(cmd.Example, -1) {
			_, words, ok := strings.Cut(part, root.Name()+" ")
			named, _, err := root.Find(strings.Fields(words))
			if !ok || err != nil || named.DisableFlagParsing {
				continue
			}
			for _, f := range flagInText.FindAllStringSubmatch(words, -1) {
				if named.Flag(f[1]) == nil {
					t.Errorf("%s: its example names --%s, which %s does not have: %s", cmd.CommandPath(), f[1], named.CommandPath(), strings.TrimSpace(part))
				}
			}
		}
	}
	walk(root)
	if n < 2 {
		t.Errorf("%d commands were looked at", n)
	}
}
