package main

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/skerry-os/skerry/image/cloud"
	"github.com/skerry-os/skerry/image/cloud/gcp"
	"github.com/skerry-os/skerry/image/cloud/publish"
)

func newPublishGCPCmd() *cobra.Command {
	p := publishFlags{words: cloudWords{
		platform: "gcp", image: "the image", account: "project", label: "label", name: gcp.Name,
		public: "let every Google account use the image", share: "who may use the image, as group:edge@example.org or serviceAccount:NAME",
	}}
	var o gcp.Options
	var project string
	cmd := &cobra.Command{
		Use:   "gcp IMAGE",
		Short: "Make an image for Google Compute Engine",
		Long: "Make an image for Google Compute Engine: the tar.gz (or a disk, which is packed first) goes into a bucket, held against its\n" +
			"CRC32C, and the image made of it starts by UEFI with the release's Secure Boot keys. Credentials are those of Google's\n" +
			"tools. What is missing of their rights is said before anything is made. An upload that was interrupted goes on when the same\n" +
			"command is given again, and an object or image that is there already is left as it is.",
		Example: "  skerry publish gcp gcp.tar.gz --project north-1 --bucket north-images --family skerry-amd64\n" +
			"  skerry publish gcp deprecate skerry-1-2-3-amd64 --on 2027-06-30 --project north-1\n" +
			"  skerry publish gcp delete skerry-1-2-3-amd64 --project north-1 --bucket north-images",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			keys, err := p.begin(cmd, args[0])
			if err != nil {
				return err
			}
			d, a, done, err := p.archive(cmd.Context(), args[0], keys)
			if err != nil {
				return err
			}
			defer done()
			to, err := gcp.Open(cmd.Context(), project, teller(cmd))
			if err != nil {
				return err
			}
			o.Options = p.Options
			report, err := to.Publish(cmd.Context(), d, a, o)
			return errors.Join(err, p.print(cmd.OutOrStdout(), report, err != nil))
		},
	}
	p.bind(cmd)
	const which = "project (default: that of the credentials)"
	cmd.Flags().StringVar(&project, "project", "", which)
	cmd.Flags().StringVar(&o.Bucket, "bucket", "", "bucket that the archive goes to (required)")
	cmd.Flags().StringVar(&o.Family, "family", "", "image family, which leads to its newest image")
	_ = cmd.MarkFlagRequired("bucket")
	var bucket string
	(&afterwards{
		image: "an image", with: "the archive it was made from", example: "skerry-1-2-3-amd64 --project north-1 --bucket north-images",
		bind: func(f *pflag.FlagSet) {
			f.StringVar(&project, "project", "", which)
			f.StringVar(&bucket, "bucket", "", "bucket that the archive is in")
		},
		open: func(cmd *cobra.Command) (published, error) {
			to, err := gcp.Open(cmd.Context(), project, teller(cmd))
			return gcp.Published{Publisher: to, Bucket: bucket}, err
		},
	}).add(cmd)
	return cmd
}

// archive checks an image for Google. An archive is unpacked for that, a disk is packed; done removes what was made.
func (p *publishFlags) archive(ctx context.Context, name string, keys []ed25519.PublicKey) (d publish.Disk, a gcp.Archive, done func(), err error) {
	f, err := os.Open(name)
	if err != nil {
		return d, a, nil, err
	}
	other, err := os.CreateTemp(filepath.Dir(name), ".skerry-publish-")
	if err != nil {
		_ = f.Close()
		return d, a, nil, err
	}
	closeAll := func() {
		_, _, _ = f.Close(), other.Close(), os.Remove(other.Name())
	}
	defer func() {
		if err != nil {
			closeAll()
		}
	}()
	head := make([]byte, 2)
	_, _ = f.ReadAt(head, 0) // too short for an archive: a disk, of which Inspect says what is wrong
	packed, disk := f, other
	if string(head) == "\x1f\x8b" {
		n, err := cloud.UnpackTarGz(bufio.NewReaderSize(f, 1<<20), other)
		if err != nil {
			return d, a, nil, fmt.Errorf("%s: %w", name, err)
		}
		if d, err = p.inspect(ctx, disk, n, name, keys); err != nil {
			return d, a, nil, err
		}
	} else {
		packed = other
		r, n, err := openDisk(f)
		if err != nil {
			return d, a, nil, fmt.Errorf("%s: %w", name, err)
		}
		if d, err = p.inspect(ctx, r, n, name, keys); err != nil {
			return d, a, nil, err
		}
		if err := pack(ctx, d, other); err != nil {
			return d, a, nil, fmt.Errorf("%s: packing: %w", name, err)
		}
	}
	a.ReaderAt = packed
	a.Size, err = packed.Seek(0, io.SeekEnd)
	return d, a, closeAll, err
}

// pack makes a tar.gz of a disk: the same bytes for the same disk.
func pack(ctx context.Context, d publish.Disk, f *os.File) error {
	t, err := cloud.Create(f, cloud.TarGz, d.Size, [16]byte{})
	if err != nil {
		return err
	}
	err = publish.Runs(ctx, d, 64<<10, 1<<20, func(at, _ int64, b []byte) error {
		_, err := t.WriteAt(b, at)
		return err
	})
	if err != nil {
		return err
	}
	return t.Close()
}
