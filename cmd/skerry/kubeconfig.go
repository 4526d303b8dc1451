package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"gopkg.in/yaml.v3"

	"github.com/skerry-os/skerry/pkg/atomicfile"
	"github.com/skerry-os/skerry/pkg/join"
	"github.com/skerry-os/skerry/pkg/machine"
)

func newKubeconfigCmd() *cobra.Command {
	var server, dir, config, out string
	var limit time.Duration
	cmd := &cobra.Command{
		Use:   "kubeconfig --server HOST:PORT --config node.yaml -o FILE",
		Short: "Fetch an administrator's kubeconfig from a server",
		Long: "Fetch a kubeconfig over the network. The token in the node config is the proof, for both sides: the server hands nothing\n" +
			"to who does not know it, this command believes nothing from a server that does not, and the token itself is never sent.",
		Example: "  skerry kubeconfig --server 192.0.2.5:6443 --config node.yaml -o kubeconfig",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if config == "" || out == "" || (server == "") == (dir == "") {
				return errors.New("kubeconfig: name the server with --server (or its machine in QEMU with --vm), its node config with --config and the file to write with -o")
			}
			c, err := machine.Load(config)
			if err != nil {
				return err
			}
			if dir != "" {
				v, err := running(dir)
				if err != nil {
					return err
				}
				if server, err = v.Addr(apiPort); err != nil {
					return err
				}
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), limit)
			defer cancel()
			b, err := join.FetchKubeconfig(ctx, server, c.Cluster.Token)
			if err != nil {
				return fmt.Errorf("kubeconfig: %w", err)
			}
			if b, err = pointAt(b, "https://"+server); err != nil {
				return fmt.Errorf("kubeconfig of %s: %w", server, err)
			}
			return atomicfile.Write(out, b, 0o600)
		},
	}
	f := cmd.Flags()
	f.StringVar(&server, "server", "", "the server, as HOST:PORT")
	f.StringVar(&dir, "vm", "", "the folder of a machine that skerry vm start started, instead of --server")
	f.StringVar(&config, "config", "", "the server's node config, which holds the token")
	f.StringVarP(&out, "output", "o", "", "the file to write")
	f.DurationVar(&limit, "timeout", 30*time.Second, "give up after this time")
	return cmd
}

// pointAt rewrites where a kubeconfig's clusters are: the server knows itself by an address that may not lead there from here.
func pointAt(kubeconfig []byte, url string) ([]byte, error) {
	var k map[string]any
	if err := yaml.Unmarshal(kubeconfig, &k); err != nil {
		return nil, err
	}
	clusters, _ := k["clusters"].([]any)
	if len(clusters) == 0 {
		return nil, errors.New("holds no cluster")
	}
	for _, c := range clusters {
		entry, _ := c.(map[string]any)
		cluster, _ := entry["cluster"].(map[string]any)
		if cluster == nil {
			return nil, errors.New("a cluster of it has no address")
		}
		cluster["server"] = url
	}
	return yaml.Marshal(k)
}
