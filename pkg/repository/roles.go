// Package repository is how releases reach machines: a TUF repository (https://theupdateframework.io) that any static web
// server or a USB stick can hold, the keys that sign it, and the client that believes nothing else.
//
// Four roles sign. root says who the others are, and lives offline; its first metadata is baked into every release's signed
// kernel image, and a chain of roots leads from there to today's. targets says what releases there are. snapshot keeps an
// attacker from mixing the metadata of different days, timestamp from showing an old day for ever: it expires first, so
// `skerry update refresh` has to run more often than that. Private keys may be kept elsewhere: a command signs then.
//
//	metadata/1.root.json ... N.targets.json N.snapshot.json timestamp.json
//	targets/<arch>/<version>/<sha256>.manifest.json, .manifest.sig, .root.img, .root.img.zst, .root.idx, .<board>.efi
package repository

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/skerry-os/skerry/pkg/atomicfile"
	"github.com/skerry-os/skerry/pkg/keys"
)

// RoleNames lists the roles from the top of the trust down.
var RoleNames = []string{metadata.ROOT, metadata.TARGETS, metadata.SNAPSHOT, metadata.TIMESTAMP}

// Lifetimes are how long what a role signs is believed.
var Lifetimes = map[string]time.Duration{
	metadata.ROOT: 10 * 365 * day, metadata.TARGETS: 365 * day, metadata.SNAPSHOT: 365 * day, metadata.TIMESTAMP: 30 * day,
}

const day = 24 * time.Hour

// RootFile is the newest root metadata in a folder of role keys; older ones lie beside it as N.root.json.
const RootFile = "root.json"

// Roles is a folder of role keys, whose files pkg/keys describes: <role>.pub each, <role>.key where the private key is here; and
// root.json.
type Roles struct {
	dir  string
	with keys.Command // for keys that are not here
	root *metadata.Metadata[metadata.RootType]
	keys map[string]*keys.Signer
}

// NewRoles makes the keys and the first root metadata. It refuses a folder that has some already.
func NewRoles(dir string, now time.Time) (*Roles, error) {
	return NewRolesFrom(dir, keys.Source{}, now)
}

// NewRolesFrom does so with private keys some of which are elsewhere.
func NewRolesFrom(dir string, src keys.Source, now time.Time) (*Roles, error) {
	if _, err := os.Stat(filepath.Join(dir, RootFile)); err == nil {
		return nil, fmt.Errorf("%s: holds role keys already; change one with: skerry keys rotate", dir)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	r := &Roles{dir: dir, with: src.Sign, keys: map[string]*keys.Signer{}}
	root := metadata.Root(now.Add(Lifetimes[metadata.ROOT]).UTC().Truncate(time.Second))
	root.Signed.ConsistentSnapshot = true
	for _, role := range RoleNames {
		k, err := src.MakePublic(dir, role)
		if err != nil {
			return nil, err
		}
		key, err := metadata.KeyFromPublicKey(k.Public())
		if err != nil {
			return nil, err
		}
		if err := root.Signed.AddKey(key, role); err != nil {
			return nil, err
		}
		r.keys[role] = k
	}
	r.root = root
	if _, err := root.Sign(signer{r.keys[metadata.ROOT]}); err != nil {
		return nil, err
	}
	return r, r.writeRoot()
}

func (r *Roles) writeRoot() error {
	data, err := r.root.ToBytes(false)
	if err != nil {
		return err
	}
	if err := atomicfile.Write(filepath.Join(r.dir, fmt.Sprintf("%d.root.json", r.root.Signed.Version)), data, 0o644); err != nil {
		return err
	}
	return atomicfile.Write(filepath.Join(r.dir, RootFile), data, 0o644)
}

// LoadRoles reads a folder of role keys. with signs for keys that are not here.
func LoadRoles(dir string, with keys.Command) (*Roles, error) {
	data, err := os.ReadFile(filepath.Join(dir, RootFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: holds no role keys; make them with: skerry keys roles", dir)
	}
	if err != nil {
		return nil, err
	}
	root, err := parseRoot(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, RootFile), err)
	}
	r := &Roles{dir: dir, with: with, root: root, keys: map[string]*keys.Signer{}}
	for _, role := range RoleNames {
		for _, id := range root.Signed.Roles[role].KeyIDs {
			pub, err := root.Signed.Keys[id].ToPublicKey()
			if err != nil {
				return nil, fmt.Errorf("%s: key of %s: %w", dir, role, err)
			}
			key, ok := pub.(ed25519.PublicKey)
			if !ok {
				return nil, fmt.Errorf("%s: key of %s is a %T, not ed25519", dir, role, pub)
			}
			if r.keys[role], err = keys.NewSigner(dir, role, key, with); err != nil {
				return nil, err
			}
		}
		if r.keys[role] == nil {
			return nil, fmt.Errorf("%s: root.json names no key of %s", dir, role)
		}
	}
	return r, nil
}

