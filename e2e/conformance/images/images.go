// Package images makes the container images that upstream's tests ask for, under the names they ask for: agnhost and its kin
// from the sources in the k8s.io/kubernetes module, the rest from Debian's packages. Nothing is pulled
// from outside: what a test insists on pulling comes from Registry.
package images

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"

	imageutils "k8s.io/kubernetes/test/utils/image"

	"github.com/skerry-os/skerry/image/oci"
	"github.com/skerry-os/skerry/pkg/atomicfile"
)

// Builder makes the archive.
type Builder struct {
	Source string // the module's folder
	Work   string // programs, packages and their files; may be deleted at any time
	Arch   string
	Log    func(format string, a ...any)
}

// format rises when Archive makes something else of the same sources.
const format = "7"

// Archive writes all images into one file, unless the one there is of the same Kubernetes.
func (b *Builder) Archive(ctx context.Context, file string) error {
	kubernetes, err := Kubernetes(ctx, b.Source)
	if err != nil {
		return err
	}
	stamp := kubernetes + " " + b.Arch + " " + format + "\n"
	if had, err := os.ReadFile(file + ".stamp"); err == nil && string(had) == stamp {
		if _, err := os.Stat(file); err == nil {
			return nil
		}
	}
	list, err := b.images(ctx)
	if err != nil {
		return err
	}
	out, err := atomicfile.Create(file, 0o644)
	if err != nil {
		return err
	}
	defer out.Abort()
	if err := oci.WriteLayered(out, list); err != nil {
		return err
	}
	return errors.Join(out.Commit(), atomicfile.Write(file+".stamp", []byte(stamp), 0o644))
}

// Kubernetes is the version of that module which the module in the folder source is made of: v1.37.2.
func Kubernetes(ctx context.Context, source string) (string, error) {
	version, err := output(ctx, source, nil, "go", "list", "-m", "-f", "{{.Version}}", "k8s.io/kubernetes")
	return strings.TrimSpace(version), err
}

func ref(id imageutils.ImageID) string {
	c := imageutils.GetConfig(id)
	return c.GetE2EImage()
}

