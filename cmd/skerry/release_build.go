package main

import (
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

func newReleaseBuildCmd() *cobra.Command {
	var arch, keyDir, signWith, out, source, work, version string
	var mirrors []string
	var configTrust configTrustFlags
	var add compose.Additions
	var quiet, asJSON, clouds, debug bool
	cmd := &cobra.Command{
		Use:   "build --keys DIR -o DIR",
		Short: "Build a signed release from the source",
		Long: "Build a release of one architecture: Debian packages pinned by the lock file, programs from the source folder, everything\n" +
			"signed with a key folder that `skerry keys new` made. The release folder appears whole or not at all; a release that is\n" +
			"there is replaced in one step. The same source and keys give the same bytes.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if keyDir == "" || out == "" {
				return errors.New("release build: name the keys with --keys and the folder to make with -o")
			}
			set, err := keys.Load(keyDir, keys.ParseCommand(signWith))
			if err != nil {
				return err
			}
			policy, configKeys, err := configTrust.load()
			if err != nil {
				return err
			}
			src, err := compose.FindSource(cmd.Context(), source)
			if err != nil {
				return err
			}
			if version != "" {
				src.Version = version
			}
			m, err := hostMirrors(cmd, mirrors)
			if err != nil {
				return err
			}
			if work == "" {
				work = filepath.Join(src.Dir, "out")
			}
			log := compose.NewLog(cmd.ErrOrStderr())
			if quiet {
				log = compose.NewLog(io.Discard)
			}
			s, err := compose.Build(cmd.Context(), compose.Options{
				Source: src, Arch: arch, Keys: set, Out: out, Work: work, Cache: cacheDir(), Mirrors: m.All(), Log: log, Clouds: clouds, Debug: debug,
				ConfigPolicy: policy, ConfigKeys: configKeys, Additions: add,
			})
			if err != nil {
				return fmt.Errorf("release build: %w", err)
			}
			return printSummary(cmd.OutOrStdout(), s, asJSON)
		},
	}
	f := cmd.Flags()
	f.StringArrayVar(&add.Overlays, "overlay", nil, "folder whose files are laid over the root; they add to the release's and replace none; repeatable")
	f.StringSliceVar(&add.Modules, "extra-module", nil, "kernel module to carry besides those of the boards, for a node config's modules; repeatable")
	f.BoolVar(&add.WiFi, "wifi", false, "bring wpa_supplicant for any board; its card's driver comes by --extra-module, the driver's firmware by --overlay")
	f.StringArrayVar(&add.KernelArgs, "kernel-arg", nil, "word for the kernel's command line, as mitigations=off; repeatable")
	f.StringArrayVar(&add.Archives, "image-archive", nil, "container images to bring along (a .tar of docker save or an OCI layout), served from the read-only root; repeatable")
	configTrust.bind(cmd, "every machine of this release, in its signed initramfs: with Secure Boot nobody with the disk in hand can change it")
	f.StringVar(&arch, "arch", "amd64", "architecture: amd64, arm64 or arm")
	f.StringVar(&keyDir, "keys", "", "key folder, as made by `skerry keys new`")
	signWithFlag(cmd, &signWith)
	f.StringVarP(&out, "output", "o", "", "release folder to make or replace")
	f.StringVar(&source, "source", ".", "a folder inside Skerry's source")
	f.StringVar(&work, "work", "", "folder for staging (default: out in the source)")
	f.StringVar(&version, "version", "", "what the release calls itself (default: what git describe says)")
	f.BoolVar(&clouds, "clouds", false, "kernel images for the boards of clouds and hypervisors, too (aws, gcp, ...)")
	f.BoolVar(&debug, "debug", false, "a release to look into: a root shell on every console, and over SSH for the keys of the node config (ssh.keys)")
	f.BoolVar(&quiet, "quiet", false, "no progress")
	f.BoolVar(&asJSON, "json", false, "print the summary as JSON")
	mirrorFlag(cmd, &mirrors)
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
