package gcp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/skerry-os/skerry/image/cloud/gcp/gcptest"
	"github.com/skerry-os/skerry/image/cloud/publish"
	"github.com/skerry-os/skerry/image/releasetest"
)

const testSize = 3*chunk + 12345

func bench(t *testing.T) (*gcptest.Server, *Publisher, *[]string) {
	t.Helper()
	s := gcptest.New(t)
	for k, v := range s.Env() {
		t.Setenv(k, v)
	}
	said := &[]string{}
	p, err := Open(t.Context(), "", func(f string, a ...any) { *said = append(*said, fmt.Sprintf(f, a...)) })
	if err != nil {
		t.Fatal(err)
	}
	p.pause = time.Millisecond
	t.Cleanup(func() {
		s.Lock()
		defer s.Unlock()
		if len(s.Wrong) > 0 {
			t.Errorf("not as they must be: %q", s.Wrong)
		}
		if all := strings.Join(*said, "\n"); strings.Contains(all, "secret") || strings.Contains(all, "ya29") {
			t.Errorf("a secret is in what was said: %s", all)
		}
	})
	return s, p, said
}

func archive(seed uint64) ([]byte, Archive) {
	b := make([]byte, testSize)
	rng := rand.New(rand.NewPCG(seed, 2))
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b, Archive{bytes.NewReader(b), testSize}
}

var disk = publish.Disk{Size: 2 << 30, ID: "0D15C000-0000-4000-8000-000000000001"}

func options(t *testing.T) Options {
	t.Helper()
	return Options{Bucket: gcptest.Bucket, Family: "skerry-amd64", Options: publish.Options{
		Name: "skerry-1-2-3-amd64", Description: "Skerry 1.2.3, amd64", Version: "1.2.3", Arch: "amd64", State: filepath.Join(t.TempDir(), "state.json"), Labels: map[string]string{"team": "north"},
	}}
}

func keysOf(t *testing.T) (vars []publish.Variable, db []byte) {
	t.Helper()
	b := releasetest.New(t, 1<<16)
	for _, name := range []string{"PK", "KEK", "db"} {
		data, err := os.ReadFile(filepath.Join(b.Release, "secureboot", name+".auth"))
		if err != nil {
			t.Fatal(err)
		}
		vars = append(vars, publish.Variable{Name: name, Auth: data})
	}
	return vars, b.Set.DB.Cert.Raw
}

