package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/skerry-os/skerry/cmd/skerryd/internal/settings"
	"github.com/skerry-os/skerry/pkg/machine"
)

func newAgentCmd() *cobra.Command {
	typed := machine.DefaultAgent()
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Run a node that joins a server",
		Args:  noArgs,
	}
	config := settings.Bind(cmd.Flags(), &typed)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		a := machine.DefaultAgent()
		err := settings.Load(cmd.Flags(), *config, &typed, &a, func(name string, data []byte) error {
			d, err := machine.DecodeAgent(name, data)
			if err == nil {
				a = *d
			}
			return err
		})
		if err != nil {
			return err
		}
		if a.Server == "" {
			return settings.Usage(errors.New("--server: an agent needs the server to join, as https://HOST:6443"))
		}
		return fmt.Errorf("this release cannot join %s: it has clusters of one server only; run skerryd server here, or wait for a release that joins", a.Server)
	}
	return cmd
}
