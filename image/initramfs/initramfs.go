// Package initramfs makes the kernel's first root: init, the modules it takes to reach the verified root, and the keys that
// root must be signed with. One archive, zstd-compressed, the same bytes for the same content.
package initramfs

import (
	"bytes"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/skerry-os/skerry/image/rootfs"
	"github.com/skerry-os/skerry/pkg/kmod"
)

// Where init finds what is for it.
const (
	KeyFile     = "etc/skerry/keys/release.pub"
	RootFile    = "etc/skerry/keys/root.json" // whom updates are believed from; missing in releases without a repository
	ModulesLoad = "etc/skerry/modules.load"   // names, one a line: loaded in this order before any device is asked
	ModulesDir  = "usr/lib/modules"
)

// Content is what goes in.
type Content struct {
	Init      string            // the init program, a file of the host
	Kernel    string            // kernel release
	Modules   *kmod.Index       // those to carry
	ModuleDir string            // folder of the host that the index describes
	Load      []string          // modules to load by name
	PublicKey []byte            // PEM
	Root      []byte            // of the repository of updates; nil for none
	Trust     map[string][]byte // more files of the folder that KeyFile is in, by name
	Time      time.Time         // of every file
}

// Tree lays the content out.
func (c Content) Tree() (*rootfs.Tree, error) {
	t := rootfs.New("bin", "sbin", "lib")
	for _, dir := range []string{"dev", "proc", "sys", "run", "sysroot", "usr/bin", "usr/sbin"} {
		if err := t.AddDir(dir, 0o755); err != nil {
			return nil, err
		}
	}
	if err := t.AddFile("init", c.Init, 0o755); err != nil {
		return nil, err
	}
	// A driver that asks for another one makes the kernel call /sbin/modprobe.
	if err := t.AddLink("usr/sbin/modprobe", "/init"); err != nil {
		return nil, err
	}
	if err := AddModules(t, c.Kernel, c.Modules, c.ModuleDir); err != nil {
		return nil, err
	}
	if err := t.AddBytes(ModulesLoad, []byte(strings.Join(c.Load, "\n")+"\n"), 0o644); err != nil {
		return nil, err
	}
	if len(c.Root) > 0 {
		if err := t.AddBytes(RootFile, c.Root, 0o644); err != nil {
			return nil, err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.Trust)) {
		if err := t.AddBytes(path.Join(path.Dir(KeyFile), name), c.Trust[name], 0o644); err != nil {
			return nil, err
		}
	}
	return t, t.AddBytes(KeyFile, c.PublicKey, 0o644)
}

// AddModules puts the modules of an index and the index itself into a tree.
func AddModules(t *rootfs.Tree, kernel string, x *kmod.Index, dir string) error {
	below := path.Join(ModulesDir, kernel)
	for _, m := range x.Modules {
		if err := t.AddFile(path.Join(below, m.File), path.Join(dir, m.File), 0o644); err != nil {
			return err
		}
	}
	var buf bytes.Buffer
	if err := x.Write(&buf); err != nil {
		return err
	}
	return t.AddBytes(path.Join(below, kmod.IndexName), buf.Bytes(), 0o644)
}

// Build gives the compressed archive.
func Build(t *rootfs.Tree, when time.Time) ([]byte, error) {
	var out bytes.Buffer
	// One encoder thread, or the frame depends on timing. The kernel checks the archive itself, so no checksum.
	z, err := zstd.NewWriter(&out, zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithEncoderConcurrency(1),
		zstd.WithEncoderCRC(false), zstd.WithWindowSize(8<<20))
	if err != nil {
		return nil, fmt.Errorf("initramfs: %w", err)
	}
	if err := t.CPIO(z, when); err != nil {
		return nil, fmt.Errorf("initramfs: %w", err)
	}
	if err := z.Close(); err != nil {
		return nil, fmt.Errorf("initramfs: %w", err)
	}
	return out.Bytes(), nil
}
