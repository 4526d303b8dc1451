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
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/skerry-os/skerry/pkg/atomicfile"
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

// Roles is a folder of role keys: <role>.pub each, <role>.key where the private key is here, root.json.
type Roles struct {
	dir    string
	sign   []string // command for keys that are not here
	root   *metadata.Metadata[metadata.RootType]
	public map[string]ed25519.PublicKey
}

// NewRoles makes the keys and the first root metadata. It refuses a folder that has some already.
func NewRoles(dir string, now time.Time) (*Roles, error) {
	if _, err := os.Stat(filepath.Join(dir, RootFile)); err == nil {
		return nil, fmt.Errorf("%s: holds role keys already; change one with: skerry keys rotate", dir)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	r := &Roles{dir: dir, public: map[string]ed25519.PublicKey{}}
	root := metadata.Root(now.Add(Lifetimes[metadata.ROOT]).UTC().Truncate(time.Second))
	root.Signed.ConsistentSnapshot = true
	for _, role := range RoleNames {
		pub, err := r.newKey(role)
		if err != nil {
			return nil, err
		}
		key, err := metadata.KeyFromPublicKey(pub)
		if err != nil {
			return nil, err
		}
		if err := root.Signed.AddKey(key, role); err != nil {
			return nil, err
		}
		r.public[role] = pub
	}
	r.root = root
	if err := r.signWith(metadata.ROOT, func(s signature.Signer) error { _, err := root.Sign(s); return err }); err != nil {
		return nil, err
	}
	return r, r.writeRoot()
}

func (r *Roles) newKey(role string) (ed25519.PublicKey, error) {
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	public, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, err
	}
	for _, f := range []struct {
		name, kind string
		der        []byte
		mode       fs.FileMode
	}{{role + ".key", "PRIVATE KEY", private, 0o600}, {role + ".pub", "PUBLIC KEY", public, 0o644}} {
		if err := atomicfile.Write(filepath.Join(r.dir, f.name), pem.EncodeToMemory(&pem.Block{Type: f.kind, Bytes: f.der}), f.mode); err != nil {
			return nil, err
		}
	}
	return pub, nil
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

// LoadRoles reads a folder of role keys. signWith is a command and its arguments for keys that are not here; it gets the role
// and the key's ID as two more, the bytes to sign as its input, and prints the ed25519 signature in hexadecimal.
func LoadRoles(dir string, signWith []string) (*Roles, error) {
	data, err := os.ReadFile(filepath.Join(dir, RootFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: holds no role keys; make them with: skerry keys roles", dir)
	}
	if err != nil {
		return nil, err
	}
	root, err := metadata.Root().FromBytes(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, RootFile), err)
	}
	if err := root.VerifyDelegate(metadata.ROOT, root); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, RootFile), err)
	}
	r := &Roles{dir: dir, sign: signWith, root: root, public: map[string]ed25519.PublicKey{}}
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
			r.public[role] = key
		}
	}
	return r, nil
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
		v := Role{Name: role, KeyID: r.root.Signed.Roles[role].KeyIDs[0]}
		_, err := os.Stat(filepath.Join(r.dir, role+".key"))
		v.Here = err == nil
		if role == metadata.ROOT {
			v.Expires = r.root.Signed.Expires
		}
		out = append(out, v)
	}
	return out
}

// Rotate gives a role a new key. The new root metadata is signed by the root key of before and, if that changed, by the new one:
// machines follow the chain. Publish afterwards, so that the repository is signed by the new key.
func (r *Roles) Rotate(role string, now time.Time) error {
	if !slices.Contains(RoleNames, role) {
		return fmt.Errorf("role %q: is not one of %s", role, strings.Join(RoleNames, ", "))
	}
	next := r.root.Signed
	oldID := next.Roles[role].KeyIDs[0]
	oldKey, err := r.privateKey(metadata.ROOT)
	if err != nil && !errors.Is(err, errElsewhere) {
		return err
	}
	oldPub := r.public[metadata.ROOT]
	if role == metadata.ROOT && oldKey == nil {
		return errors.New("root: its key is signed for elsewhere; a rotation needs both keys here")
	}
	pub, err := r.newKey(role)
	if err != nil {
		return err
	}
	key, err := metadata.KeyFromPublicKey(pub)
	if err != nil {
		return err
	}
	if err := next.RevokeKey(oldID, role); err != nil {
		return err
	}
	if err := next.AddKey(key, role); err != nil {
		return err
	}
	next.Version++
	next.Expires = now.Add(Lifetimes[metadata.ROOT]).UTC().Truncate(time.Second)
	r.root.Signed = next
	r.root.ClearSignatures()
	r.public[role] = pub
	if role == metadata.ROOT {
		if _, err := r.root.Sign(&signer{pub: oldPub, key: oldKey}); err != nil {
			return err
		}
	}
	if err := r.signWith(metadata.ROOT, func(s signature.Signer) error { _, err := r.root.Sign(s); return err }); err != nil {
		return err
	}
	return r.writeRoot()
}

var errElsewhere = errors.New("its private key is not here; name a command that signs with --sign-with")

func (r *Roles) privateKey(role string) (ed25519.PrivateKey, error) {
	name := filepath.Join(r.dir, role+".key")
	st, err := os.Stat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", role, errElsewhere)
	}
	if err != nil {
		return nil, err
	}
	if st.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s: others can read this private key (mode %04o); chmod 600 it, and think about who did", name, st.Mode().Perm())
	}
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, fmt.Errorf("%s: holds no PEM", name)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	k, ok := key.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s: is a %T, not ed25519", name, key)
	}
	if !k.Public().(ed25519.PublicKey).Equal(r.public[role]) {
		return nil, fmt.Errorf("%s: is not the key that root.json names for %s", name, role)
	}
	return k, nil
}

func (r *Roles) signWith(role string, do func(signature.Signer) error) error {
	key, err := r.privateKey(role)
	if errors.Is(err, errElsewhere) && len(r.sign) > 0 {
		return do(&signer{pub: r.public[role], run: append(slices.Clone(r.sign), role, r.root.Signed.Roles[role].KeyIDs[0])})
	}
	if err != nil {
		return err
	}
	return do(&signer{pub: r.public[role], key: key})
}

// signer is a key, or a command that has it.
type signer struct {
	pub ed25519.PublicKey
	key ed25519.PrivateKey
	run []string
}

func (s *signer) PublicKey(...signature.PublicKeyOption) (crypto.PublicKey, error) { return s.pub, nil }

func (s *signer) SignMessage(message io.Reader, _ ...signature.SignOption) ([]byte, error) {
	msg, err := io.ReadAll(message)
	if err != nil {
		return nil, err
	}
	if s.key != nil {
		return ed25519.Sign(s.key, msg), nil
	}
	cmd := exec.CommandContext(context.Background(), s.run[0], s.run[1:]...)
	cmd.Stdin, cmd.Stderr = bytes.NewReader(msg), os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", strings.Join(s.run, " "), err)
	}
	sig, err := hex.DecodeString(strings.TrimSpace(string(out)))
	if err != nil || !ed25519.Verify(s.pub, msg, sig) {
		return nil, fmt.Errorf("%s: what it printed is no signature by key %s in hexadecimal", strings.Join(s.run, " "), hex.EncodeToString(s.pub[:8]))
	}
	return sig, nil
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
