// Package record is what a machine remembers of its updates, on the data partition: which one is under way and how far, how
// healthy the node was before, what failed and why. It holds no promise that the machine comes back: slots and firmware keep
// that even if this file is lost.
package record

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/skerry-os/skerry/pkg/atomicfile"
	"github.com/skerry-os/skerry/pkg/release"
	"github.com/skerry-os/skerry/pkg/slot"
)

// Phase is how far an update is.
type Phase string

// The phases.
const (
	Idle    Phase = ""        // none is under way
	Writing Phase = "writing" // the idle slot is being written; it does not boot
	Waiting Phase = "waiting" // it is written, and waits for a time at which the machine may restart
	Trying  Phase = "trying"  // the firmware was told to try it
)

// Failure is a version that was tried and is not tried again.
type Failure struct {
	Version string    `json:"version"`
	Reason  string    `json:"reason"`
	Time    time.Time `json:"time"`
}

// Before is how the node was before the update: what it is to be again. What is false or empty is not asked for.
type Before struct {
	API       bool     `json:"api"`               // it answered
	Ready     bool     `json:"ready"`             // the node; all is asked for then but Reachable, which stands for itself
	Leased    bool     `json:"leased,omitempty"`  // the datastore took the node's lease
	Serves    bool     `json:"serves,omitempty"`  // Services were reached through the node
	Pods      []string `json:"pods,omitempty"`    // that were ready on it, as namespace/name
	Reachable bool     `json:"reachable"`         // the update source that the node config names
	Network   []string `json:"network,omitempty"` // default routes, and networks with an address of the machine's
}

// Saved is how the datastore was before the update.
type Saved struct {
	Snapshot   string `json:"snapshot"`          // its name
	Note       string `json:"note,omitempty"`    // where it is not, although it should be
	Schema     string `json:"schema,omitempty"`  // digest of the tables' form; "" for a datastore that is not this machine's alone
	Release    string `json:"release,omitempty"` // the version of the OS that saved it, and that may go back to it
	Kubernetes string `json:"kubernetes"`        // the version that wrote it
	Next       string `json:"next"`              // the one in the release that was tried
}

// Moved says whether what the release that was tried may have written can be more than the one before reads. schema is that of
// the datastore as it is now.
func (s *Saved) Moved(schema string) bool {
	return minor(s.Next) != minor(s.Kubernetes) || s.Schema != schema
}

// minor cuts a version of Kubernetes behind its second number.
func minor(version string) string {
	if first := strings.IndexByte(version, '.'); first >= 0 {
		if second := strings.IndexByte(version[first+1:], '.'); second >= 0 {
			return version[:first+1+second]
		}
	}
	return version
}

// Source is what the last look at a source said.
type Source struct {
	Checked time.Time `json:"checked"`
	Problem string    `json:"problem,omitempty"`
	Kind    string    `json:"kind,omitempty"` // of the problem: see update.Kind
	Told    string    `json:"told,omitempty"` // the problem that the last event told
}

// Record is the whole file.
type Record struct {
	Phase   Phase     `json:"phase,omitempty"`
	Slot    slot.ID   `json:"slot,omitempty"` // the one that is written or tried
	From    string    `json:"from,omitempty"` // version
	To      string    `json:"to,omitempty"`
	Armed   bool      `json:"armed,omitempty"`   // the firmware knows
	Boots   int       `json:"boots,omitempty"`   // of the trial that got as far as this file
	Reached string    `json:"reached,omitempty"` // the last step of the boot that began
	Stopped string    `json:"stopped,omitempty"` // why it ended the boot
	Before  *Before   `json:"before,omitempty"`
	Saved   *Saved    `json:"saved,omitempty"`
	Changed time.Time `json:"changed,omitzero"`
	Fetched int64     `json:"fetched,omitempty"` // bytes that travelled for the update
	Whole   int64     `json:"whole,omitempty"`   // of what there is

	Current  string    `json:"current,omitempty"`  // the version that was kept last
	Previous string    `json:"previous,omitempty"` // that of the slot to go back to
	Floor    string    `json:"floor,omitempty"`    // nothing older is taken
	Failed   []Failure `json:"failed,omitempty"`   // the newest last
	Reason   string    `json:"reason,omitempty"`   // why the last attempt ended, if it did not end well
	Checked  time.Time `json:"checked,omitzero"`
	Offered  string    `json:"offered,omitempty"` // newest version that the last check found for this machine
	Problem  string    `json:"problem,omitempty"` // what went wrong with the last check, at any source
	Note     string    `json:"note,omitempty"`    // what differs since the last update, and was explained
	Waits    string    `json:"waits,omitempty"`   // what a restart waits for
	Told     string    `json:"told,omitempty"`    // the reason that the last event told
	Undo     *Saved    `json:"undo,omitempty"`    // what the datastore may have to go back to, before it is used again
	Drained  string    `json:"drained,omitempty"` // what the last drain could not move

	Sources map[string]Source `json:"sources,omitempty"` // by name
}

