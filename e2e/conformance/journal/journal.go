// Package journal is the file of results that the suite writes and the runner reads: one line of JSON a test, appended as the
// test ends.
package journal

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"
)

// Environment of the suite: the journal to append to, and the file with names of tests that passed before, one a line.
const (
	FileEnv   = "CONFORMANCE_JOURNAL"
	PassedEnv = "CONFORMANCE_PASSED"
)

// Entry is the result of one test.
type Entry struct {
	Name    string    `json:"name"`
	State   string    `json:"state"` // passed, skipped, failed, panicked, timedout, interrupted, aborted
	Seconds float64   `json:"seconds"`
	End     time.Time `json:"end"`
	Message string    `json:"message,omitempty"`
	Where   string    `json:"where,omitempty"`
	Output  string    `json:"output,omitempty"`
}

// Passed says whether it did.
func (e Entry) Passed() bool { return e.State == "passed" }

// Append adds an entry in one write: several processes append at once.
func Append(name string, e Entry) error {
	line, err := json.Marshal(e)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(name, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(append(line, '\n'))
	return errors.Join(err, f.Close())
}

// Read gives all entries in their order; none when there is no file. A last line cut short by a kill is left out.
func Read(name string) ([]Entry, error) {
	data, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var list []Entry
	r := bufio.NewReader(bytes.NewReader(data))
	for n := 1; ; n++ {
		line, err := r.ReadBytes('\n')
		if err != nil {
			return list, nil //nolint:nilerr // the last line may be torn: its test runs again
		}
		var e Entry
		if err := json.Unmarshal(line, &e); err != nil {
			return nil, fmt.Errorf("%s:%d: %w", name, n, err)
		}
		list = append(list, e)
	}
}
