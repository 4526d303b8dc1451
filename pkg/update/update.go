// Package update brings a release onto a machine that runs another one, and never leaves it without a slot that boots.
//
// Apply writes the slot that does not run: it first takes away what makes it bootable, then writes the root, block by block
// from wherever a block is cheapest, reads everything back from the medium and holds it against the signed manifest, and only
// then brings kernel and manifest. At any instant the slot that runs is untouched and the one the firmware boots. The last step
// tells the firmware to try the new slot; whether it is kept is judged by that slot itself, in its own boot (package record).
package update

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"slices"
	"time"

	"github.com/skerry-os/skerry/image/verity"
	"github.com/skerry-os/skerry/pkg/release"
	"github.com/skerry-os/skerry/pkg/repository"
	"github.com/skerry-os/skerry/pkg/size"
	"github.com/skerry-os/skerry/pkg/slot"
	"github.com/skerry-os/skerry/pkg/update/record"
)

// Why an update is refused.
var (
	// ErrTrial means that the running slot is on trial itself.
	ErrTrial = errors.New("this slot is on trial; wait for its verdict")
	// ErrRoom means that something does not fit.
	ErrRoom = errors.New("does not fit")
	// ErrDebug means that the release has a shell and this machine is to have none.
	ErrDebug = errors.New("is a debug release, with a root shell on every console, and this machine runs none; write update: {debug: true} in its node config if that is meant")
)

// Device is a partition. After Sync, what was written survives a power cut and ReadAt gives what the medium holds.
type Device interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
	Size() int64
}

// Machine is what an update needs to know of the machine it is for.
type Machine struct {
	Arch, Board, Version, Channel string
	Kubernetes                    string // its version, in the release that runs
	Floor                         string // what the firmware or the TPM lets start at least; "" for none
	Debug                         bool   // a release with a shell may run here
	Seed, Want                    string // see repository.Machine
	Booted                        slot.ID
	Selector                      slot.Selector
	Roots                         map[slot.ID]Device
	Trusted                       []ed25519.PublicKey // who signs releases
}

// Need is room that an update takes elsewhere than in its slot.
type Need struct {
	What, Dir string
	Bytes     int64
}

// Hooks are what others do around an update; each may be nil.
type Hooks struct {
	Needs    func(context.Context) ([]Need, error)         // what the others take
	Window   func(time.Time) time.Duration                 // until the machine may restart; 0 is at once
	Before   func(context.Context) (*record.Before, error) // how healthy the node is
	Snapshot func(context.Context) (*record.Saved, error)  // of the datastore; nil for none
	Drain    func(context.Context) (stuck string, err error)
	Undrain  func(context.Context) // when it does not come to a restart after all
	Restart  func(arg string) error
	Say      func(string) // progress, a line each
}

// Updater updates one machine.
type Updater struct {
	Machine
	Hooks
	Store  record.Store
	Source repository.Source
	Root   []byte // the repository's root metadata that the image was built with
	Dir    string // for the repository's metadata
	Free   func(dir string) (int64, error)
	Now    func() time.Time
}

// ownNeed is what metadata and record may take anew.
const ownNeed = 8 << 20

func (u *Updater) say(format string, a ...any) {
	if u.Say != nil {
		u.Say(fmt.Sprintf(format, a...))
	}
}

// Check looks for a release that this machine should run and fetches its manifest. repository.ErrUpToDate means there is none.
// What it finds, or why it does not, is in the record.
func (u *Updater) Check(ctx context.Context, force bool) (*repository.Package, error) {
	r, err := u.Store.Load()
	if err != nil {
		return nil, err
	}
	p, err := u.check(ctx, &r, force)
	problem := ""
	if err != nil && !errors.Is(err, repository.ErrUpToDate) {
		problem = err.Error()
	}
	now, lerr := u.Store.Load() // others may have written there meanwhile
	if lerr != nil {
		return nil, errors.Join(err, lerr)
	}
	now.Offered = r.Offered
	now.Looked(u.Source.String(), problem, Kind(err), u.Now())
	return p, errors.Join(err, u.Store.Save(now))
}