// Through dropped connections, lost answers, failing backends, chunks that are taken in part and a token that ends in the middle,
// what arrives is the archive, and the image is what a machine needs to start securely.
func TestPublish(t *testing.T) {
	s, p, said := bench(t)
	s.Faults, s.Expire = true, 9
	content, a := archive(1)
	o := options(t)
	var db []byte
	o.Keys, db = keysOf(t)
	o.Share, o.Public, o.Deprecate = []string{"group:edge@example.org"}, true, time.Now().AddDate(1, 0, 0)
	r, err := p.Publish(t.Context(), disk, a, o)
	if err != nil {
		t.Fatal(err)
	}
	i := s.Images[o.Name]
	if r.Account != gcptest.Project || len(r.Images) != 1 || r.Blocks != 4 || r.Uploaded < 4 || !bytes.Equal(i.Data, content) || s.Calls["begin"] > 2 || s.Calls["insert"] != 1 {
		t.Errorf("%+v, %v", r, s.Calls)
	}
	body := fmt.Sprint(i.Body)
	for _, want := range []string{
		"architecture:X86_64", "family:skerry-amd64", "type:UEFI_COMPATIBLE", "type:GVNIC", "type:VIRTIO_SCSI_MULTIQUEUE", "team:north", "skerry-disk:0d15c000-0000-4000-8000-000000000001",
		"skerry-version:v1-2-3", "fileType:X509", "keks:[", "dbs:[",
	} {
		if !strings.Contains(body, want) {
			t.Errorf("%s is not in %.2000s", want, body)
		}
	}
	state, err := shielded(o.Keys)
	if err != nil || len(state.DB) != 1 || !bytes.Equal(state.DB[0].Content, db) {
		t.Errorf("db holds another certificate: %v", err)
	}
	if policy := fmt.Sprint(i.Policy); !strings.Contains(policy, "allAuthenticatedUsers") || !strings.Contains(policy, "group:edge@example.org") || !strings.Contains(policy, "user:somebody@example.org") || !strings.Contains(policy, "e0") {
		t.Error(policy)
	}
	if i.Deprecated["state"] != "ACTIVE" || !strings.Contains(strings.Join(*said, "\n"), "give the same command again on that day") {
		t.Errorf("%v, said %q", i.Deprecated, *said)
	}
	if _, err := os.Stat(o.State); err == nil {
		t.Error("the state file is still there")
	}

	// Once more: everything is there already.
	s.Faults = false
	calls, o2 := maps.Clone(s.Calls), o
	o2.Deprecate = time.Time{}
	writes := s.Writes
	again, err := p.Publish(t.Context(), disk, a, o2)
	if err != nil || again.Uploaded != 0 || !maps.Equal(calls, s.Calls) || s.Writes != writes || again.Images[0] != r.Images[0] {
		t.Errorf("%+v, %v, %v", again, err, s.Calls)
	}
	// The image is gone, the object is not.
	delete(s.Images, o.Name)
	if again, err = p.Publish(t.Context(), disk, a, o2); err != nil || again.Uploaded != 0 || s.Calls["begin"] != calls["begin"] || s.Images[o.Name] == nil {
		t.Errorf("%+v, %v, %v", again, err, s.Calls)
	}
	// Another disk of the same name is refused, and so is another object.
	other := publish.Disk{Size: 2 << 30, ID: "other"}
	if _, err := p.Publish(t.Context(), other, a, o); err == nil || !strings.Contains(err.Error(), "that holds another disk; choose another name, or delete it: skerry publish gcp delete --project north-1") {
		t.Error(err)
	}
	delete(s.Images, o.Name)
	_, b := archive(9)
	if _, err := p.Publish(t.Context(), other, b, o); err == nil || !strings.Contains(err.Error(), "gs://north-images/skerry-1-2-3-amd64.tar.gz is there and holds something else") {
		t.Error(err)
	}

	there := Published{p, o.Bucket}
	if _, err := there.Deprecate(t.Context(), o.Name, time.Now(), false); err == nil || !strings.Contains(err.Error(), "has no image named") {
		t.Error(err)
	}
	if _, err = p.Publish(t.Context(), disk, a, o2); err != nil {
		t.Fatal(err)
	}
	if _, err := there.Deprecate(t.Context(), o.Name, time.Now().Add(-time.Hour), false); err != nil || s.Images[o.Name].Deprecated["state"] != "DEPRECATED" {
		t.Error(err)
	}
	gone, err := there.Delete(t.Context(), o.Name, false)
	if err != nil || len(gone) != 1 || len(s.Images)+len(s.Objects) != 0 {
		t.Errorf("%v, %v; left are %d images, %d objects", gone, err, len(s.Images), len(s.Objects))
	}
	if _, err := there.Delete(t.Context(), o.Name, false); err == nil || !strings.Contains(err.Error(), "has no image named skerry-1-2-3-amd64, and there is no gs://") {
		t.Error(err)
	}
}

// An upload that stopped goes on where it was, also from another process.
func TestInterruptedUploadGoesOn(t *testing.T) {
	s, p, said := bench(t)
	s.Stop = 2
	content, a := archive(1)
	o := options(t)
	_, err := p.Publish(t.Context(), disk, a, o)
	if err == nil || !strings.Contains(err.Error(), "credentials are not accepted any more (invalid_grant)") || strings.Contains(err.Error(), "secret") {
		t.Fatal(err)
	}
	if !strings.Contains(strings.Join(*said, "\n"), "the same command goes on from there") {
		t.Errorf("said %q", *said)
	}
	if fi, err := os.Stat(o.State); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", fi, err)
	}
	s.Stop = 0
	next, err := Open(t.Context(), gcptest.Project, func(string, ...any) {})
	if err != nil {
		t.Fatal(err)
	}
	r, err := next.Publish(t.Context(), disk, a, o)
	if err != nil || r.Uploaded != 2 || r.Blocks != 4 || s.Calls["begin"] != 1 || !bytes.Equal(s.Images[o.Name].Data, content) {
		t.Errorf("%+v, %v, %v", r, err, s.Calls)
	}
}

