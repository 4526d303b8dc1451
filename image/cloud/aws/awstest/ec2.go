package awstest

import (
	"encoding/xml"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// ec2 is the part of the EC2 API that images need: docs.aws.amazon.com/AWSEC2/latest/APIReference.
func (s *Server) ec2(region string, form url.Values) (string, *fault) {
	action := form.Get("Action")
	if s.Denied["ec2:"+action] {
		return "", &fault{http.StatusForbidden, "UnauthorizedOperation", "You are not authorized to perform this operation."}
	}
	if form.Get("DryRun") == "true" {
		return "", &fault{http.StatusPreconditionFailed, "DryRunOperation", "Request would have succeeded, but DryRun flag is set."}
	}
	if s.Refused["ec2:"+action] {
		return "", &fault{http.StatusForbidden, "OperationNotPermitted", action + " is not permitted for this one."}
	}
	s.Calls["ec2:"+action]++
	do, known := map[string]func(string, url.Values) (string, *fault){
		"DescribeSnapshots": s.describeSnapshots, "DescribeImages": s.describeImages, "RegisterImage": s.register, "CopyImage": s.copyImage,
		"ModifyImageAttribute": s.shareImage, "ModifySnapshotAttribute": s.shareSnapshot, "EnableImageDeprecation": s.deprecate,
		"DeregisterImage": s.deregister, "DeleteSnapshot": s.deleteSnapshot, "GetImageBlockPublicAccessState": s.publicState,
	}[action]
	if !known {
		s.t.Errorf("ec2: call of %s", action)
		return "", &fault{http.StatusBadRequest, "InvalidAction", action}
	}
	text, f := do(region, form)
	if f != nil {
		return "", f
	}
	return fmt.Sprintf(`<%sResponse xmlns="http://ec2.amazonaws.com/doc/2016-11-15/"><requestId>r</requestId>%s</%sResponse>`, action, text, action), nil
}

func notFound(code, id string) *fault {
	return &fault{http.StatusBadRequest, code, "'" + id + "' does not exist"}
}

func esc(v string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(v))
	return b.String()
}

func tagSet(tags map[string]string) string {
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(tags)) {
		fmt.Fprintf(&b, "<item><key>%s</key><value>%s</value></item>", esc(k), esc(tags[k]))
	}
	return "<tagSet>" + b.String() + "</tagSet>"
}

func (s *Server) describeSnapshots(region string, form url.Values) (string, *fault) {
	var items strings.Builder
	wanted, key := form.Get("SnapshotId.1"), strings.TrimPrefix(form.Get("Filter.1.Name"), "tag:")
	for _, id := range slices.Sorted(maps.Keys(s.Snapshots[region])) {
		snap := s.Snapshots[region][id]
		if wanted != "" && wanted != id || key != "" && snap.Tags[key] != form.Get("Filter.1.Value.1") {
			continue
		}
		if snap.polls > 0 && snap.State == "pending" && !s.Hold {
			if snap.polls++; snap.polls > 2 {
				snap.State = "completed"
			}
		}
		fmt.Fprintf(&items, "<item><snapshotId>%s</snapshotId><status>%s</status>%s</item>", id, snap.State, tagSet(snap.Tags))
	}
	if wanted != "" && items.Len() == 0 {
		return "", notFound("InvalidSnapshot.NotFound", wanted)
	}
	return "<snapshotSet>" + items.String() + "</snapshotSet>", nil
}

func (s *Server) describeImages(region string, form url.Values) (string, *fault) {
	var items strings.Builder
	wanted := form.Get("ImageId.1")
	for _, id := range slices.Sorted(maps.Keys(s.Images[region])) {
		i := s.Images[region][id]
		if wanted != "" && wanted != id || form.Get("Filter.1.Name") == "name" && form.Get("Filter.1.Value.1") != i.Name {
			continue
		}
		if wanted != "" && i.State == "pending" {
			if i.polls++; i.polls > 1 {
				i.State = "available"
			}
		}
		fmt.Fprintf(&items, "<item><imageId>%s</imageId><imageState>%s</imageState><name>%s</name><blockDeviceMapping><item><deviceName>/dev/xvda</deviceName><ebs><snapshotId>%s</snapshotId></ebs></item></blockDeviceMapping>%s</item>",
			id, i.State, esc(i.Name), i.Snapshot, tagSet(i.Tags))
	}
	if wanted != "" && items.Len() == 0 {
		return "", notFound("InvalidAMIID.NotFound", wanted)
	}
	return "<imagesSet>" + items.String() + "</imagesSet>", nil
}

func (s *Server) named(region, name string) bool {
	for _, i := range s.Images[region] {
		if i.Name == name {
			return true
		}
	}
	return false
}

func (s *Server) add(region string, i *Image) string {
	if s.Images[region] == nil {
		s.Images[region] = map[string]*Image{}
	}
	id := s.id("ami")
	s.Images[region][id] = i
	return "<imageId>" + id + "</imageId>"
}

