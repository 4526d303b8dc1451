package fleet

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

	"filippo.io/age"

	"github.com/skerry-os/skerry/image"
	"github.com/skerry-os/skerry/pkg/atomicfile"
	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/pki"
	"github.com/skerry-os/skerry/pkg/seed"
	"github.com/skerry-os/skerry/pkg/server/secrets"
	"github.com/skerry-os/skerry/pkg/token"
)

// state is the fleet's secrets: one file in a folder beside the fleet's, readable by its owner alone, encrypted if the fleet says
// so. A second build finds it and makes only what is missing.
type state struct {
	Schema     int               `json:"schema"`
	Fleet      string            `json:"fleet"`
	Made       time.Time         `json:"made"`
	Files      map[string][]byte `json:"files"`                // what the first server is given, below its data folder
	Tokens     map[string]string `json:"tokens"`               // by node: what lets it join
	Key        string            `json:"key,omitempty"`        // identity of age that the cards are encrypted to
	Recipients []string          `json:"recipients,omitempty"` // whom this file is encrypted to

	dir    string
	stored string // the file's name, "" if there is none
}

const stateSchema = 1

const (
	plainState  = "secrets.json"
	sealedState = "secrets.age"
)

// StateDir is the folder of the fleet's secrets.
func (f *Fleet) StateDir() string {
	return strings.TrimSuffix(f.file, filepath.Ext(f.file)) + ".secrets"
}

// load reads the state, or begins one that is not stored yet.
func (f *Fleet) load(k *Keyring) (*state, error) {
	s := &state{Schema: stateSchema, Fleet: f.Name, Tokens: map[string]string{}, dir: f.StateDir()}
	for _, name := range []string{sealedState, plainState} {
		path := filepath.Join(s.dir, name)
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil && name == sealedState {
			data, err = k.open(data)
		}
		if err == nil {
			err = json.Unmarshal(data, s)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		if s.Schema != stateSchema {
			return nil, fmt.Errorf("%s: is of form %d; this program reads %d", path, s.Schema, stateSchema)
		}
		s.stored = name
		return s, nil
	}
	return s, nil
}

// complete makes what is missing, and says what was. from is the earliest time that a machine's clock may start at.
func (f *Fleet) complete(s *state, from, now time.Time) (changes []string, err error) {
	if s.Files == nil {
		if s.Files, err = pki.NewCluster(from, now); err != nil {
			return nil, err
		}
		maps.Copy(s.Files, secrets.New())
		s.Made = now.UTC().Truncate(time.Second)
		changes = append(changes, "made the cluster's authorities and keys")
	}
	var added, gone []string
	for i := range f.Nodes {
		n := &f.Nodes[i]
		if _, has := s.Tokens[n.Name]; !has && f.joins(n) {
			s.Tokens[n.Name] = token.New()
			added = append(added, n.Name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(s.Tokens)) {
		if n, has := f.Find(name); !has || !f.joins(n) {
			delete(s.Tokens, name)
			gone = append(gone, name)
		}
	}
	if len(added) > 0 {
		changes = append(changes, "made tokens for "+some(added))
	}
	if len(gone) > 0 {
		changes = append(changes, "forgot the tokens of "+some(gone))
	}
	if f.Secrets.Sealed() && s.Key == "" {
		id, err := age.GenerateX25519Identity()
		if err != nil {
			return nil, err
		}
		s.Key = id.String()
		changes = append(changes, "made a key for the cards")
	}
	return changes, nil
}

// joins says whether a card of the node can be one that joins.
func (f *Fleet) joins(n *Node) bool { return !f.First(n) || f.rejoins(n) }

// some names the first of many.
func some(names []string) string {
	if len(names) > 8 {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:8], ", "), len(names)-8)
	}
	return strings.Join(names, ", ")
}

// save stores the state as the fleet says, and takes one in another form away. It does nothing if that is how it is stored.
func (f *Fleet) save(s *state, k *Keyring, changed bool) (bool, error) {
	name := plainState
	to := []string(nil)
	if f.Secrets.Sealed() {
		name, to = sealedState, f.Secrets.Recipients
	}
	if s.stored == name && !changed && slices.Equal(s.Recipients, to) {
		return false, s.sweep()
	}
	s.Recipients = to
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return false, err
	}
	if err := os.Chmod(s.dir, 0o700); err != nil {
		return false, err
	}
	data, err := json.MarshalIndent(s, "", " ")
	if err != nil {
		return false, err
	}
	if f.Secrets.Sealed() {
		if data, err = f.Secrets.seal(k, data); err != nil {
			return false, err
		}
	}
	if err := atomicfile.Write(filepath.Join(s.dir, name), data, 0o600); err != nil {
		return false, err
	}
	s.stored = name
	return true, s.sweep()
}

// sweep erases what else the folder has of the state: the other form of it, and what a write that did not end has left.
func (s *state) sweep() error {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		for _, form := range []string{plainState, sealedState} {
			if e.Name() == form && form != s.stored || strings.HasPrefix(e.Name(), "."+form+".tmp-") {
				if err := seed.Erase(filepath.Join(s.dir, e.Name())); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// seed is what the first server's card brings.
func (f *Fleet) seed(s *state) ([]byte, error) {
	out := seed.Seed{Fleet: f.Name, Files: s.Files, Tokens: f.tokens(s)}
	if servers := f.Servers(); len(servers) > 0 {
		out.Servers = f.others(servers[0])
	}
	return out.Marshal()
}

func (f *Fleet) tokens(s *state) (out []seed.Token) {
	for i := range f.Nodes {
		n := &f.Nodes[i]
		if secret, has := s.Tokens[n.Name]; has {
			out = append(out, seed.Token{Secret: secret, Node: n.Name, Server: n.Role == machine.RoleServer})
		}
	}
	return out
}

// Tokens are the tokens of all nodes as Secrets, for a cluster that runs already and whose fleet has grown since.
func (f *Fleet) Tokens(k *Keyring) ([]byte, error) {
	s, err := f.load(k)
	if err != nil {
		return nil, err
	}
	if s.stored == "" {
		return nil, fmt.Errorf("%s: there are no secrets yet; run skerry fleet build first", f.StateDir())
	}
	return seed.Manifest(f.tokens(s)), nil
}

// cardConfig is what stands on the config partition of a node's card, of one that begins the cluster or joins it.
func (f *Fleet) cardConfig(s *state, n *Node, begins bool, seedData []byte) (image.Config, error) {
	c := image.Config{Name: n.Name}
	if begins {
		c.Beside = []image.File{{Name: seed.Name, Data: seedData}}
	}
	text, err := s.token(n)
	if err == nil {
		c.Data, err = f.configFile(n, text, begins)
	}
	return c, err
}

// token is the text that a node joins with; "" for the server of a fleet that has one.
func (s *state) token(n *Node) (string, error) {
	secret, has := s.Tokens[n.Name]
	if !has {
		return "", nil
	}
	ca, err := pki.Certificate(s.Files[pki.ServerCAFile])
	if err != nil {
		return "", err
	}
	return token.Token{Pin: token.Pin(ca), Secret: secret}.String(), nil
}

// Kubeconfig is an administrator's, made from the cluster's authorities.
func (f *Fleet) Kubeconfig(k *Keyring, now time.Time) ([]byte, error) {
	s, err := f.load(k)
	if err != nil {
		return nil, err
	}
	if s.stored == "" {
		return nil, fmt.Errorf("%s: there are no secrets yet; run skerry fleet build first", f.StateDir())
	}
	server, err := f.Server()
	if err != nil {
		return nil, err
	}
	return pki.Administrator(s.Files, f.Name, server, now)
}
