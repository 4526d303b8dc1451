package images

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// BusyBox of its own sources: tests compare the words of its shell, and need variables whose names are no names for a shell, which
// Debian's program drops. The tarball is the one Debian's package is made of.
const (
	busyboxVersion = "1.35.0"
	busyboxSHA256  = "faeeb244c35a348a334f4a59e44626ee870fb07b6884d68c10ae8bc19f83a694"
)

// tc does not compile with kernel headers from 6.8 on.
var busyboxConfig = map[string]string{"STATIC": "y", "TC": "n"}

// busybox compiles the program, once, and lists its applets.
func (b *Builder) busybox(ctx context.Context) (program []byte, applets []string, err error) {
	dir := filepath.Join(b.Work, "busybox-"+busyboxVersion)
	file := filepath.Join(dir, "busybox")
	if _, err := os.Stat(file); err != nil {
		b.Log("make busybox %s", busyboxVersion)
		if err := b.makeBusybox(ctx, dir); err != nil {
			return nil, nil, fmt.Errorf("BusyBox %s: %w", busyboxVersion, err)
		}
	}
	if program, err = os.ReadFile(file); err != nil {
		return nil, nil, err
	}
	list, err := output(ctx, "", nil, file, "--list")
	return program, strings.Fields(list), err
}

func (b *Builder) makeBusybox(ctx context.Context, dir string) error {
	tmp := dir + ".new"
	if err := os.RemoveAll(tmp); err != nil {
		return err
	}
	if err := os.MkdirAll(tmp, 0o755); err != nil {
		return err
	}
	tarball := filepath.Join(tmp, "orig.tar.bz2")
	uris, err := output(ctx, "", nil, "apt-get", "download", "--print-uris", "busybox-static")
	if err != nil {
		return err
	}
	pool := regexp.MustCompile(`^'([^']*)/[^/']*'`).FindStringSubmatch(uris)
	if pool == nil {
		return fmt.Errorf("apt-get does not say where busybox-static is but %q", uris)
	}
	if _, err := output(ctx, "", nil, "curl", "-fsSL", "--retry", "3", "--max-time", "300", "-o", tarball, pool[1]+"/busybox_"+busyboxVersion+".orig.tar.bz2"); err != nil {
		return err
	}
	data, err := os.ReadFile(tarball)
	if err != nil {
		return err
	}
	if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) != busyboxSHA256 {
		return fmt.Errorf("its sources have the SHA-256 %x, not %s", sum, busyboxSHA256)
	}
	if _, err := output(ctx, tmp, nil, "tar", "-xf", tarball, "--strip-components=1"); err != nil {
		return err
	}
	if _, err := output(ctx, tmp, nil, "make", "defconfig"); err != nil {
		return err
	}
	config, err := os.ReadFile(filepath.Join(tmp, ".config"))
	if err != nil {
		return err
	}
	for option, value := range busyboxConfig {
		config = regexp.MustCompile(`(?m)^(# )?CONFIG_`+option+`[= ].*$`).ReplaceAll(config, []byte("CONFIG_"+option+"="+value))
	}
	if err := os.WriteFile(filepath.Join(tmp, ".config"), config, 0o644); err != nil {
		return err
	}
	for _, target := range []string{"silentoldconfig", "all"} {
		if _, err := output(ctx, tmp, []string{"MAKEFLAGS="}, "make", "-j4", target); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	return os.Rename(tmp, dir)
}
