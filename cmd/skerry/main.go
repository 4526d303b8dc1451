// Command skerry is the desk tool: keys, releases, images, boards and virtual machines. It needs no root, no Docker, no loop
// device, and it holds no Kubernetes package, so that it starts at once.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run is main without the process around it: it gives the exit code.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := newRootCmd()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	switch {
	case err == nil:
		return 0
	case errors.Is(err, context.Canceled) && ctx.Err() != nil:
		_, _ = fmt.Fprintln(stderr, "skerry: interrupted; nothing was left under a final name")
		return 130
	}
	_, _ = fmt.Fprintln(stderr, "skerry:", err)
	return 1
}

// newRootCmd lists the commands; each has a file of its own.
func newRootCmd() *cobra.Command {
	root := &cobra.Command{
		Use:           "skerry",
		Short:         "Build signed Kubernetes releases and the disk images that boot them",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(
		newBoardCmd(),
		newConfigCmd(),
		newFlashCmd(),
		newFleetCmd(),
		newImageCmd(),
		newKeysCmd(),
		newKubeconfigCmd(),
		newPXECmd(),
		newPublishCmd(),
		newReleaseCmd(),
		newUpdateCmd(),
		newVersionCmd(),
		newVMCmd(),
	)
	return root
}
