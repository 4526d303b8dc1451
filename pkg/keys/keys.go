// Package keys is the folder of keys that releases are signed with: an ed25519 key for the manifest, and RSA keys with
// certificates for UEFI Secure Boot. The layout is fixed, so that a folder can be made by other tools too:
//
//	release.key, release.pub           ed25519 in PKCS#8 and PKIX PEM: signs manifests
//	PK.key, PK.crt                     platform key: who may change KEK
//	KEK.key, KEK.crt                   key exchange key: who may change db
//	db.key, db.crt                     what may boot: signs boot loaders and unified kernel images
//	PK.auth, KEK.auth, db.auth         what firmware in setup mode enrols, signed in advance
//	guid                               the owner GUID of the three
//	repository/                        the keys of the repository of updates, if there are any: see pkg/repository
//	NAME-old.*, NAME-update.auth       while machines go over from one key to the next: see Rotate
//	NAME.label                         how a signing command calls the key, where that is another name
//
// Each *.key may be missing: then a command signs (Command), so that the folder of whoever builds releases holds no private key.
package keys

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/skerry-os/skerry/image/uki"
	"github.com/skerry-os/skerry/pkg/atomicfile"
)

// Names of files, and how they end.
const (
	releaseName = "release"
	guidFile    = "guid"

	keyExt    = ".key"
	pubExt    = ".pub"
	certExt   = ".crt"
	authExt   = ".auth"
	labelExt  = ".label"
	oldEnd    = "-old"    // of the name of a key that goes
	updateEnd = "-update" // of the name of what brings a certificate to firmware that is not in setup mode
)

// RepositoryDir is the folder of role keys in a key folder.
const RepositoryDir = "repository"

// SecureBoot lists the keys of Secure Boot from the top of the trust down.
var SecureBoot = []string{"PK", "KEK", "db"}

var subjects = map[string]string{"PK": "platform key", "KEK": "key exchange key", "db": "boot signing key"}

// Set is a whole key folder in memory.
type Set struct {
	Release *Signer
	Before  *Signer // the release key before it, while machines go over from it; or nil
	GUID    string  // owner of the Secure Boot keys, in the usual text form
	PK      Pair
	KEK     Pair
	DB      Pair
	Root    []byte // metadata of the repository's root role, nil for none: what machines begin to trust updates by

	dir string
}

// Pair is a Secure Boot key and its self-signed certificate.
type Pair struct {
	Name   string // PK, KEK or db: the file names and the EFI variable
	Key    *Signer
	Cert   *x509.Certificate
	Before *Pair  // the one before it, while machines go over from it; or nil
	Enrol  []byte // NAME.auth; nil in folders that older programs made
	Update []byte // NAME-update.auth; nil for none
}

// Pairs lists the Secure Boot keys from the top of the trust down.
func (s *Set) Pairs() []Pair { return []Pair{s.PK, s.KEK, s.DB} }

func (s *Set) pair(name string) *Pair {
	return map[string]*Pair{"PK": &s.PK, "KEK": &s.KEK, "db": &s.DB}[name]
}

// signers are the pair's, the oldest first: there is firmware that looks at one signature alone, and the oldest is enrolled everywhere.
func (p *Pair) signers() (out []uki.Signer) {
	if p.Before != nil {
		out = p.Before.signers()
	}
	return append(out, uki.Signer{Key: p.Key, Cert: p.Cert})
}

// EnrolFile gives what enrols the certificates in setup mode: as it was signed in advance, or signed now and dated when.
func (s *Set) EnrolFile(name string, when time.Time) ([]byte, error) {
	p, by := s.pair(name), &s.PK
	if p.Enrol != nil {
		return p.Enrol, nil
	}
	if name == "db" {
		by = &s.KEK
	}
	var certs []*x509.Certificate
	for _, k := range p.signers() {
		certs = append(certs, k.Cert)
	}
	if name == "PK" { // there is one platform key
		certs = certs[len(certs)-1:]
	}
	return uki.EnrolFile(name, s.GUID, certs, when, uki.Signer{Key: by.Key, Cert: by.Cert})
}

// BootSigners sign boot loaders and kernel images.
func (s *Set) BootSigners() []uki.Signer { return s.DB.signers() }

// ReleaseSigners sign manifests and configs. While machines go over to a new key there are two, the older first.
func (s *Set) ReleaseSigners() []crypto.Signer {
	if s.Before != nil {
		return []crypto.Signer{s.Before, s.Release}
	}
	return []crypto.Signer{s.Release}
}

