package main

import (
	"context"
	"io"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/skerry-os/skerry/image/cloud"
	"github.com/skerry-os/skerry/image/cloud/azure"
	"github.com/skerry-os/skerry/image/cloud/publish"
)

func newPublishAzureCmd() *cobra.Command {
	p := publishFlags{words: cloudWords{
		platform: "azure", image: "the image", account: "subscription", label: "tag", name: azure.Name,
		public: "let everybody use the image, from a community gallery", share: "subscriptions that may use the gallery",
	}}
	var o azure.Options
	var subscription string
	cmd := &cobra.Command{
		Use:   "azure IMAGE",
		Short: "Make an image for Microsoft Azure, in a gallery or for one subscription",
		Long: "Make an image for Microsoft Azure: the parts of the disk that are not zeros go into a page blob as a VHD, each with its MD5,\n" +
			"and a gallery's version of generation 2 is made of it, with Trusted Launch and the release's Secure Boot keys; without\n" +
			"--gallery a managed image, which Azure gives neither. Credentials are those of the Azure tools. What is missing of their\n" +
			"rights is said before anything is made. An upload that was interrupted goes on when the same command is given again, and a\n" +
			"blob or image that is there already is left as it is.",
		Example: "  skerry publish azure azure.vhd --resource-group images-rg --storage-account northimages --gallery north\n" +
			"  skerry publish azure deprecate skerry-1.2.3-amd64 --on 2027-06-30 --resource-group images-rg --gallery north\n" +
			"  skerry publish azure delete skerry-1.2.3-amd64 --resource-group images-rg --storage-account northimages --gallery north",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.run(cmd, args[0], func(ctx context.Context, d publish.Disk) (*publish.Report, error) {
				to, err := azure.Open(ctx, subscription, teller(cmd))
				if err != nil {
					return nil, err
				}
				o.Options = p.Options
				return to.Publish(ctx, asVHD(d), o)
			})
		},
	}
	p.bind(cmd)
	p.parallel(cmd.Flags())
	place := func(f *pflag.FlagSet, at *azure.Place) {
		f.StringVar(&subscription, "subscription", "", "subscription (default: the only one that the credentials see)")
		f.StringVar(&at.Group, "resource-group", "", "resource group that all of it is in (required)")
		f.StringVar(&at.Account, "storage-account", "", "storage account for the blob")
		f.StringVar(&at.Container, "container", "images", "container in the storage account")
		f.StringVar(&at.Gallery, "gallery", "", "Compute Gallery for the image (default: a managed image)")
	}
	place(cmd.Flags(), &o.Place)
	cmd.Flags().StringVar(&o.Location, "location", "", "region of the image (default: that of the storage account)")
	cmd.Flags().StringSliceVar(&o.Copies, "copy-to", nil, "more regions that the gallery has the image in")
	cmd.Flags().StringVar(&o.Definition, "definition", "", "image definition in the gallery (default: skerry-ARCH)")
	cmd.Flags().StringVar(&o.Number, "image-version", "", "number of the version in the gallery (default: that of the release)")
	_ = cmd.MarkFlagRequired("resource-group")
	_ = cmd.MarkFlagRequired("storage-account")
	var at azure.Place
	(&afterwards{
		image: "an image", with: "the blob it was made from", example: "skerry-1.2.3-amd64 --resource-group images-rg --storage-account northimages --gallery north",
		bind: func(f *pflag.FlagSet) { place(f, &at) },
		open: func(cmd *cobra.Command) (published, error) {
			to, err := azure.Open(cmd.Context(), subscription, teller(cmd))
			return azure.Published{Publisher: to, Place: at}, err
		},
	}).add(cmd)
	return cmd
}

// asVHD is the disk with the footer of a fixed VHD behind it.
func asVHD(d publish.Disk) publish.Disk {
	var id [16]byte
	copy(id[:], d.ID)
	return publish.Disk{ReaderAt: &withFooter{d, cloud.VHDFooter(d.Size, id)}, Size: d.Size + cloud.VHDFooterSize, ID: d.ID}
}

type withFooter struct {
	publish.Disk
	footer []byte
}

func (w *withFooter) ReadAt(b []byte, at int64) (n int, err error) {
	if at < w.Size {
		k := min(int64(len(b)), w.Size-at)
		if n, err = w.Disk.ReadAt(b[:k], at); n < int(k) {
			return n, err
		}
		at = w.Size
	}
	if n == len(b) {
		return n, nil
	}
	if at-w.Size >= int64(len(w.footer)) {
		return n, io.EOF
	}
	k := copy(b[n:], w.footer[at-w.Size:])
	if n += k; n < len(b) {
		return n, io.EOF
	}
	return n, nil
}
