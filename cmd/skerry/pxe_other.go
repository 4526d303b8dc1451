//go:build !linux

package main

import (
	"errors"

	"github.com/spf13/cobra"
)

// newPXECmd says where network boot is to be had: it needs raw sockets as Linux has them.
func newPXECmd() *cobra.Command {
	return &cobra.Command{
		Use:    "pxe",
		Short:  "Install machines over the network (on Linux alone)",
		Hidden: true,
		RunE: func(*cobra.Command, []string) error {
			return errors.New("network boot is served from Linux; here, write sticks and cards with: skerry flash")
		},
	}
}
