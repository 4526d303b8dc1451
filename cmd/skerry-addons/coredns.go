package main

import (
	"flag"
	"fmt"
	"os"
	"runtime/debug"
	"strings"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	_ "github.com/coredns/coredns/plugin/bind"
	_ "github.com/coredns/coredns/plugin/bufsize"
	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/forward"
	_ "github.com/coredns/coredns/plugin/health"
	_ "github.com/coredns/coredns/plugin/hosts"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/loadbalance"
	_ "github.com/coredns/coredns/plugin/log"
	_ "github.com/coredns/coredns/plugin/loop"
	_ "github.com/coredns/coredns/plugin/metrics"
	clog "github.com/coredns/coredns/plugin/pkg/log"
	_ "github.com/coredns/coredns/plugin/ready"
	_ "github.com/coredns/coredns/plugin/reload"
	_ "github.com/coredns/coredns/plugin/rewrite"
	_ "github.com/coredns/coredns/plugin/whoami"

	"github.com/skerry-os/skerry/pkg/version"
)

// coredns is CoreDNS with the plugins a cluster's DNS needs and no others, taken as a library. It understands upstream's -conf
// flag and Corefile.
func coredns(args []string) error {
	// A set of its own: CoreDNS and its libraries put flags of theirs into the process-wide one.
	flags := flag.NewFlagSet("coredns", flag.ExitOnError)
	conf := flags.String("conf", "Corefile", "Corefile to load")
	flags.StringVar(&dnsserver.Port, "dns.port", dnsserver.DefaultPort, "port of server blocks that name none")
	plugins := flags.Bool("plugins", false, "list the plugins and exit")
	showVersion := flags.Bool("version", false, "print the version and exit")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("%q: takes flags only", flags.Args())
	}
	switch {
	case *showVersion:
		fmt.Println(version.String("coredns"), "with CoreDNS", corednsVersion())
		return nil
	case *plugins:
		if err := dnsserver.Register(); err != nil {
			return err
		}
		fmt.Println(caddy.DescribePlugins())
		return nil
	}
	return serveDNS(*conf)
}

// serveDNS serves until a signal ends the process (caddy's handler stops the servers and exits), so that it returns only errors.
func serveDNS(conf string) error {
	caddy.AppName, caddy.AppVersion, caddy.Quiet = "CoreDNS", corednsVersion(), true
	if err := dnsserver.Register(); err != nil {
		return err
	}
	caddy.RegisterCaddyfileLoader("flag", caddy.LoaderFunc(func(kind string) (caddy.Input, error) {
		contents, err := os.ReadFile(conf)
		if err != nil {
			return nil, err
		}
		return caddy.CaddyfileInput{Contents: contents, Filepath: conf, ServerTypeName: kind}, nil
	}))
	clog.SetOutput(os.Stdout)
	caddy.TrapSignals()
	corefile, err := caddy.LoadCaddyfile("dns")
	if err != nil {
		return err
	}
	instance, err := caddy.Start(corefile)
	if err != nil {
		return err
	}
	instance.Wait()
	return nil
}

// corednsVersion is the version of the module that was linked in.
func corednsVersion() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, dep := range info.Deps {
			if dep.Path == "github.com/coredns/coredns" {
				return strings.TrimPrefix(dep.Version, "v")
			}
		}
	}
	return "of unknown version"
}
