package release

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
)

// The names of the two files at the top of a release folder.
const (
	ManifestName  = "manifest.json"
	SignatureName = "manifest.sig"
)

// domain keeps a signature made for a manifest from being valid for anything else.
const domain = "skerry release manifest v1\n"

// MaxSignatureBytes bounds a signature file before it is parsed.
const MaxSignatureBytes = 4 << 10

// ErrUntrusted means the signature is not by any key the caller trusts.
var ErrUntrusted = errors.New("is not signed by a trusted key")

// signature is the content of manifest.sig.
type signature struct {
	KeyID string `json:"keyID"` // first 16 hex digits of sha256(public key): tells which key, proves nothing
	Sig   string `json:"sig"`   // base64 of ed25519 over domain + manifest bytes
}

// KeyID names a public key in messages.
func KeyID(pub ed25519.PublicKey) string {
	sum := sha256.Sum256(pub)
	return hex.EncodeToString(sum[:8])
}

// Sign gives the canonical manifest and its signature file.
func Sign(m *Manifest, key ed25519.PrivateKey) (manifest, sig []byte, err error) {
	manifest, err = m.Marshal()
	if err != nil {
		return nil, nil, err
	}
	s := signature{
		KeyID: KeyID(key.Public().(ed25519.PublicKey)),
		Sig:   base64.StdEncoding.EncodeToString(ed25519.Sign(key, append([]byte(domain), manifest...))),
	}
	sig, err = json.Marshal(s)
	return manifest, append(sig, '\n'), err
}

// Release is a manifest whose signature was checked. Only Verify makes one.
type Release struct {
	m             *Manifest
	manifest, sig []byte
	key           string
}

// Manifest is what was signed. Callers do not change it.
func (r *Release) Manifest() *Manifest { return r.m }

// Bytes gives the two files as they were read.
func (r *Release) Bytes() (manifest, sig []byte) { return r.manifest, r.sig }

// KeyID names the key that signed.
func (r *Release) KeyID() string { return r.key }

// Verify checks the signature against the trusted keys before it reads a byte of the manifest's meaning.
func Verify(manifest, sig []byte, trusted []ed25519.PublicKey) (*Release, error) {
	if len(sig) > MaxSignatureBytes {
		return nil, fmt.Errorf("release signature: is %d bytes; at most %d are read", len(sig), MaxSignatureBytes)
	}
	if len(manifest) > MaxManifestBytes {
		return nil, fmt.Errorf("release manifest: is %d bytes; at most %d are read", len(manifest), MaxManifestBytes)
	}
	var s signature
	if err := json.Unmarshal(sig, &s); err != nil {
		return nil, fmt.Errorf("release signature: is not in the expected form: %w", err)
	}
	raw, err := base64.StdEncoding.DecodeString(s.Sig)
	if err != nil {
		return nil, fmt.Errorf("release signature: %w", err)
	}
	msg := append([]byte(domain), manifest...)
	for _, pub := range trusted {
		if len(pub) == ed25519.PublicKeySize && ed25519.Verify(pub, msg, raw) {
			m, err := parse(manifest)
			if err != nil {
				return nil, err
			}
			return &Release{m: m, manifest: manifest, sig: sig, key: KeyID(pub)}, nil
		}
	}
	return nil, fmt.Errorf("release manifest: %w (it names key %.16q)", ErrUntrusted, s.KeyID)
}

// Open verifies the release folder fsys. Contents of the files are not read; CheckFiles does that.
func Open(fsys fs.FS, trusted []ed25519.PublicKey) (*Release, error) {
	manifest, err := readLimited(fsys, ManifestName, MaxManifestBytes)
	if err != nil {
		return nil, err
	}
	sig, err := readLimited(fsys, SignatureName, MaxSignatureBytes)
	if err != nil {
		return nil, err
	}
	return Verify(manifest, sig, trusted)
}

// CheckFiles reads every file of the release folder and compares size and digest; it reports all that differ.
func (r *Release) CheckFiles(fsys fs.FS) error {
	var errs []error
	for _, f := range r.m.AllFiles() {
		errs = append(errs, checkFile(fsys, f))
	}
	return errors.Join(errs...)
}

func checkFile(fsys fs.FS, f File) error {
	r, err := fsys.Open(f.Path)
	if err != nil {
		return err
	}
	defer r.Close()
	return f.Check(r)
}

func readLimited(fsys fs.FS, name string, limit int64) ([]byte, error) {
	f, err := fsys.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%s: is larger than %d bytes", name, limit)
	}
	return data, nil
}
