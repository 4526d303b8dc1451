package main

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/skerry-os/skerry/cmd/skerryd/internal/host"
	"github.com/skerry-os/skerry/cmd/skerryd/internal/settings"
	"github.com/skerry-os/skerry/pkg/agent"
	"github.com/skerry-os/skerry/pkg/machine"
)

func newKillAllCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "killall",
		Short: "End all pods of this node and what they have on the host",
		Long: "End all pods of this node, and take away their mounts, cgroups, network rules and links. Pods outlive skerryd, so that it can\n" +
			"be updated under them; this is for when they should not. Stop skerryd first. Nothing that is stored is lost.",
		Example: "  systemctl stop skerryd && skerryd killall",
		Args:    noArgs,
	}
	dataDir := cmd.Flags().StringP("data-dir", "d", machine.DataDir, "the node's")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		release, err := claimExisting(*dataDir)
		if err != nil {
			return err
		}
		defer release()
		return agent.RemainsOf(*dataDir).Clear(cmd.Context(), sayTo(cmd))
	}
	return cmd
}

func newUninstallCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Remove this node's data and all it has on the host",
		Long: "End all pods as killall does, and remove the data folder, with the cluster's state and every volume in it. Programs stay: they\n" +
			"are the package manager's. Stop skerryd first.",
		Example: "  systemctl disable --now skerryd && skerryd uninstall --yes",
		Args:    noArgs,
	}
	dataDir := cmd.Flags().StringP("data-dir", "d", machine.DataDir, "the node's")
	yes := cmd.Flags().BoolP("yes", "y", false, "do not ask")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if identity, err := machine.ReadIdentity(os.DirFS("/")); err == nil {
			return fmt.Errorf("this machine is a Skerry image (%+v): to begin anew, erase its data partition or write the image again", identity)
		}
		if _, err := os.Stat(*dataDir); err != nil {
			return settings.Usage(fmt.Errorf("%w; there is nothing to remove", err))
		}
		if !*yes {
			_, _ = fmt.Fprintf(cmd.OutOrStdout(), "Remove %s and everything in it, and end all pods? Type yes: ", *dataDir)
			answer, _ := bufio.NewReader(cmd.InOrStdin()).ReadString('\n')
			if strings.TrimSpace(answer) != "yes" {
				return errors.New("nothing was done")
			}
		}
		release, err := claimExisting(*dataDir)
		if err != nil {
			return err
		}
		defer release()
		say := sayTo(cmd)
		remains := agent.RemainsOf(*dataDir)
		if err := remains.Clear(cmd.Context(), say); err != nil {
			return err
		}
		var errs []error
		for _, dir := range append(remains.Folders(), *dataDir) {
			if err := os.RemoveAll(dir); err != nil {
				errs = append(errs, err)
			} else {
				say("%s removed", dir)
			}
		}
		if *dataDir == machine.DataDir {
			errs = append(errs, os.RemoveAll(defaultWriteKubeconfig))
		}
		return errors.Join(errs...)
	}
	return cmd
}

// claimExisting takes the data folder, so that no skerryd uses it meanwhile.
func claimExisting(dataDir string) (release func(), err error) {
	if _, err := os.Stat(dataDir); errors.Is(err, fs.ErrNotExist) {
		return func() {}, nil // it was removed by hand; what it left on the host is still ours to clear
	}
	return host.Claim(dataDir)
}

func sayTo(cmd *cobra.Command) func(string, ...any) {
	return func(format string, a ...any) { _, _ = fmt.Fprintf(cmd.OutOrStdout(), format+"\n", a...) }
}