// CanBuild says which signatures of a release nobody would be there to make.
func (s *Set) CanBuild() error {
	need := []*Signer{s.Release, s.Before, s.DB.Key}
	if s.DB.Before != nil {
		need = append(need, s.DB.Before.Key)
	}
	if s.PK.Enrol == nil || s.KEK.Enrol == nil {
		need = append(need, s.PK.Key)
	}
	if s.DB.Enrol == nil {
		need = append(need, s.KEK.Key)
	}
	return check(need...)
}

// CanSign says whether the release key is there to sign.
func (s *Set) CanSign() error { return check(s.Release, s.Before) }

func check(keys ...*Signer) error {
	var errs []error
	for _, k := range keys {
		if k != nil {
			errs = append(errs, k.Check())
		}
	}
	return errors.Join(errs...)
}

// ReleasePublic is the key that machines check manifests with.
func (s *Set) ReleasePublic() ed25519.PublicKey { return s.Release.Public().(ed25519.PublicKey) }

// Trusted are the keys that releases of this folder may be signed by, the newest first.
func (s *Set) Trusted() []ed25519.PublicKey {
	out := []ed25519.PublicKey{s.ReleasePublic()}
	if s.Before != nil {
		out = append(out, s.Before.Public().(ed25519.PublicKey))
	}
	return out
}

// ReleaseID names the release key in messages.
func (s *Set) ReleaseID() string { return s.Release.ID() }

// MarshalPublic gives a public key as PEM.
func MarshalPublic(pub crypto.PublicKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), nil
}

// Source says where the private halves of new keys are. The zero Source makes them in the folder.
type Source struct {
	Public map[string]crypto.PublicKey // those that are elsewhere, by name
	Label  string                      // what Sign calls the one in Public, where that is another name
	Sign   Command                     // signs with them
}

// MakeKey makes a key's files in a folder, or for a key that is elsewhere those of its public half.
func (s Source) MakeKey(dir, name string, generate func() (crypto.Signer, error)) (*Signer, error) {
	pub, elsewhere := s.Public[name]
	if !elsewhere {
		key, err := generate()
		if err != nil {
			return nil, err
		}
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if err := atomicfile.Write(filepath.Join(dir, name+keyExt), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
			return nil, err
		}
		pub = key.Public()
	} else if s.Label != "" && s.Label != name {
		if err := atomicfile.Write(filepath.Join(dir, name+labelExt), []byte(s.Label+"\n"), 0o644); err != nil {
			return nil, err
		}
	}
	return NewSigner(dir, name, pub, s.Sign)
}

// NewEd25519 generates a key.
func NewEd25519() (crypto.Signer, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	return key, err
}

// newRSA generates a key for firmware, which is sure of 2048 bits and of nothing else.
func newRSA() (crypto.Signer, error) { return rsa.GenerateKey(rand.Reader, 2048) }

// MakePublic makes an ed25519 key and the file of its public half.
func (s Source) MakePublic(dir, name string) (*Signer, error) {
	k, err := s.MakeKey(dir, name, NewEd25519)
	if err != nil {
		return nil, err
	}
	if _, ok := k.Public().(ed25519.PublicKey); !ok {
		return nil, fmt.Errorf("%s: is a %T; this key must be ed25519", name, k.Public())
	}
	data, err := MarshalPublic(k.Public())
	if err != nil {
		return nil, err
	}
	return k, atomicfile.Write(filepath.Join(dir, name+pubExt), data, 0o644)
}

// makePair makes a key and its certificate. Firmware without a clock must accept the certificate, and most firmware ignores its
// dates: it starts a day early and lasts thirty years.
func (s Source) makePair(dir, name, subject string, now time.Time) (Pair, error) {
	p := Pair{Name: name}
	var err error
	if p.Key, err = s.MakeKey(dir, name, newRSA); err != nil {
		return p, err
	}
	pub, ok := p.Key.Public().(*rsa.PublicKey)
	if !ok {
		return p, fmt.Errorf("%s: is a %T; firmware checks RSA", name, p.Key.Public())
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return p, err
	}
	ski := sha256.Sum256(x509.MarshalPKCS1PublicKey(pub))
	tmpl := &x509.Certificate{
		SerialNumber: serial.Add(serial, big.NewInt(1)), Subject: pkix.Name{CommonName: subject},
		NotBefore: now.Add(-24 * time.Hour), NotAfter: now.AddDate(30, 0, 0),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true,
		SubjectKeyId: ski[:20], SignatureAlgorithm: x509.SHA256WithRSA,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, pub, p.Key)
	if err != nil {
		return p, err
	}
	if p.Cert, err = x509.ParseCertificate(der); err != nil {
		return p, err
	}
	return p, atomicfile.Write(filepath.Join(dir, name+certExt), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644)
}