func (b *Builder) images(ctx context.Context) ([]oci.Layered, error) {
	module, err := output(ctx, b.Source, nil, "go", "list", "-m", "-f", "{{.Dir}}", "k8s.io/kubernetes")
	if err != nil {
		return nil, err
	}
	sources := filepath.Join(strings.TrimSpace(module), "test/images")
	_, agnhostVersion, _ := strings.Cut(ref(imageutils.Agnhost), ":")
	programs := map[string][]byte{}
	for name, build := range map[string][]string{
		"agnhost":                {"k8s.io/kubernetes/test/images/agnhost", "-X main.Version=" + agnhostVersion},
		"nnp":                    {"k8s.io/kubernetes/test/images/nonewprivs", ""},
		"regression-issue-74839": {"k8s.io/kubernetes/test/images/regression-issue-74839", ""},
		"sample-apiserver":       {"k8s.io/sample-apiserver", ""},
		"etcd":                   {"go.etcd.io/etcd/server/v3", ""},
		"pause":                  {"./cmd/pause", ""},
	} {
		b.Log("go build %s", build[0])
		if programs[name], err = b.program(ctx, name, build[0], build[1]); err != nil {
			return nil, err
		}
	}
	base, err := b.Debian(ctx, basePackages...)
	if err != nil {
		return nil, err
	}
	web, err := b.Debian(ctx, webPackages...)
	if err != nil {
		return nil, err
	}
	maps.Copy(web, nginxFiles())
	small, err := b.Debian(ctx)
	if err != nil {
		return nil, err
	}
	pause := map[string]oci.File{"pause": program(programs["pause"])}
	pauseLayer, err := oci.Tar(pause)
	if err != nil {
		return nil, err
	}
	agnhost := map[string]oci.File{
		"agnhost": program(programs["agnhost"]), "agnhost-2": {Link: "agnhost"}, "uploads": {Dir: true, Mode: 0o755},
	}
	for _, f := range []string{"localhost.crt", "localhost.key"} {
		if agnhost[f], err = read(filepath.Join(sources, "agnhost/porter", f)); err != nil {
			return nil, err
		}
	}
	registry, err := registry(oci.Layered{Refs: []string{ref(imageutils.Pause)}, Arch: b.Arch, Layers: [][]byte{pauseLayer}, Entrypoint: []string{"/pause"}}, "pause", "testing")
	if err != nil {
		return nil, err
	}
	maps.Copy(agnhost, registry)

	var errs []error
	layer := func(files map[string]oci.File) []byte {
		data, err := oci.Tar(files)
		errs = append(errs, err)
		return data
	}
	one := func(name string) []byte {
		return layer(map[string]oci.File{name: program(programs[filepath.Base(name)])})
	}
	html := func(animal string) []byte {
		// A test of image volumes looks for the name that stands in upstream's images.
		files := map[string]oci.File{"etc/os-release": {Data: []byte("NAME=\"Debian, in place of Alpine Linux\"\nID=debian\n"), Mode: 0o644}}
		for _, f := range []string{animal + ".jpg", "data.json"} {
			file, err := read(filepath.Join(sources, animal, "html", f))
			errs = append(errs, err)
			files[f] = file
		}
		return layer(files)
	}
	baseLayer, agnhostLayer, smallLayer := layer(base), layer(agnhost), layer(small)
	path := []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	agn := oci.Layered{Arch: b.Arch, Layers: [][]byte{baseLayer, agnhostLayer}, Entrypoint: []string{"/agnhost"}, Env: path, WorkingDir: "/"}
	like := func(i oci.Layered, cmd string, ids ...imageutils.ImageID) oci.Layered {
		i.Refs = nil
		for _, id := range ids {
			i.Refs = append(i.Refs, ref(id))
		}
		if cmd != "" {
			i.Cmd = strings.Fields(cmd)
		}
		return i
	}
	with := func(i oci.Layered, layers ...[]byte) oci.Layered {
		i.Layers = append(append([][]byte(nil), i.Layers...), layers...)
		return i
	}
	shell := oci.Layered{Arch: b.Arch, Layers: [][]byte{baseLayer}, Cmd: []string{"sh"}, Env: path, WorkingDir: "/"}
	nonRoot := like(shell, "", imageutils.NonRoot)
	nonRoot.User = "1234"
	server := like(oci.Layered{Arch: b.Arch, Layers: [][]byte{one("sample-apiserver")}, Entrypoint: []string{"/sample-apiserver"}}, "", imageutils.APIServer)
	regression := like(with(oci.Layered{Arch: b.Arch, Entrypoint: []string{"/regression-issue-74839"}}, one("regression-issue-74839")), "", imageutils.RegressionIssue74839)
	list := []oci.Layered{
		like(agn, "pause", imageutils.Agnhost, imageutils.AgnhostPrev),
		like(with(agn, html("nautilus")), "test-webserver", imageutils.Nautilus),
		like(with(agn, html("kitten")), "test-webserver", imageutils.Kitten),
		like(shell, "", imageutils.GlibcDnsTesting, imageutils.IpcUtils),
		nonRoot,
		like(with(shell, layer(map[string]oci.File{"usr/local/bin/nnp": {Data: programs["nnp"], Mode: 0o6755}})), "nnp", imageutils.Nonewprivs),
		like(oci.Layered{Arch: b.Arch, Layers: [][]byte{smallLayer}, Env: path, WorkingDir: "/"}, "sh", imageutils.BusyBox),
		like(oci.Layered{Arch: b.Arch, Layers: [][]byte{layer(web)}, Env: path, WorkingDir: "/"}, "nginx", imageutils.Nginx, imageutils.NginxNew),
		server,
		regression,
		like(with(shell, one("usr/local/bin/etcd")), "etcd", imageutils.Etcd),
		like(oci.Layered{Arch: b.Arch, Layers: [][]byte{pauseLayer}, Entrypoint: []string{"/pause"}, User: "65535:65535"}, "", imageutils.Pause),
	}
	return list, errors.Join(errs...)
}

func program(data []byte) oci.File { return oci.File{Data: data, Mode: 0o755} }

func read(name string) (oci.File, error) {
	data, err := os.ReadFile(name)
	return oci.File{Data: data, Mode: 0o644}, err
}

// registry is the folder that agnhost's registry serves: the image name:tag, as a list of manifests, and all it leads to.
func registry(i oci.Layered, name, tag string) (map[string]oci.File, error) {
	var archive bytes.Buffer
	if err := oci.WriteLayered(&archive, []oci.Layered{i}); err != nil {
		return nil, err
	}
	top := "var/registry/" + name
	files := map[string]oci.File{}
	add := func(sum string, data []byte) {
		for _, kind := range []string{"manifests", "blobs"} {
			files[fmt.Sprintf("%s/%s/sha256/%s/%s/data", top, kind, sum[:2], sum)] = oci.File{Data: data, Mode: 0o644}
		}
	}
	for r := tar.NewReader(&archive); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files, nil
		}
		if err != nil {
			return nil, err
		}
		data, err := io.ReadAll(r)
		if err != nil {
			return nil, err
		}
		switch {
		case strings.HasPrefix(h.Name, "blobs/sha256/"):
			add(filepath.Base(h.Name), data)
		case h.Name == "index.json":
			sum := oci.Digest(data)
			add(strings.TrimPrefix(sum, "sha256:"), data)
			files[top+"/manifests/"+tag] = oci.File{Data: []byte(sum + "\n"), Mode: 0o644}
		}
	}
}

func (b *Builder) program(ctx context.Context, name, pkg, ldflags string) ([]byte, error) {
	out := filepath.Join(b.Work, "bin", name)
	env := []string{"GOOS=linux", "GOARCH=" + b.Arch, "CGO_ENABLED=0"}
	if _, err := output(ctx, b.Source, env, "go", "build", "-ldflags", strings.TrimSpace("-s -w "+ldflags), "-o", out, pkg); err != nil {
		return nil, err
	}
	return os.ReadFile(out)
}
