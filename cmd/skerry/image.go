package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/skerry-os/skerry/boards"
	"github.com/skerry-os/skerry/image"
	"github.com/skerry-os/skerry/image/cloud"
	"github.com/skerry-os/skerry/image/fleet"
	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/release"
	"github.com/skerry-os/skerry/pkg/size"
)

func newImageCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "image",
		Short: "Make a disk image for one machine, and check one",
		Long: "An image is a board, a signed release and a node config as a disk that boots. Making one takes seconds and needs\n" +
			"no network and no privileges, and the same three always give the same bytes.",
	}
	cmd.AddCommand(newImageBuildCmd(), newImagePlanCmd(), newImageInspectCmd())
	return cmd
}

// imageFlags are what build and plan have in common.
type imageFlags struct {
	board, release, config, size string
	secureBoot                   bool
	trust                        trustFlags
	configTrust                  configTrustFlags
	make                         func(*boards.Board) (string, error) // builds the release, where none is named
}

func (f *imageFlags) bind(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.board, "board", "", "the kind of machine; skerry board list shows them (required)")
	cmd.Flags().StringVar(&f.release, "release", "", "folder of the signed release, or oci://HOST/NAME:TAG (required)")
	cmd.Flags().StringVar(&f.config, "config", "", "the machine's node config (required, but for boards whose platform tells it)")
	cmd.Flags().StringVar(&f.size, "size", "", "size of the disk, such as 4GiB (default: the least; the machine grows into its disk at the first boot)")
	cmd.Flags().BoolVar(&f.secureBoot, "secure-boot", true, "bring the release's Secure Boot keys along; only firmware in setup mode, which has no keys yet, takes them")
	f.trust.bind(cmd)
	f.configTrust.bind(cmd, "this machine, on its boot partition: it guards the config partition, which any PC opens, and not a disk that is written anew; "+
		"see release build for that")
	_ = cmd.MarkFlagRequired("board") // fails only for a flag that does not exist
}

// plan reads the inputs and checks them against each other.
func (f *imageFlags) plan(ctx context.Context) (*image.Plan, fs.FS, error) {
	b, err := boards.Load(f.board)
	if err != nil {
		return nil, nil, err
	}
	if f.release == "" && f.make == nil {
		return nil, nil, errors.New("name the release with --release; make one with: skerry release build")
	}
	o := image.Options{NoSecureBoot: !f.secureBoot}
	if o.ConfigPolicy, o.ConfigKeys, err = f.configTrust.load(); err != nil {
		return nil, nil, err
	}
	if f.size != "" {
		if o.Size, err = size.Parse(f.size); err != nil {
			return nil, nil, fmt.Errorf("--size: %w", err)
		}
	}
	given := image.Config{Name: f.config}
	if f.config != "" {
		if given.Data, err = os.ReadFile(f.config); err != nil {
			return nil, nil, fmt.Errorf("node config: %w", err)
		}
	}
	sig, err := os.ReadFile(f.config + machine.SignatureSuffix)
	switch {
	case f.config == "", errors.Is(err, fs.ErrNotExist):
	case err == nil:
		given.Beside = []image.File{{Name: image.SignatureName, Data: sig}}
	default:
		return nil, nil, fmt.Errorf("node config: %w", err)
	}
	keys, err := f.trust.load()
	if err != nil {
		return nil, nil, err
	}
	o.Trusted = keys
	if f.make != nil {
		if f.config != "" { // before minutes of building, not after
			if _, err := machine.Decode(f.config, given.Data); err != nil {
				return nil, nil, err
			}
		}
		if f.release, err = f.make(b); err != nil {
			return nil, nil, err
		}
	}
	dir, err := releaseFolder(ctx, f.release, keys, f.board)
	if err != nil {
		return nil, nil, err
	}
	files := os.DirFS(dir)
	rel, err := release.Open(files, keys)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil, fmt.Errorf("%s: is not a release folder: %w; make one with: skerry release build", f.release, err)
	case errors.Is(err, release.ErrUntrusted):
		return nil, nil, fmt.Errorf("%s: %w; name the public key it was signed with by --trust-key or --keys", f.release, err)
	case err != nil:
		return nil, nil, fmt.Errorf("%s: %w", f.release, err)
	}
	p, err := image.New(b, rel, given, o)
	return p, files, err
}

// storedAs is the format asked for, or else the board's.
func (f *imageFlags) storedAs(asked string) cloud.Format {
	if b, err := boards.Load(f.board); err == nil && asked == "" {
		asked = b.Format
	}
	return cloud.Format(cmp.Or(asked, string(cloud.Raw)))
}

