package machine

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"runtime"
	"slices"
	"strings"
	"sync"

	"golang.org/x/crypto/chacha20poly1305"
	"golang.org/x/crypto/scrypt"
)

// TableName is a fleet's table of nodes on the config partition of a card that fits all of its machines.
const TableName = "nodes.json"

// MaxTableBytes bounds a table: some KiB for each node.
const MaxTableBytes = 32 << 20

const (
	tableSchema = 1
	// tableCost is scrypt's N: 16 MiB and a tenth of a second on a small board, for each name that a machine has.
	tableCost = 1 << 14
)

// Table is what a card needs to be any of a fleet's machines: each node's config and seed, sealed with what only that machine
// says of itself, its serial number or a network card's address.
//
// It keeps a node's token from whoever has the card and not the machine. It is no safe: serial numbers and addresses stand on
// stickers, are heard on the network, and can be tried, a few million for each maker, at a tenth of a second each. A fleet whose
// cards get lost is better off with a card for each machine. A machine that has found itself writes its own config in the
// table's place, so that its card holds nothing of the others any more.
type Table struct {
	Schema int      `json:"schema"`
	Fleet  string   `json:"fleet"`
	Salt   []byte   `json:"salt"`
	Cost   int      `json:"cost"`
	Keys   []boxed  `json:"keys"`
	Nodes  [][]byte `json:"nodes"`
}

// boxed is a node's key for one of its names.
type boxed struct {
	Tag  string `json:"tag"` // which name it is, as only the name tells
	Node int    `json:"node"`
	Box  []byte `json:"box"`
}

// TableNode is one machine of a table.
type TableNode struct {
	IDs    []string `json:"-"` // by SerialID and MACID
	Config []byte   `json:"config"`
	Seed   []byte   `json:"seed,omitempty"`
}

// SerialID and MACID are a machine's names for itself.
func SerialID(serial string) string { return "serial " + strings.ToLower(strings.TrimSpace(serial)) }

// MACID takes an address in any usual form.
func MACID(mac string) string {
	return "mac " + strings.NewReplacer("-", "", ":", "", ".", "").Replace(strings.ToLower(strings.TrimSpace(mac)))
}

// HardwareIDs are the names of the machine whose kernel's files root shows: serial numbers, and addresses of network cards that
// are devices. Those of devices that come late are missing.
func HardwareIDs(root fs.FS) []string {
	var out []string
	for _, name := range []string{"proc/device-tree/serial-number", "sys/class/dmi/id/product_serial", "sys/class/dmi/id/board_serial", "sys/class/dmi/id/product_uuid"} {
		data, err := fs.ReadFile(root, name)
		if text := strings.Trim(string(data), "\x00 \n\t"); err == nil && text != "" {
			out = append(out, SerialID(text))
		}
	}
	cards, _ := fs.Glob(root, "sys/class/net/*/address")
	for _, name := range cards {
		if _, err := fs.Stat(root, path.Join(path.Dir(name), "device")); err != nil {
			continue
		}
		if data, err := fs.ReadFile(root, name); err == nil && len(strings.TrimSpace(string(data))) == 17 {
			out = append(out, MACID(string(data)))
		}
	}
	return slices.Compact(out)
}

// SealTable makes a table's file. A node without a name is left out: no machine could find it.
func SealTable(fleet string, nodes []TableNode) ([]byte, error) {
	t := Table{Schema: tableSchema, Fleet: fleet, Salt: random(16), Cost: tableCost}
	type job struct {
		id   string
		node int
		key  []byte
	}
	var jobs []job
	for _, n := range nodes {
		if len(n.IDs) == 0 {
			continue
		}
		plain, err := json.Marshal(n)
		if err != nil {
			return nil, err
		}
		key := random(chacha20poly1305.KeySize)
		for _, id := range n.IDs {
			jobs = append(jobs, job{id, len(t.Nodes), key})
		}
		t.Nodes = append(t.Nodes, lock(key, plain))
	}
	if len(jobs) == 0 {
		t.Salt = nil // an empty table is the same every time
	}
	t.Keys = make([]boxed, len(jobs))
	errs := make([]error, len(jobs))
	var all sync.WaitGroup
	turns := make(chan struct{}, runtime.NumCPU())
	for i, j := range jobs {
		turns <- struct{}{}
		all.Go(func() {
			defer func() { <-turns }()
			tag, key, err := t.derive(j.id)
			if errs[i] = err; err == nil {
				t.Keys[i] = boxed{tag, j.node, lock(key, j.key)}
			}
		})
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return json.Marshal(t)
}

// ParseTable reads a table's file.
func ParseTable(data []byte) (*Table, error) {
	if len(data) > MaxTableBytes {
		return nil, fmt.Errorf("%s: is %d bytes; at most %d are read", TableName, len(data), MaxTableBytes)
	}
	var t Table
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&t); err != nil {
		return nil, fmt.Errorf("%s: is not a table of nodes, or cut: %w", TableName, err)
	}
	if t.Schema != tableSchema || t.Cost < 2 || t.Cost > 1<<18 || t.Cost&(t.Cost-1) != 0 {
		return nil, fmt.Errorf("%s: is of form %d; this release reads %d", TableName, t.Schema, tableSchema)
	}
	for _, k := range t.Keys {
		if k.Node < 0 || k.Node >= len(t.Nodes) {
			return nil, fmt.Errorf("%s: names a node that it does not hold", TableName)
		}
	}
	return &t, nil
}

// Find gives the node that has one of the names; nil if none has.
func (t *Table) Find(ids ...string) (*TableNode, error) {
	for _, id := range ids {
		tag, key, err := t.derive(id)
		if err != nil {
			return nil, err
		}
		i := slices.IndexFunc(t.Keys, func(k boxed) bool { return k.Tag == tag })
		if i < 0 {
			continue
		}
		nodeKey, err := unlock(key, t.Keys[i].Box)
		if err == nil {
			var plain []byte
			if plain, err = unlock(nodeKey, t.Nodes[t.Keys[i].Node]); err == nil {
				n := &TableNode{IDs: []string{id}}
				return n, json.Unmarshal(plain, n)
			}
		}
		return nil, fmt.Errorf("%s: the node for %s: %w; write the card again", TableName, id, err)
	}
	return nil, nil
}

func (t *Table) derive(id string) (tag string, key []byte, err error) {
	b, err := scrypt.Key([]byte(id), t.Salt, t.Cost, 8, 1, chacha20poly1305.KeySize+16)
	if err != nil {
		return "", nil, err
	}
	return hex.EncodeToString(b[chacha20poly1305.KeySize:]), b[:chacha20poly1305.KeySize], nil
}

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return b
}

// lock encrypts with a key that is used once.
func lock(key, plain []byte) []byte {
	aead, err := chacha20poly1305.New(key)
	if err != nil {
		panic(err) // the key has the size it wants
	}
	return aead.Seal(nil, make([]byte, aead.NonceSize()), plain, nil)
}

func unlock(key, box []byte) ([]byte, error) {
	aead, err := chacha20poly1305.New(key)
	if err != nil {
		return nil, err
	}
	plain, err := aead.Open(nil, make([]byte, aead.NonceSize()), box, nil)
	if err != nil {
		return nil, errors.New("is damaged")
	}
	return plain, nil
}
