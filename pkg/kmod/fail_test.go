package kmod

import (
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// What fails of a module's softdeps is no fault of the module: the kernel mounts no filesystem whose module it is told has one.
func TestWhatMayFail(t *testing.T) {
	index := func() *Index {
		return &Index{Modules: map[string]Module{
			"ext4":     {Name: "ext4", File: "ext4.ko", Depends: []string{"jbd2"}, Pre: []string{"crypto_crc32c"}, Aliases: []string{"fs_ext4"}},
			"jbd2":     {Name: "jbd2", File: "jbd2.ko", Depends: []string{"mbcache"}, Pre: []string{"crypto_crc32c"}, Post: []string{"late"}},
			"mbcache":  {Name: "mbcache", File: "mbcache.ko"},
			"late":     {Name: "late", File: "late.ko"},
			"crc_fast": {Name: "crc_fast", File: "crc_fast.ko", Depends: []string{"simd"}, Aliases: []string{"crypto_crc32c"}},
			"crc_slow": {Name: "crc_slow", File: "crc_slow.ko", Aliases: []string{"crypto_crc32c"}},
			"simd":     {Name: "simd", File: "simd.ko"},
		}}
	}
	for _, tt := range []struct {
		fails []string
		name  string
		want  string // in the error; "" is none
	}{
		{nil, "fs-ext4", ""},
		{[]string{"crc_fast"}, "fs-ext4", ""},
		{[]string{"crc_fast", "crc_slow", "simd", "late"}, "fs-ext4", ""},
		{[]string{"crc_fast"}, "crypto-crc32c", ""},
		{[]string{"simd", "crc_fast"}, "crypto-crc32c", ""},
		{[]string{"crc_fast", "crc_slow"}, "crypto-crc32c", "module crc_fast: no such device\nmodule crc_slow: no such device"},
		{[]string{"crc_slow", "simd"}, "crypto-crc32c", "module simd: no such device\nmodule crc_slow: no such device"},
		{[]string{"ext4"}, "fs-ext4", "module ext4: no such device"},
		{[]string{"mbcache"}, "ext4", "module mbcache: no such device"},
		{[]string{"crc_fast"}, "crc_fast", "module crc_fast: no such device"},
	} {
		l := &Loader{index: index(), tried: map[string]*outcome{}, insert: func(file, _ string) error {
			for _, f := range tt.fails {
				if f+".ko" == filepath.Base(file) {
					return unix.ENODEV
				}
			}
			return nil
		}}
		for range 2 { // the second time nothing is tried
			err := l.Load(tt.name, "")
			if text := strings.TrimSpace(errText(err)); text != tt.want {
				t.Errorf("%s while %v fail: %q, want %q", tt.name, tt.fails, text, tt.want)
			}
		}
	}
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
