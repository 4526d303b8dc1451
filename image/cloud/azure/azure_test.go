package azure

import (
	"bytes"
	"context"
	"encoding/json"
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

	"github.com/skerry-os/skerry/image/cloud/azure/azuretest"
	"github.com/skerry-os/skerry/image/cloud/publish"
	"github.com/skerry-os/skerry/image/releasetest"
)

func bench(t *testing.T) (*azuretest.Server, *Publisher, *[]string) {
	t.Helper()
	s := azuretest.New(t)
	for k, v := range s.Env() {
		t.Setenv(k, v)
	}
	said := &[]string{}
	p, err := Open(t.Context(), "", func(f string, a ...any) { *said = append(*said, fmt.Sprintf(f, a...)) })
	if err != nil {
		t.Fatal(err)
	}
	p.options.Retry.RetryDelay = time.Millisecond
	t.Cleanup(func() {
		s.Lock()
		defer s.Unlock()
		if len(s.Wrong) > 0 {
			t.Errorf("not as they must be: %q", s.Wrong)
		}
	})
	return s, p, said
}

const testSize = 24<<20 + 512

// testDisk has parts that are full, empty and half of each, and the footer of a VHD.
func testDisk() ([]byte, publish.Disk) {
	b := make([]byte, testSize)
	rng := rand.New(rand.NewPCG(5, 6))
	for _, at := range []int{0, 1 << 20, 5<<20 + 77, 8<<20 + 4096, 20 << 20} {
		for i := range 900_000 {
			b[at+i] = byte(rng.Uint32())
		}
	}
	copy(b[testSize-512:], "conectix")
	return b, publish.Disk{ReaderAt: bytes.NewReader(b), Size: testSize, ID: "0d15c000-0000-4000-8000-000000000001"}
}

func options() Options {
	return Options{
		Place: Place{Group: azuretest.Group, Account: azuretest.Account, Gallery: azuretest.Gallery},
		Options: publish.Options{
			Name: "skerry-1.2.3-amd64", Description: "Skerry 1.2.3, amd64", Version: "1.2.3", Arch: "amd64", Parallel: 4, Labels: map[string]string{"team": "north"},
		},
	}
}

func keysOf(t *testing.T) (vars []publish.Variable) {
	t.Helper()
	b := releasetest.New(t, 1<<16)
	for _, name := range []string{"PK", "KEK", "db"} {
		data, err := os.ReadFile(filepath.Join(b.Release, "secureboot", name+".auth"))
		if err != nil {
			t.Fatal(err)
		}
		vars = append(vars, publish.Variable{Name: name, Auth: data})
	}
	return vars
}

const (
	theBlob    = "images/skerry-1.2.3-amd64.vhd"
	definition = "Microsoft.Compute/galleries/north/images/skerry-amd64"
	version    = definition + "/versions/1.2.3"
)

