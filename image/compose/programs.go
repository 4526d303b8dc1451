package compose

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/skerry-os/skerry/image/oci"
	"github.com/skerry-os/skerry/pkg/atomicfile"
	"github.com/skerry-os/skerry/pkg/debian"
)

// program is one Go build.
type program struct {
	out     string // below the arch's folder
	pkg     string
	stamped bool // carries Skerry's and Kubernetes' version; component images do not, so that they change only with their code
	cgo     bool
	debug   bool // of debug releases alone; outside of usr, all of which goes into every root
}

// programs lists all that a node runs of ours.
var programs = []program{
	{out: "usr/bin/skerryd", pkg: "./cmd/skerryd", stamped: true},
	{out: "usr/sbin/init", pkg: "./init", stamped: true},
	{out: "usr/libexec/skerry/containerd-shim-runc-v2", pkg: "./cmd/skerry-pod", stamped: true},
	{out: "usr/libexec/skerry/runc", pkg: "github.com/opencontainers/runc", cgo: true},
	{out: "netboot/install", pkg: "./cmd/skerry-install", stamped: true},
	{out: "components/pause", pkg: "./cmd/pause"},
	{out: "components/addons", pkg: "./cmd/skerry-addons"},
	{out: "debug/skerry-debug", pkg: "./cmd/skerry-debug", debug: true},
}

// programsOf lists those of one kind of release.
func programsOf(debug bool) []program {
	return slices.DeleteFunc(slices.Clone(programs), func(p program) bool { return p.debug && !debug })
}

// links of the multi-call programs.
var links = map[string]string{
	"usr/bin/kubectl": "skerryd",
	"usr/bin/ctr":     "skerryd",
	"usr/bin/crictl":  "skerryd",

	"usr/libexec/skerry/cni/host-local": "../containerd-shim-runc-v2",
	"usr/libexec/skerry/cni/loopback":   "../containerd-shim-runc-v2",
	"usr/libexec/skerry/cni/portmap":    "../containerd-shim-runc-v2",
	"usr/libexec/skerry/cni/ptp":        "../containerd-shim-runc-v2",
}

// Build tags and flags are the same for every program and for whoever works on the source, so that all share one build cache:
// Kubernetes takes minutes to compile.
const goFlags = "-trimpath -buildvcs=false -tags=no_btrfs,no_zfs,no_devmapper,grpcnotrace"

// Programs builds all programs and component images of an architecture into dir, which afterwards looks like the node's root:
// usr/bin/skerryd and so on. It gives the version of Kubernetes that is in them. For another architecture than the host's, C
// libraries come out of the store's packages. Those of debug releases are made only for them.
func Programs(ctx context.Context, src *Source, arch, dir string, debug bool, store *debian.Store, log Log) (kubernetes string, err error) {
	kubernetes, err = output(ctx, src.Dir, nil, "go", "list", "-m", "-f", "{{.Version}}", "k8s.io/kubernetes")
	if err != nil {
		return "", err
	}
	for _, p := range programsOf(debug) {
		done := log.Stage("go build " + p.out)
		if err := p.build(ctx, src, arch, dir, kubernetes, store); err != nil {
			return "", err
		}
		done()
	}
	for name, target := range links {
		if err := link(filepath.Join(dir, name), target); err != nil {
			return "", err
		}
	}
	if err := prune(dir); err != nil {
		return "", err
	}
	done := log.Stage("component images and manifests")
	if err := errors.Join(components(arch, dir), manifests(src, dir)); err != nil {
		return "", err
	}
	done()
	return kubernetes, nil
}

// prune removes the programs and links of an earlier version that are no more: all of usr goes into the root. What is below
// usr/share the next stage looks after.
func prune(dir string) error {
	keep := map[string]bool{}
	for _, p := range programs {
		keep[p.out] = true
	}
	for name := range links {
		keep[name] = true
	}
	return filepath.WalkDir(filepath.Join(dir, "usr"), func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		switch {
		case err != nil:
			return err
		case rel == "usr/share":
			return fs.SkipDir
		case d.IsDir() || keep[filepath.ToSlash(rel)]:
			return nil
		}
		return os.Remove(p)
	})
}

