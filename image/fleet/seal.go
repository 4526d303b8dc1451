package fleet

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"filippo.io/age"
)

// ageMagic starts a file that age has encrypted.
var ageMagic = []byte("age-encryption.org/v1\n")

func isSealed(data []byte) bool { return bytes.HasPrefix(data, ageMagic) }

// checkRecipient refuses what age cannot encrypt to.
func checkRecipient(text string) error {
	if _, err := age.ParseRecipients(strings.NewReader(text)); err != nil {
		return fmt.Errorf("%q is not a recipient of age, as in age1…; age-keygen makes one", text)
	}
	return nil
}

// Keyring opens what is sealed.
type Keyring struct {
	Identities []age.Identity                   // of the file that a person names
	Ask        func(again bool) (string, error) // for the passphrase; again: twice, because it is a new one

	passphrase string
}

// ErrLocked means that what is sealed cannot be opened with what is there.
var ErrLocked = errors.New("is encrypted by age; name the file with the identity by --identity, or the one with the passphrase by --passphrase-file")

func (k *Keyring) ask(again bool) (string, error) {
	if k.passphrase == "" {
		if k.Ask == nil {
			return "", ErrLocked
		}
		text, err := k.Ask(again)
		if err != nil {
			return "", err
		}
		if text == "" {
			return "", errors.New("the passphrase is empty")
		}
		k.passphrase = text
	}
	return k.passphrase, nil
}

// open decrypts, by an identity or the passphrase, whichever the data wants.
func (k *Keyring) open(data []byte) ([]byte, error) {
	ids := k.Identities
	if bytes.Contains(data[:min(200, len(data))], []byte("\n-> scrypt ")) {
		text, err := k.ask(false)
		if err != nil {
			return nil, err
		}
		id, err := age.NewScryptIdentity(text)
		if err != nil {
			return nil, err
		}
		ids = []age.Identity{id}
	}
	if len(ids) == 0 {
		return nil, ErrLocked
	}
	r, err := age.Decrypt(bytes.NewReader(data), ids...)
	var none *age.NoIdentityMatchError
	if errors.As(err, &none) {
		return nil, errors.New("neither this identity nor this passphrase opens it")
	}
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

// seal encrypts as the fleet's file says.
func (s Secrets) seal(k *Keyring, data []byte) ([]byte, error) {
	if s.Passphrase {
		text, err := k.ask(true)
		if err != nil {
			return nil, err
		}
		r, err := age.NewScryptRecipient(text)
		if err != nil {
			return nil, err
		}
		return sealTo(data, r)
	}
	to, err := age.ParseRecipients(strings.NewReader(strings.Join(s.Recipients, "\n")))
	if err != nil {
		return nil, err
	}
	return sealTo(data, to...)
}

func sealTo(data []byte, to ...age.Recipient) ([]byte, error) {
	var out bytes.Buffer
	w, err := age.Encrypt(&out, to...)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(data); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}
