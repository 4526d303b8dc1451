package aws

import (
	"bytes"
	"compress/zlib"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/skerry-os/skerry/image/cloud/aws/awstest"
	"github.com/skerry-os/skerry/image/cloud/publish"
)

const testSize = 90<<20 + 3<<19 // not whole blocks of a GiB, and an odd number of blocks

// testDisk has blocks that are full, empty and half of each.
func testDisk() ([]byte, publish.Disk) {
	b := make([]byte, testSize)
	rng := rand.New(rand.NewPCG(5, 6))
	for _, at := range []int{0, 1 << 20, 5<<20 + 77, 40 << 20, 41 << 20, testSize - 600} {
		for i := range min(600_000, testSize-at) {
			b[at+i] = byte(rng.Uint32())
		}
	}
	return b, publish.Disk{ReaderAt: bytes.NewReader(b), Size: testSize, ID: "disk-1"}
}

func bench(t *testing.T) (*awstest.Server, *Publisher, *[]string) {
	t.Helper()
	s := awstest.New(t)
	for k, v := range s.Env() {
		t.Setenv(k, v)
	}
	said := &[]string{}
	p, err := Open(t.Context(), "", func(f string, a ...any) { *said = append(*said, fmt.Sprintf(f, a...)) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.Lock()
		defer s.Unlock()
		if len(s.Unsigned) > 0 {
			t.Errorf("not signed as they must be: %q", s.Unsigned)
		}
	})
	return s, p, said
}

func options(t *testing.T) Options {
	t.Helper()
	return Options{Options: publish.Options{
		Name: "skerry-1.2.3", Description: "Skerry 1.2.3", Arch: "amd64", Parallel: 8, State: filepath.Join(t.TempDir(), "state.json"),
		Labels: map[string]string{"team": "north"}, Keys: []publish.Variable{platformKey()},
	}}
}

// Through dropped connections, lost answers and throttling, what arrives is the disk, and only blocks that are not zeros
// travel. The image is what a machine needs to start securely; copies and rights are as asked for.
func TestPublish(t *testing.T) {
	s, p, _ := bench(t)
	s.Faults = true
	content, d := testDisk()
	o := options(t)
	o.Copies, o.Share, o.Deprecate = []string{"us-east-1", "eu-central-1"}, []string{"210987654321"}, time.Date(2027, 1, 2, 0, 0, 0, 0, time.UTC)
	var steps int
	o.Progress = func(done, all int) { steps++ }
	r, err := p.Publish(t.Context(), d, o)
	if err != nil {
		t.Fatal(err)
	}
	if r.Account != awstest.Account || len(r.Images) != 2 || r.Images[0].Region != "eu-central-1" || r.Images[1].Region != "us-east-1" || r.Blocks == 0 || r.Uploaded != r.Blocks || steps != r.Blocks {
		t.Errorf("report %+v after %d steps", r, steps)
	}
	for _, i := range r.Images {
		if !bytes.Equal(s.Disk(i.Region, i.Snapshot, testSize), content) {
			t.Errorf("%s: another disk arrived", i.Region)
		}
		image, snap := s.Images[i.Region][i.Image], s.Snapshots[i.Region][i.Snapshot]
		if image.State != "available" || image.Deprecated != "2027-01-02T00:00:00Z" || !reflect.DeepEqual(image.Shared, o.Share) || !reflect.DeepEqual(snap.Shared, o.Share) ||
			image.Tags["team"] != "north" || image.Tags["Name"] != o.Name {
			t.Errorf("%s: %+v, snapshot shared with %v", i.Region, image, snap.Shared)
		}
	}
	uefi, err := UEFIData(o.Keys)
	if err != nil {
		t.Fatal(err)
	}
	form := s.Images["eu-central-1"][r.Images[0].Image].Form
	for k, v := range map[string]string{
		"BootMode": "uefi", "TpmSupport": "v2.0", "ImdsSupport": "v2.0", "EnaSupport": "true", "Architecture": "x86_64", "VirtualizationType": "hvm", "UefiData": uefi,
		"RootDeviceName": "/dev/xvda", "BlockDeviceMapping.1.Ebs.VolumeType": "gp3", "BlockDeviceMapping.1.Ebs.DeleteOnTermination": "true",
	} {
		if form.Get(k) != v {
			t.Errorf("%s is %q, want %q", k, form.Get(k), v)
		}
	}

	// Once more: everything is there already.
	calls := s.Calls["ebs:PutSnapshotBlock"]
	again, err := p.Publish(t.Context(), d, o)
	if err != nil || !reflect.DeepEqual(again.Images, r.Images) || s.Calls["ebs:PutSnapshotBlock"] != calls || len(s.Images["eu-central-1"]) != 1 || len(s.Images["us-east-1"]) != 1 {
		t.Errorf("%+v, %v", again, err)
	}
	// Another disk of the same name is refused.
	d.ID = "disk-2"
	if _, err := p.Publish(t.Context(), d, o); err == nil || !strings.Contains(err.Error(), "an image named skerry-1.2.3 is there and holds another disk") {
		t.Error(err)
	}

	s.Faults = false
	both := Published{p, []string{"eu-central-1", "us-east-1"}}
	gone, err := both.Delete(t.Context(), o.Name, false)
	if err != nil || len(gone) != 2 || len(s.Images["eu-central-1"])+len(s.Images["us-east-1"])+len(s.Snapshots["eu-central-1"])+len(s.Snapshots["us-east-1"]) != 0 {
		t.Errorf("%v, %v; left are %v %v", gone, err, s.Images, s.Snapshots)
	}
	if _, err := (Published{p, nil}).Delete(t.Context(), o.Name, false); err == nil || !strings.Contains(err.Error(), "has no image named skerry-1.2.3") {
		t.Error(err)
	}
}