func (u *Updater) check(ctx context.Context, r *record.Record, force bool) (*repository.Package, error) {
	k, err := (&repository.Client{Source: lasting{u.Source}, Root: u.Root, Dir: u.Dir, Now: u.Now()}).Look(ctx)
	if err != nil {
		return nil, err
	}
	failed := map[string]bool{}
	for _, f := range r.Failed {
		failed[f.Version] = true
	}
	o, err := repository.Choose(k.Offers, repository.Machine{
		Arch: u.Arch, Board: u.Board, Channel: u.Channel, Version: u.Version, Seed: u.Seed, Want: u.Want, Failed: failed, Force: force,
	}, u.Now())
	if err != nil {
		return nil, err
	}
	r.Offered = o.Version
	return k.Package(ctx, o, func(manifest, sig []byte) (*release.Release, error) {
		rel, err := release.Verify(manifest, sig, u.Trusted)
		if err != nil {
			return nil, err
		}
		m := rel.Manifest()
		if _, ok := m.Boards[u.Board]; !ok || m.Arch != u.Arch {
			return nil, fmt.Errorf("release %s: is not for board %s (%s)", m.Version, u.Board, u.Arch)
		}
		return rel, u.allowed(m, r)
	})
}

// allowed refuses what is older than the machine may go back to, and a shell where there is to be none.
func (u *Updater) allowed(m *release.Manifest, r *record.Record) error {
	if m.Debug && !u.Debug {
		return fmt.Errorf("release %s: %w", m.Version, ErrDebug)
	}
	for _, floor := range []string{r.Floor, u.Floor} {
		if floor != "" && release.CompareVersions(m.Version, floor) < 0 {
			return fmt.Errorf("release %s %w: %s", m.Version, release.ErrRollback, floor)
		}
	}
	return nil
}

// idle gives the slot to write, after making sure that it is not needed.
func (u *Updater) idle() (slot.ID, error) {
	booted, trial, err := u.Selector.Booted()
	if err != nil {
		return "", err
	}
	kept, err := u.Selector.Kept()
	if err != nil {
		return "", err
	}
	if trial && kept != booted { // one that was kept meanwhile still looks like one to the firmware
		return "", fmt.Errorf("slot %s: %w", booted, ErrTrial)
	}
	if booted != u.Booted || kept != booted {
		return "", fmt.Errorf("slot %s runs and slot %s is the one for the next boot: the other may be the only good one; restart first", u.Booted, kept)
	}
	return booted.Other(), nil
}

// Apply writes the release into the idle slot and restarts into it. When it fails, the machine is as it was and the idle slot
// does not boot; the record says why.
func (u *Updater) Apply(ctx context.Context, p *repository.Package) error {
	id, err := u.idle()
	if err != nil {
		return err
	}
	r, err := u.Store.Load()
	if err != nil {
		return err
	}
	m := p.Release.Manifest()
	if err := u.preflight(ctx, id, m); err != nil {
		r.End(fmt.Sprintf("release %s: %v", m.Version, err), u.Now())
		return errors.Join(err, u.Store.Save(r))
	}
	r.Phase, r.Slot, r.From, r.To, r.Armed, r.Boots, r.Reason, r.Changed = record.Writing, id, u.Version, m.Version, false, 0, "", u.Now()
	r.Fetched, r.Whole = 0, m.Root.Size+m.Boards[u.Board].Boot.Size
	if err := u.Store.Save(r); err != nil {
		return err
	}
	arg, err := u.install(ctx, id, p, &r)
	if err != nil {
		reason := fmt.Sprintf("release %s: %v (slot %s runs on, unchanged)", m.Version, err, u.Booted)
		r.End(reason, u.Now())
		// Whatever it was, the slot must not boot half written; an error here changes nothing about that: TryOnce came last.
		return errors.Join(err, u.Selector.Clear(id), u.Store.Save(r))
	}
	u.say("restarting into slot %s, release %s, on trial", id, m.Version)
	if u.Restart == nil {
		return nil
	}
	return u.Restart(arg)
}

