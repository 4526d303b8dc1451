package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/skerry-os/skerry/image/flash"
	"github.com/skerry-os/skerry/image/fleet"
	"github.com/skerry-os/skerry/pkg/size"
)

func newFlashCmd() *cobra.Command {
	var yes, fixed, unmount, begin, list, asJSON, quiet bool
	var nodes []string
	var keys keyringFlags
	cmd := &cobra.Command{
		Use:   "flash IMAGE|FLEET DEVICE...",
		Short: "Write an image to sticks, cards or disks, and read it back",
		Long: "Write an image (raw, or raw and compressed by zstd) to one or more sticks, cards or disks, and read it back. Only what\n" +
			"is used is written. What is mounted is refused unless --unmount takes it away, and what is neither a stick nor a card unless\n" +
			"--any-disk means it. The disk that this system runs from is never written, nor one that swap, RAID or LVM use.\n\n" +
			"Of a fleet's folder, made by skerry fleet build, each device gets the card of a node: the ones named by --node, or the next\n" +
			"that are still to be written. Which card is which is said and kept, so that a fleet goes on where it stopped.",
		Example: "  skerry flash --list\n  skerry flash north-1.img /dev/sdb\n  skerry flash --yes node.img /dev/sdb /dev/sdc /dev/mmcblk0\n" +
			"  skerry flash cards /dev/sdb /dev/sdc\n  skerry flash --node north-7 cards /dev/sdb",
		Args: func(_ *cobra.Command, args []string) error {
			switch {
			case list && len(args) == 0, !list && len(args) >= 2:
				return nil
			case list:
				return errors.New("--list takes no image and no device")
			}
			return errors.New("name the image, or a fleet's folder, and at least one device; skerry flash --list shows the devices")
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if list {
				disks, err := flash.List()
				if err != nil {
					return err
				}
				return printDisks(cmd.OutOrStdout(), disks, asJSON)
			}
			f := &flasher{image: args[0], fixed: fixed, unmount: unmount, begin: begin, terminal: isTerminal(cmd.ErrOrStderr()), err: cmd.ErrOrStderr(), quiet: quiet || asJSON}
			if err := f.choose(nodes, len(args)-1, &keys, cmd); err != nil {
				return err
			}
			targets, err := f.open(args[1:])
			defer closeAll(targets)
			if err != nil {
				return err
			}
			for i, c := range f.cards {
				targets[i].card, targets[i].joins = c.Name, f.joined(i)
			}
			if !yes {
				if err := confirm(cmd.InOrStdin(), cmd.OutOrStdout(), args[0], targets); err != nil {
					return err
				}
			}
			results, err := f.run(cmd, targets)
			if asJSON {
				return errors.Join(printJSON(cmd.OutOrStdout(), results), err)
			}
			if !quiet {
				for _, r := range results {
					_, _ = fmt.Fprintln(cmd.OutOrStdout(), r)
				}
				f.sayLeft(cmd.OutOrStdout())
			}
			return err
		},
	}
	cmd.Flags().StringSliceVar(&nodes, "node", nil, "of a fleet: whose card to write; may be given more than once, for the devices in turn")
	keys.bind(cmd)
	cmd.Flags().BoolVar(&unmount, "unmount", false, "unmount what is mounted from the devices, as desktops do with every card, and go on")
	cmd.Flags().BoolVar(&begin, "begin", false, "of a fleet of several servers: the first one's card begins the cluster, though one that does was written before and may have")
	cmd.Flags().BoolVar(&list, "list", false, "list this computer's disks, and write nothing")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	cmd.Flags().BoolVar(&fixed, "any-disk", false, "take disks that are neither sticks nor cards")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print nothing but errors")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the list, or what was written, as JSON")
	return cmd
}

