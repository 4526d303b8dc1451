package fleet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"filippo.io/age"

	"github.com/skerry-os/skerry/image"
	"github.com/skerry-os/skerry/image/disk"
	"github.com/skerry-os/skerry/image/patch"
	"github.com/skerry-os/skerry/pkg/atomicfile"
	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/seed"
	"github.com/skerry-os/skerry/pkg/size"
)

// IndexName is the file, in a built fleet's folder, that says what is in it.
const IndexName = "fleet.json"

const (
	nodesDir  = "nodes"
	keyName   = "key.age"
	patchExt  = ".node"
	againExt  = ".again" // in front of the others
	imageExt  = ".img"
	indexForm = 1
)

// Options are what a person decides about a build.
type Options struct {
	Generic bool // also make a card for each board that fits all of its nodes
	Whole   bool // whole images; where the file system can, they share blocks with their base
	Keys    *Keyring
	Now     time.Time
}

// Index is what a built fleet's folder holds.
type Index struct {
	Schema int    `json:"schema"`
	Fleet  string `json:"fleet"`
	Sealed bool   `json:"sealed,omitempty"` // the cards are encrypted
	// A build began to change the folder and did not end: its files may be other ones than these.
	Unfinished bool `json:"unfinished,omitempty"`

	Bases []Base `json:"bases"`
	Cards []Card `json:"cards"`         // of the nodes, in the fleet's order
	Any   []Card `json:"any,omitempty"` // that fit all nodes of a board
}

// Base is an image without a node.
type Base struct {
	File  string    `json:"file"`
	Board string    `json:"board"`
	GUID  disk.GUID `json:"guid"`
	Size  int64     `json:"sizeBytes"`
}

// Card is one node's image.
type Card struct {
	Name  string       `json:"name"`
	Role  machine.Role `json:"role,omitempty"`
	Board string       `json:"board"`
	File  string       `json:"file"` // a patch over its base, or a whole image
	GUID  disk.GUID    `json:"guid"` // of its disk, which follows from all that is in it
	Base  string       `json:"base"`

	// Of a first server that others outlive: File begins the cluster, and this joins it.
	Again     string    `json:"again,omitempty"`
	AgainGUID disk.GUID `json:"againGUID,omitzero"`
}

// Report is what a build did.
type Report struct {
	Changes []string // of the fleet's secrets
	New     []string // nodes
	Changed []string
	Same    int
	Gone    []string
	Bases   []string // base images written
	Whole   bool     // the cards are whole images
	Bytes   int64    // on the disk for all that was written but shared blocks
}

// Build makes everything that the fleet's machines need, into dir: the fleet's secrets, which stay beside its file, one image for
// each board, and for each node what its card has that the image has not. What is there already and still right stays as it is.
func Build(ctx context.Context, f *Fleet, dir string, o Options) (*Report, error) {
	releases, err := f.open()
	if err != nil {
		return nil, err
	}
	if o.Keys == nil {
		o.Keys = new(Keyring)
	}
	s, err := f.load(o.Keys)
	if err != nil {
		return nil, err
	}
	from := o.Now
	for _, rel := range releases {
		if t := rel.Manifest().BuildTime; t.Before(from) {
			from = t // a machine without a clock of its own begins there
		}
	}
	r := new(Report)
	if r.Changes, err = f.complete(s, from, o.Now); err != nil {
		return nil, err
	}
	stored, err := f.save(s, o.Keys, len(r.Changes) > 0)
	if err != nil {
		return nil, err
	}
	b := &build{f: f, s: s, o: o, r: r, dir: dir, releases: releases, plans: map[string]*image.Plan{}, index: &Index{Schema: indexForm, Fleet: f.Name, Sealed: f.Secrets.Sealed()}}
	return r, b.run(ctx, stored)
}

type build struct {
	f        *Fleet
	s        *state
	o        Options
	r        *Report
	dir      string
	releases map[string]opened
	old      Index
	begin    func() error // before a file changes that the old index names
	index    *Index
	plans    map[string]*image.Plan // of the bases, by file name
	to       *age.X25519Recipient   // of the cards, if they are encrypted
	reflinks bool

	mu sync.Mutex
}

