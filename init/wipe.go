package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/skerry-os/skerry/pkg/atomicfile"
	"github.com/skerry-os/skerry/pkg/linux"
	"github.com/skerry-os/skerry/pkg/machine"
)

// wipeFile keeps the word that data.wipe had at the last start.
const wipeFile = dataDir + "/config/wipe"

// dataOptions is what the config says of the data partition. A config that cannot be read says nothing, and loses nothing.
type dataOptions struct {
	known bool
	machine.Data
}

func (s *system) dataOptions() dataOptions {
	if s.told.err != nil || s.told.config == nil {
		return dataOptions{}
	}
	return dataOptions{true, s.told.config.Data}
}

func (d dataOptions) most() int64 { return int64(d.Size) }

// wipes says whether the word is another than at the last start. root is / but for tests.
func (d dataOptions) wipes(root string) (bool, error) {
	if !d.known {
		return false, nil
	}
	before, err := os.ReadFile(filepath.Join(root, wipeFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	if errors.Is(err, fs.ErrNotExist) && !exists(filepath.Join(root, dataDir)) {
		return false, nil // there is nothing yet
	}
	return strings.TrimSpace(string(before)) != d.Wipe && d.Wipe != "", nil
}

// keepWord remembers the word.
func (d dataOptions) keepWord(root string) error {
	name := filepath.Join(root, wipeFile)
	if before, err := os.ReadFile(name); !d.known || err == nil && strings.TrimSpace(string(before)) == d.Wipe || d.Wipe == "" && errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return err
	}
	return atomicfile.Write(name, []byte(d.Wipe+"\n"), 0o600)
}

// wipeData makes the mounted data partition anew if the config says so. A power cut in the middle leaves a partition without the
// word, which is wiped again, or one without a filesystem, which gets one.
func (s *system) wipeData(ctx context.Context, m linux.Mount) (bool, error) {
	wipe, err := s.dataOptions().wipes("/")
	if err != nil || !wipe {
		return false, err
	}
	s.console.sayf("mount data: data.wipe has a new word; making everything on %s anew", m.Source)
	if err := linux.UnmountBelow(m.Target); err != nil {
		return false, err
	}
	if err := s.makeData(ctx, m.Source); err != nil {
		return false, err
	}
	return true, m.Do()
}
