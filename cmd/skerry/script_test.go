package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/skerry-os/skerry/image/cloud/aws/awstest"
	"github.com/skerry-os/skerry/image/cloud/azure/azuretest"
	"github.com/skerry-os/skerry/image/cloud/gcp/gcptest"
	"github.com/skerry-os/skerry/image/releasetest"
)

// TestMain lets the test binary be the program: scripts call it by name.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"skerry": func() {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		code := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
		stop()
		os.Exit(code)
	}})
}

// Scripts in testdata say what a person types and sees. $BENCH holds a signed release, its keys, and a release for arm64; $NETBENCH
// a release whose board starts over the network, too; $REGISTRY is an OCI registry; the settings of the clouds' tools lead to servers
// of awstest, azuretest and gcptest.
func TestScripts(t *testing.T) {
	b := releasetest.New(t, 1<<20)
	for _, id := range []string{"aws", "aws-arm64", "azure", "gcp", "openstack", "proxmox"} {
		b.AddBoard(t, id)
	}
	signed := b.Release
	foreign := *b.Signed.Manifest()
	foreign.Arch = "arm64"
	b.Release = filepath.Join(filepath.Dir(signed), "arm64")
	if err := os.Mkdir(b.Release, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"boot", "root.img", "secureboot"} { // the same files: nobody starts them
		if err := os.Symlink(filepath.Join(signed, name), filepath.Join(b.Release, name)); err != nil {
			t.Fatal(err)
		}
	}
	b.Sign(t, &foreign)
	overNetwork := releasetest.New(t, 1<<20).Netboot(t)
	images := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(images.Close)
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			env.Setenv("BENCH", filepath.Dir(signed))
			env.Setenv("NETBENCH", filepath.Dir(overNetwork.Release))
			env.Setenv("REGISTRY", strings.TrimPrefix(images.URL, "http://"))
			for _, cloud := range []map[string]string{awstest.New(t).Env(), azuretest.New(t).Env(), gcptest.New(t).Env()} {
				for k, v := range cloud {
					env.Setenv(k, v)
				}
			}
			return nil
		},
	})
}

// command is the program as a process of its own.
func command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return &exec.Cmd{Path: exe, Args: append([]string{"skerry"}, args...), Stdout: new(bytes.Buffer), Stderr: new(bytes.Buffer)}
}

func imageBuild(b *releasetest.Bench, out string) []string {
	return []string{"image", "build", "--board", "x86-uefi", "--release", b.Release, "--keys", b.Keys, "--config", b.Config, "-o", out}
}

// Ctrl-C in the middle of a build: one line, exit code 130, no file and no temporary one.
func TestInterruptedBuildLeavesNothing(t *testing.T) {
	b := releasetest.New(t, 8<<20)
	root := filepath.Join(b.Release, "root.img")
	data, err := os.ReadFile(root)
	if err != nil {
		t.Fatal(err)
	}
	// A pipe in the place of the root lets the test decide how far the build gets.
	if err := os.Remove(root); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(root, 0o600); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cmd := command(t, imageBuild(b, filepath.Join(dir, "x.img"))...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pipe, err := os.OpenFile(root, os.O_WRONLY, 0) // returns when the build has opened its end
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pipe.Write(data[:2<<20]); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	taken(t, cmd.Process.Pid)
	_, err = pipe.Write(data[2<<20:])
	if !errors.Is(err, syscall.EPIPE) {
		t.Errorf("the build read on after the interrupt: %v", err)
	}
	_ = pipe.Close()
	err = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 130 {
		t.Errorf("exit code %d (%v), stderr %s", code, err, cmd.Stderr)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		t.Errorf("left behind: %v (%v)", entries, err)
	}
}

// taken waits until the process has taken all signals sent to it.
func taken(t *testing.T, pid int) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		status, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(status), "ShdPnd:\t0000000000000000") {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the interrupt was not taken")
		}
	}
}

// A full disk: the error says what the image takes, and nothing is left.
func TestFullDiskLeavesNothing(t *testing.T) {
	if out, err := exec.Command("unshare", "-rm", "true").CombinedOutput(); err != nil {
		t.Skipf("no namespaces here, so no small disk to fill: %v %s", err, out)
	}
	b := releasetest.New(t, 4<<20)
	dir := t.TempDir()
	build := command(t, imageBuild(b, filepath.Join(dir, "x.img"))...)
	script := `mount -t tmpfs -o size=3m none "$1" && cd "$1" && shift && { "$@"; echo "exit $?"; ls -A; }`
	// sh gives the program its own name, so a link of that name leads to the test binary.
	link := filepath.Join(t.TempDir(), "skerry")
	if err := os.Symlink(build.Path, link); err != nil {
		t.Fatal(err)
	}
	args := append([]string{"-rm", "sh", "-c", script, "sh", dir, link}, build.Args[1:]...)
	out, err := exec.Command("unshare", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	got := string(out)
	if !strings.Contains(got, "x.img: the disk is full; the image takes about ") || !strings.HasSuffix(got, "exit 1\n") {
		t.Errorf("got %s", got)
	}
	if entries, err := fs.Glob(os.DirFS(dir), "*"); err != nil || len(entries) > 0 {
		t.Errorf("left behind: %v (%v)", entries, err)
	}
}
