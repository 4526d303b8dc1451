package agent

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/skerry-os/skerry/image/imagetest"
	"github.com/skerry-os/skerry/image/oci"
)

// These tests start real pods through containerd in this process, the shim, runc and the CNI plugins. They need root and the
// programs of a build: SKERRY_PROGRAMS names the folder that looks like a node's root, out/amd64 by default (make programs).

func buildTree(t *testing.T) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: starts containers")
	}
	tree := os.Getenv("SKERRY_PROGRAMS")
	if tree == "" {
		tree = "../../out/amd64"
	}
	tree, err := filepath.Abs(tree)
	if err != nil {
		t.Fatal(err)
	}
	libexec := filepath.Join(tree, "usr/libexec/skerry")
	for _, p := range []string{"containerd-shim-runc-v2", "runc"} {
		if !isProgram(filepath.Join(libexec, p)) {
			t.Skipf("needs %s in %s; run make programs, or set SKERRY_PROGRAMS", p, libexec)
		}
	}
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("needs nft; install Debian's package nftables")
	}
	return libexec
}

// buildImage makes an archive of one static program that this test compiles.
func buildImage(t *testing.T, dir, ref, pkg string) {
	t.Helper()
	program := filepath.Join(t.TempDir(), "program")
	cmd := exec.Command("go", "build", "-ldflags=-s -w", "-o", program, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build %s: %v\n%s", pkg, err, out)
	}
	data, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	var buf bytes.Buffer
	if err := (oci.Image{Ref: ref, Arch: "amd64", Program: filepath.Base(pkg), Binary: data, User: "65532:65532"}).Write(&buf); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, filepath.Base(pkg)+".tar"), buf.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestMain turns the test program into the node's containerd when asked to. Upstream's may start once in a process, and a
