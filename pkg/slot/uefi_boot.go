package slot

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"regexp"
	"strings"

	"github.com/skerry-os/skerry/image/fat"
)

// loaderConf is systemd-boot's configuration; its line "default" is the whole choice:
//
//	default os-a.efi          slot A
//	default os-b+[1-9]*       slot B as long as its entry has tries left; without, the first entry of the menu, which is
//	                          the one without counters: entries whose tries ran out come last
//	default os-b*             slot B, counters or not: a Keep that was cut short
const loaderConfPath = "loader/loader.conf"

var defaultLine = regexp.MustCompile(`(?m)^default[ \t]+(\S+)[ \t]*$`)

// counted matches an entry with counters: tries left, tries done.
var counted = regexp.MustCompile(`(?i)^os-([ab])\+([0-9]+)(?:-([0-9]+))?\.efi$`)

func choosing(id ID) string { return "os-" + string(id) + ".efi" }
func trying(id ID) string   { return "os-" + string(id) + "+[1-9]*" }
func keeping(id ID) string  { return "os-" + string(id) + "*" }

// chosen reads the default line: which slot it means, and whether only while it has tries left.
func chosen(e *fat.Editor) (id ID, trial bool, err error) {
	text, err := readText(e, loaderConfPath)
	if err != nil {
		return "", false, err
	}
	m := defaultLine.FindStringSubmatch(text)
	for _, id := range IDs {
		switch {
		case m == nil:
		case m[1] == choosing(id) || m[1] == keeping(id):
			return id, false, nil
		case m[1] == trying(id):
			return id, true, nil
		}
	}
	return "", false, fmt.Errorf("/%s: its default is none that Skerry writes; write \"default os-a.efi\" or \"default os-b.efi\" there", loaderConfPath)
}

// choose rewrites the default line.
func choose(e *fat.Editor, pattern string) error {
	text, err := readText(e, loaderConfPath)
	if err != nil {
		return err
	}
	line := "default " + pattern
	m := defaultLine.FindStringIndex(text)
	if m == nil {
		return fmt.Errorf("/%s: has no default", loaderConfPath)
	}
	if text[m[0]:m[1]] == line {
		return nil
	}
	text = text[:m[0]] + line + text[m[1]:]
	return e.Write(loaderConfPath, int64(len(text)), strings.NewReader(text))
}

// entries gives the files of a slot: the plain entry, those with counters, and what is staged.
func entries(e *fat.Editor, id ID) (plain bool, withCounters []string, staged bool) {
	for _, f := range e.Files() {
		dir, name := path.Split(f.Path)
		if !strings.EqualFold(dir, "EFI/Linux/") {
			continue
		}
		switch {
		case strings.EqualFold(f.Path, kernelPath(id)):
			plain = true
		case strings.EqualFold(f.Path, stagedPath(id)):
			staged = true
		default:
			if m := counted.FindStringSubmatch(name); m != nil && strings.EqualFold(m[1], string(id)) {
				withCounters = append(withCounters, f.Path)
			}
		}
	}
	return plain, withCounters, staged
}

// Kept reads the ESP.
func (u UEFI) Kept() (ID, error) {
	e, err := u.ESP.edit()
	if err != nil {
		return "", err
	}
	return keptUEFI(e)
}

func keptUEFI(e *fat.Editor) (ID, error) {
	id, trial, err := chosen(e)
	if trial {
		id = id.Other()
	}
	return id, err
}

// Room is what the ESP has free, and what the slot's files would leave, less what writing loader.conf anew takes.
func (u UEFI) Room(id ID) (int64, error) {
	e, err := u.ESP.edit()
	if err != nil {
		return 0, err
	}
	room := e.Free() - e.Takes(stateSize)
	plain, withCounters, staged := entries(e, id)
	if plain {
		withCounters = append(withCounters, kernelPath(id))
	}
	if staged {
		withCounters = append(withCounters, stagedPath(id))
	}
	for _, name := range withCounters {
		if f, ok := e.Find(name); ok {
			room += e.Takes(f.Size)
		}
	}
	return max(room, 0), nil
}

