// Command skerry-addons holds the programs that the components run in pods, each under its own name: `skerry-addons coredns …`,
// or a link called coredns. One program for all is smaller than one each: what they share of Kubernetes' and Go's libraries is
// there once, in the release and in the page cache.
package main

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/skerry-os/skerry/pkg/version"
)

// programs by name. Each reads its own arguments and returns when it has been asked to end, or cannot go on.
var programs = map[string]func(args []string) error{
	"coredns": coredns,
	"ingress": ingress,
}

func main() {
	name, args := filepath.Base(os.Args[0]), os.Args[1:]
	if programs[name] == nil && len(args) > 0 {
		name, args = args[0], args[1:]
	}
	switch run := programs[name]; {
	case run != nil:
		fail(name, run(args))
	case name == "--version":
		fmt.Println(version.String("skerry-addons"))
	case name == "--help", name == "-h":
		fmt.Println(usage())
	default:
		fmt.Fprintln(os.Stderr, usage())
		os.Exit(2)
	}
}

func usage() string {
	return "usage: skerry-addons PROGRAM [ARGUMENT...]\nprograms: " + strings.Join(slices.Sorted(maps.Keys(programs)), ", ") +
		"\nexample: skerry-addons coredns -conf Corefile"
}

func fail(name string, err error) {
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		os.Exit(1)
	}
}
