package rootfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// EROFSOptions decide the image beside the tree. They are part of what a stamp must cover.
type EROFSOptions struct {
	Time     time.Time // of every file
	UUID     string
	Compress string // such as lz4hc,12
	Cluster  int    // bytes that are compressed together: larger is smaller and reads more at once
}

// EROFS writes the tree as an EROFS image. It needs mkfs.erofs and no privileges.
func (t *Tree) EROFS(ctx context.Context, out string, o EROFSOptions) error {
	tool, err := exec.LookPath("mkfs.erofs")
	if err != nil {
		return errors.New("mkfs.erofs is not installed: apt-get install erofs-utils")
	}
	dir, err := os.MkdirTemp(filepath.Dir(out), ".stage-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if err := os.Chmod(dir, 0o755); err != nil { // it becomes the mode of /
		return err
	}
	if err := t.Stage(dir); err != nil {
		return err
	}
	args := []string{"--quiet", "--all-root", "-x-1", "-U", o.UUID, fmt.Sprintf("-T%d", o.Time.Unix())}
	if o.Compress != "" {
		args = append(args, "-z"+o.Compress, fmt.Sprintf("-C%d", o.Cluster))
	}
	cmd := exec.CommandContext(ctx, tool, append(args, out, dir)...)
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "SOURCE_DATE_EPOCH=") { // it makes every inode carry a time of its own
			cmd.Env = append(cmd.Env, v)
		}
	}
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("mkfs.erofs: %w: %s", err, strings.TrimSpace(said.String()))
	}
	return nil
}