// Through dropped connections, lost answers and throttling, what arrives is the disk, and only parts that are not zeros travel.
// The version is what a machine needs to start securely; regions and rights are as asked for.
func TestPublish(t *testing.T) {
	s, p, said := bench(t)
	s.Faults = true
	content, d := testDisk()
	o := options()
	o.Keys, o.Copies, o.Share, o.Deprecate = keysOf(t), []string{"North Europe", "westeurope"}, []string{"sub-2"}, time.Date(2099, 1, 2, 0, 0, 0, 0, time.UTC)
	r, err := p.Publish(t.Context(), d, o)
	if err != nil {
		t.Fatal(err)
	}
	b := s.Blobs[theBlob]
	sent := 0
	for _, part := range b.Pages {
		sent += len(part)
	}
	if r.Account != azuretest.Subscription || len(r.Images) != 2 || r.Images[1].Region != "northeurope" || r.Blocks < 6 || r.Uploaded != r.Blocks || !bytes.Equal(b.Bytes(), content) || sent > 6<<20 {
		t.Errorf("%+v, %d bytes sent", r, sent)
	}
	v := fmt.Sprint(s.Resources[version])
	for _, want := range []string{"provisioningState:Succeeded", "team:north", "skerry-name:skerry-1.2.3-amd64", "NoSignatureTemplate", "name:northeurope", "endOfLifeDate:2099-01-02", "storageAccountId:/subscriptions/"} {
		if !strings.Contains(v, want) {
			t.Errorf("%s is not in %.3000s", want, v)
		}
	}
	if d := fmt.Sprint(s.Resources[definition]); !strings.Contains(d, "TrustedLaunchSupported") || !strings.Contains(d, "architecture:x64") {
		t.Error(d)
	}
	if !slices.Contains(s.Shared, "Subscriptions sub-2") || !strings.Contains(strings.Join(*said, "\n"), "is shared with sub-2") {
		t.Errorf("%q, said %q", s.Shared, *said)
	}

	// Once more: everything is there already.
	s.Faults = false
	calls, writes := maps.Clone(s.Calls), s.Writes
	o.Share, o.Deprecate = nil, time.Time{}
	again, err := p.Publish(t.Context(), d, o)
	if err != nil || again.Uploaded != 0 || again.Images[0] != r.Images[0] || !maps.Equal(calls, s.Calls) || s.Writes != writes {
		t.Errorf("%+v, %v, %v", again, err, s.Calls)
	}
	// The version is gone, the blob is not.
	delete(s.Resources, version)
	if again, err = p.Publish(t.Context(), d, o); err != nil || again.Uploaded != 0 || s.Calls["page"] != calls["page"] || s.Resources[version] == nil {
		t.Errorf("%+v, %v, %v", again, err, s.Calls)
	}
	// Another disk of the same name is refused, and so is another blob.
	other := d
	other.ID = "other"
	if _, err := p.Publish(t.Context(), other, o); err == nil || !strings.Contains(err.Error(), "is there and holds another disk; choose another name, or delete it: skerry publish azure delete --resource-group images-rg") {
		t.Error(err)
	}
	o.Number = "1.2.4"
	if _, err := p.Publish(t.Context(), other, o); err == nil || !strings.Contains(err.Error(), "skerry-1.2.3-amd64.vhd is there and holds something else") {
		t.Error(err)
	}

	there := Published{p, o.Place}
	if _, err := there.Deprecate(t.Context(), o.Name, time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC), false); err != nil || !strings.Contains(fmt.Sprint(s.Resources[version]), "excludeFromLatest:true") {
		t.Error(err)
	}
	gone, err := (Published{p, o.Place}).Delete(t.Context(), o.Name, false)
	if err != nil || len(gone) != 1 || s.Resources[version] != nil || len(s.Blobs) != 0 {
		t.Errorf("%v, %v", gone, err)
	}
	if _, err := (Published{p, o.Place}).Delete(t.Context(), o.Name, false); err == nil || !strings.Contains(err.Error(), "gallery north has no image named skerry-1.2.3-amd64") {
		t.Error(err)
	}
	if _, err := (Published{p, o.Place}).Deprecate(t.Context(), o.Name, time.Now(), false); err == nil || !strings.Contains(err.Error(), "has no image named") {
		t.Error(err)
	}
}

func TestManagedImage(t *testing.T) {
	s, p, _ := bench(t)
	content, d := testDisk()
	o := options()
	o.Gallery = ""
	r, err := p.Publish(t.Context(), d, o)
	if err != nil || len(r.Images) != 1 || r.Images[0].Region != azuretest.Location || !bytes.Equal(s.Blobs[theBlob].Bytes(), content) {
		t.Fatalf("%+v, %v", r, err)
	}
	// What another run began is waited for, what failed is made again.
	properties := s.Resources["Microsoft.Compute/images/"+o.Name]["properties"].(map[string]any)
	for state, puts := range map[string]int{"Succeeded": 1, "Creating": 1, "Failed": 2} {
		properties["provisioningState"], s.Calls["put"] = state, 1
		again, err := p.Publish(t.Context(), d, o)
		if err != nil || again.Uploaded != 0 || s.Calls["put"] != puts {
			t.Errorf("%s: %+v, %v, %v", state, again, err, s.Calls)
		}
		properties = s.Resources["Microsoft.Compute/images/"+o.Name]["properties"].(map[string]any)
		if properties["provisioningState"] != "Succeeded" {
			t.Errorf("%s: left as %v", state, properties)
		}
	}
	if _, err := (Published{p, o.Place}).Deprecate(t.Context(), o.Name, time.Now(), false); err == nil || !strings.Contains(err.Error(), "a managed image has no end-of-life date; name a gallery") {
		t.Error(err)
	}
	if _, err := (Published{p, o.Place}).Delete(t.Context(), o.Name, false); err != nil || len(s.Blobs) != 0 || s.Resources["Microsoft.Compute/images/"+o.Name] != nil {
		t.Error(err)
	}
}

