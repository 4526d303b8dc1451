package main

import (
	"context"

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
			return p.run(cmd, args[0], func(ctx context.Context, d publish.Disk) (*publish.Report, error) {
				p.Labels["skerry:version"] = p.Version
				to, err := aws.Open(ctx, o.Region, teller(cmd))
				if err != nil {
					return nil, err
				}
				o.Options = p.Options
				return to.Publish(ctx, d, o)
			})
		},
	}
	p.bind(cmd)
	p.parallel(cmd.Flags())
	cmd.Flags().StringVar(&o.Region, "region", "", "region that the blocks go to (default: that of the AWS tools)")
	cmd.Flags().StringSliceVar(&o.Copies, "copy-to", nil, "more regions to have the AMI in")
	var regions []string
	(&afterwards{
		image: "an AMI", with: "its snapshots", example: "skerry-1.2.3-amd64 --region eu-central-1,us-east-1",
		bind: func(f *pflag.FlagSet) {
			f.StringSliceVar(&regions, "region", nil, "regions to do it in (default: that of the AWS tools)")
		},
		open: func(cmd *cobra.Command) (published, error) {
			first := ""
			if len(regions) > 0 {
				first = regions[0]
			}
			to, err := aws.Open(cmd.Context(), first, teller(cmd))
			return aws.Published{Publisher: to, Regions: regions}, err
		},
	}).add(cmd)
	return cmd
}
