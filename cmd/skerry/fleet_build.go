package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"text/tabwriter"
	"time"

	"filippo.io/age"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/skerry-os/skerry/image/fleet"
	"github.com/skerry-os/skerry/pkg/atomicfile"
)

// keyringFlags say how to open what age has encrypted.
type keyringFlags struct {
	identity, passphrase string
}

func (k *keyringFlags) bind(cmd *cobra.Command) {
	cmd.Flags().StringVar(&k.identity, "identity", "", "file with the identity of age that an encrypted fleet is opened with")
	cmd.Flags().StringVar(&k.passphrase, "passphrase-file", "", "file with the passphrase of an encrypted fleet (default: ask)")
}

func (k *keyringFlags) ring(cmd *cobra.Command) (*fleet.Keyring, error) {
	r := new(fleet.Keyring)
	if k.identity != "" {
		data, err := os.ReadFile(k.identity)
		if err == nil {
			r.Identities, err = age.ParseIdentities(bytes.NewReader(data))
		}
		if err != nil {
			return nil, fmt.Errorf("--identity: %w", err)
		}
	}
	in, ok := cmd.InOrStdin().(*os.File)
	switch {
	case k.passphrase != "":
		data, err := os.ReadFile(k.passphrase)
		if err != nil {
			return nil, fmt.Errorf("--passphrase-file: %w", err)
		}
		r.Ask = func(bool) (string, error) { return string(bytes.TrimRight(data, "\r\n")), nil }
	case ok && term.IsTerminal(int(in.Fd())):
		r.Ask = func(again bool) (string, error) { return askPassphrase(cmd, in, again) }
	}
	return r, nil
}

func askPassphrase(cmd *cobra.Command, in *os.File, again bool) (string, error) {
	ask := func(what string) (string, error) {
		cmd.PrintErr(what)
		b, err := term.ReadPassword(int(in.Fd()))
		cmd.PrintErrln()
		return string(b), err
	}
	first, err := ask("Passphrase of the fleet: ")
	if err != nil || !again {
		return first, err
	}
	second, err := ask("Once more: ")
	if err == nil && first != second {
		err = errors.New("the two passphrases differ; nothing was written")
	}
	return first, err
}

func newFleetBuildCmd() *cobra.Command {
	var out string
	var o fleet.Options
	var keys keyringFlags
	var quiet bool
	cmd := &cobra.Command{
		Use:   "build [FILE] -o DIR",
		Short: "Make everything the machines need, before any of them exists",
		Long: "Make the cluster's authorities and keys, a token for each node that lets it and no other join, and a card for each node, without\n" +
			"a network. The secrets stay beside the file, in FILE's name with .secrets; a second build keeps them, adds what is new and\n" +
			"says what changed. For each kind of machine there is one image, and for each node some KiB that it has beside it.",
		Example: "  skerry fleet build -o cards\n  skerry fleet build --identity key.txt -o cards home.yaml",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.Now = time.Now()
			f, err := loadWhole(cmd.Context(), args)
			if err != nil {
				return err
			}
			if o.Keys, err = keys.ring(cmd); err != nil {
				return err
			}
			r, err := fleet.Build(cmd.Context(), f, out, o)
			if err != nil || quiet {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s\nfleet %s: %d cards in %s, in %.1f s; the secrets are in %s: keep a copy\n", r, f.Name, len(f.Nodes), out,
				time.Since(o.Now).Seconds(), f.StateDir())
			return err
		},
	}
	cmd.Flags().StringVarP(&out, "output", "o", "", "folder for the cards (required)")
	cmd.Flags().BoolVar(&o.Generic, "generic", false, "also make a card for each board that fits all its nodes, which find themselves by serial or mac; see FLEET.md for what it gives away")
	cmd.Flags().BoolVar(&o.Whole, "whole", false, "make whole images, for other programs to write; where the file system can, they share their blocks")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print nothing but errors")
	keys.bind(cmd)
	_ = cmd.MarkFlagRequired("output")
	return cmd
}

func newFleetCardsCmd() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "cards DIR",
		Short:   "List which card is which node, and which are still to be written",
		Example: "  skerry fleet cards cards",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			b, err := fleet.Open(args[0], nil)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), b.Cards)
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 4, 2, ' ', 0)
			_, _ = fmt.Fprintln(w, "NODE\tROLE\tBOARD\tCARD\tWRITTEN")
			for _, c := range b.Index.Cards {
				card, when := "", "no"
				if was, ok := b.Cards[c.Name]; ok {
					card, when = was.Disk, was.At.Format(time.DateTime)
					if !b.Done(c) {
						when += ", and changed since"
					}
				}
				_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", c.Name, c.Role, c.Board, card, when)
			}
			return w.Flush()
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func newFleetKubeconfigCmd() *cobra.Command {
	var out string
	var keys keyringFlags
	cmd := &cobra.Command{
		Use:   "kubeconfig [FILE] -o FILE",
		Short: "Make an administrator's kubeconfig, without a network",
		Long: "Make an administrator's kubeconfig from the fleet's secrets: it is good as soon as the server runs, and for a year. The server\n" +
			"need not be asked, nor exist.",
		Example: "  skerry fleet kubeconfig -o kubeconfig && kubectl --kubeconfig kubeconfig get nodes",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := loadFleet(args)
			if err != nil {
				return err
			}
			ring, err := keys.ring(cmd)
			if err != nil {
				return err
			}
			data, err := f.Kubeconfig(ring, time.Now())
			if err != nil {
				return err
			}
			if err := atomicfile.Write(out, data, 0o600); err != nil {
				return err
			}
			server, err := f.Server()
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "wrote %s: whoever has it administrates the cluster at %s\n", out, server)
			return err
		},
	}
	cmd.Flags().StringVarP(&out, "output", "o", "", "the file to write (required)")
	keys.bind(cmd)
	_ = cmd.MarkFlagRequired("output")
	return cmd
}

func newFleetTokensCmd() *cobra.Command {
	var keys keyringFlags
	cmd := &cobra.Command{
		Use:   "tokens [FILE]",
		Short: "Print the nodes' tokens for a cluster that runs already",
		Long: "Print the tokens of all nodes as Secrets, for kubectl apply. A server takes them from its card at its first start; the tokens of\n" +
			"nodes that were added to the fleet later it learns this way.",
		Example: "  skerry fleet build -o cards && skerry fleet tokens | kubectl --kubeconfig kubeconfig apply -f -",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := loadFleet(args)
			if err != nil {
				return err
			}
			ring, err := keys.ring(cmd)
			if err != nil {
				return err
			}
			data, err := f.Tokens(ring)
			if err != nil {
				return err
			}
			_, err = cmd.OutOrStdout().Write(data)
			return err
		},
	}
	keys.bind(cmd)
	return cmd
}
