package main

import "github.com/spf13/cobra"

func newReleaseCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "release", Short: "Build and check signed releases of the OS"}
	cmd.AddCommand(newReleaseBuildCmd(), newReleaseLockCmd(), newReleaseVerifyCmd(), newReleaseProgramsCmd())
	return cmd
}
