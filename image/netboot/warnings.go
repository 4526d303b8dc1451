package netboot

import (
	"context"
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
)

// Warning is about no machine but the network, or the server itself. Each says what to do.
type Warning struct {
	Since time.Time `json:"since"`
	Text  string    `json:"text"`
}

const warningsFile = "warnings.json"

// Warnings are those of the server that runs on this state folder.
func (s *Store) Warnings() (out []Warning, err error) {
	name := filepath.Join(s.dir, warningsFile)
	data, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &out)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return out, nil
}

func (s *Store) setWarnings(list []Warning) error {
	name := filepath.Join(s.dir, warningsFile)
	if len(list) == 0 {
		if err := os.Remove(name); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	data, err := json.MarshalIndent(list, "", "  ")
	if err != nil {
		return err
	}
	return atomicfile.Write(name, append(data, '\n'), 0o600)
}

// warn shows a warning on the page, in the log, in skerry pxe list and on the consoles of machines; no text ends it.
func (s *Server) warn(of, text string) {
	s.mu.Lock()
	old := s.alarms[of].Text
	if old == text {
		s.mu.Unlock()
		return
	}
	if text == "" {
		delete(s.alarms, of)
	} else {
		s.alarms[of] = Warning{time.Now().UTC(), text}
	}
	err := s.setWarnings(s.alarmList()) // under the lock, so that the file is the last state
	close(s.changed)
	s.changed = make(chan struct{})
	s.mu.Unlock()
	if text == "" {
		s.Log("is well again: %s", old)
	} else {
		s.Log("%s", text)
	}
	if err != nil {
		s.Log("%v", err)
	}
}

// alarmList is for a caller that holds the lock.
func (s *Server) alarmList() []Warning {
	return slices.SortedFunc(maps.Values(s.alarms), func(a, b Warning) int {
		if c := a.Since.Compare(b.Since); c != 0 {
			return c
		}
		return strings.Compare(a.Text, b.Text)
	})
}

func (s *Server) warnings() (out []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, w := range s.alarmList() {
		out = append(out, w.Text)
	}
	return out
}

func manyDHCP(iface string, ids []string) string {
	return "more than one DHCP server answers on " + iface + ": " + strings.Join(ids, ", ") + "; machines may get addresses of either and miss their boot file: turn off all but one"
}

// listenEach is how often the server looks for machines that went silent.
const listenEach = 5 * time.Second

// listen says in the log which machines went silent in the middle, and when they are back.
func (s *Server) listen(ctx context.Context) error {
	silent := map[string]bool{}
	for {
		s.lookForSilent(silent, time.Now())
		select {
		case <-time.After(listenEach):
		case <-ctx.Done():
			return nil
		}
	}
}

func (s *Server) lookForSilent(silent map[string]bool, now time.Time) {
	list, _ := s.List() // the page says what cannot be read
	for _, m := range list {
		is := m.silent(now)
		switch {
		case is && !silent[m.MAC]:
			s.Log("%s: %s: %s", described(m), m.Stage, m.Trouble(now))
		case !is && silent[m.MAC]:
			s.Log("%s: is heard of again: %s", described(m), m.Stage)
		}
		silent[m.MAC] = is
	}
}
