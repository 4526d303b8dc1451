package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/skerry-os/skerry/cmd/skerryd/internal/settings"
	"github.com/skerry-os/skerry/pkg/server/membership"
)

func newCertificateRotateCACmd() *cobra.Command {
	var o onServer
	var status, finish, force bool
	cmd := &cobra.Command{
		Use:   "rotate-ca",
		Short: "Replace the cluster's certificate authorities while it runs",
		Long: "Replace the cluster's certificate authorities, in three steps. Pods run on through all of them.\n\n" +
			"  1. skerryd certificate rotate-ca            on one server. All servers take the new authorities up within minutes, one after\n" +
			"                                              the other, and start anew, and so do agents. Old and new are trusted side by side:\n" +
			"                                              nodes that are off follow when they are back, tokens with the old CA's pin work on.\n" +
			"  2. skerryd certificate rotate-ca --status   until no node is behind. Then fetch kubeconfigs and tokens anew that people carried\n" +
			"                                              away, and start pods anew that read the cluster's CA once and keep it.\n" +
			"  3. skerryd certificate rotate-ca --finish   The old authorities are forgotten. It refuses while a node is behind.\n\n" +
			"There is no hurry between the steps, and no way back but forward: a rotation that is open can be finished, and not begun again.\n" +
			"The key that signs service-account tokens is not replaced.",
		Example: "  skerryd certificate rotate-ca\n  skerryd certificate rotate-ca --status\n  skerryd certificate rotate-ca --finish",
		Args:    noArgs,
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if status && finish || force && !finish {
			return settings.Usage(fmt.Errorf("rotate-ca: --status and --finish are two steps, and --force belongs to --finish"))
		}
		client, err := o.client()
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), limit)
		defer cancel()
		out := cmd.OutOrStdout()
		switch {
		case finish:
			if err := membership.FinishRotation(ctx, client, force); err != nil {
				return err
			}
			_, err = fmt.Fprintln(out, "the old authorities are forgotten by all servers within minutes, one after the other; agents follow")
			return err
		case !status:
			if err := membership.RotateAuthorities(ctx, client, o.dataDir, time.Now()); err != nil {
				return err
			}
			_, err = fmt.Fprintln(out, "new authorities are made; servers and agents take them up within minutes: see --status, and end it with --finish")
			return err
		}
		r, err := membership.ReadRotation(ctx, client)
		if err != nil {
			return err
		}
		if o.json {
			return printJSON(out, r)
		}
		return tellRotation(out, r)
	}
	o.bind(cmd, true)
	cmd.Flags().BoolVar(&status, "status", false, "say how far it is, and who has not followed")
	cmd.Flags().BoolVar(&finish, "finish", false, "forget the old authorities")
	cmd.Flags().BoolVar(&force, "force", false, "with --finish: although nodes are behind, which must then join again with a token")
	return cmd
}

func tellRotation(out io.Writer, r *membership.Rotation) error {
	var err error
	switch {
	case r.Began == "":
		_, err = fmt.Fprintln(out, "the authorities are those of the cluster's beginning; no rotation is under way")
	case !r.Open:
		_, err = fmt.Fprintf(out, "the authorities are those of %s; no rotation is under way\n", r.Began)
	case len(r.Behind) == 0:
		_, err = fmt.Fprintf(out, "begun at %s; all nodes have followed: end it with --finish\n", r.Began)
	default:
		_, err = fmt.Fprintf(out, "begun at %s; not yet followed: %s\n", r.Began, strings.Join(r.Behind, ", "))
	}
	if err == nil && r.Waiting != "" {
		_, err = fmt.Fprintln(out, "taking its turn now:", r.Waiting)
	}
	return err
}
