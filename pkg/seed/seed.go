// Package seed is what the first server of a fleet is given in place of making it: the cluster's authorities and keys, and the
// tokens that the other machines' cards hold. It comes on the config partition, is brought to the data partition at the first
// start and taken away from where it was, as well as the medium lets one; what a flash chip keeps of it in blocks that it has put
// aside nobody can reach but with tools.
package seed

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/skerry-os/skerry/pkg/atomicfile"
	"github.com/skerry-os/skerry/pkg/token"
)

// Name is the file's name, on the config partition and in the data folder.
const Name = "seed.json"

// PendingName is where a server keeps the tokens of its seed until the datastore has them, below the data folder.
const PendingName = "server/tokens.json"

// schema is the form of the file.
const schema = 1

// MaxBytes bounds a seed: 10 KiB of keys and 150 bytes for each node.
const MaxBytes = 4 << 20

// Seed is the file.
type Seed struct {
	Schema int               `json:"schema"`
	Fleet  string            `json:"fleet"`
	Files  map[string][]byte `json:"files"` // below the data folder, by name
	Tokens []Token           `json:"tokens"`

	// Servers are the URLs of the fleet's other servers. One of them that belongs to the cluster already is joined.
	Servers []string `json:"servers,omitempty"`
}

// Token lets one node join.
type Token struct {
	Secret string `json:"secret"` // id.secret
	Node   string `json:"node"`
	Server bool   `json:"server,omitempty"` // it may join as a server
}

// Marshal gives the file.
func (s *Seed) Marshal() ([]byte, error) {
	s.Schema = schema
	return json.Marshal(s)
}

// Parse reads a seed. Its errors show no secret.
func Parse(data []byte) (*Seed, error) {
	if len(data) > MaxBytes {
		return nil, fmt.Errorf("is %d bytes; at most %d are read", len(data), MaxBytes)
	}
	var s Seed
	if err := strict(data, &s); err != nil {
		return nil, err
	}
	if s.Schema != schema {
		return nil, fmt.Errorf("is of form %d; this release reads %d", s.Schema, schema)
	}
	for name := range s.Files {
		if !filepath.IsLocal(name) {
			return nil, fmt.Errorf("holds a file %q outside of the data folder", name)
		}
	}
	return &s, check(s.Tokens)
}

func check(tokens []Token) error {
	for i, t := range tokens {
		if token.ID(t.Secret) == "" || t.Node == "" {
			return fmt.Errorf("token %d is not one for a node", i+1)
		}
	}
	return nil
}

func strict(data []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return errors.New("is not a seed, or cut") // the decoder's words may hold some of it
	}
	return nil
}

// Load reads the seed in a folder; nil if there is none.
func Load(dir string) (*Seed, error) {
	name := filepath.Join(dir, Name)
	data, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	s, err := Parse(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return s, nil
}

// Move brings the seed of one folder to another, and removes it where it was once it is durable there. It reports whether there
// was one.
func Move(from, to string) (bool, error) {
	data, err := os.ReadFile(filepath.Join(from, Name))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	// A cut one is removed too: it can do nothing but be found.
	if len(data) > 0 && data[0] != 0 {
		if _, err := Parse(data); err != nil {
			return true, fmt.Errorf("%s: %w; build the fleet and write the card again", Name, err)
		}
		if err := atomicfile.Write(filepath.Join(to, Name), data, 0o600); err != nil {
			return true, err
		}
	}
	return true, Erase(filepath.Join(from, Name))
}

// Erase overwrites a file with zeros, on the medium, and removes it.
func Erase(name string) error {
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err == nil {
		_, err = f.Write(make([]byte, info.Size()))
	}
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("%s: erasing it: %w", name, err)
	}
	if err := os.Remove(name); err != nil {
		return err
	}
	return atomicfile.SyncDir(filepath.Dir(name))
}

// Pending reads the tokens that the datastore does not have yet; none is no error.
func Pending(dataDir string) ([]Token, error) {
	name := filepath.Join(dataDir, PendingName)
	data, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []Token
	if err := strict(data, &out); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return out, check(out)
}

// MarshalPending gives the file that Pending reads.
func MarshalPending(tokens []Token) ([]byte, error) { return json.Marshal(tokens) }
