package azure

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/compute/armcompute/v8"

	"github.com/skerry-os/skerry/image/cloud/publish"
)

// Tags that every image of ours has.
const (
	tagDisk = "skerry-disk" // publish.Disk.ID
	tagName = "skerry-name" // which a gallery's versions have no other place for
)

// architectures are Azure's words for ours.
var architectures = map[string]armcompute.Architecture{"amd64": armcompute.ArchitectureX64, "arm64": armcompute.ArchitectureArm64}

var (
	nameForm   = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,74}[A-Za-z0-9_])?$`)
	numberForm = regexp.MustCompile(`^\d{1,9}\.\d{1,9}\.\d{1,9}$`)
	notInName  = regexp.MustCompile(`[^A-Za-z0-9._-]+`)
)

// Name makes a name that Azure takes of one with other signs.
func Name(s string) string {
	s = notInName.ReplaceAllString(s, "-")
	return strings.Trim(s[:min(76, len(s))], "-.")
}

// made is an image or a gallery's version, as far as they are alike.
type made struct {
	id, state string
	disk      string
	version   [2]string // definition and number; none: a managed image
	regions   []*armcompute.TargetRegion
}

// Publish makes an image of the VHD d. An image of this name that holds the same disk is there already and is used; one that
// holds another is an error. What was made before an error is in the report.
func (p *Publisher) Publish(ctx context.Context, d publish.Disk, o Options) (*publish.Report, error) {
	begin := time.Now()
	o.Parallel, o.Definition, o.Number = cmp.Or(o.Parallel, 32), cmp.Or(o.Definition, "skerry-"+o.Arch), cmp.Or(o.Number, o.Version)
	o.Labels = maps.Clone(o.Labels)
	if o.Labels == nil {
		o.Labels = map[string]string{}
	}
	o.Labels[tagDisk], o.Labels[tagName] = d.ID, o.Name
	if err := o.check(); err != nil {
		return nil, err
	}
	security, err := profile(o.Keys)
	if err != nil {
		return nil, err
	}
	r := &publish.Report{
		Name: o.Name, Account: p.subscription, DryRun: o.DryRun, DiskSize: d.Size, BlockSize: pieceSize, Public: o.Public, Accounts: o.Share, Images: []publish.Image{},
	}
	defer func() { r.Seconds = time.Since(begin).Seconds() }()
	store, err := p.storage(ctx, o.Place)
	if err != nil {
		return r, err
	}
	o.Location = region(cmp.Or(o.Location, store.Location))
	if home := region(store.Location); o.Location != home {
		return r, fmt.Errorf("azure: location %s: the storage account is in %s, and an image is made where its blob is; name another account, or copy the image: --copy-to %s", o.Location, home, o.Location)
	}
	if err := p.preflight(ctx, &o, store); err != nil {
		return r, err
	}
	if err := p.sharing(ctx, &o); err != nil {
		return r, err
	}
	found, err := p.find(ctx, &o)
	if err != nil {
		return r, err
	}
	if found != nil && found.disk != d.ID {
		return r, fmt.Errorf("azure: %s is there and holds another disk; choose another name, or delete it: %s", found.id, deleteCommand(o.Place, o.Name))
	}
	if o.DryRun {
		return r, publish.Runs(ctx, d, granule, pieceSize, func(int64, int64, []byte) error { r.Blocks++; return nil })
	}
	c, err := p.containerOf(store, o.Place)
	if err != nil {
		return r, err
	}
	b := c.NewPageBlobClient(o.Name + ".vhd")
	if found, err = p.settled(ctx, found, &o); err != nil {
		return r, err
	}
	if found != nil {
		p.log("%s is there already", found.id)
	} else {
		if err := p.upload(ctx, c, b, d, &o, r); err != nil {
			return r, err
		}
		if o.Gallery == "" {
			err = p.image(ctx, b.URL(), &o)
		} else {
			err = p.version(ctx, b.URL(), store.ID, security, &o)
		}
		if err != nil {
			return r, err
		}
		if found, err = p.find(ctx, &o); err != nil {
			return r, err
		}
		if found == nil {
			return r, fmt.Errorf("azure: image %s was made and is gone again", o.Name)
		}
	}
	r.Images = found.images(o.Location, b.URL())
	if found, err = p.extend(ctx, found, &o); err != nil {
		return r, err
	}
	r.Images = found.images(o.Location, b.URL())
	if err := p.share(ctx, &o); err != nil {
		return r, err
	}
	if !o.Deprecate.IsZero() {
		return r, p.deprecate(ctx, o.Place, found, o.Deprecate)
	}
	return r, nil
}

// images are the regions that an image is in, its own first.
func (m *made) images(home, source string) []publish.Image {
	out := []publish.Image{{Region: home, Image: m.id, Source: source}}
	for _, r := range m.regions {
		if name := region(value(r.Name)); name != home {
			out = append(out, publish.Image{Region: name, Image: m.id, Source: source})
		}
	}
	return out
}

// extend copies a version that is there to the regions asked for that it is not in. Those that it is in stay as they are.
func (p *Publisher) extend(ctx context.Context, m *made, o *Options) (*made, error) {
	if o.Gallery == "" {
		return m, nil
	}
	has := func(name string) bool {
		return slices.ContainsFunc(m.regions, func(r *armcompute.TargetRegion) bool { return region(value(r.Name)) == name })
	}
	missing := slices.DeleteFunc(o.regions(), has)
	if len(missing) == 0 {
		return m, nil
	}
	c, err := armcompute.NewGalleryImageVersionsClient(p.subscription, p.cred, &p.options)
	if err != nil {
		return nil, fmt.Errorf("azure: %w", err)
	}
	p.log("%s is copied to %s", m.id, strings.Join(missing, ", "))
	profile := &armcompute.GalleryImageVersionPublishingProfile{TargetRegions: append(slices.Clone(m.regions), targets(missing)...)}
	poll, err := c.BeginUpdate(ctx, o.Group, o.Gallery, m.version[0], m.version[1], armcompute.GalleryImageVersionUpdate{
		Properties: &armcompute.GalleryImageVersionProperties{PublishingProfile: profile},
	}, nil)
	if err := end(ctx, poll, err, p.replicating(ctx, c, o)); err != nil {
		return m, fmt.Errorf("azure: copying %s to %s: %w", m.id, strings.Join(missing, ", "), short(err))
	}
	now, err := p.find(ctx, o)
	if err == nil && now == nil {
		err = fmt.Errorf("azure: %s is gone", m.id)
	}
	if err != nil {
		return m, err
	}
	return now, nil
}

// targets are regions with one replica each.
func targets(regions []string) (out []*armcompute.TargetRegion) {
	for _, r := range regions {
		out = append(out, &armcompute.TargetRegion{Name: to.Ptr(r), RegionalReplicaCount: to.Ptr(int32(1))})
	}
	return out
}

func (o *Options) check() error {
	var errs []error
	bad := func(format string, a ...any) { errs = append(errs, fmt.Errorf("azure: "+format, a...)) }
	if architectures[o.Arch] == "" {
		bad("Azure has no machines of architecture %s", o.Arch)
	}
	if !nameForm.MatchString(o.Name) {
		bad("image name %q: is not up to 76 letters, digits, dots, dashes and underscores", o.Name)
	}
	if o.Group == "" || o.Account == "" {
		bad("no resource group or no storage account is named: --resource-group, --storage-account")
	}
	if o.Gallery == "" {
		switch {
		case o.Arch == "arm64":
			bad("a managed image is for x64 machines only; name a gallery: --gallery")
		case len(o.Copies) > 0 || len(o.Share) > 0 || o.Public:
			bad("a managed image is in one region and for one subscription; name a gallery: --gallery")
		case !o.Deprecate.IsZero():
			bad("a managed image has no end-of-life date; name a gallery: --gallery")
		}
	} else if !numberForm.MatchString(o.Number) {
		bad("version %q: a gallery numbers its versions like 1.2.3; name one by --image-version", o.Number)
	}
	return errors.Join(errs...)
}

// regions are those the image is to be in, the first its own.
func (o *Options) regions() []string {
	out := []string{o.Location}
	for _, c := range o.Copies {
		if c = region(c); !slices.Contains(out, c) {
			out = append(out, c)
		}
	}
	return out
}

// region is a region's name as it is compared: "West Europe" is westeurope.
func region(s string) string { return strings.ToLower(strings.ReplaceAll(s, " ", "")) }

// profile is the firmware's variables as a gallery keeps them: the release's keys and no others. Without keys Azure puts its own.
func profile(keys []publish.Variable) (*armcompute.ImageVersionSecurityProfile, error) {
	if len(keys) == 0 {
		return nil, nil
	}
	s := &armcompute.UefiKeySignatures{}
	for _, v := range keys {
		certs, err := v.Certificates()
		if err != nil {
			return nil, err
		}
		k := &armcompute.UefiKey{Type: to.Ptr(armcompute.UefiKeyTypeX509)}
		for _, c := range certs {
			k.Value = append(k.Value, to.Ptr(base64.StdEncoding.EncodeToString(c)))
		}
		switch v.Name {
		case "PK":
			s.Pk = k
		case "KEK":
			s.Kek = append(s.Kek, k)
		case "db":
			s.Db = append(s.Db, k)
		}
	}
	return &armcompute.ImageVersionSecurityProfile{UefiSettings: &armcompute.GalleryImageVersionUefiSettings{
		SignatureTemplateNames: []*armcompute.UefiSignatureTemplateName{to.Ptr(armcompute.UefiSignatureTemplateNameNoSignatureTemplate)}, AdditionalSignatures: s,
	}}, nil
}

// find gives the image, or the gallery's version.
func (p *Publisher) find(ctx context.Context, o *Options) (*made, error) {
	if o.Gallery == "" {
		return p.findImage(ctx, o.Group, o.Name)
	}
	c, err := armcompute.NewGalleryImageVersionsClient(p.subscription, p.cred, &p.options)
	if err != nil {
		return nil, fmt.Errorf("azure: %w", err)
	}
	v, err := c.Get(ctx, o.Group, o.Gallery, o.Definition, o.Number, nil)
	if status(err) == http.StatusNotFound {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("azure: looking for version %s of %s in gallery %s: %w", o.Number, o.Definition, o.Gallery, short(err))
	}
	return versionOf(&v.GalleryImageVersion, o.Definition), nil
}

// settled waits for what another run began to make. What failed counts as not there: it is made again.
func (p *Publisher) settled(ctx context.Context, m *made, o *Options) (*made, error) {
	if m == nil {
		return nil, nil
	}
	err := publish.Wait(ctx, func() (bool, error) {
		if m == nil || m.state != "Creating" && m.state != "Updating" {
			return true, nil
		}
		p.log("%s is being made", m.id)
		var err error
		m, err = p.find(ctx, o)
		return false, err
	})
	if err != nil || m == nil || m.state == "Failed" {
		return nil, err
	}
	return m, nil
}

func versionOf(v *armcompute.GalleryImageVersion, definition string) *made {
	m := &made{id: value(v.ID), disk: value(v.Tags[tagDisk]), version: [2]string{definition, value(v.Name)}}
	if v.Properties != nil && v.Properties.ProvisioningState != nil {
		m.state = string(*v.Properties.ProvisioningState)
	}
	if v.Properties != nil && v.Properties.PublishingProfile != nil {
		m.regions = v.Properties.PublishingProfile.TargetRegions
	}
	return m
}

func value(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

func (p *Publisher) findImage(ctx context.Context, group, name string) (*made, error) {
	c, err := armcompute.NewImagesClient(p.subscription, p.cred, &p.options)
	if err != nil {
		return nil, fmt.Errorf("azure: %w", err)
	}
	i, err := c.Get(ctx, group, name, nil)
	if status(err) == http.StatusNotFound {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("azure: looking for image %s: %w", name, short(err))
	}
	m := &made{id: value(i.ID), disk: value(i.Tags[tagDisk])}
	if i.Properties != nil {
		m.state = value(i.Properties.ProvisioningState)
	}
	return m, nil
}

func (o *Options) tags() map[string]*string {
	out := map[string]*string{}
	for k, v := range o.Labels {
		out[k] = to.Ptr(v)
	}
	return out
}

// image makes a managed image: generation 2, without Trusted Launch, which needs a gallery.
func (p *Publisher) image(ctx context.Context, blob string, o *Options) error {
	c, err := armcompute.NewImagesClient(p.subscription, p.cred, &p.options)
	if err != nil {
		return fmt.Errorf("azure: %w", err)
	}
	poll, err := c.BeginCreateOrUpdate(ctx, o.Group, o.Name, armcompute.Image{
		Location: &o.Location, Tags: o.tags(),
		Properties: &armcompute.ImageProperties{
			HyperVGeneration: to.Ptr(armcompute.HyperVGenerationTypesV2),
			StorageProfile: &armcompute.ImageStorageProfile{OSDisk: &armcompute.ImageOSDisk{
				OSType: to.Ptr(armcompute.OperatingSystemTypesLinux), OSState: to.Ptr(armcompute.OperatingSystemStateTypesGeneralized), BlobURI: &blob,
				Caching: to.Ptr(armcompute.CachingTypesReadWrite), StorageAccountType: to.Ptr(armcompute.StorageAccountTypesStandardLRS),
			}},
		},
	}, nil)
	if err := end(ctx, poll, err, nil); err != nil {
		return fmt.Errorf("azure: making image %s: %w (the blob stays; the same command uses it)", o.Name, short(err))
	}
	p.log("image %s is made", o.Name)
	return nil
}

// version makes a gallery's version, and its definition if there is none.
func (p *Publisher) version(ctx context.Context, blob, store string, security *armcompute.ImageVersionSecurityProfile, o *Options) error {
	if err := p.definition(ctx, o); err != nil {
		return err
	}
	c, err := armcompute.NewGalleryImageVersionsClient(p.subscription, p.cred, &p.options)
	if err != nil {
		return fmt.Errorf("azure: %w", err)
	}
	in := armcompute.GalleryImageVersion{
		Location: &o.Location, Tags: o.tags(),
		Properties: &armcompute.GalleryImageVersionProperties{
			StorageProfile: &armcompute.GalleryImageVersionStorageProfile{OSDiskImage: &armcompute.GalleryOSDiskImage{
				HostCaching: to.Ptr(armcompute.HostCachingReadWrite), Source: &armcompute.GalleryDiskImageSource{StorageAccountID: &store, URI: &blob},
			}},
			PublishingProfile: &armcompute.GalleryImageVersionPublishingProfile{
				StorageAccountType: to.Ptr(armcompute.StorageAccountTypeStandardLRS), TargetRegions: targets(o.regions()),
			},
			SafetyProfile:   &armcompute.GalleryImageVersionSafetyProfile{AllowDeletionOfReplicatedLocations: to.Ptr(true)},
			SecurityProfile: security,
		},
	}
	poll, err := c.BeginCreateOrUpdate(ctx, o.Group, o.Gallery, o.Definition, o.Number, in, nil)
	if err := end(ctx, poll, err, p.replicating(ctx, c, o)); err != nil {
		return fmt.Errorf("azure: making version %s of %s: %w (the blob stays; the same command uses it)", o.Number, o.Definition, short(err))
	}
	p.log("version %s of %s is made, in %s", o.Number, o.Definition, strings.Join(o.regions(), ", "))
	return nil
}

// replicating says how far the copies of a version are, when that has changed.
func (p *Publisher) replicating(ctx context.Context, c *armcompute.GalleryImageVersionsClient, o *Options) func() {
	said := ""
	return func() {
		v, err := c.Get(ctx, o.Group, o.Gallery, o.Definition, o.Number, &armcompute.GalleryImageVersionsClientGetOptions{Expand: to.Ptr(armcompute.ReplicationStatusTypesReplicationStatus)})
		if err != nil || v.Properties == nil || v.Properties.ReplicationStatus == nil {
			return
		}
		text := ""
		for _, s := range v.Properties.ReplicationStatus.Summary {
			if s.Progress != nil {
				text += fmt.Sprintf(", %s %d %%", value(s.Region), *s.Progress)
			}
		}
		if text != said && text != "" {
			p.log("replicating: %s", text[2:])
		}
		said = text
	}
}

// definition makes what a gallery's versions are versions of.
func (p *Publisher) definition(ctx context.Context, o *Options) error {
	c, err := armcompute.NewGalleryImagesClient(p.subscription, p.cred, &p.options)
	if err != nil {
		return fmt.Errorf("azure: %w", err)
	}
	d, err := c.Get(ctx, o.Group, o.Gallery, o.Definition, nil)
	if err == nil {
		if a := d.Properties; a != nil && (a.HyperVGeneration == nil || *a.HyperVGeneration != armcompute.HyperVGenerationV2 || a.Architecture != nil && *a.Architecture != architectures[o.Arch]) {
			return fmt.Errorf("azure: image definition %s is of generation 1 or of another architecture; name another by --definition", o.Definition)
		}
		return nil
	}
	if status(err) != http.StatusNotFound {
		return fmt.Errorf("azure: image definition %s: %w", o.Definition, short(err))
	}
	feature := func(name, value string) *armcompute.GalleryImageFeature {
		return &armcompute.GalleryImageFeature{Name: to.Ptr(name), Value: to.Ptr(value)}
	}
	poll, err := c.BeginCreateOrUpdate(ctx, o.Group, o.Gallery, o.Definition, armcompute.GalleryImage{
		Location: &o.Location,
		Properties: &armcompute.GalleryImageProperties{
			Identifier: &armcompute.GalleryImageIdentifier{Publisher: to.Ptr("skerry"), Offer: to.Ptr("skerry"), SKU: &o.Definition},
			OSType:     to.Ptr(armcompute.OperatingSystemTypesLinux), OSState: to.Ptr(armcompute.OperatingSystemStateTypesGeneralized),
			HyperVGeneration: to.Ptr(armcompute.HyperVGenerationV2), Architecture: to.Ptr(architectures[o.Arch]), Description: to.Ptr("Skerry, a Kubernetes node"),
			Features: []*armcompute.GalleryImageFeature{
				feature("SecurityType", "TrustedLaunchSupported"), feature("DiskControllerTypes", "SCSI, NVMe"), feature("IsAcceleratedNetworkSupported", "True"),
			},
		},
	}, nil)
	if err := end(ctx, poll, err, nil); err != nil {
		return fmt.Errorf("azure: making image definition %s: %w", o.Definition, short(err))
	}
	return nil
}

// sharing checks that the gallery is there and can be shared as asked for: that is its owner's to set.
func (p *Publisher) sharing(ctx context.Context, o *Options) error {
	if o.Gallery == "" {
		return nil
	}
	c, err := armcompute.NewGalleriesClient(p.subscription, p.cred, &p.options)
	if err != nil {
		return fmt.Errorf("azure: %w", err)
	}
	g, err := c.Get(ctx, o.Group, o.Gallery, nil)
	if status(err) == http.StatusNotFound {
		return fmt.Errorf("azure: resource group %s has no gallery %s; make one: az sig create --resource-group %s --gallery-name %s", o.Group, o.Gallery, o.Group, o.Gallery)
	}
	if err != nil {
		return fmt.Errorf("azure: gallery %s: %w", o.Gallery, short(err))
	}
	kind := armcompute.GallerySharingPermissionTypesPrivate
	if g.Properties != nil && g.Properties.SharingProfile != nil && g.Properties.SharingProfile.Permissions != nil {
		kind = *g.Properties.SharingProfile.Permissions
	}
	switch {
	case o.Public && kind != armcompute.GallerySharingPermissionTypesCommunity:
		return fmt.Errorf("azure: gallery %s is not for everybody; make a community gallery: az sig create --permissions Community --public-name-prefix … and az sig share enable-community", o.Gallery)
	case len(o.Share) > 0 && kind != armcompute.GallerySharingPermissionTypesGroups:
		return fmt.Errorf("azure: gallery %s can not be shared with subscriptions; lift that with: az sig update --resource-group %s --gallery-name %s --permissions Groups", o.Gallery, o.Group, o.Gallery)
	}
	return nil
}

// share lets subscriptions use the gallery: Azure shares no single image.
func (p *Publisher) share(ctx context.Context, o *Options) error {
	if len(o.Share) == 0 {
		return nil
	}
	c, err := armcompute.NewGallerySharingProfileClient(p.subscription, p.cred, &p.options)
	if err != nil {
		return fmt.Errorf("azure: %w", err)
	}
	poll, err := c.BeginUpdate(ctx, o.Group, o.Gallery, armcompute.SharingUpdate{
		OperationType: to.Ptr(armcompute.SharingUpdateOperationTypesAdd),
		Groups:        []*armcompute.SharingProfileGroup{{Type: to.Ptr(armcompute.SharingProfileGroupTypesSubscriptions), IDs: to.SliceOfPtrs(o.Share...)}},
	}, nil)
	if err := end(ctx, poll, err, nil); err != nil {
		return fmt.Errorf("azure: sharing gallery %s with %s: %w", o.Gallery, strings.Join(o.Share, ", "), short(err))
	}
	p.log("gallery %s, with all that is in it, is shared with %s", o.Gallery, strings.Join(o.Share, ", "))
	return nil
}
