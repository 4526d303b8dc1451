package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/skerry-os/skerry/image/datafs"
	"github.com/skerry-os/skerry/image/imagetest"
	"github.com/skerry-os/skerry/pkg/linux"
	"github.com/skerry-os/skerry/pkg/supervise/process"
)

// What a first boot makes of a data partition: its own filesystem where the partition is fresh, whatever an earlier life of the medium
// left; and the one that is there, repaired if need be, where a machine uses it, with the mark or from before there was one.
func TestPrepareData(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("making a loop device needs root")
	}
	imagetest.Tool(t, "mke2fs", "e2fsprogs")
	zero := func(from, n int64) func(*os.File) error {
		return func(f *os.File) error { _, err := f.WriteAt(make([]byte, n), from); return err }
	}
	fresh := func(f *os.File) error { _, err := f.WriteAt(datafs.Fresh(), 0); return err }
	// The image's 16 MiB in front of an earlier life's filesystem.
	written := func(f *os.File) error {
		_, err := f.WriteAt(append(datafs.Fresh(), make([]byte, 16<<20-len(datafs.Fresh()))...), 0)
		return err
	}
	for name, c := range map[string]struct {
		happens func(*os.File) error
		kept    bool
	}{
		"used":                                  {zero(0, 0), true},
		"used, from before there was a mark":    {zero(0, 512), true},
		"used, its superblock lost":             {zero(1024, 1024), true},
		"from before, its superblock lost":      {zero(0, 4096), true},
		"written anew":                          {written, false},
		"written anew, the filesystem is whole": {fresh, false},
	} {
		t.Run(name, func(t *testing.T) {
			s, dev := loopData(t, 256<<20)
			p := linux.Partition{Name: strings.TrimPrefix(dev, "/dev/")}
			state, err := s.prepareData(t.Context(), p)
			if err != nil || state != datafs.New {
				t.Fatalf("the first life begins: %v, %v", state, err)
			}
			inData(t, dev, func(dir string) {
				if err := os.WriteFile(filepath.Join(dir, "cluster"), []byte("old"), 0o600); err != nil {
					t.Fatal(err)
				}
			})
			if err := markData(p); err != nil {
				t.Fatal(err)
			}
			f, err := os.OpenFile(dev, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			if err := c.happens(f); err != nil {
				t.Fatal(err)
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
			if state, err = s.prepareData(t.Context(), p); err != nil || (state == datafs.New) == c.kept {
				t.Errorf("state %v, %v", state, err)
			}
			inData(t, dev, func(dir string) {
				if _, err := os.Stat(filepath.Join(dir, "cluster")); (err == nil) != c.kept {
					t.Errorf("the old cluster: %v", err)
				}
			})
		})
	}
}

// loopData is a data partition of its own.
func loopData(t *testing.T, size int64) (*system, string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "data")
	f, err := os.Create(file)
	if err == nil {
		err = f.Truncate(size)
	}
	if err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	out, err := exec.Command("losetup", "--find", "--show", file).CombinedOutput()
	if err != nil {
		t.Skipf("no loop device: %v: %s", err, out)
	}
	dev := strings.TrimSpace(string(out))
	c, _ := pipeConsole(t)
	s := &system{console: c, reaper: process.NewReaper()}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { s.reaper.Run(ctx); close(ended) }()
	t.Cleanup(func() {
		cancel()
		<-ended
		_ = exec.Command("losetup", "-d", dev).Run()
	})
	return s, dev
}

func inData(t *testing.T, dev string, do func(dir string)) {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount(dev, dir, "ext4", 0, ""); err != nil {
		t.Fatal(err)
	}
	do(dir)
	if err := unix.Unmount(dir, 0); err != nil {
		t.Fatal(err)
	}
}
