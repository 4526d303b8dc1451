package aws

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ebs"
	ebstypes "github.com/aws/aws-sdk-go-v2/service/ebs/types"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"github.com/skerry-os/skerry/image/cloud/publish"
)

// nowhere and noImage are what nobody has: asking for it shows whether one may, and does nothing.
const (
	nowhere = "snap-00000000000000000"
	noImage = "ami-00000000000000000"
)

// architectures are EC2's words for ours.
var architectures = map[string]types.ArchitectureValues{"amd64": types.ArchitectureValuesX8664, "arm64": types.ArchitectureValuesArm64}

// Publish makes an image of the disk in the publisher's region and in those it is copied to. An image of this name that holds
// the same disk is there already and is used; one that holds another is an error. What was made before an error is in the report.
func (p *Publisher) Publish(ctx context.Context, d publish.Disk, o Options) (*publish.Report, error) {
	begin := time.Now()
	o.Parallel = cmp.Or(o.Parallel, 32)
	o.Copies = slices.DeleteFunc(slices.Clone(o.Copies), func(r string) bool { return r == p.Region() })
	o.Labels = maps.Clone(o.Labels)
	if o.Labels == nil {
		o.Labels = map[string]string{}
	}
	o.Labels[tagDisk], o.Labels[tagImage], o.Labels[tagName] = d.ID, o.Name, cmp.Or(o.Labels[tagName], o.Name)
	if _, known := architectures[o.Arch]; !known {
		return nil, fmt.Errorf("aws: EC2 has no machines of architecture %s", o.Arch)
	}
	if len(o.Name) < 3 || len(o.Name) > 128 {
		return nil, fmt.Errorf("aws: image name %q: has not 3 to 128 characters", o.Name)
	}
	if len(o.Keys) > 0 {
		var err error
		if o.uefiData, err = UEFIData(o.Keys); err != nil {
			return nil, err
		}
	}
	r := &publish.Report{Name: o.Name, Account: p.account, DryRun: o.DryRun, DiskSize: d.Size, BlockSize: blockSize, Public: o.Public, Accounts: o.Share, Images: []publish.Image{}}
	defer func() { r.Seconds = time.Since(begin).Seconds() }()
	if err := p.preflight(ctx, &o); err != nil {
		return r, err
	}
	there, err := p.find(ctx, p.Region(), o.Name)
	if err != nil {
		return r, err
	}
	if there != nil && tag(there.Tags, tagDisk) != d.ID {
		return r, fmt.Errorf("aws: %s: an image named %s is there and holds another disk (%s); choose another name, or delete it: skerry publish aws delete --region %s %s",
			p.Region(), o.Name, sdk.ToString(there.ImageId), p.Region(), o.Name)
	}
	if o.DryRun {
		return r, publish.Runs(ctx, d, blockSize, blockSize, func(int64, int64, []byte) error { r.Blocks++; return nil })
	}
	first := publish.Image{Region: p.Region()}
	if there != nil {
		p.log("%s: image %s is there already", p.Region(), sdk.ToString(there.ImageId))
		first.Image, first.Snapshot = sdk.ToString(there.ImageId), snapshotOf(there)
	} else {
		if first.Snapshot, err = p.snapshot(ctx, d, &o, r); err != nil {
			return r, err
		}
		if first.Image, err = p.register(ctx, first.Snapshot, d, &o); err != nil {
			return r, err
		}
		p.log("%s: image %s of snapshot %s", first.Region, first.Image, first.Snapshot)
	}
	r.Images = append(r.Images, first)
	if r.Images[0], err = p.finish(ctx, first, &o); err != nil {
		return r, err
	}
	for _, region := range o.Copies {
		i, err := p.copy(ctx, r.Images[0], region, d.ID, &o)
		if i.Image != "" {
			r.Images = append(r.Images, i)
		}
		if err != nil {
			return r, err
		}
	}
	return r, nil
}

