package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/skerry-os/skerry/cmd/skerryd/internal/host"
	"github.com/skerry-os/skerry/cmd/skerryd/internal/settings"
	"github.com/skerry-os/skerry/pkg/datastore"
	"github.com/skerry-os/skerry/pkg/datastore/etcd"
	"github.com/skerry-os/skerry/pkg/datastore/snapshot"
	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/server"
)

// stored is a subcommand of snapshot with the settings that say where the data is.
func stored(cmd *cobra.Command, run func(cmd *cobra.Command, s machine.Server, at *server.Stored, args []string) error) *cobra.Command {
	typed := machine.DefaultServer()
	config := settings.BindSome(cmd.Flags(), &typed, func(name string) bool {
		return name == "data-dir" || name == "node-name" || name == "with-node-id" || strings.HasPrefix(name, "datastore-") || strings.HasPrefix(name, "snapshot-") ||
			name == "s3" || strings.HasPrefix(name, "s3-") || name == "http-proxy" || name == "https-proxy" || name == "no-proxy"
	})
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		file := *config
		if file == "" {
			file = usedSettings(typed.DataDir)
		}
		s := machine.DefaultServer()
		err := settings.Load(cmd.Flags(), file, &typed, &s, func(name string, data []byte) error {
			d, err := machine.DecodeServer(name, data)
			if err == nil {
				s = *d
			}
			return err
		})
		if err != nil {
			return err
		}
		at, err := openStored(s)
		if err != nil {
			return err
		}
		return run(cmd, s, at, args)
	}
	return cmd
}

func openStored(s machine.Server) (*server.Stored, error) {
	takeProxy(&s.Agent)
	node, err := host.NodeName(s.Agent)
	if err != nil {
		return nil, err
	}
	c := server.StoredConfig{Settings: s, NodeName: node, Nodes: nodeAddresses(filepath.Join(s.DataDir, "server", "cred", "admin.kubeconfig"))}
	if server.UsesEtcd(s) { // what is restored is a member at this address
		ip, err := server.ServiceIP(s.ServiceCIDR)
		if err != nil {
			return nil, err
		}
		ips, err := host.NodeIPs(s.NodeIP, ip, s.DNS()...)
		if err != nil {
			return nil, err
		}
		c.NodeIP = ips[0]
	}
	at, err := server.OpenStored(c)
	return at, settings.Usage(err)
}

// byItself is a server that begins again without the others. One that had joined others has etcd, also when its data is gone.
func byItself(s machine.Server) machine.Server {
	s.ClusterInit, s.Server = server.UsesEtcd(s), ""
	return s
}

// resetCluster does what --cluster-reset says, and ends.
func resetCluster(ctx context.Context, s machine.Server) error {
	_, gate, err := setUpLogging(s.Debug)
	if err != nil {
		return err
	}
	gate.open(true)
	release, err := host.Claim(s.DataDir)
	if err != nil {
		return err
	}
	defer release()
	s = byItself(s)
	at, err := openStored(s)
	if err != nil {
		return err
	}
	if name := s.ClusterResetRestorePath; name != "" {
		return restore(ctx, os.Stdout, at, name)
	}
	if at.Store.Kind() != datastore.Etcd {
		return settings.Usage(fmt.Errorf("--cluster-reset: this server uses %s, which has no members; name a snapshot with --cluster-reset-restore-path", at.Store.Kind()))
	}
	err = at.Store.Run(ctx, func() {})
	if errors.Is(err, etcd.ErrReset) {
		_, err = fmt.Println(err)
	}
	return err
}

// usedSettings is the file in which the server of a data folder keeps the settings it runs with, if there is one.
func usedSettings(dataDir string) string {
	name := server.SettingsFile(dataDir)
	if _, err := os.Stat(name); errors.Is(err, fs.ErrNotExist) {
		return ""
	}
	return name
}

func newSnapshotCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "snapshot",
		Aliases: []string{"etcd-snapshot"},
		Short:   "Save, list, restore and prune copies of the cluster's state",
		Long: "Save, list, restore and prune copies of the cluster's state, whatever keeps it: SQLite, etcd, PostgreSQL or MariaDB. The\n" +
			"commands read the settings that the server of --data-dir runs with; flags replace them.",
		Example: "  skerryd snapshot save\n  skerryd snapshot list --json\n  skerryd snapshot restore on-demand-north-1-1790000000",
		Args:    noArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newSnapshotSaveCmd(), newSnapshotListCmd(), newSnapshotRestoreCmd(), newSnapshotPruneCmd())
	return cmd
}