// New makes a key folder. It refuses a folder that has anything in it, because a lost private key cannot be made again. The
// folder appears whole or not at all.
func New(dir, name string, src Source) (*Set, error) {
	if entries, err := os.ReadDir(dir); err == nil && len(entries) > 0 {
		return nil, fmt.Errorf("%s: is not empty; keys are never overwritten: name a new folder", dir)
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	parent := filepath.Dir(filepath.Clean(dir))
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return nil, err
	}
	tmp, err := os.MkdirTemp(parent, "."+filepath.Base(dir)+".tmp-") // 0700
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	if err := generate(tmp, name, src, time.Now()); err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	if err := atomicfile.SyncDir(tmp); err != nil {
		return nil, err
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) { // empty: seen above, and this removes no other
		return nil, err
	}
	if err := os.Rename(tmp, dir); err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	if err := atomicfile.SyncDir(parent); err != nil {
		return nil, err
	}
	return Load(dir, src.Sign)
}

func generate(dir, name string, src Source, now time.Time) error {
	if _, err := src.MakePublic(dir, releaseName); err != nil {
		return err
	}
	s := &Set{GUID: newGUID(), dir: dir}
	for _, n := range SecureBoot {
		var err error
		if *s.pair(n), err = src.makePair(dir, n, name+" "+subjects[n], now); err != nil {
			return err
		}
	}
	if err := atomicfile.Write(filepath.Join(dir, guidFile), []byte(s.GUID+"\n"), 0o644); err != nil {
		return err
	}
	return s.writeEnrol(now, SecureBoot...)
}

// writeEnrol signs the named enrolment files.
func (s *Set) writeEnrol(now time.Time, names ...string) error {
	for _, n := range names {
		p := s.pair(n)
		p.Enrol = nil
		data, err := s.EnrolFile(n, now)
		if err != nil {
			return err
		}
		if err := atomicfile.Write(filepath.Join(s.dir, n+authExt), data, 0o644); err != nil {
			return err
		}
		p.Enrol = data
	}
	return nil
}

// Load reads a key folder and checks that its parts belong together. It reports all that is wrong. Private keys that are not there
// are with signs; what is asked for signatures that nobody makes answers ErrElsewhere, and CanBuild and CanSign say so before.
func Load(dir string, with Command) (*Set, error) {
	if st, err := os.Stat(dir); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%s: there is no such key folder; make one with: skerry keys new %s", dir, dir)
		}
		return nil, err
	} else if !st.IsDir() {
		return nil, fmt.Errorf("%s: is a file; name the folder that `skerry keys new` made", dir)
	}
	s := &Set{dir: dir}
	errs := []error{s.loadRelease(with), s.loadGUID()}
	var err error
	if s.Root, err = optional(filepath.Join(dir, RepositoryDir, "root.json")); err != nil {
		errs = append(errs, err)
	}
	for _, name := range SecureBoot {
		errs = append(errs, s.loadPairs(name, with))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return s, nil
}

func optional(name string) ([]byte, error) {
	data, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return data, err
}

func (s *Set) loadRelease(with Command) (err error) {
	if s.Release, err = loadPublic(s.dir, releaseName, with); err != nil {
		return err
	}
	s.Before, err = loadPublic(s.dir, releaseName+oldEnd, with)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return err
}

// loadPublic loads the key whose public half is in name.pub.
func loadPublic(dir, name string, with Command) (*Signer, error) {
	file := filepath.Join(dir, name+pubExt)
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	pub, err := ParsePublic(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return NewSigner(dir, name, pub, with)
}

// TrustedIn reads whom a key folder trusts for releases, without looking at private keys.
func TrustedIn(dir string) ([]ed25519.PublicKey, error) {
	var out []ed25519.PublicKey
	for _, name := range []string{releaseName, releaseName + oldEnd} {
		file := filepath.Join(dir, name+pubExt)
		data, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) && len(out) > 0 {
			break
		}
		if err != nil {
			return nil, err
		}
		pub, err := ParsePublic(data)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		out = append(out, pub)
	}
	return out, nil
}

var guids = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