func (b *build) run(ctx context.Context, resealed bool) error {
	if err := os.MkdirAll(filepath.Join(b.dir, nodesDir), 0o700); err != nil {
		return err
	}
	old, err := LoadIndex(b.dir)
	switch {
	case err == nil && old.Fleet != b.f.Name:
		return fmt.Errorf("%s: holds fleet %s; name another folder for %s", b.dir, old.Fleet, b.f.Name)
	case err == nil:
		b.old = *old
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	b.begin = sync.OnceValue(func() error {
		if b.old.Fleet == "" || b.old.Unfinished {
			return nil
		}
		x := b.old
		x.Unfinished = true
		return b.store(&x)
	})
	if b.f.Secrets.Sealed() {
		if b.o.Whole {
			return errors.New("whole images cannot be encrypted, and the fleet's secrets are to be: leave out --whole, or secrets in its file")
		}
		id, err := age.ParseX25519Identity(b.s.Key)
		if err != nil {
			return err
		}
		b.to = id.Recipient()
		if _, err := os.Stat(filepath.Join(b.dir, keyName)); err != nil || resealed {
			data, err := b.f.Secrets.seal(b.o.Keys, []byte(b.s.Key+"\n"))
			if err != nil {
				return err
			}
			if err := atomicfile.Write(filepath.Join(b.dir, keyName), data, 0o600); err != nil {
				return err
			}
		}
	}
	if err := b.bases(ctx); err != nil {
		return err
	}
	b.r.Whole = b.o.Whole
	b.reflinks = b.o.Whole && canReflink(filepath.Join(b.dir, b.index.Bases[0].File), b.dir)
	if err := b.nodes(ctx); err != nil {
		return err
	}
	if err := b.generic(); err != nil {
		return err
	}
	// The cards are made durable together, and then the index that names them.
	if err := syncFolder(filepath.Join(b.dir, nodesDir)); err != nil {
		return err
	}
	if err := b.store(b.index); err != nil {
		return err
	}
	return b.sweep()
}

func (b *build) store(x *Index) error {
	data, err := json.MarshalIndent(x, "", " ")
	if err != nil {
		return err
	}
	return atomicfile.Write(filepath.Join(b.dir, IndexName), append(data, '\n'), 0o600)
}

// baseName is of the image that a node's is made over.
func baseName(n *Node) string {
	if n.Size == 0 {
		return "base-" + n.Board + imageExt
	}
	return fmt.Sprintf("base-%s-%v%s", n.Board, n.Size, imageExt)
}

func (b *build) plan(n *Node, c image.Config) (*image.Plan, error) {
	board, err := b.f.board(n.Board)
	if err != nil {
		return nil, err
	}
	return image.New(board, b.releases[n.Board].Release, c, image.Options{Size: n.Size})
}

// bases writes an image for each board and size that nodes have. It is a card that fits no machine: one says so and waits.
func (b *build) bases(ctx context.Context) error {
	empty, err := machine.SealTable(b.f.Name, nil)
	if err != nil {
		return err
	}
	for i := range b.f.Nodes {
		n := &b.f.Nodes[i]
		name := baseName(n)
		if b.plans[name] != nil {
			continue
		}
		p, err := b.plan(n, image.Config{Beside: []image.File{{Name: machine.TableName, Data: empty}}})
		if err != nil {
			return err
		}
		b.plans[name] = p
		base := Base{File: name, Board: n.Board, GUID: p.GUID, Size: p.Size}
		b.index.Bases = append(b.index.Bases, base)
		path := filepath.Join(b.dir, name)
		info, err := os.Stat(path)
		if err == nil && info.Size() == p.Size && !b.old.Unfinished && slices.Contains(b.old.Bases, base) {
			continue
		}
		if err := b.begin(); err != nil {
			return err
		}
		if err := image.Create(ctx, p, b.releases[n.Board].files, path, image.Raw); err != nil {
			return err
		}
		b.r.Bases = append(b.r.Bases, name)
		b.r.Bytes += p.Written()
	}
	return nil
}

func (b *build) nodes(ctx context.Context) error {
	seedData, err := b.f.seed(b.s)
	if err != nil {
		return err
	}
	b.index.Cards = make([]Card, len(b.f.Nodes))
	errs := make([]error, len(b.f.Nodes))
	turns := make(chan struct{}, runtime.NumCPU())
	var all sync.WaitGroup
	for i := range b.f.Nodes {
		turns <- struct{}{}
		if ctx.Err() != nil {
			break
		}
		all.Go(func() {
			defer func() { <-turns }()
			errs[i] = b.node(&b.f.Nodes[i], i, seedData)
		})
	}
	all.Wait()
	for _, c := range b.old.Cards {
		if _, has := b.f.Find(c.Name); !has {
			b.r.Gone = append(b.r.Gone, c.Name)
		}
	}
	slices.Sort(b.r.New)
	slices.Sort(b.r.Changed)
	return errors.Join(append(errs, context.Cause(ctx))...)
}

// planNode plans a node's card, of one that begins the cluster or joins it.
func (b *build) planNode(n *Node, begins bool, seedData []byte) (*image.Plan, error) {
	c, err := b.f.cardConfig(b.s, n, begins, seedData)
	if err != nil {
		return nil, err
	}
	p, err := b.plan(n, c)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", n.Name, err)
	}
	return p, nil
}