// preflight asks for every right that will be needed, before anything is made.
func (p *Publisher) preflight(ctx context.Context, o *Options) error {
	var r rights
	yes := sdk.Bool(true)
	home := p.ec2(p.Region())
	_, err := home.DescribeImages(ctx, &ec2.DescribeImagesInput{DryRun: yes, Owners: []string{"self"}})
	r.check("ec2:DescribeImages", err)
	_, err = home.DescribeSnapshots(ctx, &ec2.DescribeSnapshotsInput{DryRun: yes, OwnerIds: []string{"self"}})
	r.check("ec2:DescribeSnapshots", err)
	direct := p.ebs(p.Region())
	_, err = direct.StartSnapshot(ctx, &ebs.StartSnapshotInput{VolumeSize: sdk.Int64(1), ParentSnapshotId: sdk.String(nowhere)})
	r.check("ebs:StartSnapshot", err)
	r.check("ebs:PutSnapshotBlock", put(ctx, direct, nowhere, 0, zeroBlock, [32]byte{}))
	_, err = direct.CompleteSnapshot(ctx, &ebs.CompleteSnapshotInput{SnapshotId: sdk.String(nowhere), ChangedBlocksCount: sdk.Int32(0), ChecksumAlgorithm: ebstypes.ChecksumAlgorithmChecksumAlgorithmSha256})
	r.check("ebs:CompleteSnapshot", err)
	in := p.registration(nowhere, publish.Disk{Size: 1 << 30}, o)
	in.DryRun = yes
	_, err = home.RegisterImage(ctx, in)
	r.check("ec2:RegisterImage", err)
	_, err = home.CreateTags(ctx, &ec2.CreateTagsInput{DryRun: yes, Resources: []string{nowhere}, Tags: tags(o.Labels)})
	r.check("ec2:CreateTags", err)
	for _, region := range append([]string{p.Region()}, o.Copies...) {
		there := p.ec2(region)
		if region != p.Region() {
			_, err = there.CopyImage(ctx, &ec2.CopyImageInput{DryRun: yes, Name: &o.Name, SourceImageId: sdk.String(noImage), SourceRegion: sdk.String(p.Region())})
			r.check("ec2:CopyImage", err)
		}
		if o.Public || len(o.Share) > 0 {
			_, err = there.ModifyImageAttribute(ctx, &ec2.ModifyImageAttributeInput{DryRun: yes, ImageId: sdk.String(noImage), LaunchPermission: launch(o)})
			r.check("ec2:ModifyImageAttribute", err)
			_, err = there.ModifySnapshotAttribute(ctx, &ec2.ModifySnapshotAttributeInput{DryRun: yes, SnapshotId: sdk.String(nowhere), CreateVolumePermission: volumes(o)})
			r.check("ec2:ModifySnapshotAttribute", err)
		}
		if !o.Deprecate.IsZero() {
			_, err = there.EnableImageDeprecation(ctx, &ec2.EnableImageDeprecationInput{DryRun: yes, ImageId: sdk.String(noImage), DeprecateAt: &o.Deprecate})
			r.check("ec2:EnableImageDeprecation", err)
		}
		if o.Public {
			out, err := there.GetImageBlockPublicAccessState(ctx, &ec2.GetImageBlockPublicAccessStateInput{})
			r.check("ec2:GetImageBlockPublicAccessState", err)
			if err == nil && sdk.ToString(out.ImageBlockPublicAccessState) == "block-new-sharing" {
				return fmt.Errorf("aws: %s: account %s blocks public images; lift that with: aws ec2 disable-image-block-public-access --region %s", region, p.account, region)
			}
		}
	}
	return p.missing(&r)
}

// rootDevice is what EC2 calls the first disk; the machine sees an NVMe device.
const rootDevice = "/dev/xvda"

func (p *Publisher) registration(snapshot string, d publish.Disk, o *Options) *ec2.RegisterImageInput {
	in := &ec2.RegisterImageInput{
		Name: &o.Name, Description: sdk.String(o.Description), Architecture: architectures[o.Arch],
		BootMode: types.BootModeValuesUefi, EnaSupport: sdk.Bool(true), SriovNetSupport: sdk.String("simple"), VirtualizationType: sdk.String("hvm"),
		ImdsSupport: types.ImdsSupportValuesV20, RootDeviceName: sdk.String(rootDevice),
		BlockDeviceMappings: []types.BlockDeviceMapping{{DeviceName: sdk.String(rootDevice), Ebs: &types.EbsBlockDevice{
			SnapshotId: &snapshot, VolumeType: types.VolumeTypeGp3, VolumeSize: sdk.Int32(int32(max(8, (d.Size+1<<30-1)>>30))), DeleteOnTermination: sdk.Bool(true),
		}}},
		TagSpecifications: []types.TagSpecification{{ResourceType: types.ResourceTypeImage, Tags: tags(o.Labels)}},
	}
	if o.uefiData != "" {
		in.UefiData = &o.uefiData
	}
	if o.Arch == "amd64" {
		in.TpmSupport = types.TpmSupportValuesV20
	}
	return in
}

