package azure

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/compute/armcompute/v8"

	"github.com/skerry-os/skerry/image/cloud/publish"
)

// named finds what was published under a name, in the gallery or as a managed image.
func (p *Publisher) named(ctx context.Context, at Place, name string) (*made, error) {
	if at.Gallery == "" {
		return p.findImage(ctx, at.Group, name)
	}
	definitions, err := armcompute.NewGalleryImagesClient(p.subscription, p.cred, &p.options)
	if err != nil {
		return nil, fmt.Errorf("azure: %w", err)
	}
	versions, err := armcompute.NewGalleryImageVersionsClient(p.subscription, p.cred, &p.options)
	if err != nil {
		return nil, fmt.Errorf("azure: %w", err)
	}
	for all := definitions.NewListByGalleryPager(at.Group, at.Gallery, nil); all.More(); {
		page, err := all.NextPage(ctx)
		if err != nil {
			return nil, fmt.Errorf("azure: what is in gallery %s: %w", at.Gallery, short(err))
		}
		for _, d := range page.Value {
			for of := versions.NewListByGalleryImagePager(at.Group, at.Gallery, value(d.Name), nil); of.More(); {
				page, err := of.NextPage(ctx)
				if err != nil {
					return nil, fmt.Errorf("azure: versions of %s: %w", value(d.Name), short(err))
				}
				for _, v := range page.Value {
					if value(v.Tags[tagName]) == name {
						return versionOf(v, value(d.Name)), nil
					}
				}
			}
		}
	}
	return nil, nil
}

func (at Place) String() string {
	if at.Gallery != "" {
		return "gallery " + at.Gallery
	}
	return "resource group " + at.Group
}

// Published is what was published in one place.
type Published struct {
	*Publisher
	Place
}

// Deprecate sets the end-of-life date of a gallery's version. When the day has come, "latest" no longer leads to it.
func (p Published) Deprecate(ctx context.Context, name string, day time.Time, dryRun bool) ([]publish.Image, error) {
	if p.Gallery == "" {
		return nil, errors.New("azure: a managed image has no end-of-life date; name a gallery: --gallery")
	}
	if err := p.may(ctx, scoped{p.id(p.Group), []string{galleries + "images/read", galleries + "images/versions/read", galleries + "images/versions/write"}}); err != nil {
		return nil, err
	}
	m, err := p.named(ctx, p.Place, name)
	if err != nil {
		return nil, err
	}
	if m == nil {
		return nil, fmt.Errorf("azure: %v has no image named %s", p.Place, name)
	}
	there := []publish.Image{{Image: m.id}}
	if dryRun {
		return there, nil
	}
	return there, p.deprecate(ctx, p.Place, m, day)
}

func (p *Publisher) deprecate(ctx context.Context, at Place, m *made, day time.Time) error {
	c, err := armcompute.NewGalleryImageVersionsClient(p.subscription, p.cred, &p.options)
	if err != nil {
		return fmt.Errorf("azure: %w", err)
	}
	profile := &armcompute.GalleryImageVersionPublishingProfile{EndOfLifeDate: &day}
	if passed(day) {
		profile.ExcludeFromLatest = to.Ptr(true)
	}
	poll, err := c.BeginUpdate(ctx, at.Group, at.Gallery, m.version[0], m.version[1], armcompute.GalleryImageVersionUpdate{
		Properties: &armcompute.GalleryImageVersionProperties{PublishingProfile: profile},
	}, nil)
	if err := end(ctx, poll, err, nil); err != nil {
		return fmt.Errorf("azure: deprecating %s: %w", m.id, short(err))
	}
	if passed(day) {
		p.log("version %s of %s is out of date since %s and no longer the latest", m.version[1], m.version[0], day.Format(time.DateOnly))
	} else {
		p.log("version %s of %s is out of date from %s on; give the same command again on that day, and latest no longer leads to it", m.version[1], m.version[0], day.Format(time.DateOnly))
	}
	return nil
}

// Delete removes the image or the gallery's version, and the blob it was made from.
func (p Published) Delete(ctx context.Context, name string, dryRun bool) ([]publish.Image, error) {
	store, err := p.storage(ctx, p.Place)
	if err != nil {
		return nil, err
	}
	group := []string{"Microsoft.Compute/images/read", "Microsoft.Compute/images/delete"}
	if p.Gallery != "" {
		group = []string{galleries + "images/read", galleries + "images/versions/read", galleries + "images/versions/delete"}
	}
	if err := p.may(ctx, scoped{p.id(p.Group), group}, scoped{store.ID, []string{blobs + "read", blobs + "delete"}}); err != nil {
		return nil, err
	}
	c, err := p.containerOf(store, p.Place)
	if err != nil {
		return nil, err
	}
	m, err := p.named(ctx, p.Place, name)
	if err != nil {
		return nil, err
	}
	b := c.NewPageBlobClient(name + ".vhd")
	blob, err := findBlob(ctx, b)
	if err != nil {
		return nil, err
	}
	if blob != nil && blob.disk == "" { // somebody else's
		blob = nil
	}
	if m == nil && blob == nil {
		return nil, fmt.Errorf("azure: %v has no image named %s, and there is no blob %s of ours", p.Place, name, b.URL())
	}
	var done publish.Image
	if m != nil {
		done.Image = m.id
	}
	if dryRun {
		if blob != nil {
			done.Source = b.URL()
		}
		return []publish.Image{done}, nil
	}
	if m != nil {
		if err := p.remove(ctx, name, p.Place, m); err != nil {
			return nil, err
		}
		p.log("%s is deleted", m.id)
	}
	if blob != nil {
		if _, err := b.Delete(ctx, nil); err != nil && status(err) != http.StatusNotFound {
			return []publish.Image{done}, fmt.Errorf("azure: image %s is gone; deleting %s: %w; the same command tries again", name, b.URL(), short(err))
		}
		done.Source = b.URL()
		p.log("%s is deleted", b.URL())
	}
	return []publish.Image{done}, nil
}

func (p *Publisher) remove(ctx context.Context, name string, at Place, m *made) (err error) {
	if at.Gallery == "" {
		c, cerr := armcompute.NewImagesClient(p.subscription, p.cred, &p.options)
		if cerr != nil {
			return fmt.Errorf("azure: %w", cerr)
		}
		poll, berr := c.BeginDelete(ctx, at.Group, name, nil)
		err = end(ctx, poll, berr, nil)
	} else {
		c, cerr := armcompute.NewGalleryImageVersionsClient(p.subscription, p.cred, &p.options)
		if cerr != nil {
			return fmt.Errorf("azure: %w", cerr)
		}
		poll, berr := c.BeginDelete(ctx, at.Group, at.Gallery, m.version[0], m.version[1], nil)
		err = end(ctx, poll, berr, nil)
	}
	if err != nil && status(err) != http.StatusNotFound {
		return fmt.Errorf("azure: deleting %s: %w", m.id, short(err))
	}
	return nil
}