// parseRoot reads root metadata that is signed by its own keys.
func parseRoot(data []byte) (*metadata.Metadata[metadata.RootType], error) {
	root, err := metadata.Root().FromBytes(data)
	if err != nil {
		return nil, err
	}
	return root, root.VerifyDelegate(metadata.ROOT, root)
}

// Root is the newest root metadata, for images to be baked in.
func (r *Roles) Root() ([]byte, error) { return r.root.ToBytes(false) }

// Role is what Show tells of one.
type Role struct {
	Name    string    `json:"name"`
	KeyID   string    `json:"keyID"`
	Here    bool      `json:"here"` // the private key is in the folder
	Expires time.Time `json:"expires,omitzero"`
}

// Show lists the roles; only root's own metadata, and so its expiry, is in the folder.
func (r *Roles) Show() []Role {
	var out []Role
	for _, role := range RoleNames {
		v := Role{Name: role, KeyID: r.root.Signed.Roles[role].KeyIDs[0], Here: r.keys[role].Here()}
		if role == metadata.ROOT {
			v.Expires = r.root.Signed.Expires
		}
		out = append(out, v)
	}
	return out
}

// Rotate gives a role a new key. The new root metadata is signed by the root key of before and, if that changed, by the new one:
// machines follow the chain. Publish afterwards, so that the repository is signed by the new key.
func (r *Roles) Rotate(role string, src keys.Source, now time.Time) error {
	if !slices.Contains(RoleNames, role) {
		return fmt.Errorf("role %q: is not one of %s", role, strings.Join(RoleNames, ", "))
	}
	old, oldRoot := r.keys[role], r.keys[metadata.ROOT]
	if err := oldRoot.Check(); err != nil {
		return err
	}
	if pub, ok := src.Public[role]; ok && keys.KeyID(pub) == old.ID() {
		return fmt.Errorf("%s: that is the key it has; make another one", role)
	}
	tmp, err := os.MkdirTemp(r.dir, ".rotate-") // 0700
	if err != nil {
		return err
	}
	keep := false // the only copy of a key that metadata names
	defer func() {
		if !keep {
			_ = os.RemoveAll(tmp)
		}
	}()
	made, err := src.MakePublic(tmp, role)
	if err != nil {
		return err
	}
	key, err := metadata.KeyFromPublicKey(made.Public())
	if err != nil {
		return err
	}
	next := r.root.Signed
	if err := next.RevokeKey(next.Roles[role].KeyIDs[0], role); err != nil {
		return err
	}
	if err := next.AddKey(key, role); err != nil {
		return err
	}
	next.Version++
	next.Expires = now.Add(Lifetimes[metadata.ROOT]).UTC().Truncate(time.Second)
	r.root.Signed = next
	r.root.ClearSignatures()
	by := []*keys.Signer{oldRoot}
	if role == metadata.ROOT {
		by = append(by, made)
	}
	for _, k := range by {
		if _, err := r.root.Sign(signer{k}); err != nil {
			return err
		}
	}
	keep = true
	if err := r.writeRoot(); err != nil {
		return err
	}
	if err := keys.Replace(r.dir, tmp, role); err != nil {
		return fmt.Errorf("%w; move the key by hand: it is in %s", err, tmp)
	}
	keep = false
	r.keys[role], err = keys.NewSigner(r.dir, role, made.Public(), src.Sign)
	return err
}

// canPublish says whose signatures nobody would be there to make.
func (r *Roles) canPublish() error {
	return errors.Join(r.keys[metadata.TARGETS].Check(), r.keys[metadata.SNAPSHOT].Check(), r.keys[metadata.TIMESTAMP].Check())
}

// signer lets a key sign metadata.
type signer struct{ key *keys.Signer }

func (s signer) PublicKey(...signature.PublicKeyOption) (crypto.PublicKey, error) {
	return s.key.Public(), nil
}

func (s signer) SignMessage(message io.Reader, _ ...signature.SignOption) ([]byte, error) {
	msg, err := io.ReadAll(message)
	if err != nil {
		return nil, err
	}
	return s.key.SignMessage(rand.Reader, msg, crypto.Hash(0))
}

// rootHistory lists the root metadata files of the folder, oldest first.
func (r *Roles) rootHistory() (map[int64][]byte, error) {
	names, err := filepath.Glob(filepath.Join(r.dir, "*.root.json"))
	if err != nil {
		return nil, err
	}
	out := map[int64][]byte{}
	for _, name := range names {
		n, err := strconv.ParseInt(strings.TrimSuffix(filepath.Base(name), ".root.json"), 10, 64)
		if err != nil {
			continue
		}
		if out[n], err = os.ReadFile(name); err != nil {
			return nil, err
		}
	}
	return out, nil
}