// An upload that stopped goes on where it was, in the same snapshot.
func TestInterruptedUploadGoesOn(t *testing.T) {
	s, p, said := bench(t)
	s.Stop = 4 + 1 // one of them is the look at the rights
	content, d := testDisk()
	o := options(t)
	o.Parallel = 1
	if _, err := p.Publish(t.Context(), d, o); err == nil || !strings.Contains(err.Error(), "credentials have expired") {
		t.Fatal(err)
	}
	if !strings.Contains(strings.Join(*said, "\n"), "the same command goes on from there") {
		t.Errorf("said %q", *said)
	}
	s.Stop = 0
	r, err := p.Publish(t.Context(), d, o)
	if err != nil {
		t.Fatal(err)
	}
	if r.Uploaded >= r.Blocks || r.Uploaded == 0 || len(s.Snapshots["eu-central-1"]) != 1 || !bytes.Equal(s.Disk("eu-central-1", r.Images[0].Snapshot, testSize), content) {
		t.Errorf("%+v, %d snapshots", r, len(s.Snapshots["eu-central-1"]))
	}
	if left, _ := filepath.Glob(o.State); len(left) > 0 {
		t.Error("the state file is still there")
	}
}

// An answer to the completion of a snapshot that is lost, and a stop while it is waited for: the same command goes on with the
// snapshot that is there, whether it is still being completed or is whole by now, and sends no block twice.
func TestCompletionGoesOn(t *testing.T) {
	whole := func(s *awstest.Server) {
		for _, snap := range s.Snapshots["eu-central-1"] {
			snap.State = "completed"
		}
	}
	for name, c := range map[string]struct {
		lose   string // the answer to this action is lost, and the request repeated
		stop   bool   // as soon as the service has heard that the snapshot is to be completed
		forget bool   // the state file is lost
		then   func(s *awstest.Server)
	}{
		"a lost answer":                  {lose: "ebs:CompleteSnapshot"},
		"stopped, still pending":         {stop: true, then: func(s *awstest.Server) { s.Hold = false }},
		"stopped, whole by now":          {stop: true, then: whole},
		"stopped, whole, no state file":  {stop: true, forget: true, then: whole},
		"a lost answer, and stopped":     {lose: "ebs:CompleteSnapshot", stop: true, then: whole},
		"a lost answer about the image":  {lose: "ec2:RegisterImage"},
		"a lost answer about a snapshot": {lose: "ebs:StartSnapshot"},
	} {
		t.Run(name, func(t *testing.T) {
			s, p, _ := bench(t)
			content, d := testDisk()
			o := options(t)
			if c.lose != "" {
				s.Lose[c.lose] = 1
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if c.stop {
				s.Hold, s.OnComplete = true, cancel
				if _, err := p.Publish(ctx, d, o); !errors.Is(err, context.Canceled) {
					t.Fatal(err)
				}
				c.then(s)
			}
			if c.forget {
				if err := os.Remove(o.State); err != nil {
					t.Fatal(err)
				}
			}
			r, err := p.Publish(t.Context(), d, o)
			if err != nil {
				t.Fatal(err)
			}
			if n := len(s.Snapshots["eu-central-1"]); n != 1 || !bytes.Equal(s.Disk("eu-central-1", r.Images[0].Snapshot, testSize), content) || s.Puts() != s.Blocks() {
				t.Errorf("%d snapshots, %d blocks sent of %d", n, s.Puts(), s.Blocks())
			}
			if _, err := os.Stat(o.State); err == nil {
				t.Error("the state file is still there")
			}
			if s.Lose[c.lose] != 0 {
				t.Errorf("no answer to %s was lost", c.lose)
			}
		})
	}
}

// A snapshot whose image is gone is found again, in every region: what a run left behind, the next one removes.
func TestDeleteGoesOn(t *testing.T) {
	s, p, _ := bench(t)
	_, d := testDisk()
	o := options(t)
	o.Copies = []string{"us-east-1"}
	if _, err := p.Publish(t.Context(), d, o); err != nil {
		t.Fatal(err)
	}
	both := Published{p, []string{"eu-central-1", "us-east-1"}}
	s.Refused["ec2:DeleteSnapshot"] = true
	gone, err := both.Delete(t.Context(), o.Name, false)
	if err == nil || !strings.Contains(err.Error(), "eu-central-1: image skerry-1.2.3 is gone; deleting its snapshot snap-") || !strings.Contains(err.Error(), "us-east-1: image") || len(gone) != 2 {
		t.Errorf("%v, %v", gone, err)
	}
	if n := len(s.Images["eu-central-1"]) + len(s.Images["us-east-1"]); n != 0 {
		t.Fatalf("%d images are left", n)
	}
	s.Refused = map[string]bool{}
	if gone, err = both.Delete(t.Context(), o.Name, false); err != nil || len(gone) != 2 || gone[1].Snapshot == "" || len(s.Snapshots["eu-central-1"])+len(s.Snapshots["us-east-1"]) != 0 {
		t.Errorf("%v, %v, left are %v", gone, err, s.Snapshots)
	}
	if _, err = both.Delete(t.Context(), o.Name, false); err == nil || !strings.Contains(err.Error(), "has no image named skerry-1.2.3 in [eu-central-1 us-east-1], and no snapshot of one") {
		t.Error(err)
	}
}

// Rights are looked at before anything is changed, and a dry run says what would be: also of what comes after the publishing.
func TestAfterwards(t *testing.T) {
	s, p, _ := bench(t)
	_, d := testDisk()
	o := options(t)
	o.Copies = []string{"us-east-1"}
	if _, err := p.Publish(t.Context(), d, o); err != nil {
		t.Fatal(err)
	}
	there := Published{p, []string{"eu-central-1", "us-east-1", "eu-west-1"}}
	calls := maps.Clone(s.Calls)
	for action, do := range map[string]func() ([]publish.Image, error){
		"ec2:DescribeImages":         func() ([]publish.Image, error) { return there.Deprecate(t.Context(), o.Name, time.Now(), false) },
		"ec2:EnableImageDeprecation": func() ([]publish.Image, error) { return there.Deprecate(t.Context(), o.Name, time.Now(), false) },
		"ec2:DescribeSnapshots":      func() ([]publish.Image, error) { return there.Delete(t.Context(), o.Name, false) },
		"ec2:DeregisterImage":        func() ([]publish.Image, error) { return there.Delete(t.Context(), o.Name, false) },
		"ec2:DeleteSnapshot":         func() ([]publish.Image, error) { return there.Delete(t.Context(), o.Name, false) },
	} {
		s.Denied[action] = true
		_, err := do()
		var missing MissingRights
		if !errors.As(err, &missing) || !slices.Equal(missing.Actions, []string{action}) || !strings.Contains(err.Error(), `"Action":["`+action+`"]`) || !maps.Equal(calls, s.Calls) {
			t.Errorf("%s: %v, %v", action, err, s.Calls)
		}
		s.Denied = map[string]bool{}
	}
	for _, do := range []func() ([]publish.Image, error){
		func() ([]publish.Image, error) { return there.Deprecate(t.Context(), o.Name, time.Now(), true) },
		func() ([]publish.Image, error) { return there.Delete(t.Context(), o.Name, true) },
	} {
		if would, err := do(); err != nil || len(would) != 2 || would[1].Region != "us-east-1" || would[1].Image == "" || would[1].Snapshot == "" {
			t.Errorf("%+v, %v", would, err)
		}
	}
	for _, action := range []string{"ec2:EnableImageDeprecation", "ec2:DeregisterImage", "ec2:DeleteSnapshot"} {
		if s.Calls[action] != 0 {
			t.Errorf("a dry run did %s", action)
		}
	}
}

// An image that is there already is copied to more regions, without a block; a copy that fails leaves a report of what is there.
func TestCopies(t *testing.T) {
	s, p, _ := bench(t)
	_, d := testDisk()
	o := options(t)
	if _, err := p.Publish(t.Context(), d, o); err != nil {
		t.Fatal(err)
	}
	puts := s.Puts()
	s.Refused["ec2:CopyImage"] = true
	o.Copies = []string{"us-east-1"}
	r, err := p.Publish(t.Context(), d, o)
	if err == nil || r == nil || len(r.Images) != 1 || r.Images[0].Image == "" || r.Seconds == 0 {
		t.Errorf("%+v, %v", r, err)
	}
	s.Refused = map[string]bool{"ec2:ModifyImageAttribute": true}
	o.Share = []string{"210987654321"}
	if r, err = p.Publish(t.Context(), d, o); err == nil || len(r.Images) != 1 || r.Images[0].Image == "" || !strings.Contains(err.Error(), "sharing image ami-") {
		t.Errorf("%+v, %v", r, err)
	}
	s.Refused = map[string]bool{}
	if r, err = p.Publish(t.Context(), d, o); err != nil || len(r.Images) != 2 || r.Images[1].Region != "us-east-1" || len(s.Images["us-east-1"]) != 1 || s.Puts() != puts {
		t.Errorf("%+v, %v", r, err)
	}
}

// Every right is looked for before anything is made, and the policy that is missing is in the message.
func TestMissingRights(t *testing.T) {
	for _, action := range []string{
		"ebs:StartSnapshot", "ebs:PutSnapshotBlock", "ebs:CompleteSnapshot", "ec2:RegisterImage", "ec2:CreateTags", "ec2:DescribeImages", "ec2:DescribeSnapshots",
		"ec2:CopyImage", "ec2:ModifyImageAttribute", "ec2:ModifySnapshotAttribute", "ec2:EnableImageDeprecation", "ec2:GetImageBlockPublicAccessState",
	} {
		s, p, _ := bench(t)
		s.Denied[action], s.Denied["ec2:DescribeSnapshots"] = true, true
		_, d := testDisk()
		o := options(t)
		o.Copies, o.Public, o.Deprecate = []string{"us-east-1"}, true, time.Now()
		_, err := p.Publish(t.Context(), d, o)
		var missing MissingRights
		if !errors.As(err, &missing) || !strings.Contains(err.Error(), `"`+action+`"`) || !strings.Contains(err.Error(), `"Effect":"Allow"`) || strings.Count(err.Error(), "ec2:DescribeSnapshots") < 2 {
			t.Errorf("%s: %v", action, err)
		}
		if s.Calls["ebs:StartSnapshot"]+s.Calls["ec2:RegisterImage"] > 0 {
			t.Errorf("%s: something was made: %v", action, s.Calls)
		}
	}
}

// Graviton has UEFI and ENA as x86-64 has, and no NitroTPM that an AMI asks for.
func TestArchitectures(t *testing.T) {
	for arch, want := range map[string][2]string{"amd64": {"x86_64", "v2.0"}, "arm64": {"arm64", ""}} {
		s, p, _ := bench(t)
		_, d := testDisk()
		o := options(t)
		o.Arch = arch
		r, err := p.Publish(t.Context(), d, o)
		if err != nil {
			t.Fatal(err)
		}
		form := s.Images["eu-central-1"][r.Images[0].Image].Form
		if got := [2]string{form.Get("Architecture"), form.Get("TpmSupport")}; got != want || form.Get("BootMode") != "uefi" || form.Get("EnaSupport") != "true" || form.Get("UefiData") == "" {
			t.Errorf("%s: %v, %v", arch, got, form)
		}
	}
}

func TestDryRunChangesNothing(t *testing.T) {
	s, p, _ := bench(t)
	_, d := testDisk()
	o := options(t)
	o.DryRun = true
	r, err := p.Publish(t.Context(), d, o)
	if err != nil || !r.DryRun || r.Blocks == 0 || r.Uploaded != 0 || len(r.Images) != 0 || len(s.Snapshots)+len(s.Images) != 0 {
		t.Errorf("%+v, %v, %v", r, err, s.Snapshots)
	}
	s.Private, o.Public = true, true
	if _, err := p.Publish(t.Context(), d, o); err == nil || !strings.Contains(err.Error(), "aws ec2 disable-image-block-public-access --region eu-central-1") {
		t.Error(err)
	}
	for _, bad := range []publish.Options{{Name: "x", Arch: "amd64"}, {Name: "skerry", Arch: "arm"}} {
		if _, err := p.Publish(t.Context(), d, Options{Options: bad}); err == nil {
			t.Errorf("%+v was taken", bad)
		}
	}
}

func TestInterrupt(t *testing.T) {
	_, p, _ := bench(t)
	_, d := testDisk()
	ctx, cancel := context.WithCancel(t.Context())
	o := options(t)
	o.Progress = func(int, int) { cancel() }
	if _, err := p.Publish(ctx, d, o); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// platformKey is an enrolment file whose signature and data nobody looks at.
func platformKey() publish.Variable {
	auth := make([]byte, 16+40)
	copy(auth, []byte{0xea, 0x07, 6, 30, 12}) // 2026-06-30 12:00
	auth[16] = 40
	return publish.Variable{Name: "PK", Auth: append(auth, "platform"...)}
}

// uefivars is what github.com/awslabs/python-uefivars packs for PK and db of this test: their number; then for each its name and
// data, both behind their length, vendor, attributes, time, and an empty digest behind its length.
const uefivars = "0200000000000000" +
	"0200000000000000504b" + "0800000000000000706c6174666f726d" + "61dfe48bca93d211aa0d00e098032b8c" + "27000000" + "ea07061e0c0000000000000000000000" +
	"20000000000000000000000000000000000000000000000000000000000000000000000000000000" +
	"02000000000000006462" + "0700000000000000616c6c6f776564" + "cbb219d73a3d9645a3bcdad00e67656f" + "27000000" + "ea07061e0c0000000000000000000000" +
	"20000000000000000000000000000000000000000000000000000000000000000000000000000000"

func TestUEFIData(t *testing.T) {
	auth := platformKey().Auth[:56]
	text, err := UEFIData([]publish.Variable{platformKey(), {Name: "db", Auth: append(bytes.Clone(auth), "allowed"...)}})
	if err != nil {
		t.Fatal(err)
	}
	b, err := base64.StdEncoding.DecodeString(text)
	if err != nil || string(b[:8]) != "AMZNUEFI" || binary.LittleEndian.Uint32(b[8:]) != crc32.Checksum(b[12:], crc32.MakeTable(crc32.Castagnoli)) || binary.LittleEndian.Uint32(b[12:]) != 0 {
		t.Fatalf("% x, %v", b[:16], err)
	}
	z, err := zlib.NewReader(bytes.NewReader(b[16:]))
	if err != nil {
		t.Fatal(err)
	}
	raw, err := io.ReadAll(z)
	if err != nil || hex.EncodeToString(raw) != uefivars {
		t.Errorf("%v\n got %x\nwant %s", err, raw, uefivars)
	}
	for _, bad := range []publish.Variable{{Name: "MOK", Auth: auth}, {Name: "PK", Auth: auth[:10]}, {Name: "PK", Auth: auth}} {
		if _, err := UEFIData([]publish.Variable{bad}); err == nil {
			t.Errorf("%s of %d bytes was taken", bad.Name, len(bad.Auth))
		}
	}
}