// What arrives damaged is not stored, and goes once more.
func TestDamage(t *testing.T) {
	s, p, said := bench(t)
	s.Damage = 1
	content, a := archive(1)
	o := options(t)
	r, err := p.Publish(t.Context(), disk, a, o)
	if err != nil || !bytes.Equal(s.Images[o.Name].Data, content) || s.Calls["begin"] != 2 || r.Uploaded != 4 || !strings.Contains(strings.Join(*said, "\n"), "arrived damaged; once more") {
		t.Errorf("%+v, %v, %v, %q", r, err, s.Calls, *said)
	}
	s, p, _ = bench(t)
	s.Damage = 99
	if _, err := p.Publish(t.Context(), disk, a, options(t)); err == nil || !strings.Contains(err.Error(), "arrived damaged") || len(s.Objects) != 0 {
		t.Errorf("%v, %d objects", err, len(s.Objects))
	}
}

// Every right is looked for before anything is made, and what is missing is named with a role that holds it and no other.
func TestMissingRights(t *testing.T) {
	for _, right := range []string{
		"compute.images.create", "compute.images.get", "compute.images.setLabels", "compute.globalOperations.get", "compute.images.getIamPolicy", "compute.images.setIamPolicy",
		"compute.images.deprecate", "storage.objects.create", "storage.objects.get",
	} {
		s, p, _ := bench(t)
		s.Denied[right] = true
		_, a := archive(1)
		o := options(t)
		o.Public, o.Deprecate = true, time.Now()
		_, err := p.Publish(t.Context(), disk, a, o)
		var m MissingRights
		if !errors.As(err, &m) || !slices.Equal(append(m.OnProject, m.OnBucket...), []string{right}) || !strings.Contains(err.Error(), "--project north-1 --permissions "+right+"\n") || s.Writes != 0 {
			t.Errorf("%s: %v, %d writes", right, err, s.Writes)
		}
	}
	s, p, said := bench(t)
	s.NoAPI, s.Denied["compute.images.create"] = true, true
	_, a := archive(1)
	if _, err := p.Publish(t.Context(), disk, a, options(t)); err == nil || !strings.Contains(err.Error(), "Required 'compute.images.create' permission") || !strings.Contains(strings.Join(*said, "\n"), "Resource Manager API is off") {
		t.Errorf("%v, %q", err, *said)
	}
}

// Rights are looked at before anything is changed, and a dry run says what would be: also of what comes after the publishing.
func TestAfterwards(t *testing.T) {
	s, p, _ := bench(t)
	_, a := archive(1)
	o := options(t)
	if _, err := p.Publish(t.Context(), disk, a, o); err != nil {
		t.Fatal(err)
	}
	there := Published{p, o.Bucket}
	deprecate := func(dry bool) ([]publish.Image, error) { return there.Deprecate(t.Context(), o.Name, time.Now(), dry) }
	remove := func(dry bool) ([]publish.Image, error) { return there.Delete(t.Context(), o.Name, dry) }
	writes := s.Writes
	for _, c := range []struct {
		right string
		do    func(bool) ([]publish.Image, error)
	}{
		{"compute.images.get", deprecate}, {"compute.images.deprecate", deprecate}, {"compute.globalOperations.get", deprecate},
		{"compute.images.get", remove}, {"compute.images.delete", remove}, {"compute.globalOperations.get", remove}, {"storage.objects.get", remove}, {"storage.objects.delete", remove},
	} {
		s.Denied = map[string]bool{c.right: true}
		_, err := c.do(false)
		var m MissingRights
		if !errors.As(err, &m) || !slices.Equal(append(m.OnProject, m.OnBucket...), []string{c.right}) || !strings.Contains(err.Error(), "--permissions "+c.right+"\n") || s.Writes != writes {
			t.Errorf("%s: %v, %d writes", c.right, err, s.Writes-writes)
		}
	}
	s.Denied = map[string]bool{}
	for _, do := range []func(bool) ([]publish.Image, error){deprecate, remove} {
		if would, err := do(true); err != nil || len(would) != 1 || would[0].Image == "" || s.Writes != writes || s.Images[o.Name] == nil {
			t.Errorf("%+v, %v, %d writes", would, err, s.Writes-writes)
		}
	}
	// An image that is there and cannot be shared is in the report.
	s.Refused = "setIamPolicy"
	o.Public = true
	if r, err := p.Publish(t.Context(), disk, a, o); err == nil || r == nil || len(r.Images) != 1 || r.Images[0].Image == "" {
		t.Errorf("%+v, %v", r, err)
	}
	// What a run left behind, the next one removes.
	s.Refused = "delete"
	if gone, err := remove(false); err == nil || !strings.Contains(err.Error(), "image skerry-1-2-3-amd64 is gone; deleting gs://north-images/") || len(gone) != 1 {
		t.Errorf("%+v, %v", gone, err)
	}
	s.Refused = ""
	if gone, err := remove(false); err != nil || gone[0].Source == "" || len(s.Images)+len(s.Objects) != 0 {
		t.Errorf("%+v, %v", gone, err)
	}
	if _, err := (Published{p, ""}).Delete(t.Context(), o.Name, false); err == nil || !strings.Contains(err.Error(), "no bucket is named") {
		t.Error(err)
	}
}

