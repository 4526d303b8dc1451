package main

import (
	"github.com/spf13/cobra"
)

func newPublishCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "publish",
		Short: "Bring images to clouds, and releases to registries",
	}
	cmd.AddCommand(newPublishAWSCmd(), newPublishOCICmd())
	return cmd
}
