package registry

import (
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"

	"github.com/skerry-os/skerry/image/releasetest"
	"github.com/skerry-os/skerry/pkg/release"
)

// A release goes through a registry and comes back whole; what is there does not travel twice; what was changed on the way is
// refused.
func TestThereAndBack(t *testing.T) {
	b := releasetest.New(t, 2<<20)
	b.AddBoard(t, "aws")
	b.AddBIOS(t)
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	puts, spoil := 0, ""
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut || r.Method == http.MethodPatch {
			puts++
		}
		if spoil != "" && strings.HasSuffix(r.URL.Path, spoil) && r.Method == http.MethodGet {
			rec := httptest.NewRecorder()
			inner.ServeHTTP(rec, r)
			data := rec.Body.Bytes()
			data[len(data)/2] ^= 1
			w.Header().Set("Content-Type", rec.Header().Get("Content-Type"))
			_, _ = w.Write(data)
			return
		}
		inner.ServeHTTP(w, r)
	}))
	defer server.Close()
	ref := "oci://" + strings.TrimPrefix(server.URL, "http://") + "/north/skerry:1.2.3-amd64"

	files := os.DirFS(b.Release)
	first, err := Push(t.Context(), ref, b.Signed, files, t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	before := puts
	if again, err := Push(t.Context(), ref, b.Signed, files, t.Logf); err != nil || again != first || puts != before+1 { // the tag alone
		t.Errorf("%s, %v, %d uploads", again, err, puts-before)
	}
	cache := t.TempDir()
	dir, err := Pull(t.Context(), ref, cache, b.Trusted(), nil)
	if err != nil {
		t.Fatal(err)
	}
	rel, err := release.Open(os.DirFS(dir), b.Trusted())
	if err != nil {
		t.Fatal(err)
	}
	if err := rel.CheckFiles(os.DirFS(dir)); err != nil {
		t.Error(err)
	}
	if by, err := Pull(t.Context(), strings.TrimSuffix(ref, ":1.2.3-amd64")+"@"+first, cache, b.Trusted(), nil); err != nil || by != dir {
		t.Errorf("by digest: %s, %v", by, err)
	}

	// One board's files alone.
	dir, err = Pull(t.Context(), ref, t.TempDir(), b.Trusted(), []string{"aws"})
	if err != nil {
		t.Fatal(err)
	}
	bios, err := Pull(t.Context(), ref, t.TempDir(), b.Trusted(), []string{"x86-bios"})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{
		dir + "/root.img": true, dir + "/boot/aws.efi": true, dir + "/boot/systemd-boot.efi": true, dir + "/boot/x86-uefi.efi": false, dir + "/boot/x86-bios/core.img": false,
		bios + "/boot/x86-uefi.efi": true, bios + "/boot/x86-bios/core.img": true, bios + "/boot/x86-bios/grub.cfg": true, bios + "/boot/aws.efi": false,
	} {
		if _, err := os.Stat(name); (err == nil) != want {
			t.Errorf("%s: %v", name, err)
		}
	}

	spoil = b.Signed.Manifest().Root.SHA256
	fresh := t.TempDir()
	if _, err := Pull(t.Context(), ref, fresh, b.Trusted(), nil); err == nil || !strings.Contains(err.Error(), "root.img: sha256 is") {
		t.Errorf("a changed root: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(fresh, "*", "*root.img*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	spoil = ""
	if _, err := Pull(t.Context(), ref, t.TempDir(), nil, nil); err == nil || !strings.Contains(err.Error(), "not signed by a trusted key") {
		t.Errorf("signed by a stranger: %v", err)
	}
	for bad, want := range map[string]string{
		"oci://127.0.0.1:1/x":                 "has no tag",
		"oci://???":                           "write oci://HOST/NAME:TAG",
		strings.Replace(ref, "1.2.3", "9", 1): "not found",
	} {
		if _, err := Pull(t.Context(), bad, t.TempDir(), b.Trusted(), nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

// Who may not push hears so before anything travels, whether the registry asks for a password, gives tokens or says no at once;
// and the upload that was begun to find out is given up.
func TestMayPush(t *testing.T) {
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		want   string
		gone   bool
	}{
		"may": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Location", "/v2/north/skerry/blobs/uploads/u1")
			w.WriteHeader(http.StatusAccepted)
		}, "", true},
		"no": {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "{}", http.StatusForbidden) }, "(HTTP status 403); they need the scope repository:north/skerry:pull,push; log in by: docker login 127.0.0.1", false},
		"password": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
		}, "(HTTP status 401)", false},
		"token": {func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/token" {
				w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+r.Host+`/token",service="x"`)
			}
			w.WriteHeader(http.StatusUnauthorized)
		}, "(HTTP status 401)", false},
		"read-only": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusMethodNotAllowed) }, "asked to take an upload, the registry answers 405", false},
	} {
		var asked []string
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			asked = append(asked, r.Method+" "+r.URL.Path)
			if r.Method == http.MethodDelete {
				w.WriteHeader(http.StatusNoContent)
				return
			}
			c.answer(w, r)
		}))
		err := MayPush(t.Context(), "oci://"+strings.TrimPrefix(server.URL, "http://")+"/north/skerry:1.2.3")
		server.Close()
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v", name, err)
		}
		if asked[0] != "POST /v2/north/skerry/blobs/uploads/" || slices.Contains(asked, "DELETE /v2/north/skerry/blobs/uploads/u1") != c.gone {
			t.Errorf("%s: asked %q", name, asked)
		}
	}
}
