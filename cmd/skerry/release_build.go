package main

import (
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/skerry-os/skerry/image/compose"
	"github.com/skerry-os/skerry/pkg/keys"
	"github.com/skerry-os/skerry/pkg/machine"
)

// releaseBuild is what a release is built of.
type releaseBuild struct {
	arch, keyDir, signWith, out, source, work, version string

	mirrors              []string
	configTrust          configTrustFlags
	add                  compose.Additions
	quiet, clouds, debug bool
}

// run builds it, and tells how far it is.
func (r *releaseBuild) run(cmd *cobra.Command) (*compose.Summary, error) {
	set, err := keys.Load(r.keyDir, keys.ParseCommand(r.signWith))
	if err != nil {
		return nil, err
	}
	policy, configKeys, err := r.configTrust.load()
	if err != nil {
		return nil, err
	}
	src, err := compose.FindSource(cmd.Context(), r.source)
	if err != nil {
		return nil, err
	}
	if r.version != "" {
		src.Version = r.version
	}
	m, err := hostMirrors(cmd, r.mirrors)
	if err != nil {
		return nil, err
	}
	log := compose.NewLog(cmd.ErrOrStderr())
	if r.quiet {
		log = compose.NewLog(io.Discard)
	}
	s, err := compose.Build(cmd.Context(), compose.Options{
		Source: src, Arch: r.arch, Keys: set, Out: cmp.Or(r.out, filepath.Join(src.Dir, "out", r.ownName())), Work: cmp.Or(r.work, filepath.Join(src.Dir, "out")),
		Cache: cacheDir(), Mirrors: m.All(), Log: log, Clouds: r.clouds, Debug: r.debug, ConfigPolicy: policy, ConfigKeys: configKeys, Additions: r.add,
	})
	if err != nil {
		return nil, fmt.Errorf("release build: %w", err)
	}
	return s, nil
}

// ownName is the folder of a release with additions for which nobody named one: the same for the same additions.
func (r *releaseBuild) ownName() string {
	said, _ := json.Marshal([]any{r.add, r.clouds}) // of names and words alone
	return fmt.Sprintf("release-%s-with-%x", r.arch, sha256.Sum256(said))[:len("release--with-")+len(r.arch)+8]
}

// bindMeans are the flags for what a release is built with.
func (r *releaseBuild) bindMeans(cmd *cobra.Command) {
	cmd.Flags().StringVar(&r.source, "source", ".", "a folder inside Skerry's source, which a release is built from")
	signWithFlag(cmd, &r.signWith)
	mirrorFlag(cmd, &r.mirrors)
}

// bindAdditions are the flags for what a person adds to what is signed, and what tells the first that is given.
func bindAdditions(cmd *cobra.Command, add *compose.Additions) (given func() string) {
	f := cmd.Flags()
	f.StringArrayVar(&add.Overlays, "overlay", nil, "folder whose files are laid over the root; they add to the release's and replace none; repeatable")
	f.StringSliceVar(&add.Modules, "extra-module", nil, "kernel module to carry besides those of the boards, for a node config's modules; repeatable")
	f.BoolVar(&add.WiFi, "wifi", false, "bring wpa_supplicant for any board; its card's driver comes by --extra-module, the driver's firmware by --overlay")
	f.StringArrayVar(&add.KernelArgs, "kernel-arg", nil, "word for the kernel's command line, as mitigations=off; repeatable")
	f.StringArrayVar(&add.Archives, "image-archive", nil, "container images to bring along (a .tar of docker save or an OCI layout), served from the read-only root; repeatable")
	return func() string {
		for _, name := range []string{"overlay", "extra-module", "wifi", "kernel-arg", "image-archive"} {
			if f.Changed(name) {
				return name
			}
		}
		return ""
	}
}

func newReleaseBuildCmd() *cobra.Command {
	var r releaseBuild
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "build --keys DIR -o DIR",
		Short: "Build a signed release from the source",
		Long: "Build a release of one architecture: Debian packages pinned by the lock file, programs from the source folder, everything\n" +
			"signed with a key folder that `skerry keys new` made. The release folder appears whole or not at all; a release that is\n" +
			"there is replaced in one step. The same source and keys give the same bytes.",
		Example: "  skerry release build --keys out/keys -o out/release\n" +
			"  skerry release build --keys out/keys -o out/mine --overlay motd --image-archive app.tar --kernel-arg mitigations=off",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if r.keyDir == "" || r.out == "" {
				return errors.New("release build: name the keys with --keys and the folder to make with -o")
			}
			s, err := r.run(cmd)
			if err != nil {
				return err
			}
			return printSummary(cmd.OutOrStdout(), s, asJSON)
		},
	}
	f := cmd.Flags()
	bindAdditions(cmd, &r.add)
	r.configTrust.bind(cmd, "every machine of this release, in its signed initramfs: with Secure Boot nobody with the disk in hand can change it")
	f.StringVar(&r.arch, "arch", "amd64", "architecture: amd64, arm64 or arm")
	f.StringVar(&r.keyDir, "keys", "", "key folder, as made by skerry keys new")
	r.bindMeans(cmd)
	f.StringVarP(&r.out, "output", "o", "", "release folder to make or replace")
	f.StringVar(&r.work, "work", "", "folder for staging (default: out in the source)")
	f.StringVar(&r.version, "version", "", "what the release calls itself (default: what git describe says)")
	f.BoolVar(&r.clouds, "clouds", false, "kernel images for the boards of clouds and hypervisors, too (aws, gcp, ...)")
	f.BoolVar(&r.debug, "debug", false, "a release to look into: a root shell on every console, and over SSH for the keys of the node config (ssh.keys)")
	f.BoolVar(&r.quiet, "quiet", false, "no progress")
	f.BoolVar(&asJSON, "json", false, "print the summary as JSON")
	return cmd
}

func printSummary(w io.Writer, s *compose.Summary, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(w).Encode(s)
	}
	for _, f := range s.Files {
		if _, err := fmt.Fprintf(w, "%9.1f MB  %.12s  %s\n", float64(f.Size)/1e6, f.SHA256, f.Path); err != nil {
			return err
		}
	}
	if s.Debug {
		if _, err := fmt.Fprintln(w, machine.DebugNotice); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(w, "%9.1f MB  %s: Skerry %s for %s with Kubernetes %s, in %.0f s\n", float64(s.Bytes)/1e6, s.Dir, s.Version, s.Arch, s.Kubernetes, s.Seconds)
	return err
}
