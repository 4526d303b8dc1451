// Command skerryd is the node: one process that is a Kubernetes server or agent. Called by another name (kubectl, ctr) it is
// that program. It is the only place where the control plane's half and the node's half meet.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/skerry-os/skerry/cmd/skerryd/internal/settings"
	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/update/host"
	"github.com/skerry-os/skerry/pkg/version"
)

func main() {
	switch filepath.Base(os.Args[0]) {
	case "kubectl":
		os.Exit(kubectl(os.Args))
	case "ctr":
		os.Exit(ctr(os.Args))
	case "crictl":
		os.Exit(runCrictl(os.Args))
	}
	// Further signals change nothing: some senders (timeout, a terminal beside a supervisor) send two at once, and a stop is
	// bounded by the services' graces anyway.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run is main without the process around it: it gives the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	// kubectl and ctr read their own flags; cobra must not see them.
	if len(args) > 0 {
		switch args[0] {
		case "kubectl":
			return kubectl(args)
		case "ctr":
			return ctr(args)
		case "crictl":
			return runCrictl(args)
		}
	}
	root := newRootCmd()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	switch {
	case err == nil:
		return 0
	case errors.Is(err, settings.ErrUsage):
		_, _ = fmt.Fprintln(stderr, "skerryd:", err)
		return 2
	}
	_, _ = fmt.Fprintln(stderr, "skerryd:", err)
	return 1
}

// newRootCmd lists the commands; each has a file of its own.
func newRootCmd() *cobra.Command {
	root := &cobra.Command{
		Use:           "skerryd",
		Short:         "A Kubernetes server or agent in one process",
		Example:       "  skerryd check-config\n  skerryd server --data-dir /var/lib/skerry\n  skerryd kubectl get nodes",
		SilenceUsage:  true,
		SilenceErrors: true,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return settings.Usage(fmt.Errorf("%q is not a command; see skerryd --help", args[0]))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	// Kubernetes' libraries put flags of their own on every program; they look them up again, so they can only be hidden.
	pflag.CommandLine.VisitAll(func(f *pflag.Flag) { f.Hidden = true })
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return settings.Usage(fmt.Errorf("%w; see %s --help", err, cmd.CommandPath()))
	})
	root.AddCommand(
		newServerCmd(),
		newAgentCmd(),
		newTokenCmd(),
		newNodeCmd(),
		newCertificateCmd(),
		&cobra.Command{Use: "kubectl", Short: "Talk to the cluster of this server", DisableFlagParsing: true, Run: func(*cobra.Command, []string) {}},
		&cobra.Command{Use: "crictl", Short: "Look at this node's containers, pods and images", DisableFlagParsing: true, Run: func(*cobra.Command, []string) {}},
		&cobra.Command{Use: "ctr", Short: "Talk to this node's containerd", DisableFlagParsing: true, Run: func(*cobra.Command, []string) {}},
		newSnapshotCmd(),
		newStatusCmd(),
		newEnableCmd(),
		newDisableCmd(),
		newSecretsEncryptCmd(),
		newKillAllCmd(),
		newUninstallCmd(),
		newCheckConfigCmd(),
		newUpdateCmd(thisUpdated()),
		newVersionCmd(),
	)
	return root
}

func newVersionCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print what this is",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			text := fmt.Sprintf("%s\nkubernetes %s\n", version.String("skerryd"), kubernetesVersion())
			if id, _ := host.Identity(); id.Release.Debug { // elsewhere than on an image there is none
				text += machine.DebugNotice + "\n"
			}
			_, err := fmt.Fprint(cmd.OutOrStdout(), text)
			return err
		},
	}
}

func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return settings.Usage(fmt.Errorf("%q is one word too many; see %s --help", args[0], cmd.CommandPath()))
	}
	return nil
}