func (s *Set) loadGUID() error {
	file := filepath.Join(s.dir, guidFile)
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	s.GUID = strings.ToLower(strings.TrimSpace(string(data)))
	if !guids.MatchString(s.GUID) {
		return fmt.Errorf("%s: %.40q is not a GUID", file, s.GUID)
	}
	return nil
}

// loadPairs loads a Secure Boot key, the one before it, and what was signed for them.
func (s *Set) loadPairs(name string, with Command) error {
	p := s.pair(name)
	var err error
	if *p, err = loadPair(s.dir, name, name, with); err != nil {
		return err
	}
	old, err := loadPair(s.dir, name+oldEnd, name, with)
	if err == nil {
		p.Before = &old
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if p.Enrol, err = optional(filepath.Join(s.dir, name+authExt)); err != nil {
		return err
	}
	if p.Enrol != nil {
		certs, err := uki.Enrolled(p.Enrol)
		if err != nil || !certs[len(certs)-1].Equal(p.Cert) {
			return errors.Join(err, fmt.Errorf("%s: does not enrol %s%s: the folder holds parts of two", filepath.Join(s.dir, name+authExt), name, certExt))
		}
	}
	p.Update, err = optional(filepath.Join(s.dir, name+updateEnd+authExt))
	return err
}

func loadPair(dir, file, name string, with Command) (Pair, error) {
	p := Pair{Name: name}
	certFile := filepath.Join(dir, file+certExt)
	data, err := os.ReadFile(certFile)
	if err != nil {
		return p, err
	}
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "CERTIFICATE" {
		return p, fmt.Errorf("%s: holds no PEM certificate", certFile)
	}
	if p.Cert, err = x509.ParseCertificate(block.Bytes); err != nil {
		return p, fmt.Errorf("%s: %w", certFile, err)
	}
	if _, ok := p.Cert.PublicKey.(*rsa.PublicKey); !ok {
		return p, fmt.Errorf("%s: is of a %T; firmware checks RSA", certFile, p.Cert.PublicKey)
	}
	p.Key, err = NewSigner(dir, file, p.Cert.PublicKey, with)
	return p, err
}

// LoadSigner reads an ed25519 key that is a file of its own: a private one, which others must not be able to read; or a public one,
// for which with signs, by the file's name without its end.
func LoadSigner(file string, with Command) (crypto.Signer, error) {
	if len(with) > 0 {
		data, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		pub, err := ParsePublic(data)
		if err != nil {
			return nil, fmt.Errorf("%s: %w; with a command that signs, name the public half", file, err)
		}
		name := filepath.Base(file)
		return NewSigner(filepath.Dir(file), strings.TrimSuffix(name, filepath.Ext(name)), pub, with)
	}
	key, err := loadPrivate(file)
	if err != nil {
		return nil, err
	}
	if _, ok := key.(ed25519.PrivateKey); !ok {
		return nil, fmt.Errorf("%s: is a %T; make an ed25519 key: openssl genpkey -algorithm ed25519", file, key)
	}
	return key, nil
}

// ParsePublic reads a release.pub: one PKIX PEM ed25519 key.
func ParsePublic(data []byte) (ed25519.PublicKey, error) {
	block, rest := pem.Decode(data)
	if block == nil || block.Type != "PUBLIC KEY" {
		return nil, errors.New("holds no PEM \"PUBLIC KEY\"")
	}
	if len(bytes.TrimSpace(rest)) > 0 {
		return nil, errors.New("holds more than one PEM block; write one key a file")
	}
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	pub, ok := key.(ed25519.PublicKey)
	if !ok {
		return nil, fmt.Errorf("is a %T; a release key is ed25519", key)
	}
	return pub, nil
}

// LoadPublicDir reads the public keys in a folder, by their names without .pub: what tools took off a token, PEM or DER.
func LoadPublicDir(dir string) (map[string]crypto.PublicKey, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*"+pubExt))
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("%s: holds no public keys; name each after its key: release.pub, db.pub", dir)
	}
	out := map[string]crypto.PublicKey{}
	for _, file := range files {
		if out[strings.TrimSuffix(filepath.Base(file), pubExt)], err = LoadPublicFile(file); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// LoadPublicFile reads a public key, PEM or DER.
func LoadPublicFile(file string) (crypto.PublicKey, error) {
	der, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	if block, _ := pem.Decode(der); block != nil {
		der = block.Bytes
	}
	pub, err := x509.ParsePKIXPublicKey(der)
	if err == nil {
		_, err = algorithm(pub)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return pub, nil
}

// newGUID makes a random (version 4) GUID.
func newGUID() string {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
