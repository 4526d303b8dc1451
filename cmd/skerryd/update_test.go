package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/skerry-os/skerry/cmd/skerryd/internal/updates"
	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/slot"
	"github.com/skerry-os/skerry/pkg/update/host"
	"github.com/skerry-os/skerry/pkg/update/record"
)

// commanded is a machine for the commands.
func commanded(t *testing.T) updated {
	t.Helper()
	dir, err := os.MkdirTemp("", "update") // a socket's name is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return updated{
		identity: func() (machine.Identity, error) {
			return machine.Identity{Release: machine.Release{Version: "1.0.0"}, Boot: machine.Boot{Slot: slot.A, Board: "x86-uefi"}}, nil
		},
		config: func() (machine.Update, error) { return machine.Update{Source: "https://u.example.org"}, nil },
		record: record.File(filepath.Join(dir, "record.json")), socket: filepath.Join(dir, "s"),
		alone: func(context.Context, updates.Ask, func(string)) error {
			return errors.New("nobody was to do it alone")
		},
	}
}

func commandOf(t *testing.T, u updated, args ...string) (string, error) {
	t.Helper()
	cmd := newUpdateCmd(u)
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SetArgs(args)
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	err := cmd.ExecuteContext(t.Context())
	return out.String(), err
}

// The commands ask the skerryd that runs; where none does, they say what is left out and do the rest.
func TestUpdateCommands(t *testing.T) {
	u := commanded(t)
	for args, want := range map[string]updates.Ask{
		"check": {Do: updates.DoCheck}, "apply": {Do: updates.DoApply}, "apply --force": {Do: updates.DoApply, Force: true}, "rollback": {Do: updates.DoRollback},
	} {
		var asked updates.Ask
		u.alone = func(_ context.Context, a updates.Ask, say func(string)) error {
			asked = a
			say("alone")
			return nil
		}
		if out, err := commandOf(t, u, strings.Fields(args)...); err != nil || asked != want || !strings.Contains(out, "skerryd does not run: no pod is moved, and no snapshot") || !strings.HasSuffix(out, "alone\n") {
			t.Errorf("%s: %+v, %q, %v", args, asked, out, err)
		}
	}
	u.alone = commanded(t).alone
	var mu sync.Mutex
	var asked []updates.Ask
	ctx, cancel := context.WithCancel(t.Context())
	var served sync.WaitGroup
	defer served.Wait()
	defer cancel()
	served.Go(func() {
		_ = updates.Listen(ctx, u.socket, func(_ context.Context, a updates.Ask, say func(string)) error {
			mu.Lock()
			defer mu.Unlock()
			asked = append(asked, a)
			if a.Do == updates.DoRollback {
				return errors.New("slot a: this slot is on trial")
			}
			say("release 1.1.0 is there")
			return nil
		})
	})
	for {
		if _, err := os.Stat(u.socket); err == nil {
			break
		}
		time.Sleep(time.Millisecond)
	}
	for _, args := range []string{"check", "apply", "apply --force"} {
		if out, err := commandOf(t, u, strings.Fields(args)...); err != nil || out != "release 1.1.0 is there\n" {
			t.Errorf("%s: %q, %v", args, out, err)
		}
	}
	if out, err := commandOf(t, u, "rollback"); err == nil || err.Error() != "slot a: this slot is on trial" || out != "" {
		t.Errorf("rollback: %q, %v", out, err)
	}
	mu.Lock()
	defer mu.Unlock()
	if want := []updates.Ask{{Do: updates.DoCheck}, {Do: updates.DoApply}, {Do: updates.DoApply, Force: true}, {Do: updates.DoRollback}}; !slices.Equal(asked, want) {
		t.Errorf("asked was %+v", asked)
	}
	u.identity = func() (machine.Identity, error) { return machine.Identity{}, host.ErrNoSlots }
	for _, args := range []string{"check", "apply", "rollback", "status"} {
		if _, err := commandOf(t, u, args); !errors.Is(err, host.ErrNoSlots) {
			t.Errorf("%s on another Linux: %v", args, err)
		}
	}
}

// The status says everything that an update may end with, and which source is at fault.
func TestUpdateStatus(t *testing.T) {
	u := commanded(t)
	at := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	r := record.Record{
		Phase: record.Waiting, To: "1.1.0", Slot: slot.B, Waits: "the window that opens at 2026-11-26 02:00 UTC", Note: "1 of 3 pods is gone",
		Reason: "release 1.0.9 did not come up", Saved: &record.Saved{Snapshot: "before-update-n", Note: "it is not in the bucket"}, Drained: "default/db stays",
		Failed: []record.Failure{{Version: "1.0.9", Reason: "its kernel ended", Time: at}}, Floor: "0.9.0",
	}
	r.Looked("https://u.example.org", "", "", at)
	r.Looked("/dev/sdb1", "the update source cannot be trusted: it expired", "expired", at)
	if err := u.record.Save(r); err != nil {
		t.Fatal(err)
	}
	out, err := commandOf(t, u, "status")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"1.0.0 (slot a, board x86-uefi)", "https://u.example.org", "2026-11-25T12:00:00Z, with a problem",
		"/dev/sdb1 at 2026-11-25T12:00:00Z: the update source cannot be trusted: it expired",
		"1.1.0 is in slot b and waits for the window that opens at 2026-11-26 02:00 UTC", "0.9.0, in the record of updates", "default/db stays",
		"before-update-n", "it is not in the bucket; the one on this machine is enough", "1 of 3 pods is gone", "release 1.0.9 did not come up", "1.0.9 at 2026-11-25T12:00:00Z: its kernel ended",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("there is no %q in\n%s", want, out)
		}
	}
	out, err = commandOf(t, u, "status", "--json")
	var got updateStatus
	if err := errors.Join(err, json.Unmarshal([]byte(out), &got)); err != nil || got.Version != "1.0.0" || got.Sources["/dev/sdb1"].Kind != "expired" || got.Phase != record.Waiting {
		t.Errorf("%+v, %v", got, err)
	}
}
