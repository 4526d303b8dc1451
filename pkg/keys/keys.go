// Package keys is the folder of private keys that releases are signed with: an ed25519 key for the manifest, and RSA keys with
// certificates for UEFI Secure Boot. The layout is fixed, so that a folder can be made by other tools too:
//
//	release.key, release.pub           ed25519 in PKCS#8 and PKIX PEM: signs manifests
//	PK.key, PK.crt                     platform key: who may change KEK
//	KEK.key, KEK.crt                   key exchange key: who may change db
//	db.key, db.crt                     what may boot: signs boot loaders and unified kernel images
//	guid                               the owner GUID of the three
//	repository/                        the keys of the repository of updates, if there are any: see pkg/repository
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

	"github.com/skerry-os/skerry/pkg/atomicfile"
	"github.com/skerry-os/skerry/pkg/release"
)

// Names of the files that are no certificate or its key.
const (
	releaseKey = "release.key"
	releasePub = "release.pub"
	guidFile   = "guid"
)

// Set is a whole key folder in memory.
type Set struct {
	Release ed25519.PrivateKey
	GUID    string // owner of the Secure Boot keys, in the usual text form
	PK      Pair
	KEK     Pair
	DB      Pair
	Root    []byte // metadata of the repository's root role, nil for none: what machines begin to trust updates by
}

// RepositoryDir is the folder of role keys in a key folder.
const RepositoryDir = "repository"

// Pair is a Secure Boot key and its self-signed certificate.
type Pair struct {
	Name string // PK, KEK or db: the file names and the EFI variable
	Key  *rsa.PrivateKey
	Cert *x509.Certificate
}

// Pairs lists the Secure Boot keys from the top of the trust down.
func (s *Set) Pairs() []Pair { return []Pair{s.PK, s.KEK, s.DB} }

// ReleasePublic is the key that machines check manifests with.
func (s *Set) ReleasePublic() ed25519.PublicKey { return s.Release.Public().(ed25519.PublicKey) }

// ReleaseID names the release key in messages.
func (s *Set) ReleaseID() string { return release.KeyID(s.ReleasePublic()) }

// ReleasePublicPEM is the content of release.pub.
func (s *Set) ReleasePublicPEM() ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(s.ReleasePublic())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", releasePub, err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), nil
}

