package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/skerry-os/skerry/cmd/skerryd/internal/host"
	"github.com/skerry-os/skerry/pkg/checkconfig"
	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/version"
)

func newCheckConfigCmd() *cobra.Command {
	var asJSON bool
	o := checkconfig.Options{}
	cmd := &cobra.Command{
		Use:     "check-config",
		Short:   "Say what this machine lacks to run a node, and what to do",
		Example: "  skerryd check-config --json",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			libexec, _, err := host.SharedDirs()
			if err != nil {
				return err
			}
			o.Libexec, o.Built = libexec, version.BuildTime()
			report := checkconfig.Run(o)
			write := report.WriteText
			if asJSON {
				write = report.WriteJSON
			}
			if err := write(cmd.OutOrStdout()); err != nil {
				return err
			}
			if n := report.Count(checkconfig.Missing); n > 0 {
				return fmt.Errorf("check-config: %d missing; a node does not work here until they are there", n)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().StringVar(&o.DataDir, "data-dir", machine.DataDir, "folder whose disk has to have room")
	return cmd
}