func TestDryRunChangesNothing(t *testing.T) {
	s, p, _ := bench(t)
	_, a := archive(1)
	o := options(t)
	o.DryRun, o.Public, o.Deprecate = true, true, time.Now()
	r, err := p.Publish(t.Context(), disk, a, o)
	if err != nil || !r.DryRun || r.Blocks != 4 || r.Uploaded != 0 || len(r.Images) != 0 || s.Writes != 0 {
		t.Errorf("%+v, %v, %d writes", r, err, s.Writes)
	}
	if _, err := os.Stat(o.State); err == nil {
		t.Error("there is a state file")
	}
	for want, change := range map[string]func(*Options){
		"there is no bucket south; make one: gcloud storage buckets create gs://south": func(o *Options) { o.Bucket = "south" },
		"no bucket is named":                          func(o *Options) { o.Bucket = "" },
		`image name "Skerry"`:                         func(o *Options) { o.Name = "Skerry" },
		`family "-"`:                                  func(o *Options) { o.Family = "-" },
		"no machines of architecture arm":             func(o *Options) { o.Arch = "arm" },
		"label Team=x":                                func(o *Options) { o.Labels["Team"] = "x" },
		`share with "edge@example.org": is not user:`: func(o *Options) { o.Share = []string{"edge@example.org"} },
		"its enrolment file is cut off":               func(o *Options) { o.Keys = []publish.Variable{{Name: "PK"}} },
	} {
		o := options(t)
		change(&o)
		if _, err := p.Publish(t.Context(), disk, a, o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	if s.Writes != 0 {
		t.Errorf("%d writes", s.Writes)
	}
}

// A quota that is used up, a session that has ended, a credential file that is none.
func TestFaults(t *testing.T) {
	s, p, _ := bench(t)
	s.Quota = true
	content, a := archive(1)
	o := options(t)
	if _, err := p.Publish(t.Context(), disk, a, o); err == nil || !strings.Contains(err.Error(), "QUOTA_EXCEEDED: Quota 'IMAGES' exceeded") || !strings.Contains(err.Error(), "iam-admin/quotas?project=north-1") {
		t.Error(err)
	}
	s.Quota = false
	delete(s.Objects, o.Name+".tar.gz")
	if err := os.WriteFile(o.State, fmt.Appendf(nil, `{"object":"gs://%s/%s.tar.gz","crc32c":%q,"session":"%s/session/ended"}`, o.Bucket, o.Name, gcptest.CRC32C(content), s.URL), 0o600); err != nil {
		t.Fatal(err)
	}
	if r, err := p.Publish(t.Context(), disk, a, o); err != nil || r.Uploaded != 4 {
		t.Errorf("%+v, %v", r, err)
	}
	// An address in the state file that is not Cloud Storage's gets nothing.
	if ours("https://example.org/upload") || ours("ftp://storage.googleapis.com/") || ours("https://storage.googleapis.com.example.org/") {
		t.Error("a token would go elsewhere")
	}
	t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", filepath.Join(t.TempDir(), "none"))
	if _, err := Open(t.Context(), "", nil); err == nil || !strings.Contains(err.Error(), "log in by: gcloud auth application-default login") {
		t.Error(err)
	}
}

func TestInterrupt(t *testing.T) {
	_, p, _ := bench(t)
	_, a := archive(1)
	ctx, cancel := context.WithCancel(t.Context())
	o := options(t)
	o.Progress = func(int, int) { cancel() }
	if _, err := p.Publish(ctx, disk, a, o); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestName(t *testing.T) {
	for in, want := range map[string]string{"skerry-1.2.3-amd64": "skerry-1-2-3-amd64", "skerry-0.0.0-12-gAB+dirty": "skerry-0-0-0-12-gab-dirty", strings.Repeat("x", 70): strings.Repeat("x", 63)} {
		if got := Name(in); got != want {
			t.Errorf("%s: %s", in, got)
		}
	}
}
