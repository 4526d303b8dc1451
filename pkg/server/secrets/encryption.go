package secrets

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/skerry-os/skerry/pkg/atomicfile"
)

// Encryption is how stored secrets are kept. The first way is the one that secrets are written in; the others are read.
type Encryption struct {
	Keys  []Key
	Plain PlainText
}

// Key is a secretbox key. Its name stands beside every secret that it encrypts.
type Key struct {
	Name   string `yaml:"name"`
	Secret string `yaml:"secret"`
}

// PlainText says what becomes of secrets without encryption.
type PlainText int

// What may become of them.
const (
	PlainNever   PlainText = iota // they are not ours
	PlainRead                     // they are read, and encrypted when they are written again
	PlainWritten                  // secrets are stored as they are: encryption is off
)

// Stage is a step of a key's rotation. The file holds it, so that a rotation goes on after a crash.
type Stage string

// The stages, in K3s's words.
const (
	StageStart   Stage = "start"   // one key
	StagePrepare Stage = "prepare" // a second key that is read, everywhere, before anything is written with it
	StageRotate  Stage = "rotate"  // the new key is the one for writing
)

// Stage is where a rotation is.
func (e *Encryption) Stage() Stage {
	switch {
	case len(e.Keys) < 2:
		return StageStart
	case e.Keys[0].number() < e.Keys[1].number():
		return StagePrepare
	}
	return StageRotate
}

func (k Key) number() int {
	n, _ := strconv.Atoi(strings.TrimPrefix(k.Name, "key")) // a name of another form is older than all of ours
	return n
}

// Prepare adds a key that is only read.
func (e *Encryption) Prepare() error {
	if e.Stage() != StageStart {
		return fmt.Errorf("a rotation is at stage %s already; go on with it", e.Stage())
	}
	if len(e.Keys) == 0 {
		return errors.New("has no key to rotate")
	}
	e.Keys = append(e.Keys, newKey(e.Keys[0].number()+1))
	return nil
}

// Rotate makes the new key the one for writing.
func (e *Encryption) Rotate() error {
	if e.Stage() != StagePrepare {
		return fmt.Errorf("the rotation is at stage %s; it must be at prepare", e.Stage())
	}
	e.Keys[0], e.Keys[1] = e.Keys[1], e.Keys[0]
	return nil
}

// Finish forgets all keys but the first. Every secret must have been written since Rotate.
func (e *Encryption) Finish() { e.Keys = e.Keys[:1] }

func newKey(number int) Key {
	key := make([]byte, 32)
	_, _ = rand.Read(key) // never fails
	return Key{Name: "key" + strconv.Itoa(number), Secret: base64.StdEncoding.EncodeToString(key)}
}

type encryptionFile struct {
	APIVersion string              `yaml:"apiVersion"`
	Kind       string              `yaml:"kind"`
	Resources  []encryptedResource `yaml:"resources"`
}

type encryptedResource struct {
	Resources []string         `yaml:"resources,flow"`
	Providers []map[string]any `yaml:"providers"`
}

// ReadEncryption reads the file that Ensure made.
func ReadEncryption(name string) (*Encryption, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	return parseEncryption(name, data)
}

// EncryptionName is the file's, below the data folder.
const EncryptionName = "server/encryption.yaml"

// Newer says whether b is of a later rotation than a, as far as that can be said.
func Newer(a, b []byte) bool {
	last := func(data []byte) (n int) {
		if e, err := parseEncryption(EncryptionName, data); err == nil {
			for _, k := range e.Keys {
				n = max(n, k.number())
			}
		}
		return n
	}
	return last(b) > last(a)
}

func parseEncryption(name string, data []byte) (*Encryption, error) {
	var f struct {
		Kind      string `yaml:"kind"`
		Resources []struct {
			Resources []string `yaml:"resources"`
			Providers []struct {
				Secretbox *struct {
					Keys []Key `yaml:"keys"`
				} `yaml:"secretbox"`
				Identity *struct{} `yaml:"identity"`
			} `yaml:"providers"`
		} `yaml:"resources"`
	}
	if err := yaml.Unmarshal(data, &f); err != nil {
		return nil, fmt.Errorf("%s: is not YAML", name) // without the text: it has keys in it
	}
	if len(f.Resources) != 1 || !slices.Equal(f.Resources[0].Resources, []string{"secrets"}) {
		return nil, fmt.Errorf("%s: was written by hand; change it by hand", name)
	}
	e := new(Encryption)
	for i, p := range f.Resources[0].Providers {
		switch {
		case p.Secretbox != nil && e.Keys == nil && len(p.Secretbox.Keys) > 0:
			e.Keys = p.Secretbox.Keys
		case p.Identity != nil && i == 0:
			e.Plain = PlainWritten
		case p.Identity != nil && e.Plain == PlainNever:
			e.Plain = PlainRead
		default:
			return nil, fmt.Errorf("%s: has a provider other than secretbox and identity; change it by hand", name)
		}
	}
	if len(e.Keys) == 0 {
		return nil, fmt.Errorf("%s: has no secretbox key", name)
	}
	return e, nil
}

// Write replaces the file and returns the digest that the API server calls it by.
func (e *Encryption) Write(name string) (digest string, err error) {
	data, err := e.marshal()
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(data)
	return "sha256:" + hex.EncodeToString(sum[:]), atomicfile.Write(name, data, 0o600)
}

// Digest is that of the file as it is.
func Digest(name string) (string, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(data)
	return "sha256:" + hex.EncodeToString(sum[:]), nil
}

func (e *Encryption) marshal() ([]byte, error) {
	identity := map[string]any{"identity": map[string]any{}}
	providers := []map[string]any{{"secretbox": map[string]any{"keys": e.Keys}}}
	switch e.Plain {
	case PlainRead:
		providers = append(providers, identity)
	case PlainWritten:
		providers = append([]map[string]any{identity}, providers...)
	}
	return yaml.Marshal(encryptionFile{
		APIVersion: "apiserver.config.k8s.io/v1", Kind: "EncryptionConfiguration",
		Resources: []encryptedResource{{Resources: []string{"secrets"}, Providers: providers}},
	})
}

// Find gives the encryption file of the server whose data folder it is.
func Find(dataDir string) (string, error) {
	name := filepath.Join(dataDir, "server", "encryption.yaml")
	if _, err := os.Stat(name); err != nil {
		return "", fmt.Errorf("%w; is this a server, and is that its --data-dir?", err)
	}
	return name, nil
}