// maxFailures is how many failures are remembered.
const maxFailures = 16

// Store keeps the record.
type Store interface {
	Load() (Record, error)
	Save(Record) error
}

// File is a Store in a file.
type File string

// Load reads the record; without a file it is empty. A file that cannot be read as one is put aside: the machine must go on.
func (f File) Load() (Record, error) {
	var r Record
	data, err := os.ReadFile(string(f))
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(data, &r); err != nil {
		_ = os.Rename(string(f), string(f)+".damaged")
		return Record{Reason: fmt.Sprintf("%s was damaged and is put aside: %v", filepath.Base(string(f)), err)}, nil
	}
	return r, nil
}

// Save writes the record.
func (f File) Save(r Record) error {
	if err := os.MkdirAll(filepath.Dir(string(f)), 0o700); err != nil {
		return err
	}
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return atomicfile.Write(string(f), append(data, '\n'), 0o600)
}

// Looked notes what a look at a source said; problem is "" if it went well.
func (r *Record) Looked(source, problem, kind string, now time.Time) {
	s := Source{Checked: now, Problem: problem, Kind: kind, Told: r.Sources[source].Told}
	if problem == "" {
		s.Told = ""
	}
	if r.Sources == nil {
		r.Sources = map[string]Source{}
	}
	r.Sources[source] = s
	r.Checked = now
	r.sum()
}

// Only forgets sources that are there no more, but for a problem that nobody was told of yet.
func (r *Record) Only(sources ...string) {
	maps.DeleteFunc(r.Sources, func(name string, s Source) bool { return !slices.Contains(sources, name) && s.Told == s.Problem })
	r.sum()
}

func (r *Record) sum() {
	var all []string
	for _, name := range slices.Sorted(maps.Keys(r.Sources)) {
		if p := r.Sources[name].Problem; p != "" {
			all = append(all, name+": "+p)
		}
	}
	r.Problem = strings.Join(all, "; ")
}

// HasFailed says whether a version was tried and failed.
func (r *Record) HasFailed(version string) bool {
	return slices.ContainsFunc(r.Failed, func(f Failure) bool { return f.Version == version })
}

// End ends what is under way; reason is "" if it ended well.
func (r *Record) End(reason string, now time.Time) {
	r.Phase, r.Slot, r.From, r.To, r.Armed, r.Boots, r.Reached, r.Stopped, r.Before, r.Saved = Idle, "", "", "", false, 0, "", "", nil, nil
	r.Reason, r.Waits, r.Changed = reason, "", now
}

// Fail ends a trial that failed.
func (r *Record) Fail(reason string, now time.Time) {
	r.Failed = append(slices.DeleteFunc(r.Failed, func(f Failure) bool { return f.Version == r.To }), Failure{r.To, reason, now})
	r.Failed = r.Failed[max(0, len(r.Failed)-maxFailures):]
	if r.Boots > 0 && r.Saved != nil { // it may have written
		r.Undo = r.Saved
	}
	r.End(reason, now)
}

// Kept ends a trial that went well. The floor rises to the version of the slot to go back to, never above it: that one must
// stay allowed. note is what differs all the same.
func (r *Record) Kept(version, note string, now time.Time) {
	r.Previous, r.Current, r.Note = r.From, version, note
	if r.From != "" && (r.Floor == "" || release.CompareVersions(r.From, r.Floor) > 0) && release.CompareVersions(r.From, version) < 0 {
		r.Floor = r.From
	}
	r.End("", now)
}
