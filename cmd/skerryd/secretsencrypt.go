package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/skerry-os/skerry/cmd/skerryd/internal/settings"
	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/reencrypt"
	"github.com/skerry-os/skerry/pkg/server/secrets"
)

func newSecretsEncryptCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "secrets-encrypt",
		Short: "Say how secrets are stored, and change their key",
		Long: "Say how the cluster stores its secrets, and change that. Secrets are encrypted from the first start on. rotate-keys changes\n" +
			"the key while the server runs; it may be cut short at any time and goes on when it is called again.",
		Example: "  skerryd secrets-encrypt status\n  skerryd secrets-encrypt rotate-keys",
		Args:    noArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	var several bool
	add := func(name, short string, one bool, run func(context.Context, *reencrypt.Cluster) error) {
		sub := &cobra.Command{Use: name, Short: short, Example: "  skerryd secrets-encrypt " + name, Args: noArgs}
		dataDir := sub.Flags().StringP("data-dir", "d", machine.DataDir, "the server's")
		sub.Flags().BoolVarP(&several, "force", "f", false, "go on although the cluster has several servers")
		sub.Flags().Bool("skip", false, "for scripts written for K3s; does nothing")
		sub.Flags().Lookup("skip").Hidden = true
		sub.RunE = func(cmd *cobra.Command, _ []string) error {
			c, err := encryptionCluster(*dataDir, func(format string, a ...any) { _, _ = fmt.Fprintf(cmd.OutOrStdout(), format+"\n", a...) })
			if err != nil {
				return err
			}
			n, err := c.Servers(cmd.Context())
			if err != nil {
				return err
			}
			if n > 1 && one && !several {
				return settings.Usage(fmt.Errorf("%w: run prepare, copy %s to the other servers, then the same with rotate, and reencrypt at the end", reencrypt.ErrOthers, c.File))
			}
			return run(cmd.Context(), c)
		}
		cmd.AddCommand(sub)
	}
	cmd.AddCommand(newSecretsEncryptStatusCmd())
	add("rotate-keys", "Change the key: prepare, rotate and reencrypt in one", true, func(ctx context.Context, c *reencrypt.Cluster) error { return c.RotateKeys(ctx) })
	add("prepare", "Add a new key that is only read", false, func(ctx context.Context, c *reencrypt.Cluster) error { return c.Prepare(ctx) })
	add("rotate", "Make the new key the one for writing", false, func(ctx context.Context, c *reencrypt.Cluster) error { return c.Rotate(ctx) })
	add("reencrypt", "Write every secret again and forget the old key", false, func(ctx context.Context, c *reencrypt.Cluster) error { return c.Reencrypt(ctx) })
	add("disable", "Store secrets as they are", true, func(ctx context.Context, c *reencrypt.Cluster) error { return c.SetPlain(ctx, true) })
	add("enable", "Encrypt secrets again", true, func(ctx context.Context, c *reencrypt.Cluster) error { return c.SetPlain(ctx, false) })
	return cmd
}

// encryptionCluster is that of the server on this machine.
func encryptionCluster(dataDir string, say func(string, ...any)) (*reencrypt.Cluster, error) {
	files, err := secrets.Find(dataDir)
	if err != nil {
		return nil, err
	}
	config, err := clientcmd.BuildConfigFromFlags("", filepath.Join(dataDir, "server", "cred", "admin.kubeconfig"))
	if err != nil {
		return nil, err
	}
	client, err := kubernetes.NewForConfig(config)
	return &reencrypt.Cluster{Client: client, File: files, Say: say}, err
}

// encryptionStatus is what status prints as JSON.
type encryptionStatus struct {
	Enabled   bool     `json:"enabled"`
	Provider  string   `json:"provider"`
	Stage     string   `json:"stage"`
	ActiveKey string   `json:"activeKey"`
	Keys      []string `json:"keys"`
	Loaded    bool     `json:"loaded"`
	Problem   string   `json:"problem,omitempty"`
}

func newSecretsEncryptStatusCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "status", Short: "Say how secrets are stored", Example: "  skerryd secrets-encrypt status --json", Args: noArgs}
	dataDir := cmd.Flags().StringP("data-dir", "d", machine.DataDir, "the server's")
	asJSON := cmd.Flags().Bool("json", false, "print JSON")
	format := cmd.Flags().StringP("output", "o", "text", "text or json, as K3s has it")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if *format != "text" && *format != "json" {
			return settings.Usage(fmt.Errorf("--output: %q is neither text nor json", *format))
		}
		c, err := encryptionCluster(*dataDir, nil)
		if err != nil {
			return err
		}
		e, err := secrets.ReadEncryption(c.File)
		if err != nil {
			return err
		}
		s := encryptionStatus{Enabled: e.Plain != secrets.PlainWritten, Provider: "secretbox", Stage: string(e.Stage()), ActiveKey: e.Keys[0].Name}
		for _, k := range e.Keys {
			s.Keys = append(s.Keys, k.Name)
		}
		digest, err := secrets.Digest(c.File)
		if err != nil {
			return err
		}
		loaded, err := c.Loaded(cmd.Context())
		switch s.Loaded = loaded == digest; {
		case err != nil:
			s.Problem = err.Error()
		case !s.Loaded:
			s.Problem = "the API server has not read the file yet"
		}
		if *asJSON || *format == "json" {
			enc := json.NewEncoder(cmd.OutOrStdout())
			enc.SetIndent("", "  ")
			return enc.Encode(s)
		}
		onOff := map[bool]string{true: "Enabled", false: "Disabled"}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "Encryption Status: %s\nCurrent Rotation Stage: %s\n", onOff[s.Enabled], s.Stage)
		for i, name := range s.Keys {
			mark := " "
			if i == 0 && s.Enabled {
				mark = "*"
			}
			_, werr := fmt.Fprintf(cmd.OutOrStdout(), "%s %s (%s)\n", mark, name, s.Provider)
			err = errors.Join(err, werr)
		}
		if s.Problem != "" {
			_, werr := fmt.Fprintln(os.Stderr, "skerryd:", s.Problem)
			err = errors.Join(err, werr)
		}
		return err
	}
	return cmd
}
