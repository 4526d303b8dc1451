package fleet

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"filippo.io/age"

	"github.com/skerry-os/skerry/image/disk"
	"github.com/skerry-os/skerry/image/patch"
	"github.com/skerry-os/skerry/pkg/atomicfile"
)

// CardsName is the record, in a built fleet's folder, of the cards that were written.
const CardsName = "cards.json"

// Written is a card that was written and read back.
type Written struct {
	GUID   disk.GUID `json:"guid"`   // of the image; another one now means that the card is old
	Device string    `json:"device"` // where it was
	Disk   string    `json:"disk"`   // what that was: size, bus, model
	At     time.Time `json:"at"`
	Begins bool      `json:"begins,omitempty"` // it begins the cluster
}

// Built is a built fleet's folder.
type Built struct {
	*Index
	Dir   string
	Cards map[string]Written // by node

	keys *Keyring
	open func() (age.Identity, error) // of the cards, once
	mu   sync.Mutex
}

// Open reads a built fleet's folder; keys is nil where nothing is encrypted.
func Open(dir string, keys *Keyring) (*Built, error) {
	x, err := LoadIndex(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: holds no fleet; make it with: skerry fleet build -o %s", dir, dir)
	}
	if err != nil {
		return nil, err
	}
	if x.Unfinished {
		return nil, fmt.Errorf("%s: its last build did not end, and its cards may be other ones than it says; build the fleet again", dir)
	}
	if keys == nil {
		keys = new(Keyring)
	}
	b := &Built{Index: x, Dir: dir, Cards: map[string]Written{}, keys: keys}
	b.open = sync.OnceValues(b.identity)
	data, err := os.ReadFile(filepath.Join(dir, CardsName))
	if errors.Is(err, fs.ErrNotExist) {
		return b, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &b.Cards)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w; take it away to begin the record anew", filepath.Join(dir, CardsName), err)
	}
	return b, nil
}

func (b *Built) identity() (age.Identity, error) {
	name := filepath.Join(b.Dir, keyName)
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	if data, err = b.keys.open(data); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return age.ParseX25519Identity(strings.TrimSpace(string(data)))
}

// Unlock opens the key of the cards, so that nobody is asked for a passphrase in the middle of the work.
func (b *Built) Unlock() error {
	if !b.Sealed {
		return nil
	}
	_, err := b.open()
	return err
}

// Card gives a node's card, or one that fits any node of a board.
func (b *Built) Card(name string) (Card, error) {
	all := append(slices.Clone(b.Index.Cards), b.Any...)
	i := slices.IndexFunc(all, func(c Card) bool { return c.Name == name })
	if i < 0 {
		return Card{}, fmt.Errorf("%s: fleet %s has no node %s", b.Dir, b.Fleet, name)
	}
	return all[i], nil
}

// Done says whether the node's card was written as it is now.
func (b *Built) Done(c Card) bool {
	w, ok := b.Cards[c.Name]
	return ok && (w.GUID == c.GUID || c.Again != "" && w.GUID == c.AgainGUID)
}

// Begun says whether a card was written that begins the cluster of several servers.
func (b *Built) Begun() bool {
	for name, w := range b.Cards {
		c, err := b.Card(name)
		if w.Begins || err == nil && c.Again != "" && w.GUID != c.AgainGUID { // also of a record from before it said so
			return true
		}
	}
	return false
}

// Join gives the card that joins the cluster in the place of one that would begin it a second time: its data may be on the other
// servers. A card that never begins one is as it was.
func (b *Built) Join(c Card) Card {
	if c.Again == "" {
		return c
	}
	return c.again()
}

// Next gives the first n nodes whose cards are still to be written.
func (b *Built) Next(n int) (out []Card) {
	for _, c := range b.Index.Cards {
		if len(out) < n && !b.Done(c) {
			out = append(out, c)
		}
	}
	return out
}

// Left is how many cards are still to be written.
func (b *Built) Left() int { return len(b.Next(len(b.Index.Cards))) }

// Record keeps that a card was written.
func (b *Built) Record(c Card, device, what string, at time.Time) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.Cards[c.Name] = Written{GUID: c.GUID, Device: device, Disk: what, At: at.UTC().Truncate(time.Second), Begins: c.Again != "" || b.Cards[c.Name].Begins}
	data, err := json.MarshalIndent(b.Cards, "", " ")
	if err != nil {
		return err
	}
	return atomicfile.Write(filepath.Join(b.Dir, CardsName), append(data, '\n'), 0o600)
}

// Image opens a card as one whole disk.
func (b *Built) Image(c Card) (*Disk, error) {
	name := filepath.Join(b.Dir, c.File)
	if strings.HasSuffix(name, imageExt) {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		size, err := f.Seek(0, io.SeekEnd)
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		return &Disk{io.NewSectionReader(f, 0, size), f}, nil
	}
	var id age.Identity
	if b.Sealed {
		var err error
		if id, err = b.open(); err != nil {
			return nil, err
		}
	}
	return openPatch(name, id)
}

// Disk is an open image.
type Disk struct {
	*io.SectionReader
	file *os.File
}

// Close closes the files behind it.
func (d *Disk) Close() error { return d.file.Close() }

// IsPatch says whether a file is a node's, which is nothing without its base.
func IsPatch(name string) bool { return filepath.Ext(name) == patchExt }

// OpenPatch opens a node's file over the base that it names, in the folder above.
func OpenPatch(name string, keys *Keyring) (*Disk, error) {
	b, err := Open(filepath.Dir(filepath.Dir(name)), keys)
	if err != nil {
		return nil, err
	}
	node, again := strings.CutSuffix(strings.TrimSuffix(filepath.Base(name), patchExt), againExt)
	card, err := b.Card(node)
	if err != nil {
		return nil, err
	}
	if again {
		card = b.Join(card)
	}
	return b.Image(card)
}

func openPatch(name string, id age.Identity) (*Disk, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if info.Size() > patch.MaxBytes {
		return nil, fmt.Errorf("%s: is %d bytes; at most %d are read", name, info.Size(), patch.MaxBytes)
	}
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	if isSealed(data) && id != nil {
		r, err := age.Decrypt(bytes.NewReader(data), id)
		if err == nil {
			data, err = io.ReadAll(r)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	p, err := patch.Parse(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	f, err := os.Open(filepath.Join(filepath.Dir(filepath.Dir(name)), filepath.Base(p.Base)))
	if err != nil {
		return nil, fmt.Errorf("%s: its base: %w", name, err)
	}
	info, err = f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	over, err := p.Over(f, info.Size())
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", name, err), f.Close())
	}
	return &Disk{over, f}, nil
}
