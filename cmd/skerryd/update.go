package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"slices"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/skerry-os/skerry/cmd/skerryd/internal/updates"
	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/release"
	"github.com/skerry-os/skerry/pkg/update/host"
	"github.com/skerry-os/skerry/pkg/update/record"
)

// updated is the machine whose updates the commands are about.
type updated struct {
	identity func() (machine.Identity, error)
	config   func() (machine.Update, error)
	record   record.Store
	socket   string
	alone    func(ctx context.Context, a updates.Ask, say func(string)) error // what is asked, where no skerryd runs
}

// thisUpdated is the one this process runs on.
func thisUpdated() updated {
	return updated{host.Identity, updates.Config, record.File(host.RecordFile), host.ControlSocket, func(ctx context.Context, a updates.Ask, say func(string)) error {
		n, err := updates.Open(slog.New(slog.DiscardHandler), nil)
		if err != nil {
			return err
		}
		defer func() { _ = n.Close() }()
		return n.Alone(ctx, a, say, restart)
	}}
}

func newUpdateCmd(u updated) *cobra.Command {
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
	cmd.AddCommand(newUpdateStatusCmd(u), newUpdateCheckCmd(u), newUpdateApplyCmd(u), newUpdateRollbackCmd(u))
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

func newUpdateStatusCmd(u updated) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "status",
		Short:   "Say which release runs, what is under way, and why the last update failed if it did",
		Example: "  skerryd update status",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			id, err := u.identity()
			if err != nil {
				return err
			}
			conf, err := u.config()
			if err != nil {
				return err
			}
			r, err := u.record.Load()
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
		line("checked", "%s, with a problem", s.Checked.Format(time.RFC3339))
	case s.Offered != "":
		line("checked", "%s, newest %s", s.Checked.Format(time.RFC3339), s.Offered)
	default:
		line("checked", "%s, nothing newer", s.Checked.Format(time.RFC3339))
	}
	for _, name := range slices.Sorted(maps.Keys(s.Sources)) {
		if src := s.Sources[name]; src.Problem != "" {
			line("problem", "%s at %s: %s", name, src.Checked.Format(time.RFC3339), src.Problem)
		}
	}
	switch s.Phase {
	case record.Waiting:
		line("under way", "%s is in slot %s and waits for %s", s.To, s.Record.Slot, s.Waits)
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
	if s.Saved != nil {
		line("snapshot", "%s", s.Saved.Snapshot)
		if s.Saved.Note != "" {
			line("", "%s; the one on this machine is enough", s.Saved.Note)
		}
	}
	if s.Note != "" {
		line("note", "%s", s.Note)
	}
	if s.Reason != "" {
		line("last update", "%s", s.Reason)
	}
	for _, f := range s.Failed {
		line("failed", "%s at %s: %s", f.Version, f.Time.Format(time.RFC3339), f.Reason)
	}
	return t.Flush()
}

// ask lets the skerryd that runs do what a person asks: it knows how the node is, takes its pods off and saves its datastore.
// Where none runs, the command does what is left.
func (u updated) ask(cmd *cobra.Command, a updates.Ask) error {
	say := func(text string) { _, _ = fmt.Fprintln(cmd.OutOrStdout(), text) }
	if _, err := u.identity(); err != nil {
		return err
	}
	err := updates.Call(cmd.Context(), u.socket, a, say)
	if !errors.Is(err, updates.ErrNotRunning) {
		return err
	}
	say("skerryd does not run: no pod is moved, and no snapshot of a datastore is taken")
	return u.alone(cmd.Context(), a, say)
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

func newUpdateCheckCmd(u updated) *cobra.Command {
	return &cobra.Command{
		Use:     "check",
		Short:   "Look for a newer release now",
		Example: "  skerryd update check",
		Args:    noArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return u.ask(cmd, updates.Ask{Do: updates.DoCheck}) },
	}
}

func newUpdateApplyCmd(u updated) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:     "apply",
		Short:   "Bring the newest release and restart into it, whatever the windows",
		Example: "  skerryd update apply\n  skerryd update apply --force",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return u.ask(cmd, updates.Ask{Do: updates.DoApply, Force: force})
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "also a release that was tried and failed, and without waiting for this machine's wave")
	return cmd
}

func newUpdateRollbackCmd(u updated) *cobra.Command {
	return &cobra.Command{
		Use:     "rollback",
		Short:   "Restart into the release of before, on trial",
		Example: "  skerryd update rollback",
		Args:    noArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return u.ask(cmd, updates.Ask{Do: updates.DoRollback}) },
	}
}
