package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/skerry-os/skerry/image/fleet"
)

// choose finds out which node's card each device gets, if the image is a fleet's folder.
func (f *flasher) choose(nodes []string, devices int, keys *keyringFlags, cmd *cobra.Command) error {
	info, err := os.Stat(f.image)
	if err == nil && !info.IsDir() || errors.Is(err, os.ErrNotExist) {
		if len(nodes) > 0 {
			return fmt.Errorf("--node: %s is no folder of a fleet; skerry fleet build makes one", f.image)
		}
		return nil
	}
	if err != nil {
		return err
	}
	ring, err := keys.ring(cmd)
	if err != nil {
		return err
	}
	if f.fleet, err = fleet.Open(f.image, ring); err != nil {
		return err
	}
	if err := f.fleet.Unlock(); err != nil {
		return err
	}
	if len(nodes) == 0 {
		f.cards = f.fleet.Next(devices)
		defer f.join()
		switch {
		case len(f.cards) == 0:
			return fmt.Errorf("%s: all cards of fleet %s are written; name a node by --node to write one again", f.image, f.fleet.Fleet)
		case len(f.cards) < devices:
			return fmt.Errorf("%s: %d of %d cards are still to be written, and there are %d devices", f.image, len(f.cards), len(f.fleet.Index.Cards), devices)
		}
		return nil
	}
	if len(nodes) != devices {
		return fmt.Errorf("--node: names %d nodes for %d devices; write one for each", len(nodes), devices)
	}
	for _, name := range nodes {
		c, err := f.fleet.Card(name)
		if err != nil {
			return err
		}
		f.cards = append(f.cards, c)
	}
	f.join()
	return nil
}

// join takes, once a card that begins the cluster was written, the one that joins it in its place, unless told otherwise.
func (f *flasher) join() {
	if f.begin || !f.fleet.Begun() {
		return
	}
	for i, c := range f.cards {
		f.cards[i] = f.fleet.Join(c)
	}
}

// joined says of a card whether it is one of those.
func (f *flasher) joined(n int) bool {
	if f.fleet == nil {
		return false
	}
	c, err := f.fleet.Card(f.cards[n].Name)
	return err == nil && c.File != f.cards[n].File
}

// source is what the n-th device gets.
func (f *flasher) source(n int) (io.ReadSeekCloser, error) {
	if f.fleet == nil {
		if fleet.IsPatch(f.image) {
			return nil, fmt.Errorf("%s: is one node's part of an image; flash it with: skerry flash --node NAME FLEET DEVICE", f.image)
		}
		return os.Open(f.image)
	}
	return f.fleet.Image(f.cards[n])
}

// sayLeft tells how far the fleet is.
func (f *flasher) sayLeft(out io.Writer) {
	if f.fleet == nil {
		return
	}
	if left := f.fleet.Left(); left > 0 {
		_, _ = fmt.Fprintf(out, "%d of %d cards are still to be written; next is %s\n", left, len(f.fleet.Index.Cards), f.fleet.Next(1)[0].Name)
		return
	}
	_, _ = fmt.Fprintf(out, "all %d cards are written\n", len(f.fleet.Index.Cards))
}