// New makes a key folder. It refuses a folder that has anything in it, because a lost private key cannot be made again. The
// folder appears whole or not at all.
func New(dir, name string) (*Set, error) {
	if entries, err := os.ReadDir(dir); err == nil && len(entries) > 0 {
		return nil, fmt.Errorf("%s: is not empty; keys are never overwritten: name a new folder", dir)
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	s, err := generate(name, time.Now())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
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
	if err := s.write(tmp); err != nil {
		return nil, err
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
	return s, atomicfile.SyncDir(parent)
}

func generate(name string, now time.Time) (*Set, error) {
	_, rel, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	s := &Set{Release: rel, GUID: newGUID()}
	for _, p := range []struct {
		pair *Pair
		name string
		what string
	}{{&s.PK, "PK", "platform key"}, {&s.KEK, "KEK", "key exchange key"}, {&s.DB, "db", "boot signing key"}} {
		if *p.pair, err = newPair(p.name, name+" "+p.what, now); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// newPair makes one key. Firmware without a clock must accept the certificate, and most firmware ignores its dates: it starts
// a day early and lasts thirty years.
func newPair(name, subject string, now time.Time) (Pair, error) {
	key, err := rsa.GenerateKey(rand.Reader, 2048) // firmware is sure of 2048 and of nothing else
	if err != nil {
		return Pair{}, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return Pair{}, err
	}
	ski := sha256.Sum256(x509.MarshalPKCS1PublicKey(&key.PublicKey))
	tmpl := &x509.Certificate{
		SerialNumber: serial.Add(serial, big.NewInt(1)), Subject: pkix.Name{CommonName: subject},
		NotBefore: now.Add(-24 * time.Hour), NotAfter: now.AddDate(30, 0, 0),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true,
		SubjectKeyId: ski[:20],
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		return Pair{}, err
	}
	cert, err := x509.ParseCertificate(der)
	return Pair{Name: name, Key: key, Cert: cert}, err
}

func (s *Set) write(dir string) error {
	put := func(name, kind string, der []byte, perm fs.FileMode) error {
		return atomicfile.Write(filepath.Join(dir, name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), perm)
	}
	private := func(name string, key crypto.PrivateKey) error {
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		return put(name, "PRIVATE KEY", der, 0o600)
	}
	if err := private(releaseKey, s.Release); err != nil {
		return err
	}
	pub, err := s.ReleasePublicPEM()
	if err != nil {
		return err
	}
	if err := atomicfile.Write(filepath.Join(dir, releasePub), pub, 0o644); err != nil {
		return err
	}
	for _, p := range s.Pairs() {
		if err := private(p.Name+".key", p.Key); err != nil {
			return err
		}
		if err := put(p.Name+".crt", "CERTIFICATE", p.Cert.Raw, 0o644); err != nil {
			return err
		}
	}
	return atomicfile.Write(filepath.Join(dir, guidFile), []byte(s.GUID+"\n"), 0o644)
}

// Load reads a key folder and checks that its parts belong together. It reports all that is wrong.
func Load(dir string) (*Set, error) {
	if st, err := os.Stat(dir); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%s: there is no such key folder; make one with: skerry keys new %s", dir, dir)
		}
		return nil, err
	} else if !st.IsDir() {
		return nil, fmt.Errorf("%s: is a file; name the folder that `skerry keys new` made", dir)
	}
	s := new(Set)
	errs := []error{s.loadRelease(dir), s.loadGUID(dir)}
	root, err := os.ReadFile(filepath.Join(dir, RepositoryDir, "root.json"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, err)
	}
	s.Root = root
	for _, p := range []struct {
		pair *Pair
		name string
	}{{&s.PK, "PK"}, {&s.KEK, "KEK"}, {&s.DB, "db"}} {
		pair, err := loadPair(dir, p.name)
		*p.pair = pair
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return s, nil
}

func (s *Set) loadRelease(dir string) error {
	file := filepath.Join(dir, releaseKey)
	key, err := loadPrivate(file)
	if err != nil {
		return err
	}
	var ok bool
	if s.Release, ok = key.(ed25519.PrivateKey); !ok {
		return fmt.Errorf("%s: is a %T; a release key is ed25519", file, key)
	}
	file = filepath.Join(dir, releasePub)
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	pub, err := ParsePublic(data)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	if !pub.Equal(s.ReleasePublic()) {
		return fmt.Errorf("%s: is not the public half of %s: the folder holds parts of two", file, releaseKey)
	}
	return nil
}

var guids = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

func (s *Set) loadGUID(dir string) error {
	file := filepath.Join(dir, guidFile)
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

func loadPair(dir, name string) (Pair, error) {
	p := Pair{Name: name}
	keyFile, certFile := filepath.Join(dir, name+".key"), filepath.Join(dir, name+".crt")
	key, err := loadPrivate(keyFile)
	if err != nil {
		return p, err
	}
	var ok bool
	if p.Key, ok = key.(*rsa.PrivateKey); !ok {
		return p, fmt.Errorf("%s: is a %T; firmware checks RSA", keyFile, key)
	}
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
	if pub, ok := p.Cert.PublicKey.(*rsa.PublicKey); !ok || !pub.Equal(&p.Key.PublicKey) {
		return p, fmt.Errorf("%s: is not the certificate of %s: the folder holds parts of two", certFile, filepath.Base(keyFile))
	}
	return p, nil
}

// loadPrivate reads a PKCS#8 key and refuses a file that others can read.
func loadPrivate(file string) (crypto.PrivateKey, error) {
	st, err := os.Stat(file)
	if err != nil {
		return nil, err
	}
	if st.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s: others can read this private key (mode %04o); chmod 600 it, and think about who did", file, st.Mode().Perm())
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, fmt.Errorf("%s: holds no PEM \"PRIVATE KEY\" (PKCS#8)", file)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return key, nil
}

// LoadEd25519 reads a private key that is a file of its own, and refuses one that others can read.
func LoadEd25519(file string) (ed25519.PrivateKey, error) {
	key, err := loadPrivate(file)
	if err != nil {
		return nil, err
	}
	private, ok := key.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s: is a %T; make an ed25519 key: openssl genpkey -algorithm ed25519", file, key)
	}
	return private, nil
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

// newGUID makes a random (version 4) GUID.
func newGUID() string {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
