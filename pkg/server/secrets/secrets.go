// Package secrets keeps what the control plane has beside its certificates: the cluster's token, the key that stored secrets
// are encrypted with, and who may stay anonymous. It needs no Kubernetes.
package secrets

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/skerry-os/skerry/pkg/atomicfile"
	"github.com/skerry-os/skerry/pkg/token"
)

// Files is what Ensure has made.
type Files struct {
	Token              string // lets nodes join and the desk tool fetch the kubeconfig
	EncryptionFile     string // how secrets are stored in the datastore
	AuthenticationFile string // who may stay anonymous
}

// Only health is for everybody: a load balancer, an uptime check, a person with curl.
const authentication = `apiVersion: apiserver.config.k8s.io/v1
kind: AuthenticationConfiguration
anonymous:
  enabled: true
  conditions:
  - path: /livez
  - path: /readyz
  - path: /healthz
`

// secretbox is authenticated, and not weakened by the number of things stored under one key. There is no "identity": what
// is not encrypted with our key is not ours.
const encryption = `apiVersion: apiserver.config.k8s.io/v1
kind: EncryptionConfiguration
resources:
- resources: [secrets]
  providers:
  - secretbox:
      keys:
      - name: key1
        secret: %s
`

// Ensure makes what is missing below dataDir and writes the given token, if there is one, as the cluster's. serverCA is the
// file of the authority that node-token names.
func Ensure(dataDir, given, serverCA string) (*Files, error) {
	dir := filepath.Join(dataDir, "server")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	s := &Files{
		EncryptionFile:     filepath.Join(dir, "encryption.yaml"),
		AuthenticationFile: filepath.Join(dir, "authentication.yaml"),
	}
	var err error
	if s.Token, err = ensureToken(filepath.Join(dir, "token"), given); err != nil {
		return nil, err
	}
	if err := writeNodeToken(dataDir, s.Token, serverCA); err != nil {
		return nil, err
	}
	if err := writeIfChanged(s.AuthenticationFile, authentication); err != nil {
		return nil, err
	}
	return s, ensureEncryption(s.EncryptionFile)
}

// ReadToken reads the cluster's token from its file.
func ReadToken(dataDir string) (string, error) {
	b, err := os.ReadFile(filepath.Join(dataDir, "server", "token"))
	return strings.TrimSpace(string(b)), err
}

// WriteToken replaces the cluster's token in its files.
func WriteToken(dataDir, secret, serverCA string) error {
	if err := writeIfChanged(filepath.Join(dataDir, "server", "token"), secret+"\n"); err != nil {
		return err
	}
	return writeNodeToken(dataDir, secret, serverCA)
}

func writeNodeToken(dataDir, secret, serverCA string) error {
	ca, err := os.ReadFile(serverCA)
	if err != nil {
		return err
	}
	t := token.Token{Pin: token.Pin(ca), User: "server", Secret: secret}
	return writeIfChanged(filepath.Join(dataDir, "server", "node-token"), t.String()+"\n")
}

func ensureToken(name, given string) (string, error) {
	old, err := os.ReadFile(name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	secret := strings.TrimSpace(string(old))
	if given != "" {
		t, err := token.Parse(given) // it may be another server's, with a pin
		if err != nil {
			return "", err
		}
		secret = t.Secret
	}
	if secret == "" {
		secret = newToken()
	}
	return secret, writeIfChanged(name, secret+"\n")
}

func newToken() string {
	b := make([]byte, 32)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}

func newEncryption() []byte {
	key := make([]byte, 32)
	_, _ = rand.Read(key) // never fails
	return fmt.Appendf(nil, encryption, base64.StdEncoding.EncodeToString(key))
}

// New makes what Ensure would, for a cluster that has no server yet: files below the data folder, by name.
func New() map[string][]byte {
	return map[string][]byte{"server/token": []byte(newToken() + "\n"), "server/encryption.yaml": newEncryption()}
}

// ensureEncryption never replaces the file: without its key no stored secret can be read again.
func ensureEncryption(name string) error {
	info, err := os.Stat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return atomicfile.Write(name, newEncryption(), 0o600)
	case err != nil:
		return err
	case info.Size() == 0:
		return fmt.Errorf("%s: is empty; restore it from a backup: no stored secret can be read without it", name)
	}
	return os.Chmod(name, 0o600)
}

func writeIfChanged(name, text string) error {
	if old, err := os.ReadFile(name); err == nil && string(old) == text {
		return os.Chmod(name, 0o600)
	}
	return atomicfile.Write(name, []byte(text), 0o600)
}
