package main

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/skerry-os/skerry/boards"
	"github.com/skerry-os/skerry/image"
	"github.com/skerry-os/skerry/image/cloud/publish"
	"github.com/skerry-os/skerry/pkg/size"
)

func newPublishCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "publish",
		Short: "Bring images to clouds, and releases to registries",
	}
	cmd.AddCommand(newPublishAWSCmd(), newPublishGCPCmd(), newPublishAzureCmd(), newPublishOCICmd())
	return cmd
}

// cloudWords are what one thing is called in the clouds.
type cloudWords struct {
	platform string // of boards
	image    string // such as: the AMI
	account  string
	public   string // who that is
	share    string
	label    string // the flag's name
	name     func(string) string
}

// publishFlags are what publishing an image takes in every cloud.
type publishFlags struct {
	publish.Options
	trust     trustFlags
	asJSON    bool
	deprecate string
	words     cloudWords
}

func (p *publishFlags) bind(cmd *cobra.Command) {
	p.trust.bind(cmd)
	f := cmd.Flags()
	f.StringVar(&p.Name, "name", "", "name of "+p.words.image+" (default: "+p.words.name("skerry-VERSION-ARCH")+")")
	f.StringSliceVar(&p.Share, "share", nil, p.words.share)
	f.BoolVar(&p.Public, "public", false, p.words.public+"; the image must hold no node config")
	f.StringToStringVar(&p.Labels, p.words.label, nil, p.words.label+"s to go with it, as team=north")
	f.StringVar(&p.deprecate, "deprecate", "", "day from which on "+p.words.image+" is out of date, as 2027-06-30")
	f.BoolVar(&p.DryRun, "dry-run", false, "check image and rights, and make nothing")
	f.BoolVar(&p.asJSON, "json", false, "print the report as JSON")
}

// parallel is for clouds that take the pieces of an upload in any order.
func (p *publishFlags) parallel(f *pflag.FlagSet) {
	f.IntVar(&p.Parallel, "parallel", 32, "pieces to send at a time")
}

// begin is what comes before an image is looked at.
func (p *publishFlags) begin(cmd *cobra.Command, name string) ([]ed25519.PublicKey, error) {
	var err error
	if p.Deprecate, err = day(p.deprecate); err != nil {
		return nil, err
	}
	p.State, p.Progress = name+".upload", uploadProgress(cmd.ErrOrStderr())
	return p.trust.load()
}

// inspect checks a disk, and reads from it what its image is called and needs. n is how much there is to read.
func (p *publishFlags) inspect(ctx context.Context, r io.ReaderAt, n int64, name string, keys []ed25519.PublicKey) (publish.Disk, error) {
	none := publish.Disk{}
	plan, err := image.Inspect(ctx, r, n, keys)
	if err != nil {
		return none, fmt.Errorf("%s: is not as it was built:\n%w", name, err)
	}
	if b, err := boards.Load(plan.Board); err != nil || b.Platform != p.words.platform {
		return none, fmt.Errorf("%s: is for board %s; make one with: skerry image build --board %s", name, plan.Board, p.words.platform)
	}
	if p.Public && holdsConfig(plan) {
		return none, fmt.Errorf("%s: holds a node config, and with it the cluster's token; make the image without --config to publish it", name)
	}
	p.Arch, p.Version, p.Description = plan.Arch, plan.Version, fmt.Sprintf("Skerry %s, %s", plan.Version, plan.Arch)
	p.Name = cmp.Or(p.Name, p.words.name("skerry-"+plan.Version+"-"+plan.Arch))
	if p.Labels == nil {
		p.Labels = map[string]string{}
	}
	if p.Keys, err = secureBootKeys(plan, r); err != nil {
		return none, fmt.Errorf("%s: %w", name, err)
	}
	return publish.Disk{ReaderAt: r, Size: plan.Size, ID: plan.GUID.String()}, nil
}

func holdsConfig(p *image.Plan) bool {
	for _, e := range p.Extents {
		if e.What == "/"+image.ConfigName {
			return true
		}
	}
	return false
}

// secureBootKeys are those that the image brings along. An image built with --secure-boot=false has none.
func secureBootKeys(p *image.Plan, r io.ReaderAt) ([]publish.Variable, error) {
	var vars []publish.Variable
	for _, e := range p.Extents {
		name, ok := strings.CutPrefix(e.What, "/loader/keys/auto/")
		if !ok {
			continue
		}
		data := make([]byte, e.Size)
		if _, err := r.ReadAt(data, e.Offset); err != nil {
			return nil, err
		}
		vars = append(vars, publish.Variable{Name: strings.TrimSuffix(name, ".auth"), Auth: data})
	}
	return vars, nil
}

