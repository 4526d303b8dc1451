package main

import (
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/skerry-os/skerry/image/cloud/aws"
	"github.com/skerry-os/skerry/image/cloud/publish"
)

func newPublishAWSCmd() *cobra.Command {
	p := publishFlags{words: cloudWords{
		platform: "aws", image: "the AMI", account: "account", label: "tag", name: func(s string) string { return s },
		public: "let everybody use the AMI and its snapshot", share: "accounts that may use the AMI and its snapshot",
	}}
	var o aws.Options
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
			keys, err := p.begin(cmd, args[0])
			if err != nil {
				return err
			}
			f, r, n, err := openToPublish(args[0])
			if err != nil {
				return err
			}
			defer func() { _ = f.Close() }()
			d, err := p.inspect(cmd.Context(), r, n, args[0], keys)
			if err != nil {
				return err
			}
			p.Labels["skerry:version"] = p.Version
			to, err := aws.Open(cmd.Context(), o.Region, teller(cmd))
			if err != nil {
				return err
			}
			o.Options = p.Options
			report, err := to.Publish(cmd.Context(), d, o)
			if err != nil {
				return err
			}
			return p.print(cmd.OutOrStdout(), report)
		},
	}
	p.bind(cmd)
	p.parallel(cmd.Flags())
	cmd.Flags().StringVar(&o.Region, "region", "", "region that the blocks go to (default: that of the AWS tools)")
	cmd.Flags().StringSliceVar(&o.Copies, "copy-to", nil, "more regions to have the AMI in")
	var regions []string
	open := func(cmd *cobra.Command) (*aws.Publisher, error) {
		first := ""
		if len(regions) > 0 {
			first = regions[0]
		}
		return aws.Open(cmd.Context(), first, teller(cmd))
	}
	(&afterwards{
		image: "an AMI", with: "its snapshots", example: "skerry-1.2.3-amd64 --region eu-central-1,us-east-1",
		bind: func(f *pflag.FlagSet) {
			f.StringSliceVar(&regions, "region", nil, "regions to do it in (default: that of the AWS tools)")
		},
		deprecate: func(cmd *cobra.Command, name string, at time.Time) ([]publish.Image, error) {
			to, err := open(cmd)
			if err != nil {
				return nil, err
			}
			return to.Deprecate(cmd.Context(), name, at, regions)
		},
		remove: func(cmd *cobra.Command, name string) ([]publish.Image, error) {
			to, err := open(cmd)
			if err != nil {
				return nil, err
			}
			return to.Delete(cmd.Context(), name, regions)
		},
	}).add(cmd)
	return cmd
}
