package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/skerry-os/skerry/cmd/skerryd/internal/settings"
	"github.com/skerry-os/skerry/pkg/enrol"
	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/pki"
)

func newCertificateCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "certificate",
		Short: "Look at this node's certificates, or renew them now",
		Long: "A node renews its certificates by itself, without a restart, when a third of their life is left. These commands are for who wants to\n" +
			"see it, or has a reason not to wait.",
		Example: "  skerryd certificate check\n  skerryd certificate rotate\n  skerryd certificate rotate-ca",
		Args:    noArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newCertificateCheckCmd(), newCertificateRotateCmd(), newCertificateRotateCACmd())
	return cmd
}

func newCertificateCheckCmd() *cobra.Command {
	var o onServer
	cmd := &cobra.Command{
		Use:     "check",
		Short:   "List the certificates and when they end; exits with 1 if one has",
		Example: "  skerryd certificate check --json",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			all, err := pki.List(o.dataDir)
			if err != nil {
				return err
			}
			if len(all) == 0 {
				return fmt.Errorf("%s: holds no certificates; is it the --data-dir of a node, and are you root?", o.dataDir)
			}
			now := time.Now()
			var errs []error
			for _, c := range all {
				switch {
				case now.After(c.Until):
					errs = append(errs, fmt.Errorf("%s: ended on %s; skerryd renews it at its next start, or the clock is wrong", c.File, c.Until.Format(time.RFC3339)))
				case now.Before(c.From):
					errs = append(errs, fmt.Errorf("%s: begins on %s; the clock is wrong", c.File, c.From.Format(time.RFC3339)))
				}
			}
			if o.json {
				if err := printJSON(cmd.OutOrStdout(), all); err != nil {
					return err
				}
				return errors.Join(errs...)
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 4, 2, ' ', 0)
			_, _ = fmt.Fprintln(w, "ENDS\tIN\tSUBJECT\tFILE")
			for _, c := range all {
				file, err := filepath.Rel(o.dataDir, c.File)
				if err != nil {
					file = c.File
				}
				left := c.Until.Sub(now)
				in := fmt.Sprintf("%d days", int(left.Hours()/24))
				if left < 48*time.Hour {
					in = left.Round(time.Second).String()
				}
				_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", c.Until.Format(time.RFC3339), in, c.Subject, file)
			}
			return errors.Join(append(errs, w.Flush())...)
		},
	}
	o.bind(cmd, true)
	return cmd
}

func newCertificateRotateCmd() *cobra.Command {
	var o onServer
	cmd := &cobra.Command{
		Use:   "rotate",
		Short: "Make this node's certificates anew",
		Long: "Make this node's certificates anew. What runs takes them up within minutes, without a restart. A server signs its own; an agent asks\n" +
			"a server.",
		Example: "  skerryd certificate rotate",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if enrol.Joined(o.dataDir) {
				n, err := pki.Expire(o.dataDir)
				if err != nil {
					return err
				}
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "%d certificates are made anew by the server that runs, within a minute, or at its next start\n", n)
				return err
			}
			state, err := enrol.Load(o.dataDir)
			if err != nil {
				return err
			}
			if state == nil {
				return settings.Usage(fmt.Errorf("%s: no node has joined from here; is it its --data-dir, and are you root?", o.dataDir))
			}
			return renewAgent(cmd.Context(), o.dataDir, state)
		},
	}
	o.bind(cmd, false)
	return cmd
}

// renewAgent asks the servers for new certificates of a node, and writes them where the running node reads them.
func renewAgent(ctx context.Context, dataDir string, state *enrol.State) error {
	a := machine.DefaultAgent()
	a.DataDir = dataDir
	self, err := thisMachine(a)
	if err != nil {
		return err
	}
	var ips []netip.Addr
	for _, text := range state.Addresses {
		ip, err := netip.ParseAddr(text)
		if err != nil {
			return err
		}
		ips = append(ips, ip)
	}
	kubeconfig := filepath.Join(dataDir, "agent", "kubelet.kubeconfig")
	server, err := pki.ReadServer(kubeconfig)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	now, err := enrol.Renew(ctx, enrol.Config{
		DataDir: dataDir, NodeName: state.Node, Machine: self, Addresses: func(map[string]any) ([]netip.Addr, error) { return ips, nil },
	}, state, state.Servers)
	if err != nil {
		return err
	}
	if _, err := now.Files(dataDir, server); err != nil {
		return err
	}
	_, err = fmt.Fprintln(os.Stdout, "renewed until", now.Until().Format(time.RFC3339))
	return err
}