// preflight makes sure that everything fits before anything is written.
func (u *Updater) preflight(ctx context.Context, id slot.ID, m *release.Manifest) error {
	dev, ok := u.Roots[id]
	if !ok {
		return fmt.Errorf("slot %s: has no root partition here", id)
	}
	if room := dev.Size() - release.TailSize; m.Root.Size > room {
		return fmt.Errorf("release %s: its root of %v %w: partition %s has room for %v; write a new image", m.Version, size.Bytes(m.Root.Size).Rounded(), ErrRoom, id.RootLabel(), size.Bytes(room).Rounded())
	}
	kernel := m.Boards[u.Board].Boot.Size
	room, err := u.Selector.Room(id)
	if err != nil {
		return err
	}
	if kernel > room {
		return fmt.Errorf("release %s: its kernel image of %v %w: the boot partition has %v free; remove what does not belong there", m.Version, size.Bytes(kernel).Rounded(), ErrRoom, size.Bytes(room).Rounded())
	}
	return u.fits(ctx)
}

// fits makes sure that there is room for what an update writes outside of the slot.
func (u *Updater) fits(ctx context.Context) error {
	if u.Free == nil {
		return nil
	}
	needs := []Need{{"the record of updates", u.Dir, ownNeed}}
	if u.Needs != nil {
		more, err := u.Needs(ctx)
		if err != nil {
			return fmt.Errorf("what the update takes besides its slot: %w", err)
		}
		needs = append(needs, more...)
	}
	for _, n := range needs {
		free, err := u.Free(n.Dir)
		if err != nil {
			return fmt.Errorf("room for %s: %w", n.What, err)
		}
		if n.Bytes > free {
			return fmt.Errorf("%s of %v %w: %s has %v free; remove what is not needed there", n.What, size.Bytes(n.Bytes).Rounded(), ErrRoom, n.Dir, size.Bytes(free).Rounded())
		}
	}
	return nil
}

// install does the work, and gives the argument of the restart.
func (u *Updater) install(ctx context.Context, id slot.ID, p *repository.Package, r *record.Record) (string, error) {
	dev, m := u.Roots[id], p.Release.Manifest()
	u.say("writing release %s into slot %s", m.Version, id)
	if err := u.Selector.Clear(id); err != nil {
		return "", err
	}
	tailAt := dev.Size() - release.TailSize
	if err := write(dev, make([]byte, release.TailSize), tailAt); err != nil {
		return "", fmt.Errorf("slot %s: %w", id, err)
	}
	w := &writer{ctx: ctx, p: p, dev: dev, other: u.Roots[u.Booted], now: u.Now}
	running := u.running()
	if running != nil {
		w.from = running.Root.SHA256
	}
	err := w.root()
	r.Fetched = w.fetched
	if err != nil {
		return "", err
	}
	if err := checkRoot(dev, m); err != nil {
		return "", fmt.Errorf("slot %s: reading back: %w", id, err)
	}
	err = u.kernel(id, w, running)
	r.Fetched = w.fetched
	if err != nil {
		return "", err
	}
	tail, err := p.Release.Tail()
	if err != nil {
		return "", err
	}
	if err := write(dev, tail, tailAt); err != nil {
		return "", fmt.Errorf("slot %s: %w", id, err)
	}
	got, err := release.ReadTail(dev, dev.Size(), u.Trusted)
	if err != nil {
		return "", fmt.Errorf("slot %s: reading back: %w", id, err)
	}
	if got.Manifest().Root.RootHash != m.Root.RootHash {
		return "", fmt.Errorf("slot %s: reading back: the manifest is that of release %s", id, got.Manifest().Version)
	}
	u.say("slot %s holds release %s: %.1f of %.1f MB travelled", id, m.Version, float64(r.Fetched)/1e6, float64(r.Whole)/1e6)
	for {
		if err := u.await(ctx, r); err != nil {
			return "", err
		}
		arg, err := u.arm(ctx, id, m, r)
		if !errors.Is(err, errShut) {
			return arg, err
		}
		u.say("release %s: %v", m.Version, err)
	}
}