func newSnapshotSaveCmd() *cobra.Command {
	var asJSON bool
	name := snapshot.OnDemand
	cmd := &cobra.Command{
		Use: "save", Short: "Save a snapshot now; the server may be running", Args: noArgs,
		Example: "  skerryd snapshot save --name before-upgrade",
	}
	cmd.Flags().StringVar(&name, "name", name, "beginning of the snapshot's name")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return stored(cmd, func(cmd *cobra.Command, _ machine.Server, at *server.Stored, _ []string) error {
		e, err := at.Snapshots.Save(cmd.Context(), at.Store, name)
		if e.Name == "" {
			return err
		}
		if asJSON {
			return errors.Join(json.NewEncoder(cmd.OutOrStdout()).Encode(e), err)
		}
		_, perr := fmt.Fprintf(cmd.OutOrStdout(), "%s saved in %s (%d KiB)\n", e.Name, e.Place, (e.Size+1023)>>10)
		return errors.Join(err, perr)
	})
}

func newSnapshotListCmd() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{Use: "list", Aliases: []string{"ls"}, Short: "List the snapshots, newest first", Args: noArgs, Example: "  skerryd snapshot list"}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return stored(cmd, func(cmd *cobra.Command, _ machine.Server, at *server.Stored, _ []string) error {
		list, err := at.Snapshots.List(cmd.Context())
		if asJSON {
			if list == nil {
				list = []snapshot.Entry{}
			}
			return errors.Join(json.NewEncoder(cmd.OutOrStdout()).Encode(list), err)
		}
		w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
		_, _ = fmt.Fprintln(w, "NAME\tPLACE\tSIZE\tCREATED\tPROBLEM")
		for _, e := range list {
			_, _ = fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%s\n", e.Name, e.Place, e.Size, e.Created.UTC().Format(time.RFC3339), e.Problem)
		}
		return errors.Join(w.Flush(), err)
	})
}

func newSnapshotRestoreCmd() *cobra.Command {
	later := false
	cmd := &cobra.Command{
		Use: "restore NAME", Short: "Make a snapshot the cluster's state; the old one is kept aside",
		Long: "Make a snapshot the cluster's state. The server must be stopped, all of them if several share a database; with\n" +
			"--at-next-start the server of this machine may run, and restores when it starts next. NAME is one of the list's, or a file's path.",
		Example: "  skerryd snapshot restore scheduled-north-1-1790000000\n  skerryd snapshot restore --at-next-start /mnt/usb/on-demand-north-1-1790000000.snapshot",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return settings.Usage(errors.New("name one snapshot; see skerryd snapshot list"))
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&later, "at-next-start", false, "let the server restore when it starts next")
	return stored(cmd, func(cmd *cobra.Command, s machine.Server, at *server.Stored, args []string) error {
		name := args[0]
		if strings.ContainsRune(name, filepath.Separator) {
			abs, err := filepath.Abs(name)
			if err != nil {
				return err
			}
			name = abs
		}
		if later {
			m, err := at.Snapshots.Stage(cmd.Context(), at.Store, name)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s of %s will be restored when the server starts next\n", m.Name, m.Created.Format(time.RFC3339))
			return err
		}
		release, err := host.Claim(s.DataDir)
		if err != nil {
			return fmt.Errorf("%w; or restore with --at-next-start", err)
		}
		defer release()
		return restore(cmd.Context(), cmd.OutOrStdout(), at, name)
	})
}

func restore(ctx context.Context, out io.Writer, at *server.Stored, name string) error {
	m, aside, err := at.Snapshots.Restore(ctx, at.Store, name)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "%s of %s restored\n", m.Name, m.Created.Format(time.RFC3339))
	if err == nil && aside != "" {
		_, err = fmt.Fprintf(out, "what was there before is kept as %s; remove it when all is well\n", aside)
	}
	return err
}

func newSnapshotPruneCmd() *cobra.Command {
	name := snapshot.OnDemand
	cmd := &cobra.Command{
		Use: "prune", Short: "Remove the oldest snapshots of this node", Args: noArgs,
		Example: "  skerryd snapshot prune --name scheduled --snapshot-retention 3",
	}
	cmd.Flags().StringVar(&name, "name", name, "beginning of the names of the snapshots to look at")
	return stored(cmd, func(cmd *cobra.Command, _ machine.Server, at *server.Stored, _ []string) error {
		removed, err := at.Snapshots.Prune(cmd.Context(), name)
		for _, e := range removed {
			if _, perr := fmt.Fprintf(cmd.OutOrStdout(), "%s removed from %s\n", e.Name, e.Place); perr != nil {
				return perr
			}
		}
		return err
	})
}