// run checks an image, publishes it, and says what was done, also if that was not all.
func (p *publishFlags) run(cmd *cobra.Command, name string, to func(context.Context, publish.Disk) (*publish.Report, error)) error {
	keys, err := p.begin(cmd, name)
	if err != nil {
		return err
	}
	f, r, n, err := openToPublish(name)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	d, err := p.inspect(cmd.Context(), r, n, name, keys)
	if err != nil {
		return err
	}
	report, err := to(cmd.Context(), d)
	return errors.Join(err, p.print(cmd.OutOrStdout(), report, err != nil))
}

// openToPublish gives the disk in a file of any form that can be read in place.
func openToPublish(name string) (f *os.File, r io.ReaderAt, n int64, err error) {
	if f, err = os.Open(name); err != nil {
		return nil, nil, 0, err
	}
	if r, n, err = openDisk(f); err != nil {
		_ = f.Close()
		return nil, nil, 0, fmt.Errorf("%s: %w", name, err)
	}
	return f, r, n, nil
}

// teller prints lines for the operator.
func teller(cmd *cobra.Command) func(string, ...any) {
	return func(format string, a ...any) { _, _ = fmt.Fprintf(cmd.ErrOrStderr(), format+"\n", a...) }
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

// print says what was done. Of a run that failed it is what is there all the same.
func (p *publishFlags) print(w io.Writer, r *publish.Report, failed bool) error {
	if r == nil {
		return nil
	}
	r.Failed = failed
	if p.asJSON {
		return printJSON(w, r)
	}
	if r.DryRun && !failed {
		_, err := fmt.Fprintf(w, "would publish %s from %s %s: %d blocks of %v; every right is there, nothing was made\n", r.Name, p.words.account, r.Account, r.Blocks, size.Bytes(r.BlockSize))
		return err
	}
	for _, i := range r.Images {
		if _, err := fmt.Fprintf(w, "%s  %s  %s\n", i.Region, i.Image, cmp.Or(i.Snapshot, i.Source)); err != nil {
			return err
		}
	}
	if failed {
		return nil
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

// published is an image that a cloud has, wherever its flags say. With dryRun nothing is changed: what would be is given.
type published interface {
	Deprecate(ctx context.Context, name string, at time.Time, dryRun bool) ([]publish.Image, error)
	Delete(ctx context.Context, name string, dryRun bool) ([]publish.Image, error)
}

// afterwards are the commands for an image that is published: what they are for, and where it is.
type afterwards struct {
	image   string // such as: an AMI
	with    string // what goes with it
	example string // flags
	bind    func(f *pflag.FlagSet)
	open    func(cmd *cobra.Command) (published, error)
}

// add makes the commands below the cloud's own.
func (a *afterwards) add(parent *cobra.Command) {
	var on string
	deprecate := &cobra.Command{
		Use:     "deprecate NAME --on DAY",
		Short:   "Say from which day on " + a.image + " is out of date",
		Example: "  skerry publish " + parent.Name() + " deprecate " + a.example + " --on 2027-06-30",
	}
	deprecate.Flags().StringVar(&on, "on", "", "the day, as 2027-06-30 (required)")
	_ = deprecate.MarkFlagRequired("on")
	remove := &cobra.Command{
		Use:     "delete NAME",
		Short:   "Remove " + a.image + " and " + a.with,
		Example: "  skerry publish " + parent.Name() + " delete " + a.example,
	}
	for cmd, would := range map[*cobra.Command]string{deprecate: "deprecate", remove: "delete"} {
		a.bind(cmd.Flags())
		asJSON := cmd.Flags().Bool("json", false, "print what was done as JSON")
		dryRun := cmd.Flags().Bool("dry-run", false, "look for the image and for rights, and change nothing")
		cmd.Args = cobra.ExactArgs(1)
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			at, err := day(on)
			if err != nil {
				return err
			}
			there, err := a.open(cmd)
			if err != nil {
				return err
			}
			var images []publish.Image
			if cmd == deprecate {
				images, err = there.Deprecate(cmd.Context(), args[0], at, *dryRun)
			} else {
				images, err = there.Delete(cmd.Context(), args[0], *dryRun)
			}
			switch {
			case *asJSON && images != nil:
				return errors.Join(err, printJSON(cmd.OutOrStdout(), images))
			case *dryRun && err == nil:
				for _, i := range images {
					if _, err := fmt.Fprintln(cmd.OutOrStdout(), strings.Join(strings.Fields(strings.Join([]string{"would", would, i.Region, i.Image, i.Snapshot, i.Source}, " ")), " ")); err != nil {
						return err
					}
				}
			}
			return err
		}
		parent.AddCommand(cmd)
	}
}
