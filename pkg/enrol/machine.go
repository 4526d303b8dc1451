package enrol

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/skerry-os/skerry/pkg/atomicfile"
	"github.com/skerry-os/skerry/pkg/join"
)

// ThisMachine tells this machine from others: by its machine-id, or its serial number, or a number made once and kept in the
// data folder. root is "/" but in tests. address is for the person who looks for it.
func ThisMachine(root, dataDir, address string) (join.Machine, error) {
	m := join.Machine{Description: strings.TrimSpace(read(root, "sys/class/dmi/id/product_name", "proc/device-tree/model") + " at " + address)}
	if m.ID = read(root, "etc/machine-id", "sys/class/dmi/id/product_uuid", "proc/device-tree/serial-number"); m.ID != "" && m.ID != "uninitialized" {
		return m, nil
	}
	name := filepath.Join(dataDir, "agent", "machine-id")
	data, err := os.ReadFile(name)
	if m.ID = strings.TrimSpace(string(data)); m.ID != "" {
		return m, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return m, err
	}
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails
	m.ID = hex.EncodeToString(b)
	if err := os.MkdirAll(filepath.Dir(name), 0o711); err != nil {
		return m, err
	}
	return m, atomicfile.Write(name, []byte(m.ID+"\n"), 0o600)
}

// read gives the first of the files that says something.
func read(root string, names ...string) string {
	for _, name := range names {
		b, err := os.ReadFile(filepath.Join(root, name))
		if text := strings.Trim(string(b), "\x00 \n\t"); err == nil && text != "" {
			return text
		}
	}
	return ""
}
