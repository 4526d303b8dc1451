package machine

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"regexp"
	"slices"

	"github.com/skerry-os/skerry/pkg/release"
)

// SignatureSuffix is what a config's file name has added to be the name of its signature, beside it.
const SignatureSuffix = ".sig"

// Policy says which node configs an image takes.
type Policy string

// The policies.
const (
	PolicyAny    Policy = "any"    // whoever can write to the config partition may say what the machine is
	PolicySigned Policy = "signed" // only what is signed by a key the image knows
)

// Where an image says which configs it takes, below its boot partition; and, with more weight, a release in its initramfs, below
// etc/skerry/keys. The keys are those that may sign configs and nothing else; the release's own may too.
const (
	ImagePolicyFile   = "skerry/config-policy"
	ImageKeysFile     = "skerry/config-keys.pem"
	ReleasePolicyFile = "config-policy"
	ReleaseKeysFile   = "config-keys.pem"
)

// Check says whether it is a policy; an empty one is PolicyAny.
func (p Policy) Check() error {
	if p != "" && p != PolicyAny && p != PolicySigned {
		return fmt.Errorf("%q is not a policy for node configs; write %s or %s", string(p), PolicySigned, PolicyAny)
	}
	return nil
}

// MarshalKeys gives public keys as PEM.
func MarshalKeys(keys []ed25519.PublicKey) ([]byte, error) {
	var out bytes.Buffer
	for _, k := range keys {
		der, err := x509.MarshalPKIXPublicKey(k)
		if err != nil {
			return nil, err
		}
		if err := pem.Encode(&out, &pem.Block{Type: "PUBLIC KEY", Bytes: der}); err != nil {
			return nil, err
		}
	}
	return out.Bytes(), nil
}

// ParseKeys reads what MarshalKeys wrote.
func ParseKeys(data []byte) (keys []ed25519.PublicKey, err error) {
	for len(bytes.TrimSpace(data)) > 0 {
		block, rest := pem.Decode(data)
		if block == nil || block.Type != "PUBLIC KEY" {
			return nil, errors.New("holds something that is no PEM \"PUBLIC KEY\"")
		}
		key, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			return nil, err
		}
		pub, ok := key.(ed25519.PublicKey)
		if !ok {
			return nil, fmt.Errorf("holds a %T; a key for configs is ed25519", key)
		}
		keys, data = append(keys, pub), rest
	}
	return keys, nil
}

// ErrUnsigned means that a config has no signature by a key that is trusted.
var ErrUnsigned = errors.New("is not signed by a key that this image trusts")

// configDomain keeps a signature made for a config from being valid for anything else.
const configDomain = "skerry node config v1\n"

// SignConfig gives the signature file of a config.
func SignConfig(data []byte, by ...crypto.Signer) ([]byte, error) {
	return release.SignBytes(configDomain, data, by...)
}

// VerifyConfig checks a config's signature file and names the key. No signature at all is ErrUnsigned too.
func VerifyConfig(data, sig []byte, trusted []ed25519.PublicKey) (keyID string, err error) {
	if len(sig) == 0 {
		return "", fmt.Errorf("has no signature beside it: %w; make one with: skerry config sign", ErrUnsigned)
	}
	s, err := release.ParseSignature(sig)
	if err != nil {
		return "", fmt.Errorf("has a signature that cannot be read: %w", ErrUnsigned)
	}
	if pub := s.By(configDomain, data, trusted); pub != nil {
		return release.KeyID(pub), nil
	}
	if slices.ContainsFunc(trusted, s.Names) {
		return "", fmt.Errorf("was changed after it was signed: %w; sign it again with: skerry config sign", ErrUnsigned)
	}
	return "", fmt.Errorf("has a signature of another key: %w", ErrUnsigned)
}

var (
	backquoted = regexp.MustCompile("`.*`")
	quoted     = regexp.MustCompile(`"(?:[^"\\]|\\.)*"`)
)

// Redact takes what a person wrote out of a fault's text, because it may be a secret in the wrong place. Places, names of keys
// and what to do stay.
func Redact(fault string) string {
	return quoted.ReplaceAllString(backquoted.ReplaceAllString(fault, `"…"`), `"…"`)
}
