package keys

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
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
	"strings"

	"github.com/skerry-os/skerry/pkg/release"
)

// ErrElsewhere means that a private key is not in the folder and nobody was named who has it.
var ErrElsewhere = errors.New("its private key is not here; name a command that signs with it by --sign-with")

// How keys sign, by the names that PKCS#11 has for it.
const (
	AlgorithmEd25519 = "EDDSA"           // over the message
	AlgorithmRSA     = "SHA256-RSA-PKCS" // PKCS#1 v1.5 over the message's SHA-256
)

// Command signs with private keys that are elsewhere, on a token or in a service: a program and its arguments. It gets as more
// arguments the name of the key, its ID and the algorithm, and the message on its standard input; it prints the signature, as it is,
// in hexadecimal or in base64.
type Command []string

// ParseCommand splits a command at its spaces; quotes mean nothing.
func ParseCommand(text string) Command { return strings.Fields(text) }

// Signer is a key whose private half is in a file, or with a command, or missing. It takes messages whole (crypto.SignMessage):
// not every token takes a digest, and whoever keeps the key can see what it signs.
type Signer struct {
	file string        // with the private key, if it is here
	name string        // for the command
	key  crypto.Signer // nil: elsewhere
	with Command
	pub  crypto.PublicKey
}

var _ crypto.MessageSigner = (*Signer)(nil)

// NewSigner gives the key of a folder whose private half would be in name.key; with has those that are elsewhere. name.label is how
// the command calls the key, where that is another name.
func NewSigner(dir, name string, pub crypto.PublicKey, with Command) (*Signer, error) {
	s := &Signer{file: filepath.Join(dir, name+keyExt), name: name, with: with, pub: pub}
	if _, err := algorithm(pub); err != nil {
		return nil, fmt.Errorf("%s: %w", s.file, err)
	}
	switch label, err := os.ReadFile(filepath.Join(dir, name+labelExt)); {
	case err == nil:
		s.name = strings.TrimSpace(string(label))
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	key, err := loadPrivate(s.file)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return nil, err
	}
	if !key.Public().(interface{ Equal(crypto.PublicKey) bool }).Equal(pub) {
		return nil, fmt.Errorf("%s: is not the private half of the folder's %s: the folder holds parts of two", s.file, name)
	}
	s.key = key
	return s, nil
}

func algorithm(pub crypto.PublicKey) (string, error) {
	switch pub.(type) {
	case ed25519.PublicKey:
		return AlgorithmEd25519, nil
	case *rsa.PublicKey:
		return AlgorithmRSA, nil
	}
	return "", fmt.Errorf("is a %T; keys are ed25519 or RSA", pub)
}

// KeyID names a public key: an ed25519 key as manifests do.
func KeyID(pub crypto.PublicKey) string {
	if k, ok := pub.(ed25519.PublicKey); ok {
		return release.KeyID(k)
	}
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return ""
	}
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:8])
}

// Public is the public half.
func (s *Signer) Public() crypto.PublicKey { return s.pub }

// ID names the key in messages.
func (s *Signer) ID() string { return KeyID(s.pub) }

// Here says whether the private half is in the folder.
func (s *Signer) Here() bool { return s.key != nil }

// Check says before the work begins that nobody will be there to sign.
func (s *Signer) Check() error {
	if s.key == nil && len(s.with) == 0 {
		return fmt.Errorf("%s: %w", strings.TrimSuffix(s.file, keyExt), ErrElsewhere)
	}
	return nil
}

// Sign signs a digest, which only a key that is here can do, or an ed25519 message.
func (s *Signer) Sign(rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	switch _, whole := s.pub.(ed25519.PublicKey); {
	case s.key != nil:
		return s.key.Sign(rand, digest, opts)
	case whole && opts.HashFunc() == 0:
		return s.run(digest)
	}
	return nil, fmt.Errorf("%s: a command signs messages, not digests", s.name)
}

// SignMessage signs a message.
func (s *Signer) SignMessage(rand io.Reader, message []byte, opts crypto.SignerOpts) ([]byte, error) {
	if s.key != nil {
		return crypto.SignMessage(s.key, rand, message, opts)
	}
	want := crypto.Hash(0)
	if _, ok := s.pub.(*rsa.PublicKey); ok {
		want = crypto.SHA256
	}
	if _, pss := opts.(*rsa.PSSOptions); pss || opts.HashFunc() != want {
		return nil, fmt.Errorf("%s: a command does not sign in this way", s.name)
	}
	return s.run(message)
}

func (s *Signer) run(message []byte) ([]byte, error) {
	if err := s.Check(); err != nil {
		return nil, err
	}
	how, err := algorithm(s.pub)
	if err != nil {
		return nil, err
	}
	line := slices.Concat(s.with, []string{s.name, s.ID(), how})
	cmd := exec.CommandContext(context.Background(), line[0], line[1:]...)
	cmd.Stdin, cmd.Stderr = bytes.NewReader(message), os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("signing with key %s: %s: %w", s.name, line[0], err)
	}
	text := strings.TrimSpace(string(out))
	for _, decode := range []func() ([]byte, error){
		func() ([]byte, error) { return out, nil },
		func() ([]byte, error) { return hex.DecodeString(text) },
		func() ([]byte, error) { return base64.StdEncoding.DecodeString(text) },
	} {
		if sig, err := decode(); err == nil && s.verify(message, sig) {
			return sig, nil
		}
	}
	return nil, fmt.Errorf("signing with key %s: %s: what it printed is no signature by key %s (%s)", s.name, line[0], s.ID(), how)
}

func (s *Signer) verify(message, sig []byte) bool {
	switch pub := s.pub.(type) {
	case ed25519.PublicKey:
		return ed25519.Verify(pub, message, sig)
	case *rsa.PublicKey:
		sum := sha256.Sum256(message)
		return rsa.VerifyPKCS1v15(pub, crypto.SHA256, sum[:], sig) == nil
	}
	return false
}

// loadPrivate reads a PKCS#8 key and refuses a file that others can read.
func loadPrivate(file string) (crypto.Signer, error) {
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
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("%s: is a %T, which does not sign", file, key)
	}
	return signer, nil
}
