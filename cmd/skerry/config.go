package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/skerry-os/skerry/pkg/machine"
)

func newConfigCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "config", Short: "Write and check what a machine is told"}
	cmd.AddCommand(newConfigNewCmd(), newConfigCheckCmd(), newConfigSignCmd(), newConfigSchemaCmd())
	return cmd
}

func newConfigNewCmd() *cobra.Command {
	role := string(machine.RoleServer)
	cmd := &cobra.Command{
		Use:     "new",
		Short:   "Print a commented node config to begin with",
		Example: "  skerry config new --role agent >north-2.yaml",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			data, err := machine.Example(machine.Role(role))
			if err != nil {
				return fmt.Errorf("--role: %w", err)
			}
			_, err = cmd.OutOrStdout().Write(data)
			return err
		},
	}
	cmd.Flags().StringVar(&role, "role", role, "server or agent")
	return cmd
}

func newConfigSchemaCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "schema",
		Short: "Print the JSON Schema of node configs, for editors",
		Long: "Print the JSON Schema (2020-12) of node configs. An editor that knows YAML completes and checks by it when the first\n" +
			"line of a config is: # yaml-language-server: $schema=node-config.schema.json",
		Example: "  skerry config schema >node-config.schema.json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			data, err := machine.Schema()
			if err != nil {
				return err
			}
			_, err = cmd.OutOrStdout().Write(data)
			return err
		},
	}
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
