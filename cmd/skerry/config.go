package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/skerry-os/skerry/pkg/machine"
)

func newConfigCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "config", Short: "Check what a machine is told"}
	cmd.AddCommand(newConfigCheckCmd())
	return cmd
}

func newConfigCheckCmd() *cobra.Command {
	var quiet bool
	cmd := &cobra.Command{
		Use:     "check FILE...",
		Short:   "Check node configs, and name every fault by line and column",
		Example: "  skerry config check north-1.yaml north-2.yaml",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var errs []error
			for _, name := range args {
				c, err := machine.Load(name)
				if err != nil {
					errs = append(errs, err)
					continue
				}
				if quiet {
					continue
				}
				host := c.Hostname
				if host == "" {
					host = "without a hostname of its own"
				}
				if _, err := fmt.Fprintf(cmd.OutOrStdout(), "%s: is good: %s %s\n", name, c.Role, host); err != nil {
					return err
				}
			}
			return errors.Join(errs...)
		},
	}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print nothing but faults")
	return cmd
}