// process of its own is how it runs in earnest.
func TestMain(m *testing.M) {
	data := os.Getenv("SKERRY_AGENT_TEST_CONFIG")
	if data == "" {
		os.Exit(m.Run())
	}
	var cfg Config
	if err := json.Unmarshal([]byte(data), &cfg); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	l := newLayout(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	go func() { _, _ = io.Copy(io.Discard, os.Stdin); cancel() }() // until the test lets go
	done := make(chan error, 2)
	up := newLatch()
	go func() { done <- l.runContainerd(ctx, up.release) }()
	<-up.c
	go func() { done <- l.runImages(ctx, func() { fmt.Println("ready") }) }()
	if err := errors.Join(<-done, <-done); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// start runs containerd with the images in a process of its own until stop is called.
func start(t *testing.T, cfg Config) (stop func()) {
	t.Helper()
	data, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "SKERRY_AGENT_TEST_CONFIG="+string(data))
	cmd.Stderr = os.Stderr
	hold, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "ready\n" {
		_ = cmd.Process.Kill()
		t.Fatalf("containerd did not start: %q, %v", line, err)
	}
	return sync.OnceFunc(func() {
		_ = hold.Close()
		timer := time.AfterFunc(20*time.Second, func() { _ = cmd.Process.Kill() })
		defer timer.Stop()
		if err := cmd.Wait(); err != nil {
			t.Errorf("containerd did not stop in good order: %v", err)
		}
	})
}

// sweep ends what a failed test left: the shims, known by containerd's socket among their arguments, and containers, by the
// ids that shims wrote down; then their mounts and control groups.
func sweep(t *testing.T, l *layout) {
	t.Helper()
	processes, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range processes {
		if args, err := os.ReadFile(file); err == nil && bytes.Contains(args, []byte("\x00"+l.socket()+"\x00")) {
			kill(filepath.Base(filepath.Dir(file)))
		}
	}
	containers, err := filepath.Glob(filepath.Join(l.run, "containerd/io.containerd.runtime.v2.task/k8s.io/*/init.pid"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range containers {
		if pid, err := os.ReadFile(file); err == nil {
			kill(strings.TrimSpace(string(pid)))
		}
	}
	for _, pattern := range []string{"/sys/fs/cgroup/skerry-test", "/sys/fs/cgroup/*/skerry-test"} {
		groups, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, dir := range groups {
			_ = os.Remove(dir) // one that is in use stays
		}
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(mounts), "\n")
	slices.Reverse(lines)
	for _, line := range lines {
		if fields := strings.Fields(line); len(fields) > 1 && strings.HasPrefix(fields[1], l.run+"/") {
			_ = syscall.Unmount(fields[1], syscall.MNT_DETACH)
		}
	}
	_ = os.RemoveAll(l.run)
}

func kill(pid string) {
	if n, err := strconv.Atoi(pid); err == nil && n > 1 {
		_ = syscall.Kill(n, syscall.SIGKILL)
	}
}

func dialCRI(t *testing.T, l *layout) (cri.RuntimeServiceClient, cri.ImageServiceClient) {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+l.socket(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return cri.NewRuntimeServiceClient(conn), cri.NewImageServiceClient(conn)
}

// A pod starts from an image that came with the release, gets an address, outlives containerd, is found again by the next
// one, and leaves nothing behind.
func TestPodsOutliveContainerd(t *testing.T) {
	t.Run("from an archive", func(t *testing.T) { podsOutlive(t, "", false) })
	t.Run("from the root's own files", func(t *testing.T) { podsOutlive(t, "", true) })
	t.Run("from a copy of them", func(t *testing.T) { podsOutlive(t, "native", true) })
}

// serveImages does to a folder of archives what a release does: their layers are files.
func serveImages(t *testing.T, dir string) {
	t.Helper()
	archives, err := filepath.Glob(filepath.Join(dir, "*.tar"))
	if err != nil || len(archives) == 0 {
		t.Fatal(archives, err)
	}
	for _, name := range archives {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		rest, layers, err := oci.Apart(bytes.NewReader(data))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, rest, 0o644); err != nil {
			t.Fatal(err)
		}
		for id, files := range layers {
			for file, f := range files {
				to := filepath.Join(dir, "layers", strings.TrimPrefix(id, "sha256:"), file)
				if err := errors.Join(os.MkdirAll(filepath.Dir(to), 0o755), os.WriteFile(to, f.Data, os.FileMode(f.Mode))); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
}

func podsOutlive(t *testing.T, snapshotter string, served bool) {
	libexec := buildTree(t)
	cfg := testConfig(t.TempDir())
	cfg.Libexec, cfg.Settings.Snapshotter = libexec, snapshotter
	buildImage(t, filepath.Join(cfg.Share, "images"), PauseImage, "../../cmd/pause")
	if served {
		serveImages(t, filepath.Join(cfg.Share, "images"))
	}
	l := newLayout(cfg)
	t.Cleanup(func() { sweep(t, l) })
	subnet := "10.251.251.0/24" // nobody else's, for the pod's link is in this machine's own network
	stop := start(t, cfg)
	defer func() { stop() }()
	runtime, images := dialCRI(t, l)
	conf, err := cniConfig(prefixes(subnet), 1450, l.run+"/cni", "") // nobody keeps network policies here
	if err != nil {
		t.Fatal(err)
	}
	if err := newNode(l).putCNI(conf); err != nil { // while containerd runs, as on a first start
		t.Fatal(err)
	}

	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	list, err := images.ListImages(ctx, &cri.ListImagesRequest{})
	if err != nil || len(list.Images) != 1 || !list.Images[0].Pinned {
		t.Fatalf("images are %v, %v; want one, pinned", list, err)
	}
	waitNetwork(ctx, t, runtime)
	if l.snapshotter() == "overlayfs" {
		links, err := filepath.Glob(filepath.Join(l.data, "containerd/io.containerd.snapshotter.v1.overlayfs/snapshots/*/fs"))
		if err != nil || len(links) != 1 {
			t.Fatalf("snapshots: %v, %v", links, err)
		}
		to, err := os.Readlink(links[0])
		if served != (err == nil && strings.HasPrefix(to, filepath.Join(cfg.Share, "images", "layers"))) {
			t.Errorf("the layer is %q, %v", to, err)
		}
	} else if snapshotter == "" {
		t.Log("no overlayfs here")
	}

	began := time.Now()
	pod := &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: "p", Namespace: "default", Uid: "u1"},
		LogDirectory: t.TempDir(),
		Linux:        &cri.LinuxPodSandboxConfig{CgroupParent: "/skerry-test"},
		PortMappings: []*cri.PortMapping{{Protocol: cri.Protocol_TCP, ContainerPort: 80, HostPort: 18080}},
	}
	box, err := runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: pod})
	if err != nil {
		t.Fatal(err)
	}
	remove := func() {
		_, err := runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: box.PodSandboxId})
		_, err2 := runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: box.PodSandboxId})
		if err := errors.Join(err, err2); err != nil {
			t.Errorf("removing the pod: %v", err)
		}
	}
	removed := false
	defer func() {
		if !removed {
			remove()
		}
	}()
	t.Logf("sandbox made in %v", time.Since(began).Round(time.Millisecond))
	began = time.Now()
	made, err := runtime.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: box.PodSandboxId, SandboxConfig: pod, Config: &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: "c"}, Image: &cri.ImageSpec{Image: PauseImage}, LogPath: "c.log",
		Linux: &cri.LinuxContainerConfig{},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: made.ContainerId}); err != nil {
		t.Fatal(err)
	}
	t.Logf("container made and started in %v", time.Since(began).Round(time.Millisecond))
	status, err := runtime.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: box.PodSandboxId})
	if err != nil || !strings.HasPrefix(status.Status.Network.Ip, "10.251.251.") {
		t.Fatalf("the pod's address is %v, %v", status, err)
	}
	if conn, err := net.DialTimeout("tcp", net.JoinHostPort(status.Status.Network.Ip, "80"), 2*time.Second); err == nil {
		_ = conn.Close()
		t.Error("something answers in a pod that runs nothing")
	} else if !strings.Contains(err.Error(), "refused") {
		t.Errorf("the pod cannot be reached: %v", err)
	}

	stop()
	if c, err := net.Dial("unix", l.socket()); err == nil {
		_ = c.Close()
		t.Error("containerd still listens after it stopped")
	}
	stop = start(t, cfg)
	running, err := runtime.ListContainers(ctx, &cri.ListContainersRequest{Filter: &cri.ContainerFilter{Id: made.ContainerId}})
	if err != nil || len(running.Containers) != 1 || running.Containers[0].State != cri.ContainerState_CONTAINER_RUNNING {
		t.Fatalf("after a restart the container is %v, %v", running, err)
	}
	remove()
	removed = true
	left, err := os.ReadDir(filepath.Join(l.run, "cni", "skerry"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range left {
		if net.ParseIP(f.Name()) != nil {
			t.Errorf("address %s is still reserved", f.Name())
		}
	}
}

// waitNetwork waits until containerd has read the CNI configuration.
func waitNetwork(ctx context.Context, t *testing.T, runtime cri.RuntimeServiceClient) {
	t.Helper()
	for {
		status, err := runtime.Status(ctx, &cri.StatusRequest{})
		if err == nil {
			for _, c := range status.Status.Conditions {
				if c.Type == cri.NetworkReady && c.Status {
					return
				}
			}
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("the network is not ready: %v, %v", status, err)
		}
	}
}

// An image is imported once, again when its archive changed or when it lost its pin, and never silently left out.
func TestImagesImport(t *testing.T) {
	libexec := buildTree(t)
	cfg := testConfig(t.TempDir())
	cfg.Libexec = libexec
	dir := filepath.Join(cfg.Share, "images")
	buildImage(t, dir, PauseImage, "../../cmd/pause")
	// What a person added to the release stops nobody, whatever is wrong with it.
	added := filepath.Join(dir, "added")
	if err := os.MkdirAll(added, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, arch := range map[string]string{"good": goruntime.GOARCH, "other": "s390x"} {
		var buf bytes.Buffer
		if err := (oci.Image{Ref: "example.org/" + name + ":1", Arch: arch, Program: "app", Binary: []byte("x")}).Write(&buf); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(added, name+".tar"), buf.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(added, "rubbish.tar"), bytes.Repeat([]byte("x"), 4096), 0o644); err != nil {
		t.Fatal(err)
	}
	l := newLayout(cfg)
	t.Cleanup(func() { sweep(t, l) })
	began := time.Now()
	stop := start(t, cfg)
	defer func() { stop() }()
	t.Logf("containerd and the first import took %v", time.Since(began).Round(time.Millisecond))

	c, err := client.New(l.socket())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	ctx := namespaces.WithNamespace(t.Context(), "k8s.io")
	if _, err := c.ImageService().Get(ctx, "example.org/good:1"); err != nil {
		t.Errorf("the good one of those that were added: %v", err)
	}
	if failed := strings.Join(l.importAdded(ctx, c), "\n"); strings.Count(failed, "\n") != 1 || !strings.Contains(failed, "other.tar: ") || !strings.Contains(failed, "rubbish.tar: ") {
		t.Errorf("those that failed are %q", failed)
	}
	archive := filepath.Join(dir, "pause.tar")
	updated := func() time.Time {
		t.Helper()
		image, err := c.ImageService().Get(ctx, PauseImage)
		if err != nil {
			t.Fatal(err)
		}
		return image.UpdatedAt
	}
	importIt := func() {
		t.Helper()
		if err := importImages(ctx, c, l.snapshotter(), archive, nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	first := updated()
	began = time.Now()
	importIt()
	t.Logf("finding it there took %v", time.Since(began).Round(time.Microsecond))
	if updated() != first {
		t.Error("an unchanged archive was imported again")
	}
	image, err := c.ImageService().Get(ctx, PauseImage)
	if err != nil {
		t.Fatal(err)
	}
	image.Labels[pinnedLabel] = "no"
	if _, err := c.ImageService().Update(ctx, image, "labels"); err != nil {
		t.Fatal(err)
	}
	importIt()
	if image, err := c.ImageService().Get(ctx, PauseImage); err != nil || image.Labels[pinnedLabel] != pinnedValue {
		t.Errorf("the pin did not come back: %v, %v", image.Labels, err)
	}
	second := updated()
	buildImage(t, dir, PauseImage, "../../cmd/pause/../pause") // the same program is the same image
	importIt()
	if updated() != second {
		t.Error("the same image in a new archive was imported again")
	}
	if err := os.WriteFile(archive, bytes.Repeat([]byte("x"), 4096), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := importImages(ctx, c, l.snapshotter(), archive, nil, nil); err == nil || !strings.Contains(fmt.Sprint(err), "tar archive") {
		t.Errorf("a broken archive: %v", err)
	}
}

// A person's image is served from a filesystem of the release: nothing of it is unpacked, and it goes with the release that held it.
func TestAddedImagesAreServed(t *testing.T) {
	mksquashfs := imagetest.Tool(t, "mksquashfs", "squashfs-tools")
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		t.Skipf("no loop devices here: %v", err)
	}
	var low, high, archive, rest bytes.Buffer
	for buf, entries := range map[*bytes.Buffer][]tar.Header{
		&low:  {{Typeflag: tar.TypeReg, Name: "etc/gone", Mode: 0o644}, {Typeflag: tar.TypeReg, Name: "etc/own", Mode: 0o640, Uid: 7, Gid: 8}},
		&high: {{Typeflag: tar.TypeReg, Name: "etc/.wh.gone"}, {Typeflag: tar.TypeDir, Name: "empty/", Mode: 0o700, Uid: 9}},
	} {
		tw := tar.NewWriter(buf)
		for _, h := range entries {
			if err := tw.WriteHeader(&h); err != nil {
				t.Fatal(err)
			}
		}
		if err := tw.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := oci.WriteLayered(&archive, []oci.Layered{{Refs: []string{"example.org/app:1"}, Arch: goruntime.GOARCH, Layers: [][]byte{low.Bytes(), high.Bytes()}}}); err != nil {
		t.Fatal(err)
	}
	trees, err := oci.Flatten(bytes.NewReader(archive.Bytes()), goruntime.GOARCH, t.TempDir(), &rest)
	if err != nil || len(trees) != 1 {
		t.Fatal(trees, err)
	}
	cfg := testConfig(t.TempDir())
	cfg.Libexec = buildTree(t)
	added := filepath.Join(cfg.Share, "images/added")
	if err := os.MkdirAll(added, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(added, "app.tar"), rest.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	l := newLayout(cfg)
	t.Cleanup(func() { sweep(t, l) })
	var chain string
	for id, tree := range trees {
		chain = id
		t.Cleanup(func() { _ = unix.Unmount(l.mountedAt(id), unix.MNT_DETACH) })
		imagetest.Run(t, "sh", "-c", fmt.Sprintf("%s - %s/%s%s -tar -quiet -no-progress <%s", mksquashfs, added, id, servedExt, tree))
	}
	stop := start(t, cfg)
	defer func() { stop() }()
	c, err := client.New(l.socket())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	ctx := namespaces.WithNamespace(t.Context(), "k8s.io")
	image, err := c.GetImage(ctx, "example.org/app:1")
	if err != nil {
		t.Fatal(err)
	}
	if ok, err := image.IsUnpacked(ctx, l.snapshotter()); err != nil || !ok {
		t.Errorf("unpacked: %v, %v", ok, err)
	}
	snapshots := c.SnapshotService(l.snapshotter())
	leased, done, err := c.WithLease(ctx) // or what is looked at is garbage
	if err != nil {
		t.Fatal(err)
	}
	mounts, err := snapshots.View(leased, "look", "sha256:"+chain)
	if err != nil {
		t.Fatal(err)
	}
	err = mount.WithTempMount(ctx, mounts, func(root string) error {
		var own, empty unix.Stat_t
		if err := errors.Join(unix.Stat(filepath.Join(root, "etc/own"), &own), unix.Stat(filepath.Join(root, "empty"), &empty)); err != nil {
			return err
		}
		if own.Uid != 7 || own.Gid != 8 || own.Mode&0o777 != 0o640 || empty.Uid != 9 {
			t.Errorf("owners are %d:%d and %d", own.Uid, own.Gid, empty.Uid)
		}
		if _, err := os.Stat(filepath.Join(root, "etc/gone")); err == nil {
			t.Error("what the second layer took away is there")
		}
		return nil
	})
	if err := errors.Join(err, snapshots.Remove(leased, "look"), done(ctx)); err != nil {
		t.Fatal(err)
	}
	if l.snapshotter() == "overlayfs" {
		links, _ := filepath.Glob(filepath.Join(l.data, "containerd/io.containerd.snapshotter.v1.overlayfs/snapshots/*/fs"))
		if !slices.ContainsFunc(links, func(name string) bool { to, err := os.Readlink(name); return err == nil && to == l.mountedAt(chain) }) {
			t.Errorf("none of %v leads to %s: it was unpacked", links, l.mountedAt(chain))
		}
	}
	if failed := l.importAdded(ctx, c); len(failed) > 0 {
		t.Errorf("a second time: %v", failed)
	}

	// The next release holds another, which is damaged.
	if err := errors.Join(os.Rename(filepath.Join(added, "app.tar"), filepath.Join(added, "other.tar.kept")), os.WriteFile(filepath.Join(added, "bad"+servedExt), []byte("x"), 0o644)); err != nil {
		t.Fatal(err)
	}
	if failed := l.importAdded(ctx, c); len(failed) != 1 || !strings.Contains(failed[0], "bad"+servedExt) {
		t.Errorf("those that failed are %q", failed)
	}
	if _, err := c.GetImage(ctx, "example.org/app:1"); !errdefs.IsNotFound(err) {
		t.Errorf("the image of the release before: %v", err)
	}
	if isDir(l.mountedAt("bad")) {
		t.Error("an empty folder stands for the damaged one")
	}
}
