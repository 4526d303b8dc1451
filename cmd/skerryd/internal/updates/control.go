package updates

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"sync"
	"time"

	"github.com/skerry-os/skerry/pkg/repository"
	"github.com/skerry-os/skerry/pkg/update/record"
)

// Ask is what a person wants of the updates of a machine.
type Ask struct {
	Do    string `json:"do"` // one of the three below
	Force bool   `json:"force,omitempty"`
}

// What can be asked.
const (
	DoCheck    = "check"
	DoApply    = "apply"
	DoRollback = "rollback"
)

// answer is a line of what comes back; the last is the end.
type answer struct {
	Say   string `json:"say,omitempty"`
	End   bool   `json:"end,omitempty"`
	Error string `json:"error,omitempty"`
}

// Do does what is asked, with all that the updater was given to do around it.
func (n *Node) Do(ctx context.Context, a Ask) error {
	u := n.Updater
	if a.Do == DoRollback {
		return u.Rollback(ctx)
	}
	p, err := n.Check(ctx, a.Force && a.Do == DoApply)
	switch {
	case a.Do == DoCheck && errors.Is(err, repository.ErrUpToDate):
		u.Say(err.Error())
		return nil
	case err != nil:
		return err
	case a.Do == DoCheck:
		u.Say(fmt.Sprintf("release %s is there; this machine runs %s", p.Offer.Version, u.Version))
		return nil
	case a.Do == DoApply:
		return u.Apply(ctx, p)
	}
	return fmt.Errorf("%q: is nothing that can be asked of updates", a.Do)
}

// Listen serves people at a socket until ctx ends.
func Listen(ctx context.Context, name string, do func(ctx context.Context, a Ask, say func(string)) error) error {
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	l, err := net.Listen("unix", name)
	if err != nil {
		return err
	}
	if err := os.Chmod(name, 0o600); err != nil {
		return errors.Join(err, l.Close())
	}
	var all sync.WaitGroup
	defer all.Wait()
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		all.Go(func() { hear(ctx, c, do) })
	}
}

// hear does what comes over a connection. Who hangs up calls it off.
func hear(ctx context.Context, c net.Conn, do func(ctx context.Context, a Ask, say func(string)) error) {
	defer c.Close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(ctx, func() { _ = c.SetReadDeadline(time.Unix(1, 0)) })() // the end can still be told
	in, out := json.NewDecoder(io.LimitReader(c, 4096)), json.NewEncoder(c)
	var a Ask
	if err := in.Decode(&a); err != nil {
		return
	}
	go func() { // ends with the connection
		_, _ = io.Copy(io.Discard, c)
		cancel(errors.New("who asked for it went away"))
	}()
	end := answer{End: true}
	if err := do(ctx, a, func(text string) { _ = out.Encode(answer{Say: text}) }); err != nil {
		end.Error = err.Error()
	}
	_ = out.Encode(end)
}

// asked does what a person asks, by the way of all updates but for the window, which is theirs to choose.
func (s *service) asked(ctx context.Context, a Ask, say func(string)) error {
	done, err := s.turn(ctx)
	if err != nil {
		return err
	}
	defer done()
	s.hearer.Store(&say)
	defer s.hearer.Store(nil)
	defer s.tell(ctx)
	return s.n.Do(ctx, a)
}

// ErrNotRunning means that no skerryd takes what is asked.
var ErrNotRunning = errors.New("skerryd does not run on this machine")

// Call asks the skerryd that listens at a socket, and passes on what it says.
func Call(ctx context.Context, socket string, a Ask, say func(string)) error {
	c, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNotRunning, err)
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	if err := json.NewEncoder(c).Encode(a); err != nil {
		return err
	}
	for in := json.NewDecoder(c); ; {
		var b answer
		switch err := in.Decode(&b); {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil:
			return fmt.Errorf("skerryd ended before it was done (%w); see skerryd update status", err)
		case b.Error != "":
			return errors.New(b.Error)
		case b.End:
			return nil
		}
		say(b.Say)
	}
}

// Alone lets a command do what skerryd would, on a machine where it does not run: nothing is known of the node then, no pod
// leaves and no snapshot is taken.
func (n *Node) Alone(ctx context.Context, a Ask, say func(string), restart func(string) error) error {
	done, err := n.lock()
	if err != nil {
		return err
	}
	defer done()
	n.Updater.Say, n.Updater.Restart = say, restart
	n.Updater.Before = func(ctx context.Context) (*record.Before, error) { return n.before(ctx), nil }
	return n.Do(ctx, a)
}
