package record

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/skerry-os/skerry/pkg/slot"
)

// Settle is for a boot that is not on trial: it draws the conclusion from how the last update ended. news is "" if there is
// none to tell.
func Settle(st Store, sel slot.Selector, booted slot.ID, version string, now time.Time) (news string, err error) {
	r, err := st.Load()
	if err != nil {
		return "", err
	}
	if r.Current == "" {
		r.Current = version
	}
	switch {
	case r.Phase == Trying && r.Slot == booted:
		// Keep was done, and the note of it was not.
		r.Kept(version, r.Note, now)
		return fmt.Sprintf("release %s is kept", version), st.Save(r)
	case r.Phase == Trying && (r.Armed || r.Boots > 0):
		reason := fmt.Sprintf("release %s in slot %s did not come up: ", r.To, r.Slot)
		if r.Boots == 0 {
			reason += "its kernel or init ended, or was refused, before it reached the data partition"
		} else {
			reason += fmt.Sprintf("it started %d times and got as far as %q", r.Boots, r.Reached)
			if r.Stopped != "" {
				reason += ", where it stopped: " + r.Stopped
			}
		}
		reason += fmt.Sprintf("; the firmware went back to slot %s", booted)
		id := r.Slot
		r.Fail(reason, now)
		return reason, errors.Join(st.Save(r), sel.Clear(id))
	case r.Phase == Trying:
		id, to := r.Slot, r.To
		r.End(fmt.Sprintf("the power failed before release %s could be tried", to), now)
		return r.Reason, errors.Join(sel.Clear(id), st.Save(r))
	}
	return "", nil
}

// Left is for a boot of the slot to which the machine went over because the other one is damaged. The release is not at fault:
// it may be brought again, and that writes the slot anew.
func Left(st Store, why string, now time.Time) error {
	r, err := st.Load()
	if err != nil {
		return err
	}
	r.End("left "+why, now)
	return st.Save(r)
}

// Trial notes how a boot on trial goes, for the boot that may have to say why it was the last.
type Trial struct {
	Store   Store
	Slot    slot.ID
	Version string
}

func (t Trial) load() (Record, error) {
	r, err := t.Store.Load()
	if r.Phase != Trying || r.Slot != t.Slot { // the record was lost; the firmware's word counts
		r.Phase, r.Slot, r.To = Trying, t.Slot, t.Version
	}
	return r, err
}

func (t Trial) note(change func(*Record)) error {
	r, err := t.load()
	if err != nil {
		return err
	}
	change(&r)
	return t.Store.Save(r)
}

// Began notes that another boot got as far as the record.
func (t Trial) Began() error { return t.note(func(r *Record) { r.Boots++; r.Stopped = "" }) }

// Reached notes the step that begins.
func (t Trial) Reached(step string) error { return t.note(func(r *Record) { r.Reached = step }) }

// Failed notes why a step ends this boot.
func (t Trial) Failed(why string) error { return t.note(func(r *Record) { r.Stopped = why }) }

// ErrVerdict is in the error of a trial that did not go well: the machine is to restart, into the slot of before.
var ErrVerdict = errors.New("the trial failed")

// Judge is for a boot on trial. healthy waits until the node is as healthy as it was and returns nil, or says why it never
// will be; ctx bounds it. note is what differs and is no fault. Whatever the verdict, it is written before it is told.
func Judge(ctx context.Context, st Store, sel slot.Selector, booted slot.ID, version string, now func() time.Time, healthy func(context.Context, *Before) (note string, err error)) error {
	r, err := Trial{st, booted, version}.load()
	if err != nil {
		return err
	}
	note, herr := healthy(ctx, r.Before)
	if herr == nil {
		if err := sel.Keep(booted); err != nil {
			return fmt.Errorf("keeping slot %s: %w", booted, err)
		}
		r.Kept(version, note, now())
		return st.Save(r)
	}
	reason := fmt.Sprintf("release %s in slot %s was not as healthy as the one before: %v", version, booted, herr)
	r.Fail(reason, now())
	return errors.Join(fmt.Errorf("%w: %s", ErrVerdict, reason), st.Save(r), sel.Keep(booted.Other()))
}
