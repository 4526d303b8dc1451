package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/skerry-os/skerry/cmd/skerryd/internal/updates"
	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/release"
	"github.com/skerry-os/skerry/pkg/repository"
	"github.com/skerry-os/skerry/pkg/update/host"
	"github.com/skerry-os/skerry/pkg/update/record"
)

func newUpdateCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "update",
		Short: "Look at, bring and take back releases on this machine",
		Long: "Releases come from the source that the node config names (update.source), or from a USB stick. A new one is written\n" +
			"beside the one that runs, tried once, and kept if the node is as healthy as before within the deadline; else the machine\n" +
			"goes back by itself and does not try that release again.",
		Example: "  skerryd update status --json\n  skerryd update check && skerryd update apply",
		Args:    noArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newUpdateStatusCmd(), newUpdateCheckCmd(), newUpdateApplyCmd(), newUpdateRollbackCmd())
	return cmd
}

// updateStatus is what status prints.
type updateStatus struct {
	Version string `json:"version"`
	Board   string `json:"board"`
	Slot    string `json:"slot"`
	Trial   bool   `json:"trial"`
	Debug   bool   `json:"debug,omitempty"`
	Source  string `json:"source,omitempty"`
	FloorIn string `json:"floorIn,omitempty"`
	record.Record
}

func newUpdateStatusCmd() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "status",
		Short:   "Say which release runs, what is under way, and why the last update failed if it did",
		Example: "  skerryd update status",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			id, err := host.Identity()
			if err != nil {
				return err
			}
			conf, err := updates.Config()
			if err != nil {
				return err
			}
			r, err := record.File(host.RecordFile).Load()
			if err != nil {
				return err
			}
			s := updateStatus{Version: id.Release.Version, Board: id.Boot.Board, Slot: string(id.Boot.Slot), Debug: id.Release.Debug, Source: conf.Source, Record: r}
			if f := id.Boot.Floor; f != "" && (s.Floor == "" || release.CompareVersions(f, s.Floor) >= 0) {
				s.Floor, s.FloorIn = f, id.Boot.FloorIn
			}
			// The boot was on trial; it is so no more once its version was kept.
			s.Trial = id.Boot.Trial && r.Phase == record.Trying
			if asJSON {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(s)
			}
			return s.print(cmd.OutOrStdout())
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print everything as JSON")
	return cmd
}

func (s updateStatus) print(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	line := func(name, format string, a ...any) {
		_, _ = fmt.Fprintf(t, "%s\t%s\n", name, fmt.Sprintf(format, a...))
	}
	trial := ""
	if s.Trial {
		trial = ", on trial"
	}
	line("release", "%s (slot %s%s, board %s)", s.Version, s.Slot, trial, s.Board)
	if s.Debug {
		line("", "%s", machine.DebugNotice)
	}
	if s.Source == "" {
		line("source", "none in the node config")
	} else {
		line("source", "%s", s.Source)
	}
	switch {
	case s.Checked.IsZero():
		line("checked", "not yet")
	case s.Problem != "":
		line("checked", "%s: %s", s.Checked.Format(time.RFC3339), s.Problem)
	case s.Offered != "":
		line("checked", "%s, newest %s", s.Checked.Format(time.RFC3339), s.Offered)
	default:
		line("checked", "%s, nothing newer", s.Checked.Format(time.RFC3339))
	}
	switch s.Phase {
	case record.Writing:
		line("under way", "writing %s into slot %s", s.To, s.Record.Slot)
	case record.Trying:
		line("under way", "trying %s in slot %s", s.To, s.Record.Slot)
	case record.Idle:
		line("under way", "nothing")
	}
	if s.Floor != "" {
		line("floor", "%s, in %s", s.Floor, cmp.Or(s.FloorIn, "the record of updates"))
	}
	if s.Drained != "" {
		line("drain", "%s", s.Drained)
	}
	if s.Reason != "" {
		line("last update", "%s", s.Reason)
	}
	for _, f := range s.Failed {
		line("failed", "%s at %s: %s", f.Version, f.Time.Format(time.RFC3339), f.Reason)
	}
	return t.Flush()
}

// withUpdater gives the commands what the service works with, and keeps the service away meanwhile.
func withUpdater(cmd *cobra.Command, do func(context.Context, *updates.Node) error) error {
	n, err := updates.Open(slog.New(slog.DiscardHandler), nil)
	if err != nil {
		return err
	}
	defer func() { _ = n.Close() }()
	unlock, err := updates.Lock()
	if err != nil {
		return err
	}
	defer unlock()
	n.Updater.Say = func(text string) { _, _ = fmt.Fprintln(cmd.OutOrStdout(), text) }
	n.Updater.Restart = restart
	return do(cmd.Context(), n)
}

// restart asks process 1, which is Skerry's init here.
func restart(arg string) error {
	if arg != "" { // for the firmware, through the kernel
		if err := os.WriteFile("/"+machine.RestartFile, []byte(arg), 0o600); err != nil {
			return err
		}
	}
	return syscall.Kill(1, syscall.SIGTERM)
}

func newUpdateCheckCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "check",
		Short: "Look for a newer release now",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return withUpdater(cmd, func(ctx context.Context, n *updates.Node) error {
				p, err := n.Check(ctx, false)
				switch {
				case errors.Is(err, repository.ErrUpToDate):
					_, err = fmt.Fprintln(cmd.OutOrStdout(), err)
				case err == nil:
					_, err = fmt.Fprintf(cmd.OutOrStdout(), "release %s is there; this machine runs %s\n", p.Offer.Version, n.Updater.Version)
				}
				return err
			})
		},
	}
}

func newUpdateApplyCmd() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "apply",
		Short: "Bring the newest release and restart into it",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return withUpdater(cmd, func(ctx context.Context, n *updates.Node) error {
				p, err := n.Check(ctx, force)
				if err != nil {
					return err
				}
				return n.Updater.Apply(ctx, p)
			})
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "also a release that was tried and failed, and without waiting for this machine's wave")
	return cmd
}

func newUpdateRollbackCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "rollback",
		Short: "Restart into the release of before, on trial",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return withUpdater(cmd, func(ctx context.Context, n *updates.Node) error { return n.Updater.Rollback(ctx) })
		},
	}
}