func newImageBuildCmd() *cobra.Command {
	var f imageFlags
	var own releaseBuild
	var out, format string
	var asJSON bool
	var adds func() string
	cmd := &cobra.Command{
		Use:   "build --board ID {--release DIR | --overlay DIR ...} --config FILE -o FILE",
		Short: "Make the disk image of one machine",
		Long: "Make the disk image of one machine. The file appears whole or not at all. It is readable by you alone, because the\n" +
			"node config in it holds the cluster's token.\n\n" +
			"What a machine runs is signed, and an image cannot add to a release. With files for the root (--overlay), kernel modules\n" +
			"(--extra-module), words for the kernel's command line (--kernel-arg) or container images (--image-archive), a release that\n" +
			"has them is built first, as `skerry release build` does, in the source's out folder: updates of the machine come from its\n" +
			"like. What is one machine's own (files below /etc and /var, modules to load, manifests) stands in the node config.\n\n" +
			"An image for a cloud serves any number of machines: each asks its platform who it is and what to do.",
		Example: "  skerry image build --board x86-uefi --release out/release --config north-1.yaml -o north-1.img\n" +
			"  skerry image build --board aws --release out/release -o aws.img\n" +
			"  skerry image build --board rpi4 --overlay motd --image-archive app.tar --config north-1.yaml -o north-1.img",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			start := time.Now()
			if flag := adds(); flag != "" && f.release != "" {
				return fmt.Errorf("--%s: %s is signed, and cannot be added to: leave --release out, and a release that has what you add is built first", flag, f.release)
			} else if flag != "" {
				f.make = func(b *boards.Board) (string, error) {
					own.arch, own.clouds, own.keyDir = b.Arch, b.Platform != "", cmp.Or(f.trust.dir, defaultKeys)
					s, err := own.run(cmd)
					if err != nil {
						return "", err
					}
					return s.Dir, nil
				}
			}
			p, files, err := f.plan(cmd.Context())
			if err != nil {
				return err
			}
			if err := image.Create(cmd.Context(), p, files, out, f.storedAs(format)); err != nil {
				return err
			}
			switch {
			case asJSON:
				return printJSON(cmd.OutOrStdout(), p)
			case own.quiet:
				return nil
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "wrote %s: %s, release %s, disk of %v with %v in it, in %.1f s\n",
				out, p.Board, p.Version, size.Bytes(p.Size), size.Bytes(p.Written()).Rounded(), time.Since(start).Seconds())
			return err
		},
	}
	f.bind(cmd)
	cmd.Flags().StringVarP(&out, "output", "o", "", "file to write (required)")
	cmd.Flags().StringVar(&format, "format", "", "raw, for disks and sticks; qcow2, vhd, vmdk or tar.gz, for virtual machines and clouds (default: what the board's cloud takes, or raw)")
	adds = bindAdditions(cmd, &own.add)
	own.bindMeans(cmd)
	cmd.Flags().BoolVarP(&own.quiet, "quiet", "q", false, "print nothing but errors")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the plan that was built, as JSON")
	_ = cmd.MarkFlagRequired("output")
	return cmd
}

func newImagePlanCmd() *cobra.Command {
	var f imageFlags
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "plan --board ID --release DIR --config FILE",
		Short:   "Show every byte range of an image and where it comes from, without making it",
		Example: "  skerry image plan --board x86-uefi --release out/release --config north-1.yaml",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			p, _, err := f.plan(cmd.Context())
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), p)
			}
			return p.Print(cmd.OutOrStdout())
		},
	}
	f.bind(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func newImageInspectCmd() *cobra.Command {
	var trust trustFlags
	var ring keyringFlags
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "inspect FILE",
		Short: "Read an image or a disk back and check every byte that means something",
		Long: "Read an image (raw, qcow2, vhd, vmdk, or a fleet's node) or a disk back: signature of the release in it, both partition tables, the files on\n" +
			"its FAT partitions, both roots and their hash trees, Secure Boot signatures. Every place that is not as it was built\n" +
			"is named by partition and offset. A machine that ran from the disk, and an edited node config, leave such places.",
		Example: "  skerry image inspect --trust-key release.pub north-1.img",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			keys, err := trust.load()
			if err != nil {
				return err
			}
			r, n, err := openImage(args[0], &ring, cmd)
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			defer func() { _ = r.Close() }()
			p, err := image.Inspect(cmd.Context(), r, n, keys)
			if asJSON {
				if err := printJSON(cmd.OutOrStdout(), inspected{p, faults(err)}); err != nil {
					return err
				}
			}
			if err != nil {
				return fmt.Errorf("%s: is not as it was built:\n%w", args[0], err)
			}
			if asJSON {
				return nil
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: every byte is right: %s, release %s, manifest %.8s, node config %.8s\n", args[0], p.Board, p.Version, p.Manifest, p.Config)
			if err == nil && p.Debug {
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: %s\n", args[0], machine.DebugNotice)
			}
			return err
		},
	}
	trust.bind(cmd)
	ring.bind(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the plan that was read and all faults, as JSON")
	return cmd
}

// inspected is inspect's JSON.
type inspected struct {
	Plan   *image.Plan `json:"plan"`
	Faults []string    `json:"faults"`
}

func faults(err error) []string {
	out := []string{}
	var joined interface{ Unwrap() []error }
	if errors.As(err, &joined) {
		for _, e := range joined.Unwrap() {
			out = append(out, faults(e)...)
		}
	} else if err != nil {
		out = append(out, err.Error())
	}
	return out
}

// diskFile is a disk that can be read at any place.
type diskFile interface {
	io.ReaderAt
	io.Closer
}

// openImage opens a file of any form that holds a disk.
func openImage(name string, keys *keyringFlags, cmd *cobra.Command) (diskFile, int64, error) {
	if fleet.IsPatch(name) {
		ring, err := keys.ring(cmd)
		if err != nil {
			return nil, 0, err
		}
		d, err := fleet.OpenPatch(name, ring)
		if err != nil {
			return nil, 0, err
		}
		return d, d.Size(), nil
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, 0, err
	}
	r, n, err := openDisk(f)
	if err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	return struct {
		io.ReaderAt
		io.Closer
	}{r, f}, n, nil
}

// openDisk gives the disk in a file, whatever the file's format, or the disk itself.
func openDisk(f *os.File) (io.ReaderAt, int64, error) {
	d, err := cloud.Open(f)
	if err != nil {
		return nil, 0, err
	}
	if d != nil {
		return d, d.Size(), nil
	}
	n, err := f.Seek(0, io.SeekEnd) // a block device has no size in stat
	return f, n, err
}

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}