func (p *Publisher) register(ctx context.Context, snapshot string, d publish.Disk, o *Options) (string, error) {
	out, err := p.ec2(p.Region()).RegisterImage(ctx, p.registration(snapshot, d, o))
	var id string
	switch {
	case err == nil:
		id = sdk.ToString(out.ImageId)
	case code(err) == "InvalidAMIName.Duplicate": // an answer was lost, and the request repeated
		if there, ferr := p.find(ctx, p.Region(), o.Name); ferr == nil && there != nil && tag(there.Tags, tagDisk) == d.ID {
			id = sdk.ToString(there.ImageId)
		}
	}
	if id == "" {
		return "", fmt.Errorf("aws: registering the image: %w (snapshot %s stays; the same command uses it)", short(err), snapshot)
	}
	if o.State != "" {
		_ = os.Remove(o.State) // one that stays leads to a snapshot that has its image
	}
	return id, nil
}

// find gives the account's image of this name, if there is one.
func (p *Publisher) find(ctx context.Context, region, name string) (*types.Image, error) {
	out, err := p.ec2(region).DescribeImages(ctx, &ec2.DescribeImagesInput{
		Owners: []string{"self"}, Filters: []types.Filter{{Name: sdk.String("name"), Values: []string{name}}}, IncludeDeprecated: sdk.Bool(true),
	})
	if err != nil {
		return nil, fmt.Errorf("aws: %s: looking for image %s: %w", region, name, short(err))
	}
	for i := range out.Images {
		if sdk.ToString(out.Images[i].Name) == name { // a name with * in it is a pattern for the filter
			return &out.Images[i], nil
		}
	}
	return nil, nil
}

// copy brings the image to another region.
func (p *Publisher) copy(ctx context.Context, from publish.Image, region, disk string, o *Options) (publish.Image, error) {
	to := publish.Image{Region: region}
	there, err := p.find(ctx, region, o.Name)
	switch {
	case err != nil:
		return to, err
	case there != nil && tag(there.Tags, tagDisk) != disk:
		return to, fmt.Errorf("aws: %s: an image named %s is there and holds another disk (%s); delete it, or choose another name", region, o.Name, sdk.ToString(there.ImageId))
	case there != nil:
		p.log("%s: image %s is there already", region, sdk.ToString(there.ImageId))
		to.Image = sdk.ToString(there.ImageId)
	default:
		out, err := p.ec2(region).CopyImage(ctx, &ec2.CopyImageInput{
			Name: &o.Name, Description: sdk.String(o.Description), SourceImageId: &from.Image, SourceRegion: &from.Region, CopyImageTags: sdk.Bool(true),
			TagSpecifications: []types.TagSpecification{{ResourceType: types.ResourceTypeSnapshot, Tags: tags(o.Labels)}}, ClientToken: sdk.String(from.Image + "-" + region),
		})
		if err != nil {
			return to, fmt.Errorf("aws: copying to %s: %w", region, short(err))
		}
		to.Image = sdk.ToString(out.ImageId)
		p.log("%s: image %s, a copy that takes minutes", region, to.Image)
	}
	return p.finish(ctx, to, o)
}

