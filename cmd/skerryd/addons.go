package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/skerry-os/skerry/cmd/skerryd/internal/settings"
	"github.com/skerry-os/skerry/pkg/addons"
)

func newEnableCmd() *cobra.Command {
	return newSwitchCmd("enable", "Apply a component again that was disabled", addons.Enable)
}

func newDisableCmd() *cobra.Command {
	return newSwitchCmd("disable", "Remove a component from the cluster, until it is enabled again", addons.Disable)
}

func newSwitchCmd(verb, short string, do func(context.Context, kubernetes.Interface, string) error) *cobra.Command {
	var kubeconfig string
	cmd := &cobra.Command{
		Use:     verb + " COMPONENT",
		Short:   short,
		Long:    short + ". The decision is the cluster's: all servers keep to it,\nalso after a restart. skerryd status lists the components.",
		Example: "  skerryd " + verb + " metrics-server",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return settings.Usage(fmt.Errorf("%s takes the name of one component; skerryd status lists them", verb))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := newStatusReader(kubeconfig)
			if err != nil {
				return err
			}
			if err := do(cmd.Context(), r.Client(), args[0]); err != nil {
				return fmt.Errorf("%s: %w", verb, err)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: %sd\n", args[0], verb)
			return err
		},
	}
	cmd.Flags().StringVar(&kubeconfig, "kubeconfig", "", "file that says how to reach the cluster (default: $KUBECONFIG, or this server's)")
	return cmd
}

func newStatusCmd() *cobra.Command {
	var kubeconfig string
	var asJSON, wait bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the nodes and components of the cluster, or wait until they are ready",
		Long: "Show the nodes and components of the cluster. The exit code is 0 when all nodes and all enabled components are ready,\n" +
			"else 1.",
		Example: "  skerryd status\n  skerryd status --wait-ready --timeout 5m\n  skerryd status --json",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			if wait {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, timeout)
				defer cancel()
			}
			s, err := readStatus(ctx, kubeconfig, wait)
			if err != nil {
				return fmt.Errorf("status: %w", err)
			}
			if asJSON {
				err = json.NewEncoder(cmd.OutOrStdout()).Encode(s)
			} else {
				err = writeStatus(cmd.OutOrStdout(), s)
			}
			if err == nil && !s.Ready {
				err = fmt.Errorf("status: not ready: %s", s.Waiting())
			}
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&kubeconfig, "kubeconfig", "", "file that says how to reach the cluster (default: $KUBECONFIG, or this server's)")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	f.BoolVar(&wait, "wait-ready", false, "wait until all is ready; an API that does not answer yet is waited for too")
	f.DurationVar(&timeout, "timeout", 10*time.Minute, "how long to wait")
	return cmd
}

// readStatus asks once, or until all is ready or ctx ends; then the last answer is given.
func readStatus(ctx context.Context, kubeconfig string, wait bool) (*addons.Status, error) {
	const between = time.Second
	var last *addons.Status
	for {
		var s *addons.Status
		r, err := newStatusReader(kubeconfig)
		if err == nil {
			s, err = r.Status(ctx)
		}
		if s != nil {
			last = s
		}
		if !wait || err == nil && s.Ready {
			return s, err
		}
		select {
		case <-time.After(between):
		case <-ctx.Done():
			if last != nil {
				return last, nil
			}
			return nil, errors.Join(err, context.Cause(ctx))
		}
	}
}

func newStatusReader(kubeconfig string) (*addons.Reader, error) {
	if kubeconfig == "" {
		if err := defaultKubeconfig(); err != nil {
			return nil, err
		}
		rules := clientcmd.NewDefaultClientConfigLoadingRules()
		if missing := rules.GetDefaultFilename(); !isFile(missing) {
			return nil, fmt.Errorf("%s: no such file; run this on a server, or give --kubeconfig", missing)
		}
		config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, nil).ClientConfig()
		if err != nil {
			return nil, err
		}
		return addons.NewReader(config)
	}
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("--kubeconfig: %w", err)
	}
	return addons.NewReader(config)
}

func isFile(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

func writeStatus(w io.Writer, s *addons.Status) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(cells ...any) { _, _ = fmt.Fprintf(t, "%v\t%v\t%v\t%v\t%v\n", cells...) } // Flush has the error
	yes := map[bool]string{true: "yes", false: "no"}
	row("KIND", "NAME", "READY", "FROM", "MESSAGE")
	for _, n := range s.Nodes {
		row("node", n.Name, yes[n.Ready], "-", n.Message)
	}
	for _, c := range s.Components {
		ready, message := yes[c.Ready], c.Message
		if !c.Enabled {
			ready, message = "off", "disabled by "+c.DisabledBy
			if c.Message != "" {
				message += "; " + c.Message
			}
		}
		row("component", c.Name, ready, c.Source, message)
	}
	return t.Flush()
}