// errShut means that the window closed again before the machine could restart.
var errShut = errors.New("the window closed before the pods had left; the machine restarts in the next")

// awaitAtMost is how long the clock is believed: it may be set meanwhile.
const awaitAtMost = time.Minute

// await waits until the machine may restart.
func (u *Updater) await(ctx context.Context, r *record.Record) error {
	for u.Window != nil {
		left := u.Window(u.Now())
		if left <= 0 {
			break
		}
		if opens := "the window that opens at " + u.Now().Add(left).UTC().Format("2006-01-02 15:04 MST"); r.Waits != opens {
			r.Phase, r.Waits, r.Changed = record.Waiting, opens, u.Now()
			if err := u.Store.Save(*r); err != nil {
				return err
			}
			u.say("release %s waits for %s", r.To, opens)
		}
		select {
		case <-time.After(min(left, awaitAtMost)):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	if r.Phase != record.Waiting {
		return nil
	}
	r.Phase, r.Waits, r.Changed = record.Writing, "", u.Now()
	return u.Store.Save(*r)
}

// arm asks the others and then tells the firmware.
func (u *Updater) arm(ctx context.Context, id slot.ID, m *release.Manifest, r *record.Record) (_ string, err error) {
	if u.Before != nil {
		if r.Before, err = u.Before(ctx); err != nil {
			return "", fmt.Errorf("how the node is before the update: %w", err)
		}
	}
	if u.Snapshot != nil {
		if r.Saved, err = u.Snapshot(ctx); err != nil {
			return "", fmt.Errorf("datastore snapshot before the update: %w", err)
		}
		if r.Saved != nil {
			r.Saved.Release, r.Saved.Kubernetes, r.Saved.Next = u.Version, u.Kubernetes, m.Kubernetes
		}
	}
	if u.Drain != nil {
		defer func() {
			if err != nil && u.Undrain != nil {
				u.Undrain(context.WithoutCancel(ctx))
			}
		}()
		if r.Drained, err = u.Drain(ctx); err != nil {
			return "", fmt.Errorf("draining before the update: %w", err)
		}
		if u.Window != nil && u.Window(u.Now()) > 0 {
			return "", errShut
		}
	}
	r.Phase, r.Note, r.Undo, r.Changed = record.Trying, "", nil, u.Now() // what was to be undone, the datastore has gone on from
	if err := u.Store.Save(*r); err != nil {
		return "", err
	}
	arg, err := u.Selector.TryOnce(id)
	if err != nil {
		return "", err
	}
	r.Armed = true
	// The firmware tries it whether or not this note is kept.
	return arg, u.Store.Save(*r)
}

// Rollback asks for the other slot as it is: a trial like any other.
func (u *Updater) Rollback(ctx context.Context) error {
	id, err := u.idle()
	if err != nil {
		return err
	}
	dev := u.Roots[id]
	rel, err := release.ReadTail(dev, dev.Size(), u.Trusted)
	if err != nil {
		return fmt.Errorf("slot %s: %w", id, err)
	}
	m := rel.Manifest()
	if err := checkRoot(dev, m); err != nil {
		return fmt.Errorf("slot %s: %w", id, err)
	}
	r, err := u.Store.Load()
	if err != nil {
		return err
	}
	if err := u.allowed(m, &r); err != nil {
		return fmt.Errorf("slot %s: %w", id, err)
	}
	if err := u.fits(ctx); err != nil {
		return fmt.Errorf("slot %s: %w", id, err)
	}
	r.Slot, r.From, r.To, r.Armed, r.Boots, r.Reason = id, u.Version, m.Version, false, 0, ""
	// Or the next check would bring back what somebody goes away from.
	failed := r.Failed
	r.Failed = append(slices.Clone(failed), record.Failure{Version: u.Version, Reason: "somebody went back from it", Time: u.Now()})
	arg, err := u.arm(ctx, id, m, &r)
	if err != nil {
		r.Failed = failed // the version that runs on is no worse for it
		r.End(fmt.Sprintf("going back to release %s: %v", m.Version, err), u.Now())
		return errors.Join(err, u.Store.Save(r))
	}
	u.say("restarting into slot %s, release %s, on trial", id, m.Version)
	if u.Restart == nil {
		return nil
	}
	return u.Restart(arg)
}

// running is the manifest of the release that runs; nil if it cannot be read, which an update does not need.
func (u *Updater) running() *release.Manifest {
	dev := u.Roots[u.Booted]
	if dev == nil {
		return nil
	}
	rel, err := release.ReadTail(dev, dev.Size(), u.Trusted)
	if err != nil {
		return nil
	}
	return rel.Manifest()
}

// kernel brings the board's kernel image to where the firmware reads: by a patch from the one that runs, or whole.
func (u *Updater) kernel(id slot.ID, w *writer, running *release.Manifest) error {
	stage := func(src io.Reader, f release.File) error {
		return u.Selector.Stage(id, &checked{r: src, left: f.Size, want: f.SHA256, h: sha256.New()}, f.Size)
	}
	if src := u.patchedKernel(w, running); src != nil {
		if err := stage(src, w.p.Release.Manifest().Boards[u.Board].Boot); err == nil || w.ctx.Err() != nil {
			return err
		}
	}
	return retry(w.ctx, func() error {
		src, f, err := w.p.Kernel(w.ctx, u.Board)
		if err != nil {
			return err
		}
		defer src.Close()
		n := &counting{r: src}
		err = stage(n, f)
		w.fetched += n.n
		if err != nil {
			return fmt.Errorf("kernel image: %w", err)
		}
		return nil
	})
}

// patchedKernel reads the new kernel image as a patch makes it; nil if there is none.
func (u *Updater) patchedKernel(w *writer, running *release.Manifest) io.Reader {
	if running == nil {
		return nil
	}
	patch, err := w.p.KernelPatch(w.ctx, u.Board, running.Boards[u.Board].Boot.SHA256)
	if err != nil {
		return nil
	}
	old, _, err := u.Selector.Kernel(u.Booted)
	if err != nil {
		return nil
	}
	return &patchedReader{frame: func(n int) ([]byte, error) { return w.frame(patch, n, old) }, frames: patch.Frames()}
}

// patchedReader makes a file frame by frame.
type patchedReader struct {
	frame        func(int) ([]byte, error)
	next, frames int
	ready        []byte
}

func (p *patchedReader) Read(b []byte) (int, error) {
	for len(p.ready) == 0 {
		if p.next == p.frames {
			return 0, io.EOF
		}
		var err error
		if p.ready, err = p.frame(p.next); err != nil {
			return 0, err
		}
		p.next++
	}
	n := copy(b, p.ready)
	p.ready = p.ready[n:]
	return n, nil
}

// checked ends with an error instead of the last bytes if the content is not the right one.
type checked struct {
	r    io.Reader
	left int64
	want string
	h    hash.Hash
}

func (c *checked) Read(b []byte) (int, error) {
	if int64(len(b)) > c.left {
		b = b[:c.left]
	}
	n, err := c.r.Read(b)
	_, _ = c.h.Write(b[:n])
	c.left -= int64(n)
	if c.left == 0 && n > 0 {
		if got := hex.EncodeToString(c.h.Sum(nil)); got != c.want {
			return 0, fmt.Errorf("%w: sha256 is %.8s; the release says %.8s", repository.ErrUntrusted, got, c.want)
		}
	}
	return n, err
}

// checkRoot reads a root from the medium and holds it against its digest and its hash tree.
func checkRoot(dev Device, m *release.Manifest) error {
	if err := m.Root.Check(io.NewSectionReader(dev, 0, m.Root.Size)); err != nil {
		return err
	}
	return verity.Verify(dev, m.Root.DataSize, m.Root.RootHash, m.Root.Salt)
}

func write(dev Device, b []byte, at int64) error {
	if _, err := dev.WriteAt(b, at); err != nil {
		return err
	}
	return dev.Sync()
}
