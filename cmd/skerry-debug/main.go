// Command skerry-debug brings the shell of a debug release to people. Only roots of `skerry release build --debug` have it, and
// busybox, which is the shell. init starts it and keeps it running:
//
//	skerry-debug console /dev/ttyS0     offers a shell on one console: it waits for Enter, then becomes the shell
//	skerry-debug ssh                    lets the keys in /run/skerry/ssh.json in as root
//
// Whoever gets here is root of the machine. Consoles ask for no password: who has a machine's console in hand, and debug
// releases on it, is meant to get in.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/skerry-os/skerry/pkg/machine"
)

const shell = "/bin/sh"

func main() {
	var err error
	switch args := os.Args[1:]; {
	case len(args) == 2 && args[0] == "console":
		err = console(args[1], machine.OpenShells, home)
	case len(args) == 1 && args[0] == "ssh":
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
		err = serve(ctx, "/"+machine.SSHFile, hostKeyFile)
		stop()
	default:
		fmt.Fprintln(os.Stderr, "skerry-debug: is started by init; there is nothing to run by hand")
		os.Exit(2)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "skerry-debug:", err)
		os.Exit(1)
	}
}

// home is in memory: the root's own folder cannot be written.
const home = "/run/skerry/root"

// environment is what a shell starts with. kubectl finds the cluster by it, on servers.
func environment(home, term string) []string {
	if term == "" {
		term = "vt220" // what every terminal program understands
	}
	return []string{
		"PATH=/usr/bin:/usr/sbin:/usr/libexec/skerry", "HOME=" + home, "USER=root", "LOGNAME=root", "SHELL=" + shell, "TERM=" + term,
		"KUBECONFIG=/etc/skerry/skerry.yaml", `PS1=\h:\w# `,
	}
}

// folder gives the folder that a shell starts in.
func folder(home string) string {
	if err := os.MkdirAll(home, 0o700); err != nil {
		return "/"
	}
	return home
}
