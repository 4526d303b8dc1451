package kmod

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"

	"github.com/mikelolasagasti/xz"
)

// maxModuleBytes bounds one module, decompressed. The largest of Debian's is 13 MB.
const maxModuleBytes = 128 << 20

// ReadModule reads what one module file says of itself.
func ReadModule(fsys fs.FS, file string) (Module, error) {
	f, err := fsys.Open(file)
	if err != nil {
		return Module{}, err
	}
	defer f.Close()
	data, err := decompress(file, f)
	if err != nil {
		return Module{}, err
	}
	info, err := modinfo(data)
	if err != nil {
		return Module{}, fmt.Errorf("%s: %w", file, err)
	}
	m := Module{Name: moduleName(file), File: file}
	for entry := range bytes.SplitSeq(info, []byte{0}) {
		key, value, ok := strings.Cut(string(entry), "=")
		if ok {
			m.add(key, value)
		}
	}
	return m, nil
}

func (m *Module) add(key, value string) {
	switch key {
	case "depends":
		for d := range strings.SplitSeq(value, ",") {
			if d != "" {
				m.Depends = append(m.Depends, Normal(d))
			}
		}
	case "softdep":
		list := &m.Pre
		for w := range strings.FieldsSeq(value) {
			switch w {
			case "pre:":
				list = &m.Pre
			case "post:":
				list = &m.Post
			default:
				*list = append(*list, Normal(w))
			}
		}
	case "alias":
		if a := Normal(value); !slices.Contains(m.Aliases, a) {
			m.Aliases = append(m.Aliases, a)
		}
	case "firmware":
		m.Firmware = append(m.Firmware, value)
	case "name":
		m.Name = Normal(value)
	}
}

// decompress reads a module to its end.
func decompress(file string, r io.Reader) ([]byte, error) {
	var err error
	switch {
	case strings.HasSuffix(file, ".xz"):
		r, err = xz.NewReader(r, 0)
	case strings.HasSuffix(file, ".gz"):
		r, err = gzip.NewReader(r)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	data, err := io.ReadAll(io.LimitReader(r, maxModuleBytes+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if len(data) > maxModuleBytes {
		return nil, fmt.Errorf("%s: is larger than %d bytes", file, maxModuleBytes)
	}
	return data, nil
}

func modinfo(data []byte) ([]byte, error) {
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	s := f.Section(".modinfo")
	if s == nil {
		return nil, errors.New("has no .modinfo section; it is not a kernel module")
	}
	return s.Data()
}
