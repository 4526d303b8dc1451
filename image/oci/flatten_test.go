package oci

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/platforms"
	ocidigest "github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// layer makes a tar archive: "d name", "f name=text", "s name>target", "l name>target", "c name", and !who before a name's kind for
// an owner other than root.
func layer(t *testing.T, entries ...string) []byte {
	t.Helper()
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, e := range entries {
		h := tar.Header{Mode: 0o644, Format: tar.FormatPAX}
		if own, rest, ok := strings.Cut(strings.TrimPrefix(e, "!"), " "); ok && e[0] == '!' {
			if _, err := fmt.Sscan(own, &h.Uid); err != nil {
				t.Fatal(err)
			}
			e = rest
		}
		kind, rest, _ := strings.Cut(e, " ")
		var content string
		switch kind {
		case "d":
			h.Typeflag, h.Name, h.Mode = tar.TypeDir, rest+"/", 0o755
		case "f":
			h.Typeflag = tar.TypeReg
			h.Name, content, _ = strings.Cut(rest, "=")
			h.Size = int64(len(content))
		case "x": // with a capability
			h.Typeflag, h.Name, h.Mode = tar.TypeReg, rest, 0o4755
			h.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"}
		case "s":
			h.Typeflag, h.Mode = tar.TypeSymlink, 0o777
			h.Name, h.Linkname, _ = strings.Cut(rest, ">")
		case "l":
			h.Typeflag = tar.TypeLink
			h.Name, h.Linkname, _ = strings.Cut(rest, ">")
		case "c":
			h.Typeflag, h.Name, h.Devmajor, h.Devminor = tar.TypeChar, rest, 1, 3
		default:
			t.Fatalf("%q", e)
		}
		if err := tw.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(tw, content); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// shown lists a tree as layer writes it.
func shown(t *testing.T, r io.Reader) (out []string) {
	t.Helper()
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimSuffix(strings.TrimPrefix(h.Name, "./"), "/")
		line := map[byte]string{
			tar.TypeDir: "d " + name, tar.TypeReg: "f " + name + "=" + string(data), tar.TypeSymlink: "s " + name + ">" + h.Linkname,
			tar.TypeLink: "l " + name + ">" + strings.TrimPrefix(h.Linkname, "./"), tar.TypeChar: fmt.Sprintf("c %s %d,%d", name, h.Devmajor, h.Devminor),
		}[h.Typeflag]
		if h.Uid != 0 {
			line = fmt.Sprintf("!%d %s", h.Uid, line)
		}
		if h.PAXRecords["SCHILY.xattr.security.capability"] != "" {
			line += fmt.Sprintf(" may %o", h.Mode)
		}
		if name != "." && name != "" {
			out = append(out, line)
		}
	}
}

// Layers come to what overlayfs and containerd make of them.
func TestTree(t *testing.T) {
	for name, tt := range map[string]struct {
		layers [][]string
		want   []string
	}{
		"one":                          {[][]string{{"d etc", "!7 f etc/a=1", "s b>etc/a", "c null", "x ping"}}, []string{"s b>etc/a", "d etc", "!7 f etc/a=1", "c null 1,3", "f ping= may 4755"}},
		"a file is written anew":       {[][]string{{"f a=1"}, {"!5 f a=22"}}, []string{"!5 f a=22"}},
		"a folder keeps what is in it": {[][]string{{"d d", "f d/a=1"}, {"!9 d d", "f d/b=2"}}, []string{"!9 d d", "f d/a=1", "f d/b=2"}},
		"a folder without a name":      {[][]string{{"f d/a=1"}}, []string{"d d", "f d/a=1"}},
		"whiteout":                     {[][]string{{"f d/a=1", "f d/b=2", "f e/c=3"}, {"f d/.wh.a=", "f .wh.e="}}, []string{"d d", "f d/b=2"}},
		"whiteout of what is not":      {[][]string{{"f a=1"}, {"f .wh.b="}}, []string{"f a=1"}},
		"made again":                   {[][]string{{"f d/a=1"}, {"f .wh.d=", "d d", "f d/b=2"}}, []string{"d d", "f d/b=2"}},
		"made again, told after":       {[][]string{{"f d/a=1"}, {"d d", "f d/b=2", "f .wh.d="}}, []string{"d d", "f d/b=2"}},
		"opaque":                       {[][]string{{"f d/a=1", "f d/e/x=1"}, {"f d/b=2", "f d/.wh..wh..opq="}}, []string{"d d", "f d/b=2"}},
		"AUFS's own":                   {[][]string{{"f a=1", "f .wh..wh.plnk/1=x", "f .wh..wh.aufs="}}, nil},
		"a file in a folder's place":   {[][]string{{"f d/a=1"}, {"f d=2"}}, []string{"f d=2"}},
		"a folder in a file's place":   {[][]string{{"f d=1"}, {"d d", "f d/a=2"}}, []string{"d d", "f d/a=2"}},
		"through a link":               {[][]string{{"d usr/bin", "s bin>usr/bin"}, {"f bin/a=1", "f bin/.wh.no="}}, []string{"s bin>usr/bin", "d usr", "d usr/bin", "f usr/bin/a=1"}},
		"no link leads out":            {[][]string{{"s up>../../..", "s abs>/d"}, {"f up/a=1", "f abs/b=2"}}, []string{"f a=1", "s abs>/d", "d d", "f d/b=2", "s up>../../.."}},
		"nor a name":                   {[][]string{{"f ../../a=1", "f /b=2", "f ./c/../d=3"}}, []string{"f a=1", "f b=2", "f d=3"}},
		"hard links":                   {[][]string{{"f b=1", "l a>b", "l c>b"}}, []string{"f a=1", "l b>a", "l c>a"}},
		"whose first is gone":          {[][]string{{"f b=1", "l c>b"}, {"f .wh.b="}}, []string{"f c=1"}},
		"whose first is another":       {[][]string{{"f b=1", "l c>b"}, {"f b=2"}}, []string{"f b=2", "f c=1"}},
		"to a layer below":             {[][]string{{"f b=1"}, {"l c>b"}}, []string{"f b=1", "l c>b"}},
	} {
		t.Run(name, func(t *testing.T) {
			spool, err := os.CreateTemp(t.TempDir(), "")
			if err != nil {
				t.Fatal(err)
			}
			defer spool.Close()
			tree := newTree(spool)
			for _, l := range tt.layers {
				if err := tree.lay(bytes.NewReader(layer(t, l...))); err != nil {
					t.Fatal(err)
				}
			}
			var out bytes.Buffer
			if err := tree.write(&out); err != nil {
				t.Fatal(err)
			}
			got := shown(t, &out)
			if name == "AUFS's own" {
				got = slices.DeleteFunc(got, func(s string) bool { return s == "f a=1" || s == "d .wh..wh.plnk" || s == "f .wh..wh.plnk/1=x" })
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("is\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(tt.want, "\n"))
			}
		})
	}
	for name, entries := range map[string][]string{
		"a link to nothing":    {"l a>b"},
		"a link to a folder":   {"d b", "l a>b"},
		"below a file":         {"f a=1", "f a/b=2"},
		"a circle":             {"s a>b", "s b>a", "f a/c=1"},
		"a link below nothing": {"l a>b/c"},
	} {
		spool, err := os.CreateTemp(t.TempDir(), "")
		if err != nil {
			t.Fatal(err)
		}
		if err := newTree(spool).lay(bytes.NewReader(layer(t, entries...))); err == nil {
			t.Errorf("%s is no fault", name)
		}
		_ = spool.Close()
	}
}

// What containerd makes of the rest of an archive is the image as it was, and what is beside is all its layers.
func TestFlatten(t *testing.T) {
	low, high := layer(t, "d etc", "f etc/a=1", "f etc/b=1"), layer(t, "!7 f etc/a=2", "f etc/.wh.b=")
	diffs := []string{digest256(low), digest256(high)}
	var gz bytes.Buffer
	z := gzip.NewWriter(&gz)
	if _, err := z.Write(high); err != nil || z.Close() != nil {
		t.Fatal(err)
	}
	cfg := fmt.Sprintf(`{"architecture":"amd64","os":"linux","config":{"User":"7"},"rootfs":{"type":"layers","diff_ids":[%q,%q]}}`, diffs[0], diffs[1])
	docker := map[string][]byte{
		"manifest.json": []byte(`[{"Config":"c.json","RepoTags":["app:1","example.org/app:2"],"Layers":["l/layer.tar","h/layer.tar"]}]`),
		"c.json":        []byte(cfg), "l/layer.tar": low, "h/layer.tar": gz.Bytes(),
	}
	var layout bytes.Buffer
	if err := WriteLayered(&layout, []Layered{{Refs: []string{"docker.io/library/app:1", "example.org/app:2"}, Arch: "amd64", Layers: [][]byte{low, high}, User: "7"}}); err != nil {
		t.Fatal(err)
	}
	pack := func(files map[string][]byte) []byte {
		var buf bytes.Buffer
		tw := tar.NewWriter(&buf)
		for _, name := range slices.Sorted(maps.Keys(files)) {
			if err := errors.Join(tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(files[name]))}), write(tw, files[name])); err != nil {
				t.Fatal(err)
			}
		}
		if err := tw.Close(); err != nil {
			t.Fatal(err)
		}
		return buf.Bytes()
	}
	for form, archived := range map[string][]byte{"Docker's form": pack(docker), "an OCI layout": layout.Bytes()} {
		t.Run(form, func(t *testing.T) {
			dir := t.TempDir()
			var rest bytes.Buffer
			trees, err := Flatten(bytes.NewReader(archived), "amd64", dir, &rest)
			if err != nil {
				t.Fatal(err)
			}
			all := bytes.Clone(rest.Bytes())
			chain := identity.ChainID([]ocidigest.Digest{ocidigest.Digest(diffs[0]), ocidigest.Digest(diffs[1])}).Encoded()
			if len(trees) != 1 || trees[chain] != filepath.Join(dir, chain+".tar") {
				t.Fatalf("trees %v, want %s", trees, chain)
			}
			f, err := os.Open(trees[chain])
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if got := shown(t, f); !slices.Equal(got, []string{"d etc", "!7 f etc/a=2"}) {
				t.Errorf("its tree is %q", got)
			}
			if left, _ := filepath.Glob(filepath.Join(dir, "spool-*")); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
			if bytes.Contains(rest.Bytes(), []byte("etc/a")) {
				t.Error("the rest holds a layer")
			}
			store, top := imported(t, &rest)
			var idx ocispec.Index
			read(t, store, top, &idx)
			var names []string
			for _, m := range idx.Manifests {
				names = append(names, m.Annotations[images.AnnotationImageName])
			}
			if !slices.Equal(names, []string{"docker.io/library/app:1", "example.org/app:2"}) {
				t.Errorf("its names are %q", names)
			}
			got, err := images.RootFS(t.Context(), store, config256(t, store, idx.Manifests[0]))
			if err != nil || fmt.Sprint(got) != fmt.Sprint(diffs) {
				t.Errorf("its layers are %v, %v", got, err)
			}
			var again bytes.Buffer
			if _, err := Flatten(bytes.NewReader(archived), "amd64", t.TempDir(), &again); err != nil || !bytes.Equal(again.Bytes(), all) {
				t.Errorf("a second time it is another: %v", err)
			}
		})
	}

	for name, change := range map[string]func(map[string][]byte){
		"a layer that is another": func(f map[string][]byte) { f["l/layer.tar"] = layer(t, "f etc/a=3") },
		"a layer that is cut":     func(f map[string][]byte) { f["h/layer.tar"] = gz.Bytes()[:gz.Len()/2] },
		"a layer too many":        func(f map[string][]byte) { f["c.json"] = bytes.Replace(f["c.json"], []byte(`,"`+diffs[1]+`"`), nil, 1) },
		"a config that is no one": func(f map[string][]byte) { f["c.json"] = []byte(`{"os":"linux","architecture":"amd64","rootfs":7}`) },
	} {
		files := maps.Clone(docker)
		change(files)
		if _, err := Flatten(bytes.NewReader(pack(files)), "amd64", t.TempDir(), io.Discard); err == nil {
			t.Errorf("%s is no fault", name)
		}
	}
}

func write(w io.Writer, data []byte) error {
	_, err := w.Write(data)
	return err
}

func digest256(data []byte) string { return string(ocidigest.FromBytes(data)) }

// config256 finds the config of a manifest for this test's architecture.
func config256(t *testing.T, store content.Store, d ocispec.Descriptor) ocispec.Descriptor {
	t.Helper()
	m, err := images.Manifest(t.Context(), store, d, platforms.Only(ocispec.Platform{OS: "linux", Architecture: "amd64"}))
	if err != nil {
		t.Fatal(err)
	}
	return m.Config
}