// An upload that stopped goes on where it was: what is there is compared, and sent again only if it is something else.
func TestInterruptedUploadGoesOn(t *testing.T) {
	s, p, said := bench(t)
	s.Stop = 4
	content, d := testDisk()
	o := options()
	o.Parallel = 1
	if _, err := p.Publish(t.Context(), d, o); err == nil || !strings.Contains(err.Error(), "the credentials are not accepted, or have expired; log in by: az login") || strings.Contains(err.Error(), "-token") {
		t.Fatal(err)
	}
	if !strings.Contains(strings.Join(*said, "\n"), "the same command goes on from there") {
		t.Errorf("said %q", *said)
	}
	s.Stop = 0
	for at, b := range s.Blobs[theBlob].Pages {
		if at > 0 { // one of them is something else by now
			b[100] ^= 1
			break
		}
	}
	r, err := p.Publish(t.Context(), d, o)
	if err != nil || r.Uploaded != r.Blocks-3 || s.Calls["read"] != 4 || s.Calls["create"] != 1 || !bytes.Equal(s.Blobs[theBlob].Bytes(), content) {
		t.Errorf("%+v, %v, %v", r, err, s.Calls)
	}
}

// What arrives damaged is sent again; a line that always damages is an error.
func TestDamage(t *testing.T) {
	s, p, _ := bench(t)
	s.Damage = 2
	content, d := testDisk()
	if _, err := p.Publish(t.Context(), d, options()); err != nil || !bytes.Equal(s.Blobs[theBlob].Bytes(), content) {
		t.Error(err)
	}
	s, p, _ = bench(t)
	s.Damage = 1000
	if _, err := p.Publish(t.Context(), d, options()); err == nil || !strings.Contains(err.Error(), "Md5Mismatch") || s.Resources[version] != nil {
		t.Error(err)
	}
}

// Every right is looked for before anything is made, and what is missing is named with a role that holds it and no other.
func TestMissingRights(t *testing.T) {
	const g = "Microsoft.Compute/galleries/"
	for _, action := range []string{
		g + "images/read", g + "images/write", g + "images/versions/read", g + "images/versions/write", g + "share/action", blobs + "read", blobs + "write",
		"Microsoft.Storage/storageAccounts/blobServices/containers/read", "Microsoft.Storage/storageAccounts/blobServices/containers/write", "Microsoft.Storage/storageAccounts/listKeys/action",
	} {
		s, p, _ := bench(t)
		s.Denied[action] = true
		_, d := testDisk()
		o := options()
		o.Share = []string{"sub-2"}
		_, err := p.Publish(t.Context(), d, o)
		var m MissingRights
		if !errors.As(err, &m) || !slices.Equal(m.Actions, []string{action}) || !onlyRole(err, action) || s.Writes != 0 {
			t.Errorf("%s: %v, %d writes", action, err, s.Writes)
		}
	}
}

// onlyRole says whether an error tells how to make a role of one action and to give it.
func onlyRole(err error, action string) bool {
	kind := "Actions"
	if strings.HasPrefix(action, blobs) {
		kind = "DataActions"
	}
	text := err.Error()
	_, def, _ := strings.Cut(text, "az role definition create --role-definition '")
	def, _, _ = strings.Cut(def, "'")
	var r map[string]any
	return json.Unmarshal([]byte(def), &r) == nil && fmt.Sprint(r[kind]) == "["+action+"]" && strings.Contains(text, fmt.Sprintf("az role assignment create --role %q --scope ", r["Name"])) &&
		strings.Contains(text, role(action)+" hold them")
}

