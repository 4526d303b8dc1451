package release

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
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

// Signature is the content of a signature file.
type Signature struct {
	KeyID string      `json:"keyID"`          // first 16 hex digits of sha256(public key): tells which key, proves nothing
	Sig   string      `json:"sig"`            // base64 of ed25519 over a domain and the signed bytes
	More  []Signature `json:"more,omitempty"` // by other keys, while machines go over from one to the next; older programs look at the first alone
}

// maxSignatures bounds the work that a signature file makes.
const maxSignatures = 8

// KeyID names a public key in messages.
func KeyID(pub ed25519.PublicKey) string {
	sum := sha256.Sum256(pub)
	return hex.EncodeToString(sum[:8])
}

// SignBytes gives a signature file over data. The domain, a line, keeps it from being valid for anything else.
func SignBytes(domain string, data []byte, by ...crypto.Signer) ([]byte, error) {
	var list []Signature
	for _, key := range by {
		pub, ok := key.Public().(ed25519.PublicKey)
		if !ok {
			return nil, fmt.Errorf("signing: the key is a %T, not ed25519", key.Public())
		}
		raw, err := crypto.SignMessage(key, rand.Reader, append([]byte(domain), data...), crypto.Hash(0))
		if err != nil {
			return nil, err
		}
		list = append(list, Signature{KeyID: KeyID(pub), Sig: base64.StdEncoding.EncodeToString(raw)})
	}
	if len(list) == 0 {
		return nil, errors.New("signing: no key was given")
	}
	list[0].More = list[1:]
	out, err := json.Marshal(list[0])
	return append(out, '\n'), err
}

// ParseSignature reads a signature file.
func ParseSignature(file []byte) (s Signature, err error) {
	if len(file) > MaxSignatureBytes {
		return s, fmt.Errorf("is %d bytes; at most %d are read", len(file), MaxSignatureBytes)
	}
	if err := json.Unmarshal(file, &s); err != nil {
		return s, fmt.Errorf("is not in the expected form: %w", err)
	}
	for _, one := range s.all() {
		if raw, err := base64.StdEncoding.DecodeString(one.Sig); err != nil || len(raw) != ed25519.SignatureSize {
			return s, errors.New("is not in the expected form: holds no ed25519 signature in base64")
		}
	}
	return s, nil
}

func (s Signature) all() []Signature {
	return append([]Signature{{KeyID: s.KeyID, Sig: s.Sig}}, s.More[:min(len(s.More), maxSignatures-1)]...)
}

// Names says whether the file claims to have a signature of a key.
func (s Signature) Names(pub ed25519.PublicKey) bool {
	return slices.ContainsFunc(s.all(), func(one Signature) bool { return one.KeyID == KeyID(pub) })
}

// By gives the trusted key that signed data, nil if none did.
func (s Signature) By(domain string, data []byte, trusted []ed25519.PublicKey) ed25519.PublicKey {
	msg := append([]byte(domain), data...)
	for _, one := range s.all() {
		raw, err := base64.StdEncoding.DecodeString(one.Sig)
		if err != nil {
			continue
		}
		for _, pub := range trusted {
			if len(pub) == ed25519.PublicKeySize && ed25519.Verify(pub, msg, raw) {
				return pub
			}
		}
	}
	return nil
}

// Sign gives the canonical manifest and its signature file.
func Sign(m *Manifest, by ...crypto.Signer) (manifest, sig []byte, err error) {
	if manifest, err = m.Marshal(); err != nil {
		return nil, nil, err
	}
	sig, err = SignBytes(domain, manifest, by...)
	return manifest, sig, err
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
	if len(manifest) > MaxManifestBytes {
		return nil, fmt.Errorf("release manifest: is %d bytes; at most %d are read", len(manifest), MaxManifestBytes)
	}
	s, err := ParseSignature(sig)
	if err != nil {
		return nil, fmt.Errorf("release signature: %w", err)
	}
	pub := s.By(domain, manifest, trusted)
	if pub == nil {
		return nil, fmt.Errorf("release manifest: %w (it names key %.16q)", ErrUntrusted, s.KeyID)
	}
	m, err := parse(manifest)
	if err != nil {
		return nil, err
	}
	return &Release{m: m, manifest: manifest, sig: sig, key: KeyID(pub)}, nil
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