func (b *build) node(n *Node, i int, seedData []byte) error {
	p, err := b.planNode(n, b.f.First(n), seedData)
	if err != nil {
		return err
	}
	ext := patchExt
	if b.r.Whole {
		ext = imageExt
	}
	card := Card{Name: n.Name, Role: n.Role, Board: n.Board, File: nodesDir + "/" + n.Name + ext, GUID: p.GUID, Base: baseName(n)}
	var again *image.Plan
	if b.f.rejoins(n) {
		if again, err = b.planNode(n, false, nil); err != nil {
			return err
		}
		card.Again, card.AgainGUID = nodesDir+"/"+n.Name+againExt+ext, again.GUID
	}
	b.index.Cards[i] = card
	at := slices.IndexFunc(b.old.Cards, func(o Card) bool { return o.Name == n.Name })
	if at >= 0 && !b.old.Unfinished && b.old.Cards[at] == card && b.old.Sealed == b.index.Sealed && b.sameBase(card.Base) {
		if there(b.dir, card.files()) {
			b.note(func() { b.r.Same++ })
			return nil
		}
	}
	written, err := b.write(card, p)
	if err == nil && again != nil {
		var more int64
		more, err = b.write(card.again(), again)
		written += more
	}
	b.note(func() {
		b.r.Bytes += written
		if at >= 0 {
			b.r.Changed = append(b.r.Changed, n.Name)
		} else {
			b.r.New = append(b.r.New, n.Name)
		}
	})
	return err
}

// files are the card's own.
func (c Card) files() []string {
	if c.Again == "" {
		return []string{c.File}
	}
	return []string{c.File, c.Again}
}

// again is the card that joins.
func (c Card) again() Card {
	c.File, c.GUID, c.Again, c.AgainGUID = c.Again, c.AgainGUID, "", disk.GUID{}
	return c
}

func there(dir string, files []string) bool {
	return !slices.ContainsFunc(files, func(name string) bool { _, err := os.Stat(filepath.Join(dir, name)); return err != nil })
}

func (b *build) note(f func()) { b.mu.Lock(); defer b.mu.Unlock(); f() }

func (b *build) sameBase(name string) bool {
	is := func(x Base) bool { return x.File == name }
	i, j := slices.IndexFunc(b.old.Bases, is), slices.IndexFunc(b.index.Bases, is)
	return i >= 0 && j >= 0 && b.old.Bases[i] == b.index.Bases[j]
}

// write makes a card's file, and says how many bytes it takes.
func (b *build) write(card Card, p *image.Plan) (int64, error) {
	if err := b.begin(); err != nil {
		return 0, err
	}
	base := b.plans[card.Base]
	runs, err := p.Diff(base)
	if err != nil {
		return 0, err
	}
	path := filepath.Join(b.dir, card.File)
	if strings.HasSuffix(card.File, imageExt) {
		return b.writeWhole(path, filepath.Join(b.dir, card.Base), runs)
	}
	data, err := (&patch.Patch{Base: card.Base, GUID: base.GUID, Size: base.Size, Runs: runs}).Marshal()
	if err != nil {
		return 0, err
	}
	if b.to != nil {
		if data, err = sealTo(data, b.to); err != nil {
			return 0, err
		}
		// A plain one of before is to be gone from the medium, too, and not only from the file.
		if old, err := head(path); err == nil && !isSealed(old) {
			if err := seed.Erase(path); err != nil {
				return 0, err
			}
		}
	}
	return int64(len(data)), os.WriteFile(path, data, 0o600)
}

// head is what shows whether a file is sealed.
func head(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // read only
	b := make([]byte, len(ageMagic))
	n, err := io.ReadFull(f, b)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = nil
	}
	return b[:n], err
}

// writeWhole copies the base, by sharing its blocks if that is possible, and writes the node's own over it.
func (b *build) writeWhole(path, base string, runs []image.Run) (int64, error) {
	f, err := atomicfile.Create(path, 0o600)
	if err != nil {
		return 0, err
	}
	defer f.Abort()
	from, err := os.Open(base)
	if err != nil {
		return 0, err
	}
	defer from.Close() //nolint:errcheck // read only
	n := int64(0)
	if !b.reflinks {
		if n, err = copySparse(f.File, from); err != nil {
			return n, err
		}
	} else if err := reflink(f.File, from); err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	for _, r := range runs {
		if _, err := f.WriteAt(r.Data, r.Offset); err != nil {
			return n, err
		}
		n += int64(len(r.Data))
	}
	return n, f.Commit()
}