// Clear takes the slot's entries away, after the loader was told to choose the other.
func (u UEFI) Clear(id ID) error {
	e, err := u.ESP.edit()
	if err != nil {
		return err
	}
	kept, err := keptUEFI(e)
	if err != nil {
		return err
	}
	if kept == id {
		return fmt.Errorf("slot %s: %w", id, ErrInUse)
	}
	if err := choose(e, choosing(kept)); err != nil {
		return err
	}
	_, withCounters, _ := entries(e, id)
	return removeAll(e, append(withCounters, kernelPath(id), stagedPath(id)))
}

func removeAll(e *fat.Editor, names []string) error {
	for _, name := range names {
		if err := e.Remove(name); err != nil {
			return err
		}
	}
	return nil
}

// Stage writes os-b.new, which the loader does not look at.
func (u UEFI) Stage(id ID, kernel io.Reader, size int64) error {
	e, err := u.ESP.edit()
	if err != nil {
		return err
	}
	kept, err := keptUEFI(e)
	if err != nil {
		return err
	}
	if kept == id {
		return fmt.Errorf("slot %s: %w", id, ErrInUse)
	}
	return stage(e, stagedPath(id), kernel, size)
}

// Kernel is the slot's entry, with or without counters.
func (u UEFI) Kernel(id ID) (io.ReaderAt, int64, error) {
	e, err := u.ESP.edit()
	if err != nil {
		return nil, 0, err
	}
	_, withCounters, _ := entries(e, id)
	return kernelIn(e, id, append([]string{kernelPath(id)}, withCounters...)...)
}

// TryOnce gives the slot's entry its counters and then tells the loader to choose it while they last.
func (u UEFI) TryOnce(id ID) (rebootArg string, err error) {
	e, err := u.ESP.edit()
	if err != nil {
		return "", err
	}
	kept, err := keptUEFI(e)
	if err != nil {
		return "", err
	}
	if kept == id {
		return "", fmt.Errorf("slot %s: %w", id, ErrInUse)
	}
	if plain, _, _ := entries(e, kept); !plain {
		return "", fmt.Errorf("slot %s: has no entry %s: %w", kept, choosing(kept), ErrNoFallback)
	}
	if err := choose(e, choosing(kept)); err != nil { // nothing is tried while the entry changes its name
		return "", err
	}
	plain, withCounters, staged := entries(e, id)
	fresh := fmt.Sprintf("EFI/Linux/os-%s+%d-0.efi", id, Tries)
	from := ""
	switch {
	case staged:
		from = stagedPath(id)
		old := withCounters
		if plain {
			old = append(old, kernelPath(id))
		}
		if err := removeAll(e, old); err != nil {
			return "", err
		}
	case plain:
		from = kernelPath(id)
		if err := removeAll(e, withCounters); err != nil {
			return "", err
		}
	case len(withCounters) > 0:
		from = withCounters[0]
		if err := removeAll(e, withCounters[1:]); err != nil {
			return "", err
		}
	default:
		return "", fmt.Errorf("slot %s: %w", id, ErrEmpty)
	}
	if !strings.EqualFold(from, fresh) {
		if err := e.Rename(from, fresh); err != nil {
			return "", err
		}
	}
	// An image that does not load makes the loader give up and the firmware go on to its next boot entry.
	if err := u.retries(); err != nil {
		return "", err
	}
	return "", choose(e, trying(id))
}

// Keep makes the loader choose the slot whatever its counters say, then takes them away.
func (u UEFI) Keep(id ID) error {
	e, err := u.ESP.edit()
	if err != nil {
		return err
	}
	plain, withCounters, _ := entries(e, id)
	if !plain && len(withCounters) == 0 {
		return fmt.Errorf("slot %s: %w", id, ErrEmpty)
	}
	if !plain {
		if err := choose(e, keeping(id)); err != nil {
			return err
		}
		if err := e.Rename(withCounters[0], kernelPath(id)); err != nil {
			return err
		}
		withCounters = withCounters[1:]
	}
	if err := choose(e, choosing(id)); err != nil {
		return err
	}
	// Tries that the other slot has left are none any more; a plain entry of its stays, to go back to by hand.
	_, others, _ := entries(e, id.Other())
	return removeAll(e, append(withCounters, others...))
}

// removeVariable takes a variable away, on a machine that has variables.
func (u UEFI) removeVariable(name string) error {
	if u.Vars == nil || u.Set == nil {
		return nil
	}
	if _, err := fs.Stat(u.Vars, name); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return u.Set.Remove(name)
}