func (s *Server) register(region string, form url.Values) (string, *fault) {
	name, id := form.Get("Name"), form.Get("BlockDeviceMapping.1.Ebs.SnapshotId")
	snap := s.Snapshots[region][id]
	switch {
	case snap == nil:
		return "", notFound("InvalidSnapshot.NotFound", id)
	case snap.State != "completed":
		return "", &fault{http.StatusBadRequest, "InvalidSnapshot.Pending", id}
	case s.named(region, name):
		return "", &fault{http.StatusBadRequest, "InvalidAMIName.Duplicate", name}
	case form.Get("TpmSupport") != "" && form.Get("BootMode") != "uefi":
		return "", &fault{http.StatusBadRequest, "InvalidParameterCombination", "TpmSupport needs BootMode uefi"}
	}
	return s.add(region, &Image{State: "pending", Form: form, Name: name, Snapshot: id, Tags: tagsOf(form)}), nil
}

// tagsOf reads a request's first set of tags.
func tagsOf(form url.Values) map[string]string {
	tags := map[string]string{}
	for n := 1; form.Get(fmt.Sprintf("TagSpecification.1.Tag.%d.Key", n)) != ""; n++ {
		tags[form.Get(fmt.Sprintf("TagSpecification.1.Tag.%d.Key", n))] = form.Get(fmt.Sprintf("TagSpecification.1.Tag.%d.Value", n))
	}
	return tags
}

func (s *Server) copyImage(region string, form url.Values) (string, *fault) {
	if id := s.begun[region+form.Get("ClientToken")]; id != "" {
		return "<imageId>" + id + "</imageId>", nil
	}
	from := s.Images[form.Get("SourceRegion")][form.Get("SourceImageId")]
	switch {
	case from == nil:
		return "", notFound("InvalidAMIID.NotFound", form.Get("SourceImageId"))
	case from.State != "available":
		return "", &fault{http.StatusBadRequest, "IncorrectState", "the image is " + from.State}
	case s.named(region, form.Get("Name")):
		return "", &fault{http.StatusBadRequest, "InvalidAMIName.Duplicate", form.Get("Name")}
	}
	if s.Snapshots[region] == nil {
		s.Snapshots[region] = map[string]*Snapshot{}
	}
	id := s.id("snap")
	s.Snapshots[region][id] = &Snapshot{State: "completed", Blocks: s.Snapshots[form.Get("SourceRegion")][from.Snapshot].Blocks, Tags: tagsOf(form)}
	i := &Image{State: "pending", Form: from.Form, Name: form.Get("Name"), Snapshot: id, Tags: map[string]string{}}
	if form.Get("CopyImageTags") == "true" {
		i.Tags = from.Tags
	}
	text := s.add(region, i)
	s.begun[region+form.Get("ClientToken")] = strings.TrimSuffix(strings.TrimPrefix(text, "<imageId>"), "</imageId>")
	return text, nil
}

func shares(form url.Values, prefix string) (out []string) {
	for n := 1; ; n++ {
		v := form.Get(fmt.Sprintf("%s.Add.%d.UserId", prefix, n)) + form.Get(fmt.Sprintf("%s.Add.%d.Group", prefix, n))
		if v == "" {
			return out
		}
		out = append(out, v)
	}
}

func (s *Server) shareImage(region string, form url.Values) (string, *fault) {
	i := s.Images[region][form.Get("ImageId")]
	switch {
	case i == nil:
		return "", notFound("InvalidAMIID.NotFound", form.Get("ImageId"))
	case i.State != "available":
		return "", &fault{http.StatusBadRequest, "IncorrectState", "the image is " + i.State}
	}
	i.Shared = shares(form, "LaunchPermission")
	return "<return>true</return>", nil
}

func (s *Server) shareSnapshot(region string, form url.Values) (string, *fault) {
	snap := s.Snapshots[region][form.Get("SnapshotId")]
	if snap == nil {
		return "", notFound("InvalidSnapshot.NotFound", form.Get("SnapshotId"))
	}
	snap.Shared = shares(form, "CreateVolumePermission")
	return "<return>true</return>", nil
}

func (s *Server) deprecate(region string, form url.Values) (string, *fault) {
	i := s.Images[region][form.Get("ImageId")]
	if i == nil {
		return "", notFound("InvalidAMIID.NotFound", form.Get("ImageId"))
	}
	i.Deprecated = form.Get("DeprecateAt")
	return "<return>true</return>", nil
}

func (s *Server) deregister(region string, form url.Values) (string, *fault) {
	if s.Images[region][form.Get("ImageId")] == nil {
		return "", &fault{http.StatusBadRequest, "InvalidAMIID.Unavailable", form.Get("ImageId")}
	}
	delete(s.Images[region], form.Get("ImageId"))
	return "<return>true</return>", nil
}

func (s *Server) deleteSnapshot(region string, form url.Values) (string, *fault) {
	id := form.Get("SnapshotId")
	for _, i := range s.Images[region] {
		if i.Snapshot == id {
			return "", &fault{http.StatusBadRequest, "InvalidSnapshot.InUse", id + " is in use by an image"}
		}
	}
	if s.Snapshots[region][id] == nil {
		return "", notFound("InvalidSnapshot.NotFound", id)
	}
	delete(s.Snapshots[region], id)
	return "<return>true</return>", nil
}

func (s *Server) publicState(string, url.Values) (string, *fault) {
	state := "unblocked"
	if s.Private {
		state = "block-new-sharing"
	}
	return "<imageBlockPublicAccessState>" + state + "</imageBlockPublicAccessState>", nil
}
