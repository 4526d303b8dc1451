// Package clock keeps a machine's time right enough for certificates: many boards wake up in 1970. Three things hold it:
// a floor (the time the release was built, which has certainly passed), the time last saved on the data partition, and NTP
// servers. The first two only ever move the clock forward; NTP may move it back, but never below the floor.
//
// Without NTP, time is monotone from one start to the next on boards without a clock of their own too: a running machine saves
// a time that lies as far ahead as it will be until the next save, so that one whose plug was pulled does not start in what it
// has lived through already.
package clock

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/beevik/ntp"
	"golang.org/x/sys/unix"

	"github.com/skerry-os/skerry/pkg/atomicfile"
)

// Clock is a clock that can be set. System is the machine's.
type Clock struct {
	Now  func() time.Time
	Step func(time.Time) error     // sets it at once
	Slew func(time.Duration) error // makes it drift by so much
}

// System is the kernel's clock. Slewing also tells the kernel that the time is right, which makes it set the hardware
// clock every eleven minutes.
func System() Clock {
	return Clock{
		Now: time.Now,
		Step: func(t time.Time) error {
			ts := unix.NsecToTimespec(t.UnixNano())
			if err := unix.ClockSettime(unix.CLOCK_REALTIME, &ts); err != nil {
				return fmt.Errorf("setting the clock to %s: %w", t.UTC().Format(time.RFC3339), err)
			}
			return nil
		},
		Slew: slew,
	}
}

const (
	adjOffset    = 0x0001
	adjMaxError  = 0x0004
	adjEstError  = 0x0008
	adjStatus    = 0x0010
	adjTimeConst = 0x0020
	adjNano      = 0x2000
	staPLL       = 0x0001
)

func slew(d time.Duration) error {
	tx := unix.Timex{Modes: adjOffset | adjMaxError | adjEstError | adjStatus | adjTimeConst | adjNano, Status: staPLL, Constant: 6}
	setOffset(&tx, d)
	if _, err := unix.Adjtimex(&tx); err != nil {
		return fmt.Errorf("slewing the clock by %v: %w", d, err)
	}
	return nil
}

// Raise steps the clock to the latest of the times if it is behind it, and says by how much.
func (c Clock) Raise(floors ...time.Time) (time.Duration, error) {
	latest := slices.MaxFunc(floors, time.Time.Compare)
	behind := latest.Sub(c.Now())
	if behind <= 0 {
		return 0, nil
	}
	return behind, c.Step(latest)
}

// Save stores the time for the next start, and how much later it may become before it is saved again; 0 for a machine that goes
// down in order.
func (c Clock) Save(name string, ahead time.Duration) error {
	return atomicfile.Write(name, fmt.Appendf(nil, "%s +%s\n", c.Now().UTC().Format(time.RFC3339), ahead), 0o644)
}

// Saved gives the time stored last and how much later it may have become; the zero time where there is none.
func Saved(name string) (t time.Time, ahead time.Duration, err error) {
	data, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return t, 0, nil
	}
	if err != nil {
		return t, 0, err
	}
	at, later, _ := strings.Cut(strings.TrimSpace(string(data)), " +")
	if later != "" {
		ahead, err = time.ParseDuration(later)
	}
	if err == nil {
		t, err = time.Parse(time.RFC3339, at)
	}
	if err != nil {
		return time.Time{}, 0, fmt.Errorf("%s: is not a time: %w", name, err)
	}
	return t, ahead, nil
}

// Resume moves the clock to the latest time that has certainly passed, by the floor and the file of Save, and says by how much.
// A clock that ran on meanwhile is left alone.
func (c Clock) Resume(floor time.Time, name string) (time.Duration, error) {
	saved, ahead, err := Saved(name)
	if c.Now().Before(saved) {
		saved = saved.Add(ahead)
	}
	behind, rerr := c.Raise(floor, saved)
	return behind, errors.Join(err, rerr)
}

// slewMost is the largest error that is slewed; more is stepped. It is the most that the kernel slews.
const slewMost = 500 * time.Millisecond

// Correct brings the clock to the true time offset from its own. It steps for large errors and never goes below floor.
func (c Clock) Correct(offset time.Duration, floor time.Time) (stepped bool, err error) {
	to := c.Now().Add(offset)
	if to.Before(floor) {
		return false, fmt.Errorf("time servers say it is %s, before this release was built (%s); not believed", to.UTC().Format(time.RFC3339), floor.UTC().Format(time.RFC3339))
	}
	if offset.Abs() <= slewMost {
		return false, c.Slew(offset)
	}
	return true, c.Step(to)
}

// Sync asks NTP servers for the time for as long as it runs.
type Sync struct {
	Clock   Clock
	Servers []string // host names or addresses, a port behind a colon if it is not 123
	Floor   time.Time
	Log     func(format string, a ...any)
	Synced  func() // told after the first success; may be nil
}

// Waits between questions.
const (
	askFirst = 64 * time.Second
	askMost  = 1024 * time.Second
	tryFirst = 2 * time.Second
	tryMost  = 5 * time.Minute
)

// Run asks until ctx ends. Trouble is logged once until it is over.
func (s *Sync) Run(ctx context.Context) {
	ask, try := askFirst, tryFirst
	trouble, synced := false, false
	for {
		offset, err := s.offset(ctx)
		stepped := false
		if err == nil {
			stepped, err = s.Clock.Correct(offset, s.Floor)
		}
		if ctx.Err() != nil {
			return
		}
		var wait time.Duration
		if err != nil {
			if !trouble {
				s.Log("clock: %v; still asking", err)
			}
			trouble = true
			wait, try = try, min(2*try, tryMost)
		} else {
			if stepped || trouble || !synced {
				s.Log("clock: right by NTP (was %v off)", offset.Round(time.Millisecond))
			}
			if !synced && s.Synced != nil {
				s.Synced()
			}
			trouble, synced, try = false, true, tryFirst
			if stepped {
				ask = askFirst
			}
			wait, ask = ask, min(2*ask, askMost)
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
	}
}

// asked is how many servers are asked each time; the median of their answers counts, so that one liar among three is
// outvoted.
const asked = 4

func (s *Sync) offset(ctx context.Context) (time.Duration, error) {
	type answer struct {
		offset time.Duration
		err    error
	}
	servers := s.Servers[:min(len(s.Servers), asked)]
	answers := make(chan answer, len(servers))
	for _, name := range servers {
		go func() {
			r, err := ntp.QueryWithOptions(name, ntp.QueryOptions{Timeout: 5 * time.Second})
			if err == nil {
				err = r.Validate()
			}
			if err != nil {
				answers <- answer{err: fmt.Errorf("%s: %w", name, err)}
				return
			}
			answers <- answer{offset: r.ClockOffset}
		}()
	}
	var offsets []time.Duration
	var errs []error
	for range servers {
		select {
		case a := <-answers:
			if a.err != nil {
				errs = append(errs, a.err)
			} else {
				offsets = append(offsets, a.offset)
			}
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	}
	if len(offsets) == 0 {
		// They mostly fail for one reason: no network yet, or no name server.
		return 0, fmt.Errorf("none of %d time servers answers; one says %w", len(servers), errs[0])
	}
	slices.Sort(offsets)
	return offsets[(len(offsets)-1)/2], nil
}
