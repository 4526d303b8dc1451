// Command skerryd is the node: one process that is a Kubernetes server or agent. Called by another name (kubectl, ctr) it is
// that program. It is the only place where the control plane's half and the node's half meet.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

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
	args, err := changeRoot(args)
	if err != nil {
		_, _ = fmt.Fprintln(stderr, "skerryd:", err)
		if errors.Is(err, settings.ErrUsage) {
			return 2
		}
		return 1
	}
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
	err = root.ExecuteContext(ctx)
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

// changeRoot is the flag --root, before any command: a pod that has the node's root in a folder does with it what a shell on the node
// would do. It gives the arguments behind the flag.
func changeRoot(args []string) ([]string, error) {
	if len(args) == 0 || args[0] != "--root" && !strings.HasPrefix(args[0], "--root=") {
		return args, nil
	}
	dir, rest := strings.TrimPrefix(args[0], "--root="), args[1:]
	if args[0] == "--root" {
		if len(rest) == 0 {
			return nil, settings.Usage(errors.New("--root: which folder? see skerryd --help"))
		}
		dir, rest = rest[0], rest[1:]
	}
	if err := unix.Chroot(dir); err != nil {
		if errors.Is(err, fs.ErrPermission) {
			return nil, fmt.Errorf("--root: %s: %w; a pod needs to be privileged for it (kubectl debug --profile=sysadmin)", dir, err)
		}
		return nil, settings.Usage(fmt.Errorf("--root: %s: %w", dir, err))
	}
	awaitTerminal(os.Stdin, terminalLimit)
	return rest, os.Chdir("/")
}

// terminalLimit is how long kubectl may take to show what a pod says; terminalLook is how often that is looked at.
const (
	terminalLimit = 10 * time.Second
	terminalLook  = 200 * time.Millisecond
)

// awaitTerminal waits until somebody looks at the terminal in: that of a pod has no size until kubectl is attached to it, and what
// is said before that is not shown.
func awaitTerminal(in *os.File, limit time.Duration) {
	for waited := time.Duration(0); waited < limit; waited += terminalLook {
		size, err := unix.IoctlGetWinsize(int(in.Fd()), unix.TIOCGWINSZ)
		if err != nil || size.Col > 0 && waited == 0 {
			return // no terminal, or one with a person before it
		}
		time.Sleep(terminalLook)
		if size.Col > 0 {
			return // the size comes a little before the eyes
		}
	}
}

// newRootCmd lists the commands; each has a file of its own.
func newRootCmd() *cobra.Command {
	root := &cobra.Command{
		Use:   "skerryd",
		Short: "A Kubernetes server or agent in one process",
		Example: "  skerryd check-config\n  skerryd server --data-dir /var/lib/skerry\n  skerryd kubectl get nodes\n" +
			"  kubectl debug node/NAME -it --profile=sysadmin --image=skerry.local/host:1 --arguments-only -- update status",
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
	root.Flags().String("root", "", "before any command: the folder with the node's root, for a privileged pod")
	root.AddCommand(
		newServerCmd(),
		newAgentCmd(),
		newTokenCmd(),
		newNodeCmd(),
		newCertificateCmd(),
		&cobra.Command{Use: "kubectl", Short: "Talk to the cluster of this server", Example: "  skerryd kubectl get nodes", DisableFlagParsing: true, Run: func(*cobra.Command, []string) {}},
		&cobra.Command{Use: "crictl", Short: "Look at this node's containers, pods and images", Example: "  skerryd crictl ps -a", DisableFlagParsing: true, Run: func(*cobra.Command, []string) {}},
		&cobra.Command{Use: "ctr", Short: "Talk to this node's containerd", Example: "  skerryd ctr images list", DisableFlagParsing: true, Run: func(*cobra.Command, []string) {}},
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
		Use:     "version",
		Short:   "Print what this is",
		Example: "  skerryd version",
		Args:    noArgs,
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
