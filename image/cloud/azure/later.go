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

// Deprecate sets the end-of-life date of a gallery's version. When the day has come, "latest" no longer leads to it.
func (p *Publisher) Deprecate(ctx context.Context, name string, day time.Time, at Place) ([]publish.Image, error) {
	if at.Gallery == "" {
		return nil, errors.New("azure: a managed image has no end-of-life date; name a gallery: --gallery")
	}
	m, err := p.named(ctx, at, name)
	if err != nil {
		return nil, err
	}
	if m == nil {
		return nil, fmt.Errorf("azure: %v has no image named %s", at, name)
	}
	return []publish.Image{{Image: m.id}}, p.deprecate(ctx, at, m, day)
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
func (p *Publisher) Delete(ctx context.Context, name string, at Place) ([]publish.Image, error) {
	store, err := p.storage(ctx, at)
	if err != nil {
		return nil, err
	}
	c, err := p.containerOf(store, at)
	if err != nil {
		return nil, err
	}
	m, err := p.named(ctx, at, name)
	if err != nil {
		return nil, err
	}
	b := c.NewPageBlobClient(name + ".vhd")
	blob, err := findBlob(ctx, b)
	if err != nil {
		return nil, err
	}
	if m == nil && (blob == nil || blob.disk == "") {
		return nil, fmt.Errorf("azure: %v has no image named %s, and there is no blob %s of ours", at, name, b.URL())
	}
	var done publish.Image
	if m != nil {
		if err := p.remove(ctx, name, at, m); err != nil {
			return nil, err
		}
		done.Image = m.id
		p.log("%s is deleted", m.id)
	}
	if blob != nil && blob.disk != "" {
		if _, err := b.Delete(ctx, nil); err != nil && status(err) != http.StatusNotFound {
			return []publish.Image{done}, fmt.Errorf("azure: image %s is gone; deleting %s: %w", name, b.URL(), short(err))
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