// finish waits until an image can be used, and sets who may use it and until when.
func (p *Publisher) finish(ctx context.Context, i publish.Image, o *Options) (publish.Image, error) {
	client := p.ec2(i.Region)
	err := p.wait(ctx, "image "+i.Image+" in "+i.Region, func() (bool, error) {
		out, err := client.DescribeImages(ctx, &ec2.DescribeImagesInput{ImageIds: []string{i.Image}})
		if code(err) == "InvalidAMIID.NotFound" {
			return false, nil // not everywhere yet
		}
		if err != nil || len(out.Images) == 0 {
			return false, err
		}
		image := out.Images[0]
		if image.State == types.ImageStateFailed || image.State == types.ImageStateError || image.State == types.ImageStateInvalid {
			return false, fmt.Errorf("ended as %s: %v", image.State, image.StateReason)
		}
		i.Snapshot = snapshotOf(&image)
		return image.State == types.ImageStateAvailable, nil
	})
	if err != nil {
		return i, err
	}
	if o.Public || len(o.Share) > 0 {
		// The snapshot first: an image that others see is one they can copy, too.
		if _, err := client.ModifySnapshotAttribute(ctx, &ec2.ModifySnapshotAttributeInput{SnapshotId: &i.Snapshot, Attribute: types.SnapshotAttributeNameCreateVolumePermission, CreateVolumePermission: volumes(o)}); err != nil {
			return i, fmt.Errorf("aws: %s: sharing snapshot %s: %w", i.Region, i.Snapshot, short(err))
		}
		if _, err := client.ModifyImageAttribute(ctx, &ec2.ModifyImageAttributeInput{ImageId: &i.Image, LaunchPermission: launch(o)}); err != nil {
			return i, fmt.Errorf("aws: %s: sharing image %s: %w", i.Region, i.Image, short(err))
		}
	}
	if !o.Deprecate.IsZero() {
		return i, p.deprecate(ctx, i.Region, i.Image, o.Deprecate)
	}
	return i, nil
}

func (p *Publisher) deprecate(ctx context.Context, region, image string, at time.Time) error {
	if _, err := p.ec2(region).EnableImageDeprecation(ctx, &ec2.EnableImageDeprecationInput{ImageId: &image, DeprecateAt: &at}); err != nil {
		return fmt.Errorf("aws: %s: deprecating image %s: %w", region, image, short(err))
	}
	p.log("%s: image %s is deprecated from %s on", region, image, at.UTC().Format(time.DateOnly))
	return nil
}

// Published is what was published, in some regions; none are the publisher's own.
type Published struct {
	*Publisher
	Regions []string
}

// Deprecate sets the day from which on the image is no longer listed for others, in each region.
func (p Published) Deprecate(ctx context.Context, name string, at time.Time, dryRun bool) ([]publish.Image, error) {
	may := func(r *rights, client *ec2.Client) {
		_, err := client.EnableImageDeprecation(ctx, &ec2.EnableImageDeprecationInput{DryRun: sdk.Bool(true), ImageId: sdk.String(noImage), DeprecateAt: &at})
		r.check("ec2:EnableImageDeprecation", err)
	}
	return p.each(ctx, name, may, func(region string) (*publish.Image, error) {
		there, err := p.find(ctx, region, name)
		if err != nil || there == nil {
			return nil, err
		}
		i := &publish.Image{Region: region, Image: sdk.ToString(there.ImageId), Snapshot: snapshotOf(there)}
		if dryRun {
			return i, nil
		}
		return i, p.deprecate(ctx, region, i.Image, at)
	})
}

// Delete removes the image and its snapshots, in each region: also those that an earlier run left behind.
func (p Published) Delete(ctx context.Context, name string, dryRun bool) ([]publish.Image, error) {
	may := func(r *rights, client *ec2.Client) {
		_, err := client.DescribeSnapshots(ctx, &ec2.DescribeSnapshotsInput{DryRun: sdk.Bool(true), OwnerIds: []string{"self"}})
		r.check("ec2:DescribeSnapshots", err)
		_, err = client.DeregisterImage(ctx, &ec2.DeregisterImageInput{DryRun: sdk.Bool(true), ImageId: sdk.String(noImage)})
		r.check("ec2:DeregisterImage", err)
		_, err = client.DeleteSnapshot(ctx, &ec2.DeleteSnapshotInput{DryRun: sdk.Bool(true), SnapshotId: sdk.String(nowhere)})
		r.check("ec2:DeleteSnapshot", err)
	}
	return p.each(ctx, name, may, func(region string) (*publish.Image, error) { return p.remove(ctx, region, name, dryRun) })
}