// A version that is there is copied to more regions, beside those that it is in, and the report says where it is.
func TestCopyToLater(t *testing.T) {
	s, p, _ := bench(t)
	_, d := testDisk()
	o := options()
	o.Copies = []string{"northeurope"}
	if _, err := p.Publish(t.Context(), d, o); err != nil {
		t.Fatal(err)
	}
	regions := func(r *publish.Report) (out []string) {
		for _, i := range r.Images {
			out = append(out, i.Region)
		}
		return out
	}
	o.Copies = []string{"eastus", "West Europe"}
	s.Refused = "copy"
	r, err := p.Publish(t.Context(), d, o)
	if err == nil || !strings.Contains(err.Error(), "to eastus: 400 RegionNotAvailable") || r == nil || !slices.Equal(regions(r), []string{"westeurope", "northeurope"}) {
		t.Errorf("%+v, %v", r, err)
	}
	s.Refused = ""
	if r, err = p.Publish(t.Context(), d, o); err != nil || r.Uploaded != 0 || !slices.Equal(regions(r), []string{"westeurope", "northeurope", "eastus"}) {
		t.Fatalf("%+v, %v", r, err)
	}
	if v := fmt.Sprint(s.Resources[version]); strings.Count(v, "regionalReplicaCount:1") != 3 {
		t.Error(v)
	}
	// Asked for less, it stays where it is, and the report says so.
	writes := s.Writes
	o.Copies = nil
	if r, err = p.Publish(t.Context(), d, o); err != nil || len(r.Images) != 3 || s.Writes != writes {
		t.Errorf("%+v, %v, %d writes", r, err, s.Writes-writes)
	}
}

// Rights are looked at before anything is changed, and a dry run says what would be: also of what comes after the publishing.
func TestAfterwards(t *testing.T) {
	for name, of := range map[string]string{"gallery": galleries + "images/versions", "managed image": "Microsoft.Compute/images"} {
		s, p, _ := bench(t)
		_, d := testDisk()
		o := options()
		if name != "gallery" {
			o.Gallery = ""
		}
		if _, err := p.Publish(t.Context(), d, o); err != nil {
			t.Fatal(err)
		}
		there := Published{p, o.Place}
		deprecate := func(dry bool) ([]publish.Image, error) { return there.Deprecate(t.Context(), o.Name, time.Now(), dry) }
		remove := func(dry bool) ([]publish.Image, error) { return there.Delete(t.Context(), o.Name, dry) }
		want := map[string]func(bool) ([]publish.Image, error){of + "/read": remove, of + "/delete": remove, blobs + "read": remove, blobs + "delete": remove}
		dry := []func(bool) ([]publish.Image, error){remove}
		if o.Gallery != "" {
			want[of+"/write"], want[galleries+"images/read"], dry = deprecate, deprecate, append(dry, deprecate)
		}
		writes := s.Writes
		for action, do := range want {
			s.Denied = map[string]bool{action: true}
			_, err := do(false)
			var m MissingRights
			if !errors.As(err, &m) || !slices.Equal(m.Actions, []string{action}) || !onlyRole(err, action) || s.Writes != writes {
				t.Errorf("%s: %s: %v, %d writes", name, action, err, s.Writes-writes)
			}
		}
		s.Denied = map[string]bool{}
		for _, do := range dry {
			if would, err := do(true); err != nil || len(would) != 1 || would[0].Image == "" || s.Writes != writes {
				t.Errorf("%s: %+v, %v, %d writes", name, would, err, s.Writes-writes)
			}
		}
		if o.Gallery != "" { // A version that is there and cannot be shared is in the report.
			s.Refused, o.Share = "share", []string{"sub-2"}
			if r, err := p.Publish(t.Context(), d, o); err == nil || r == nil || len(r.Images) != 1 || r.Images[0].Image == "" {
				t.Errorf("%+v, %v", r, err)
			}
		}
		// What a run left behind, the next one removes.
		s.Refused = "delete"
		if gone, err := remove(false); err == nil || !strings.Contains(err.Error(), "image skerry-1.2.3-amd64 is gone; deleting http") || len(gone) != 1 {
			t.Errorf("%s: %+v, %v", name, gone, err)
		}
		s.Refused = ""
		if gone, err := remove(false); err != nil || gone[0].Source == "" || len(s.Blobs) != 0 {
			t.Errorf("%s: %+v, %v", name, gone, err)
		}
	}
}