func link(name, target string) error {
	if got, err := os.Readlink(name); err == nil && got == target {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	_ = os.Remove(name)
	return os.Symlink(target, name)
}

func (p program) build(ctx context.Context, src *Source, arch, dir, kubernetes string, store *debian.Store) error {
	env := []string{"GOFLAGS=" + goFlags, "GOOS=linux", "GOARCH=" + arch, "GOWORK=off", "CGO_ENABLED=0"}
	if arch == "arm" {
		env = append(env, "GOARM=7")
	}
	ldflags := []string{"-s", "-w"}
	args := []string{"build", "-o", filepath.Join(dir, p.out)}
	switch {
	case p.stamped:
		ldflags = append(ldflags, versionFlags(src, kubernetes)...)
	case p.cgo:
		env = append(env, "CGO_ENABLED=1")
		cc, err := compiler(ctx, arch, store)
		if err != nil {
			return fmt.Errorf("%s: %w", p.out, err)
		}
		env = append(env, cc...)
		v, err := output(ctx, src.Dir, nil, "go", "list", "-m", "-f", "{{.Version}}", p.pkg)
		if err != nil {
			return err
		}
		ldflags = append(ldflags, "-linkmode", "external", "-extldflags", `"-static -Wl,--build-id=none"`, "-X", "main.version="+strings.TrimPrefix(v, "v"))
		args = append(args, "-tags", "seccomp,netgo,osusergo")
	}
	args = append(args, "-ldflags", strings.Join(ldflags, " "), p.pkg)
	if _, err := output(ctx, src.Dir, env, "go", args...); err != nil {
		if p.cgo {
			return fmt.Errorf("%s: %w\n(needs a C compiler and libseccomp: apt-get install gcc libc6-dev pkg-config libseccomp-dev)", p.out, err)
		}
		return fmt.Errorf("%s: %w", p.out, err)
	}
	return nil
}

// compiler names the C compiler for another architecture than the host's, and the libraries to build with. The compiler is
// the host's; the libraries are not installed but taken out of the locked packages.
func compiler(ctx context.Context, arch string, store *debian.Store) ([]string, error) {
	if arch == runtime.GOARCH {
		return nil, nil
	}
	cc := triplet(arch) + "-gcc"
	if _, err := exec.LookPath(cc); err != nil {
		return nil, fmt.Errorf("%s is not installed: `make setup` installs it, or: apt-get install gcc-%s", cc, strings.ReplaceAll(triplet(arch), "_", "-"))
	}
	lock, err := Lock()
	if err != nil {
		return nil, err
	}
	pkg, err := lock.Find(arch, "libseccomp-dev")
	if err != nil {
		return nil, err
	}
	dir, err := store.Unpack(ctx, pkg)
	if err != nil {
		return nil, err
	}
	libraries := filepath.Join(dir, "usr/lib", triplet(arch))
	return []string{
		"CC=" + cc, "PKG_CONFIG_SYSROOT_DIR=" + dir, "PKG_CONFIG_PATH=", "PKG_CONFIG_LIBDIR=" + filepath.Join(libraries, "pkgconfig"),
		// Go remembers what pkg-config said, and does not see that it would say something else today; of this it sees it.
		"CGO_LDFLAGS=-O2 -g -L" + libraries,
	}, nil
}

// versionFlags are the linker's: what pkg/version says, and what Kubernetes says of itself to every client.
func versionFlags(src *Source, kubernetes string) []string {
	major, rest, _ := strings.Cut(strings.TrimPrefix(kubernetes, "v"), ".")
	minor, _, _ := strings.Cut(rest, ".")
	var out []string
	set := func(pkg, name, value string) { out = append(out, "-X", pkg+"."+name+"="+value) }
	own := Module + "/pkg/version"
	set(own, "version", src.Version)
	set(own, "commit", src.Commit)
	set(own, "buildTime", fmt.Sprint(src.Time.Unix()))
	for _, pkg := range []string{"k8s.io/component-base/version", "k8s.io/client-go/pkg/version"} {
		set(pkg, "gitVersion", kubernetes)
		set(pkg, "gitMajor", major)
		set(pkg, "gitMinor", minor)
		set(pkg, "gitCommit", src.Commit)
		set(pkg, "gitTreeState", "clean")
		set(pkg, "buildDate", src.Time.Format("2006-01-02T15:04:05Z"))
	}
	return out
}

// manifests copies what runs in a cluster beside the images it runs from, so that skerryd finds both from dir too. Those of
// components that are no more go.
func manifests(src *Source, dir string) error {
	const below = "usr/share/skerry/manifests"
	to := filepath.Join(dir, below)
	if err := os.RemoveAll(to); err != nil {
		return err
	}
	return os.CopyFS(to, os.DirFS(filepath.Join(src.Dir, "overlays/server", below)))
}

// PauseRef names the image whose container holds a pod's namespaces. The number is that of its code: it rises by hand.
const PauseRef = "skerry.local/pause:1"

// AddonsRef names the image of what runs in pods. The number is that of its code: it rises by hand. Nodes start with another
// release, and then their containers are made anew from the image that came with it.
const AddonsRef = "skerry.local/addons:1"

// HostRef names the image that is nothing but skerryd of the node whose root is mounted at /host, as kubectl debug does.
const HostRef = "skerry.local/host:1"

// components writes the component images.
func components(arch, dir string) error {
	images := filepath.Join(dir, imagesDir)
	if err := os.MkdirAll(images, 0o755); err != nil {
		return err
	}
	const nobody = "65532:65532"
	return errors.Join(
		pruneImages(images, "pause.tar", "addons.tar", "host.tar"),
		component(dir, "pause", oci.Image{Ref: PauseRef, Arch: arch, Program: "pause", User: nobody}),
		component(dir, "addons", oci.Image{Ref: AddonsRef, Arch: arch, Program: "skerry-addons", User: nobody}),
		component(dir, "host", oci.Image{
			Ref: HostRef, Arch: arch, Program: "about", Binary: []byte("skerryd of the node whose root is mounted at /host\n"),
			Enter: []string{"/host/usr/bin/skerryd", "--root", "/host"},
		}),
	)
}

// pruneImages removes archives of an earlier version that are no more.
func pruneImages(dir string, keep ...string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var faults []error
	for _, e := range entries {
		if !slices.Contains(keep, e.Name()) {
			faults = append(faults, os.Remove(filepath.Join(dir, e.Name())))
		}
	}
	return errors.Join(faults...)
}

// component writes one archive, unless the one there was made from the same program in the same way. The program is the one of that name,
// unless the image has its own.
func component(dir, name string, i oci.Image) (err error) {
	if i.Binary == nil {
		if i.Binary, err = os.ReadFile(filepath.Join(dir, "components", name)); err != nil {
			return err
		}
	}
	out, stamp := filepath.Join(dir, imagesDir, name+".tar"), filepath.Join(dir, "components", name+".stamp")
	want := componentStamp(i, out)
	if had, err := os.ReadFile(stamp); err == nil && want != "" && string(had) == want {
		return nil
	}
	if err := writeWith(out, 0o644, i.Write); err != nil {
		return err
	}
	return atomicfile.Write(stamp, []byte(componentStamp(i, out)), 0o644)
}

// componentStamp says what an archive was made of, by what, and what it holds; "" when there is none.
func componentStamp(i oci.Image, archive string) string {
	data, err := os.ReadFile(archive)
	if err != nil {
		return ""
	}
	h := sha256.New()
	h.Write(i.Binary)
	i.Binary = nil
	fmt.Fprintf(h, "%+v %d", i, oci.Format)
	return fmt.Sprintf("%x %x\n", h.Sum(nil), sha256.Sum256(data))
}