// remove deletes what there is of an image in one region; nil if there is nothing.
func (p *Publisher) remove(ctx context.Context, region, name string, dryRun bool) (*publish.Image, error) {
	there, err := p.find(ctx, region, name)
	if err != nil {
		return nil, err
	}
	i := &publish.Image{Region: region}
	var snapshots []string
	if there != nil {
		i.Image, i.Snapshot = sdk.ToString(there.ImageId), snapshotOf(there)
		if i.Snapshot != "" {
			snapshots = append(snapshots, i.Snapshot)
		}
	}
	left, err := p.snapshotsOf(ctx, region, name)
	if err != nil {
		return nil, err
	}
	for _, s := range left {
		if id := sdk.ToString(s.SnapshotId); !slices.Contains(snapshots, id) {
			snapshots = append(snapshots, id)
		}
	}
	if there == nil && len(snapshots) == 0 {
		return nil, nil
	}
	i.Snapshot = strings.Join(snapshots, ",")
	if dryRun {
		return i, nil
	}
	client := p.ec2(region)
	if there != nil {
		if _, err := client.DeregisterImage(ctx, &ec2.DeregisterImageInput{ImageId: &i.Image}); err != nil && !gone(err) {
			return nil, fmt.Errorf("aws: %s: deregistering image %s: %w", region, i.Image, short(err))
		}
		p.log("%s: image %s is deleted", region, i.Image)
	}
	var errs []error
	for _, s := range snapshots {
		if _, err := client.DeleteSnapshot(ctx, &ec2.DeleteSnapshotInput{SnapshotId: &s}); err != nil && !gone(err) {
			errs = append(errs, fmt.Errorf("aws: %s: image %s is gone; deleting its snapshot %s: %w; the same command tries again", region, name, s, short(err)))
			continue
		}
		p.log("%s: snapshot %s is deleted", region, s)
	}
	return i, errors.Join(errs...)
}

// each does something in every region, once it is clear that it may in all of them. Regions without the image are an error only
// if none has it.
func (p Published) each(ctx context.Context, name string, may func(*rights, *ec2.Client), do func(region string) (*publish.Image, error)) ([]publish.Image, error) {
	regions := p.Regions
	if len(regions) == 0 {
		regions = []string{p.Region()}
	}
	var r rights
	for _, region := range regions {
		client := p.ec2(region)
		_, err := client.DescribeImages(ctx, &ec2.DescribeImagesInput{DryRun: sdk.Bool(true), Owners: []string{"self"}})
		r.check("ec2:DescribeImages", err)
		may(&r, client)
	}
	done := []publish.Image{}
	if err := p.missing(&r); err != nil {
		return done, err
	}
	var errs []error
	for _, region := range regions {
		i, err := do(region)
		if i != nil {
			done = append(done, *i)
		}
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return done, err
	}
	if len(done) == 0 {
		return done, fmt.Errorf("aws: account %s has no image named %s in %v, and no snapshot of one", p.account, name, regions)
	}
	return done, nil
}

func snapshotOf(i *types.Image) string {
	for _, m := range i.BlockDeviceMappings {
		if m.Ebs != nil && m.Ebs.SnapshotId != nil {
			return *m.Ebs.SnapshotId
		}
	}
	return ""
}

func launch(o *Options) *types.LaunchPermissionModifications {
	m := &types.LaunchPermissionModifications{}
	if o.Public {
		m.Add = append(m.Add, types.LaunchPermission{Group: types.PermissionGroupAll})
	}
	for _, a := range o.Share {
		m.Add = append(m.Add, types.LaunchPermission{UserId: sdk.String(a)})
	}
	return m
}

func volumes(o *Options) *types.CreateVolumePermissionModifications {
	m := &types.CreateVolumePermissionModifications{}
	if o.Public {
		m.Add = append(m.Add, types.CreateVolumePermission{Group: types.PermissionGroupAll})
	}
	for _, a := range o.Share {
		m.Add = append(m.Add, types.CreateVolumePermission{UserId: sdk.String(a)})
	}
	return m
}

func tags(m map[string]string) []types.Tag {
	out := []types.Tag{}
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, types.Tag{Key: sdk.String(k), Value: sdk.String(m[k])})
	}
	return out
}

func tag(list []types.Tag, key string) string {
	for _, t := range list {
		if sdk.ToString(t.Key) == key {
			return sdk.ToString(t.Value)
		}
	}
	return ""
}

// gone says that there is nothing to delete any more, as after a request whose first answer was lost.
func gone(err error) bool {
	return slices.Contains([]string{"InvalidAMIID.NotFound", "InvalidAMIID.Unavailable", "InvalidSnapshot.NotFound"}, code(err))
}
