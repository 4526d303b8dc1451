package main

import (
	"context"
	"fmt"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/skerry-os/skerry/pkg/server/membership"
)

func newNodeCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "node",
		Short: "List the machines of the cluster, let one take a dead one's place, remove one",
		Long: "A node's name belongs to the machine that joined with it. Another machine that asks for the name is refused while the first is alive;\n" +
			"when it is not, a person says whether the new one takes its place (or --node-replace=always does).",
		Example: "  skerryd node list\n  skerryd node approve north-7\n  skerryd node remove north-7",
		Args:    noArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newNodeListCmd(), newNodeApproveCmd(), newNodeRemoveCmd())
	return cmd
}

func newNodeListCmd() *cobra.Command {
	var o onServer
	cmd := &cobra.Command{
		Use: "list", Short: "List which machine has which name, and which other asks for it", Example: "  skerryd node list --json", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := o.client()
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), limit)
			defer cancel()
			all, err := membership.Records(ctx, client)
			if err != nil {
				return err
			}
			if o.json {
				return printJSON(cmd.OutOrStdout(), all)
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 4, 2, ' ', 0)
			_, _ = fmt.Fprintln(w, "NODE\tMACHINE\tJOINED\tSTATE")
			for _, r := range all {
				state := "joined"
				switch {
				case r.Removed:
					state = "removed"
				case r.Approved != "":
					state = "approved for another machine"
				case r.Pending != nil:
					state = fmt.Sprintf("machine %s asked for the name at %s", r.Pending.ID, r.Since)
				}
				_, _ = fmt.Fprintf(w, "%s\t%s (%s)\t%s\t%s\n", r.Node, r.Machine.ID, r.Machine.Description, r.Joined, state)
			}
			return w.Flush()
		},
	}
	o.bind(cmd, true)
	return cmd
}

func newNodeApproveCmd() *cobra.Command {
	var o onServer
	cmd := &cobra.Command{
		Use: "approve NAME", Short: "Let another machine take the place of a node that is dead", Example: "  skerryd node approve north-7", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := o.client()
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), limit)
			defer cancel()
			r, err := membership.ApproveNode(ctx, client, args[0])
			if err != nil {
				return err
			}
			who := "the next machine that asks"
			if r.Pending != nil {
				who = "machine " + r.Pending.ID + " (" + r.Pending.Description + ")"
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s may take the place of machine %s (%s) as node %s\n", who, r.Machine.ID, r.Machine.Description, r.Node)
			return err
		},
	}
	o.bind(cmd, false)
	return cmd
}

func newNodeRemoveCmd() *cobra.Command {
	var o onServer
	cmd := &cobra.Command{
		Use: "remove NAME", Short: "Take a node out of the cluster; its certificates open nothing any more", Example: "  skerryd node remove north-7", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := o.client()
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), limit)
			defer cancel()
			return membership.RemoveNode(ctx, client, args[0])
		},
	}
	o.bind(cmd, false)
	return cmd
}
