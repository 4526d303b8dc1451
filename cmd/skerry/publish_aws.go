package main

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/skerry-os/skerry/boards"
	"github.com/skerry-os/skerry/image"
	"github.com/skerry-os/skerry/image/cloud/aws"
)

func newPublishAWSCmd() *cobra.Command {
	var o aws.Options
	var trust trustFlags
	var asJSON bool
	var deprecate string
	cmd := &cobra.Command{
		Use:   "aws IMAGE",
		Short: "Make an AMI of an image for Amazon EC2",
		Long: "Make an AMI of an image for Amazon EC2: its blocks that are not zeros go straight into a snapshot, and the AMI starts by\n" +
			"UEFI with the release's Secure Boot keys, a TPM and version 2 of the metadata service alone. Credentials are those of the\n" +
			"AWS tools. What is missing of their rights is said before anything is made. An upload that was interrupted goes on when the\n" +
			"same command is given again, and an image that is there already is left as it is.",
		Example: "  skerry publish aws aws.img --region eu-central-1 --copy-to us-east-1 --share 210987654321\n" +
			"  skerry publish aws deprecate skerry-1.2.3-amd64 --on 2027-06-30 --region eu-central-1\n" +
			"  skerry publish aws delete skerry-1.2.3-amd64 --region eu-central-1,us-east-1",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			if o.Deprecate, err = day(deprecate); err != nil {
				return err
			}
			d, done, err := awsDisk(cmd.Context(), args[0], &trust, &o)
			if err != nil {
				return err
			}
			defer done()
			o.State = args[0] + ".upload"
			say := func(format string, a ...any) { _, _ = fmt.Fprintf(cmd.ErrOrStderr(), format+"\n", a...) }
			o.Progress = uploadProgress(cmd.ErrOrStderr())
			p, err := aws.Open(cmd.Context(), o.Region, say)
			if err != nil {
				return err
			}
			r, err := p.Publish(cmd.Context(), d, o)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), r)
			}
			return printAWS(cmd.OutOrStdout(), r)
		},
	}
	trust.bind(cmd)
	f := cmd.Flags()
	f.StringVar(&o.Name, "name", "", "name of the AMI (default: skerry-VERSION-ARCH)")
	f.StringVar(&o.Region, "region", "", "region that the blocks go to (default: that of the AWS tools)")
	f.StringSliceVar(&o.Copies, "copy-to", nil, "more regions to have the AMI in")
	f.StringSliceVar(&o.Accounts, "share", nil, "accounts that may use the AMI and its snapshot")
	f.BoolVar(&o.Public, "public", false, "let everybody use the AMI and its snapshot; the image must hold no node config")
	f.StringToStringVar(&o.Tags, "tag", nil, "tags for AMI and snapshot, as team=north")
	f.StringVar(&deprecate, "deprecate", "", "day from which on others no longer see the AMI, as 2027-06-30")
	f.IntVar(&o.Parallel, "parallel", 32, "blocks to send at a time")
	f.BoolVar(&o.DryRun, "dry-run", false, "check image and rights, and make nothing")
	f.BoolVar(&asJSON, "json", false, "print the report as JSON")
	cmd.AddCommand(newAWSDeprecateCmd(), newAWSDeleteCmd())
	return cmd
}

// awsDisk checks an image and takes out of it what its AMI needs.
func awsDisk(ctx context.Context, name string, trust *trustFlags, o *aws.Options) (aws.Disk, func(), error) {
	none := aws.Disk{}
	keys, err := trust.load()
	if err != nil {
		return none, nil, err
	}
	f, err := os.Open(name)
	if err != nil {
		return none, nil, err
	}
	done := func() { _ = f.Close() }
	d, err := awsOptions(ctx, f, name, keys, o)
	if err != nil {
		done()
	}
	return d, done, err
}

// awsOptions reads from an image what its AMI is called and needs.
func awsOptions(ctx context.Context, f *os.File, name string, keys []ed25519.PublicKey, o *aws.Options) (aws.Disk, error) {
	none := aws.Disk{}
	r, n, err := openDisk(f)
	if err != nil {
		return none, fmt.Errorf("%s: %w", name, err)
	}
	p, err := image.Inspect(ctx, r, n, keys)
	if err != nil {
		return none, fmt.Errorf("%s: is not as it was built:\n%w", name, err)
	}
	if b, err := boards.Load(p.Board); err != nil || b.Platform != "aws" {
		return none, fmt.Errorf("%s: is for board %s; make one with: skerry image build --board aws", name, p.Board)
	}
	if o.Public && holdsConfig(p) {
		return none, fmt.Errorf("%s: holds a node config, and with it the cluster's token; make the image without --config to publish it", name)
	}
	o.Arch, o.Name, o.Description = p.Arch, cmp.Or(o.Name, "skerry-"+p.Version+"-"+p.Arch), fmt.Sprintf("Skerry %s, %s", p.Version, p.Arch)
	if o.Tags == nil {
		o.Tags = map[string]string{}
	}
	o.Tags["skerry:version"] = p.Version
	if o.UEFIData, err = uefiData(p, r); err != nil {
		return none, fmt.Errorf("%s: %w", name, err)
	}
	return aws.Disk{ReaderAt: r, Size: p.Size, ID: p.GUID.String()}, nil
}