func TestDryRunChangesNothing(t *testing.T) {
	s, p, _ := bench(t)
	_, d := testDisk()
	o := options()
	o.DryRun, o.Share, o.Deprecate = true, []string{"sub-2"}, time.Now()
	r, err := p.Publish(t.Context(), d, o)
	if err != nil || !r.DryRun || r.Blocks < 6 || r.Uploaded != 0 || len(r.Images) != 0 {
		t.Errorf("%+v, %v", r, err)
	}
	for want, change := range map[string]func(*Options){
		"has no storage account south; make one: az storage account create": func(o *Options) { o.Account = "south" },
		"has no gallery south; make one: az sig create":                     func(o *Options) { o.Gallery = "south" },
		"gallery north is not for everybody":                                func(o *Options) { o.Public = true },
		"no resource group or no storage account":                           func(o *Options) { o.Group = "" },
		"no machines of architecture arm":                                   func(o *Options) { o.Arch = "arm" },
		`image name "-"`:                                                    func(o *Options) { o.Name = "-" },
		`version "1.2": a gallery numbers its versions like 1.2.3`:          func(o *Options) { o.Number = "1.2" },
		"a managed image is in one region":                                  func(o *Options) { o.Gallery, o.Copies = "", []string{"x"} },
		"a managed image is for x64 machines only":                          func(o *Options) { o.Gallery, o.Arch = "", "arm64" },
		"a managed image has no end-of-life date":                           func(o *Options) { o.Gallery, o.Deprecate = "", time.Now() },
		"location northeurope: the storage account is in westeurope":        func(o *Options) { o.Location = "North Europe" },
		"its enrolment file is cut off":                                     func(o *Options) { o.Keys = []publish.Variable{{Name: "PK"}} },
	} {
		o := options()
		change(&o)
		if _, err := p.Publish(t.Context(), d, o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	if s.Writes != 0 {
		t.Errorf("%d writes", s.Writes)
	}
}

func TestQuota(t *testing.T) {
	s, p, _ := bench(t)
	s.Quota = true
	_, d := testDisk()
	o := options()
	o.Gallery = ""
	if _, err := p.Publish(t.Context(), d, o); err == nil || !strings.Contains(err.Error(), "QuotaExceeded: The image quota of the subscription is used up.; ask for more") {
		t.Error(err)
	}
}

func TestInterrupt(t *testing.T) {
	_, p, _ := bench(t)
	_, d := testDisk()
	ctx, cancel := context.WithCancel(t.Context())
	o := options()
	o.Progress = func(int, int) { cancel() }
	if _, err := p.Publish(ctx, d, o); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestSettings(t *testing.T) {
	t.Setenv("AZURE_ENVIRONMENT", "AzureMoonCloud")
	if _, err := settings(); err == nil || !strings.Contains(err.Error(), `AZURE_ENVIRONMENT "AzureMoonCloud": is not one of`) {
		t.Error(err)
	}
	t.Setenv("AZURE_ENVIRONMENT", "AzureUSGovernment")
	for at, insecure := range map[string]bool{"http://127.0.0.1:1/": true, "http://example.org": false, "https://example.org/": false} {
		t.Setenv("ARM_ENDPOINT", at)
		if o, err := settings(); err != nil || o.InsecureAllowCredentialWithHTTP != insecure {
			t.Errorf("%s: %v", at, err)
		}
	}
	t.Setenv("ARM_ENDPOINT", "example")
	if _, err := settings(); err == nil {
		t.Error("an address without a host was taken")
	}
}

func TestName(t *testing.T) {
	for in, want := range map[string]string{"skerry-1.2.3-amd64": "skerry-1.2.3-amd64", "skerry-0.0.0-12-gAB+dirty/x": "skerry-0.0.0-12-gAB-dirty-x", strings.Repeat("x", 90): strings.Repeat("x", 76)} {
		if got := Name(in); got != want {
			t.Errorf("%s: %s", in, got)
		}
	}
}

func TestRoles(t *testing.T) {
	p := permission{Actions: []string{"*/read", "Microsoft.Compute/galleries/*"}, NotActions: []string{"Microsoft.Compute/galleries/share/*"}, DataActions: []string{blobs + "read"}}
	for action, want := range map[string]bool{
		"Microsoft.Compute/images/read": true, "microsoft.compute/galleries/images/WRITE": true, "Microsoft.Compute/galleries/share/action": false,
		"Microsoft.Compute/images/write": false, blobs + "read": true, blobs + "write": false,
	} {
		if p.gives(action) != want {
			t.Errorf("%s: %v", action, !want)
		}
	}
}