// generic writes the cards that fit any node of their board, which are sealed with what only the machines know.
func (b *build) generic() error {
	if !b.o.Generic {
		return nil
	}
	seedData, err := b.f.seed(b.s)
	if err != nil {
		return err
	}
	tables := map[string][]machine.TableNode{}
	first := map[string]*Node{}
	for i := range b.f.Nodes {
		n := &b.f.Nodes[i]
		var ids []string
		if n.Serial != "" {
			ids = append(ids, machine.SerialID(n.Serial))
		}
		if n.MAC != "" {
			ids = append(ids, machine.MACID(n.MAC))
		}
		if len(ids) == 0 {
			return fmt.Errorf("%s: has neither serial nor mac, by which it could find itself on a card that fits every machine", n.Name)
		}
		c, err := b.f.cardConfig(b.s, n, b.f.First(n), seedData)
		if err != nil {
			return err
		}
		t := machine.TableNode{IDs: ids, Config: c.Data}
		if len(c.Beside) > 0 {
			t.Seed = c.Beside[0].Data
		}
		key := baseName(n)
		tables[key] = append(tables[key], t)
		if first[key] == nil {
			first[key] = n
		}
	}
	for _, base := range b.index.Bases {
		table, err := machine.SealTable(b.f.Name, tables[base.File])
		if err != nil {
			return err
		}
		p, err := b.plan(first[base.File], image.Config{Beside: []image.File{{Name: machine.TableName, Data: table}}})
		if err != nil {
			return err
		}
		name := "any-" + strings.TrimSuffix(strings.TrimPrefix(base.File, "base-"), imageExt)
		card := Card{Name: name, Board: base.Board, File: nodesDir + "/" + name + patchExt, GUID: p.GUID, Base: base.File}
		if _, err := b.write(card, p); err != nil {
			return err
		}
		b.index.Any = append(b.index.Any, card)
	}
	return nil
}

// sweep removes what the index does not name any more.
func (b *build) sweep() error {
	var errs []error
	named := map[string]bool{}
	for _, c := range append(slices.Clone(b.index.Cards), b.index.Any...) {
		for _, name := range c.files() {
			named[name] = true
		}
	}
	for _, c := range append(slices.Clone(b.old.Cards), b.old.Any...) {
		for _, name := range c.files() {
			if !named[name] {
				errs = append(errs, seed.Erase(filepath.Join(b.dir, name)))
			}
		}
	}
	entries, err := os.ReadDir(filepath.Join(b.dir, nodesDir))
	errs = append(errs, err)
	for _, e := range entries { // of a build that did not end
		if strings.HasPrefix(e.Name(), ".") && strings.Contains(e.Name(), ".tmp-") {
			errs = append(errs, seed.Erase(filepath.Join(b.dir, nodesDir, e.Name())))
		}
	}
	for _, base := range b.old.Bases {
		if !slices.ContainsFunc(b.index.Bases, func(x Base) bool { return x.File == base.File }) {
			if err := os.Remove(filepath.Join(b.dir, base.File)); !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, err)
			}
		}
	}
	if !b.index.Sealed {
		if err := os.Remove(filepath.Join(b.dir, keyName)); !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// LoadIndex reads what a folder holds; an error of fs.ErrNotExist's kind says that it is no built fleet.
func LoadIndex(dir string) (*Index, error) {
	name := filepath.Join(dir, IndexName)
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	var x Index
	if err := json.Unmarshal(data, &x); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if x.Schema != indexForm {
		return nil, fmt.Errorf("%s: is of form %d; this program reads %d; build the fleet again", name, x.Schema, indexForm)
	}
	var files []string
	for _, c := range append(slices.Clone(x.Cards), x.Any...) {
		files = append(append(files, c.Base), c.files()...)
	}
	for _, b := range x.Bases {
		files = append(files, b.File)
	}
	if !slices.ContainsFunc(files, func(f string) bool { return !filepath.IsLocal(f) }) {
		return &x, nil
	}
	return nil, fmt.Errorf("%s: names a file outside of its folder", name)
}

// String sums a report up, a line for each thing.
func (r *Report) String() string {
	lines := slices.Clone(r.Changes)
	if len(r.Bases) > 0 {
		lines = append(lines, "wrote "+strings.Join(r.Bases, ", "))
	}
	for _, l := range []struct {
		what  string
		nodes []string
	}{{"new: ", r.New}, {"changed: ", r.Changed}, {"gone: ", r.Gone}} {
		if len(l.nodes) > 0 {
			lines = append(lines, l.what+some(l.nodes))
		}
	}
	if r.Same > 0 {
		lines = append(lines, fmt.Sprintf("as before: %d", r.Same))
	}
	if r.Bytes > 0 {
		lines = append(lines, "written: "+size.Bytes(r.Bytes).Rounded())
	}
	return strings.Join(lines, "\n")
}