func printDisks(w io.Writer, disks []flash.Disk, asJSON bool) error {
	if asJSON {
		return printJSON(w, disks)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(t, "DEVICE\tSIZE\tBUS\tMODEL\tMAY BE WRITTEN")
	for _, d := range disks {
		state := "yes"
		if err := d.Refuse(false); err != nil {
			state = "no: " + strings.TrimPrefix(err.Error(), d.String()+": ")
		}
		_, _ = fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", d.Path, size.Bytes(d.Size).Rounded(), d.Transport, d.Model, state)
	}
	return t.Flush()
}

// target is a device that is open and may be written.
type target struct {
	name, what string
	card       string // the node's name
	joins      bool   // its first card began the cluster, and this one joins it
	device     *flash.File
}

func (t target) String() string {
	if t.card == "" {
		return t.what
	}
	if t.joins {
		return t.what + " gets " + t.card + joinsText
	}
	return t.what + " gets " + t.card
}

const joinsText = ", which joins the cluster that was begun by a card written before (--begin if that one never ran)"

func closeAll(targets []target) {
	for _, t := range targets {
		_ = t.device.Close()
	}
}

type flasher struct {
	image          string
	fleet          *fleet.Built // nil for an image
	cards          []fleet.Card // one for each device
	fixed, unmount bool
	terminal       bool
	begin          bool // a cluster a second time
	quiet          bool
	err            io.Writer
}

// open checks all devices before any is written.
func (f *flasher) open(names []string) (targets []target, err error) {
	seen := map[string]bool{}
	for _, name := range names {
		real := name
		if runtime.GOOS != "windows" { // where disks are no files
			var err error
			if real, err = filepath.EvalSymlinks(name); err != nil { // /dev/disk/by-id/…
				return targets, err
			}
		}
		if seen[real] {
			return targets, fmt.Errorf("%s: is named twice", name)
		}
		seen[real] = true
		what := name
		d, err := flash.At(real)
		if err != nil {
			return targets, err
		}
		if d != nil {
			if f.unmount && len(d.Mounts()) > 0 {
				if err := flash.Unmount(d); err != nil {
					return targets, err
				}
				if d, err = flash.At(real); err != nil {
					return targets, err
				}
			}
			if err := d.Refuse(f.fixed); err != nil {
				return targets, err
			}
			what = d.String()
		}
		device, err := flash.OpenDevice(real)
		if err != nil {
			return targets, err
		}
		targets = append(targets, target{name: name, what: what, device: device})
	}
	return targets, nil
}

// confirm asks once for all.
func confirm(in io.Reader, out io.Writer, image string, targets []target) error {
	_, _ = fmt.Fprintf(out, "Everything on these is lost when %s is written to them:\n", image)
	for _, t := range targets {
		_, _ = fmt.Fprintln(out, "  "+t.String())
	}
	_, _ = fmt.Fprint(out, "Write yes to go on: ")
	if answer, _ := bufio.NewReader(in).ReadString('\n'); strings.TrimSpace(answer) != "yes" {
		return errors.New("nothing was written")
	}
	return nil
}

// flashed is what became of one device.
type flashed struct {
	Device string `json:"device"`
	Node   string `json:"node,omitempty"`
	flash.Report
	Seconds float64 `json:"seconds"`
	Joins   bool    `json:"joins,omitempty"`
	Error   string  `json:"error,omitempty"`
	ejected bool
}

func (r flashed) String() string {
	who := r.Device
	if r.Node != "" {
		who += " is " + r.Node
	}
	if r.Joins {
		who += joinsText
	}
	if r.Error != "" {
		return fmt.Sprintf("%s: FAILED: %s", r.Device, r.Error)
	}
	text := fmt.Sprintf("%s: %s written and read back in %.1f s", who, size.Bytes(r.Written).Rounded(), r.Seconds)
	if r.ejected {
		text += "; you can take it out"
	}
	return text
}

// run writes all devices at the same time; one that fails does not stop the others.
func (f *flasher) run(cmd *cobra.Command, targets []target) ([]flashed, error) {
	results := make([]flashed, len(targets))
	errs := make([]error, len(targets))
	show := newBars(f.err, f.terminal, f.quiet, len(targets))
	var all sync.WaitGroup
	for n, t := range targets {
		all.Go(func() {
			start := time.Now()
			r, ejected, err := f.one(cmd, n, t, func(verifying bool, done, total int64) { show.tell(n, t.name, verifying, done, total) })
			results[n] = flashed{Device: t.name, Node: t.card, Joins: t.joins, Report: r, Seconds: time.Since(start).Seconds(), ejected: ejected}
			if err != nil {
				results[n].Error = err.Error()
				errs[n] = fmt.Errorf("%s: %w", t.name, err)
			}
		})
	}
	all.Wait()
	show.end()
	return results, errors.Join(errs...)
}

func (f *flasher) one(cmd *cobra.Command, n int, t target, tell flash.Progress) (r flash.Report, ejected bool, err error) {
	file, err := f.source(n)
	if err != nil {
		return r, false, err
	}
	defer file.Close() //nolint:errcheck // read only
	i, err := flash.Open(file)
	if err != nil {
		return r, false, fmt.Errorf("%s: %w", f.image, err)
	}
	defer i.Close() //nolint:errcheck // read only
	if r, err = i.Write(cmd.Context(), t.device, tell); err != nil {
		return r, false, err
	}
	if f.fleet != nil {
		if err := f.fleet.Record(f.cards[n], t.name, t.what, time.Now()); err != nil {
			return r, false, err
		}
	}
	t.device.Reread()
	return r, t.device.Eject(), nil
}

// bars shows how far each device is: on a terminal one line that is overwritten, elsewhere a line each ten percent.
type bars struct {
	mu       sync.Mutex
	w        io.Writer
	terminal bool
	quiet    bool
	start    []time.Time
	line     []string
	step     []int64
	last     time.Time
}

func newBars(w io.Writer, terminal, quiet bool, n int) *bars {
	return &bars{w: w, terminal: terminal, quiet: quiet, start: make([]time.Time, n), line: make([]string, n), step: make([]int64, n)}
}

func (b *bars) tell(n int, name string, verifying bool, done, total int64) {
	if b.quiet || total == 0 {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	phase := int64(0)
	verb := "writing"
	if verifying {
		phase, verb = 100, "reading back"
	}
	if b.start[n].IsZero() || verifying && b.step[n] < 100 {
		b.start[n] = now
	}
	percent := done * 100 / total
	took := now.Sub(b.start[n])
	text := fmt.Sprintf("%s %s %d %%", name, verb, percent)
	if took > time.Second && done > 0 && done < total {
		left := time.Duration(float64(took) * float64(total-done) / float64(done))
		text += fmt.Sprintf(", %s left", left.Round(time.Second))
	}
	b.line[n] = text
	switch {
	case b.terminal && now.Sub(b.last) > 100*time.Millisecond:
		b.last = now
		_, _ = fmt.Fprintf(b.w, "\r\x1b[K%.*s", 150, strings.Join(b.line, " | "))
	case !b.terminal && (phase+percent)/10 > b.step[n]/10:
		_, _ = fmt.Fprintln(b.w, text)
	}
	b.step[n] = phase + percent
}

func (b *bars) end() {
	if b.terminal && !b.quiet {
		_, _ = fmt.Fprint(b.w, "\r\x1b[K")
	}
}
