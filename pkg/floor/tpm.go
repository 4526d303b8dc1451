package floor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// index is where the floor is in a TPM: one of those that owners may define.
const index = tpm2.TPMHandle(0x01853e21)

// room is the size of the index in bytes: versions have 64 at most.
const room = 80

// TPM is a floor in a TPM 2.0: an index that can be written until it is closed, and then not until the next restart. Its
// password is empty: stage 1, which opens it, has no secret that others could not read from the disk.
type TPM struct{ transport.TPM }

// OpenTPM opens the machine's TPM; fs.ErrNotExist is none.
func OpenTPM() (TPM, func() error, error) {
	var err error
	for _, name := range []string{"/dev/tpmrm0", "/dev/tpm0"} {
		var f *os.File
		if f, err = os.OpenFile(name, os.O_RDWR, 0); err == nil {
			t := transport.FromReadWriteCloser(f)
			return TPM{t}, t.Close, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	return TPM{}, nil, err
}

func (TPM) String() string { return "the TPM" }

// Reset is in the firmware's menu.
func (TPM) Reset() string { return "clear the TPM in the firmware's menu" }

// public gives the index as it is; nil for none. One that is not Skerry's is neither read nor written.
func (t TPM) public() (*tpm2.TPMSNVPublic, tpm2.TPM2BName, error) {
	r, err := tpm2.NVReadPublic{NVIndex: index}.Execute(t.TPM)
	if errors.Is(err, tpm2.TPMRCHandle) {
		return nil, tpm2.TPM2BName{}, nil
	}
	if err != nil {
		return nil, tpm2.TPM2BName{}, err
	}
	p, err := r.NVPublic.Contents()
	if err == nil && p.DataSize != room {
		err = fmt.Errorf("index %#x is of %d bytes, and so not Skerry's", index, p.DataSize)
	}
	return p, r.NVName, err
}

// Load reads the index.
func (t TPM) Load() (string, error) {
	p, name, err := t.public()
	if err != nil || p == nil || !p.Attributes.Written {
		return "", err
	}
	r, err := tpm2.NVRead{
		AuthHandle: tpm2.AuthHandle{Handle: index, Name: name, Auth: tpm2.PasswordAuth(nil)},
		NVIndex:    tpm2.NamedHandle{Handle: index, Name: name}, Size: room,
	}.Execute(t.TPM)
	if err != nil {
		return "", err
	}
	text, _, _ := strings.Cut(string(r.Data.Buffer), "\x00")
	return text, nil
}

// Raise writes the index, and makes it first if need be.
func (t TPM) Raise(version string) error {
	if len(version) >= room {
		return fmt.Errorf("version %s: is longer than %d bytes", version, room-1)
	}
	p, name, err := t.public()
	if err != nil {
		return err
	}
	if p == nil {
		def := tpm2.NVDefineSpace{
			AuthHandle: tpm2.TPMRHOwner,
			PublicInfo: tpm2.New2B(tpm2.TPMSNVPublic{
				NVIndex: index, NameAlg: tpm2.TPMAlgSHA256, DataSize: room,
				Attributes: tpm2.TPMANV{AuthWrite: true, AuthRead: true, OwnerRead: true, WriteSTClear: true, NoDA: true, NT: tpm2.TPMNTOrdinary},
			}),
		}
		if _, err := def.Execute(t.TPM); err != nil {
			return fmt.Errorf("making index %#x: %w", index, err)
		}
		if _, name, err = t.public(); err != nil {
			return err
		}
	}
	data := make([]byte, room)
	copy(data, version)
	_, err = tpm2.NVWrite{
		AuthHandle: tpm2.AuthHandle{Handle: index, Name: name, Auth: tpm2.PasswordAuth(nil)},
		NVIndex:    tpm2.NamedHandle{Handle: index, Name: name}, Data: tpm2.TPM2BMaxNVBuffer{Buffer: data},
	}.Execute(t.TPM)
	return err
}

// Close locks the index.
func (t TPM) Close() error {
	p, name, err := t.public()
	if err != nil || p == nil {
		return err
	}
	_, err = tpm2.NVWriteLock{
		AuthHandle: tpm2.AuthHandle{Handle: index, Name: name, Auth: tpm2.PasswordAuth(nil)},
		NVIndex:    tpm2.NamedHandle{Handle: index, Name: name},
	}.Execute(t.TPM)
	return err
}