func holdsConfig(p *image.Plan) bool {
	for _, e := range p.Extents {
		if e.What == "/"+image.ConfigName {
			return true
		}
	}
	return false
}

// uefiData makes the firmware's variables of the keys that the image brings along.
func uefiData(p *image.Plan, r io.ReaderAt) (string, error) {
	var vars []aws.Variable
	for _, e := range p.Extents {
		name, ok := strings.CutPrefix(e.What, "/loader/keys/auto/")
		if !ok {
			continue
		}
		data := make([]byte, e.Size)
		if _, err := r.ReadAt(data, e.Offset); err != nil {
			return "", err
		}
		vars = append(vars, aws.Variable{Name: strings.TrimSuffix(name, ".auth"), Auth: data})
	}
	if len(vars) == 0 {
		return "", nil // built with --secure-boot=false
	}
	return aws.UEFIData(vars)
}

// uploadProgress prints a line for every tenth that is done.
func uploadProgress(w io.Writer) func(done, all int) {
	last := 0
	return func(done, all int) {
		if tenth := done * 10 / all; tenth > last {
			last = tenth
			_, _ = fmt.Fprintf(w, "uploading: %d %%\n", tenth*10)
		}
	}
}

func printAWS(w io.Writer, r *aws.Report) error {
	if r.DryRun {
		_, err := fmt.Fprintf(w, "would publish %s from account %s: %d blocks of 512KiB; every right is there, nothing was made\n", r.Name, r.Account, r.Blocks)
		return err
	}
	for _, i := range r.Images {
		if _, err := fmt.Fprintf(w, "%s  %s  %s\n", i.Region, i.Image, i.Snapshot); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(w, "published %s: %d of %d blocks uploaded in %.0f s\n", r.Name, r.Uploaded, r.Blocks, r.Seconds)
	return err
}

func day(text string) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	t, err := time.Parse(time.DateOnly, text)
	if err != nil {
		return t, fmt.Errorf("%q is not a day, as in 2027-06-30", text)
	}
	return t, nil
}

// eachRegion is what deprecate and delete have in common.
func eachRegion(cmd *cobra.Command, do func(p *aws.Publisher, regions []string) ([]aws.Image, error)) {
	regions := cmd.Flags().StringSlice("region", nil, "regions to do it in (default: that of the AWS tools)")
	asJSON := cmd.Flags().Bool("json", false, "print what was done as JSON")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		say := func(format string, a ...any) { _, _ = fmt.Fprintf(cmd.ErrOrStderr(), format+"\n", a...) }
		first := ""
		if len(*regions) > 0 {
			first = (*regions)[0]
		}
		p, err := aws.Open(cmd.Context(), first, say)
		if err != nil {
			return err
		}
		done, err := do(p, *regions)
		if *asJSON && err == nil {
			return printJSON(cmd.OutOrStdout(), done)
		}
		return err
	}
}

func newAWSDeprecateCmd() *cobra.Command {
	var on string
	cmd := &cobra.Command{
		Use:     "deprecate NAME --on DAY",
		Short:   "Say from which day on an AMI is out of date",
		Example: "  skerry publish aws deprecate skerry-1.2.3-amd64 --on 2027-06-30 --region eu-central-1,us-east-1",
		Args:    cobra.ExactArgs(1),
	}
	cmd.Flags().StringVar(&on, "on", "", "the day, as 2027-06-30 (required)")
	_ = cmd.MarkFlagRequired("on")
	eachRegion(cmd, func(p *aws.Publisher, regions []string) ([]aws.Image, error) {
		at, err := day(on)
		if err != nil {
			return nil, err
		}
		return p.Deprecate(cmd.Context(), cmd.Flags().Arg(0), at, regions)
	})
	return cmd
}

func newAWSDeleteCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "delete NAME",
		Short:   "Remove an AMI and its snapshots",
		Example: "  skerry publish aws delete skerry-1.2.3-amd64 --region eu-central-1,us-east-1",
		Args:    cobra.ExactArgs(1),
	}
	eachRegion(cmd, func(p *aws.Publisher, regions []string) ([]aws.Image, error) {
		return p.Delete(cmd.Context(), cmd.Flags().Arg(0), regions)
	})
	return cmd
}
