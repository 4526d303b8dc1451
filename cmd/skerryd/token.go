package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/client-go/kubernetes"

	"github.com/skerry-os/skerry/cmd/skerryd/internal/settings"
	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/server/membership"
	"github.com/skerry-os/skerry/pkg/server/secrets"
	"github.com/skerry-os/skerry/pkg/token"
)

// onServer are the flags of commands that ask the API of the server they run on.
type onServer struct {
	dataDir string
	json    bool
}

func (o *onServer) bind(cmd *cobra.Command, scriptable bool) {
	cmd.Flags().StringVar(&o.dataDir, "data-dir", machine.DataDir, "the server's data folder")
	if scriptable {
		cmd.Flags().BoolVar(&o.json, "json", false, "print JSON")
	}
}

func (o *onServer) client() (kubernetes.Interface, error) {
	name := filepath.Join(o.dataDir, "server", "cred", "admin.kubeconfig")
	if _, err := os.Stat(name); err != nil {
		return nil, fmt.Errorf("%w; run this on a server, as root, with its --data-dir", err)
	}
	return membership.Client(name)
}

// limit is how long such a command waits for the API.
const limit = 30 * time.Second

// pinned writes a secret as a token that names this cluster.
func (o *onServer) pinned(secret, user string) (string, error) {
	ca, err := os.ReadFile(filepath.Join(o.dataDir, "agent", "server-ca.crt"))
	if err != nil {
		return "", err
	}
	return token.Token{Pin: token.Pin(ca), User: user, Secret: secret}.String(), nil
}

func newTokenCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "token",
		Short: "Make, list, delete and rotate what lets nodes join",
		Long: "A cluster has one token of its own, in server/node-token of its servers' data folders, which lets agents and servers join. Beside it\n" +
			"tokens can be made that end, serve once, and let agents join only. Nodes that have joined need no token.",
		Example: "  skerryd token create --ttl 2h --single-use --description 'for north-7'\n  skerryd token list\n  skerryd token rotate",
		Args:    noArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newTokenCreateCmd(), newTokenListCmd(), newTokenDeleteCmd(), newTokenRotateCmd())
	return cmd
}

func newTokenCreateCmd() *cobra.Command {
	var o onServer
	var ttl time.Duration
	var t membership.Token
	cmd := &cobra.Command{
		Use:     "create [TOKEN]",
		Short:   "Make a token with which agents can join",
		Example: "  skerryd token create --ttl 2h --single-use --description 'for north-7'\n  skerryd token create --node north-7",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if ttl < 0 {
				return settings.Usage(errors.New("--ttl: is in the past; write a duration, as 24h, or 0 for a token without end"))
			}
			if t.Server && t.Node == "" {
				return settings.Usage(errors.New("--server: needs --node; with a token that lets servers join everything can be had"))
			}
			if len(args) > 0 {
				given, err := token.Parse(args[0])
				if err != nil {
					return settings.Usage(err)
				}
				t.Secret = given.Secret
			}
			client, err := o.client()
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), limit)
			defer cancel()
			made, err := membership.CreateToken(ctx, client, t, ttl)
			if err != nil {
				return err
			}
			text, err := o.pinned(made.Secret, "")
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), text)
			return err
		},
	}
	o.bind(cmd, false)
	cmd.Flags().DurationVar(&ttl, "ttl", 24*time.Hour, "end it after this time; 0 for never")
	cmd.Flags().BoolVar(&t.SingleUse, "single-use", false, "let one node join with it")
	cmd.Flags().StringVar(&t.Node, "node", "", "let only the node of this name join with it, and of the machines that ask for the name only the first")
	cmd.Flags().BoolVar(&t.Server, "server", false, "let that node be a server")
	cmd.Flags().StringVar(&t.Description, "description", "", "what it is for")
	return cmd
}

func newTokenListCmd() *cobra.Command {
	var o onServer
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List the tokens that were made",
		Example: "  skerryd token list --json",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := o.client()
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), limit)
			defer cancel()
			all, err := membership.ListTokens(ctx, client, time.Now())
			if err != nil {
				return err
			}
			if o.json {
				return printJSON(cmd.OutOrStdout(), all)
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 4, 2, ' ', 0)
			_, _ = fmt.Fprintln(w, "ID\tENDS\tUSE\tDESCRIPTION")
			for _, t := range all {
				ends, use := "never", "any number"
				if t.Expires != nil {
					ends = t.Expires.Format(time.RFC3339)
				}
				if t.Expired(time.Now()) {
					ends = "ended"
				}
				switch {
				case t.Node != "" && t.Machine != "":
					use = t.Node + ", which has"
				case t.Node != "":
					use = t.Node
				case t.Spent != nil:
					use = "once, used at " + t.Spent.Format(time.RFC3339)
				case t.SingleUse:
					use = "once"
				}
				_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", t.ID, ends, use, t.Description)
			}
			return w.Flush()
		},
	}
	o.bind(cmd, true)
	return cmd
}

func newTokenDeleteCmd() *cobra.Command {
	var o onServer
	cmd := &cobra.Command{
		Use:     "delete ID...",
		Short:   "Delete tokens that were made",
		Example: "  skerryd token delete k3v9xq",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := o.client()
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), limit)
			defer cancel()
			var errs []error
			for _, id := range args {
				errs = append(errs, membership.DeleteToken(ctx, client, id))
			}
			return errors.Join(errs...)
		},
	}
	o.bind(cmd, false)
	return cmd
}

func newTokenRotateCmd() *cobra.Command {
	var o onServer
	var to string
	var overlap time.Duration
	cmd := &cobra.Command{
		Use:   "rotate",
		Short: "Replace the cluster's own token",
		Long: "Replace the cluster's own token on all servers, and print the new one. The old one goes on working for as long as --overlap says;\n" +
			"nodes that have joined need neither.",
		Example: "  skerryd token rotate --overlap 72h",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			secret := token.New() + token.New()[7:]
			if to != "" {
				t, err := token.Parse(to)
				if err != nil {
					return settings.Usage(fmt.Errorf("--new-token: %w", err))
				}
				if secret = t.Secret; len(secret) < machine.MinToken {
					return settings.Usage(fmt.Errorf("--new-token: has %d characters; write at least %d", len(secret), machine.MinToken))
				}
			}
			client, err := o.client()
			if err != nil {
				return err
			}
			old, err := secrets.ReadToken(o.dataDir)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), limit)
			defer cancel()
			if err := membership.Rotate(ctx, client, old, secret, overlap); err != nil {
				return err
			}
			if err := secrets.WriteToken(o.dataDir, secret, filepath.Join(o.dataDir, "agent", "server-ca.crt")); err != nil {
				return err
			}
			text, err := o.pinned(secret, "server")
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), text)
			return err
		},
	}
	o.bind(cmd, false)
	cmd.Flags().StringVar(&to, "new-token", "", "the new token (default: one is made)")
	cmd.Flags().DurationVar(&overlap, "overlap", 24*time.Hour, "how long the old token works on")
	return cmd
}

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}
