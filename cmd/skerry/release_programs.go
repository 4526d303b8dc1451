package main

import (
	"fmt"
	"path/filepath"
	"runtime"
	"time"

	"github.com/spf13/cobra"

	"github.com/skerry-os/skerry/image/compose"
	"github.com/skerry-os/skerry/pkg/debian"
)

func newReleaseProgramsCmd() *cobra.Command {
	var arch, out, source string
	var mirrors []string
	cmd := &cobra.Command{
		Use:   "programs",
		Short: "Build a node's programs and component images alone",
		Long: "Build the first part of a release: skerryd, init, the pod runtime, runc and the component images, in a folder laid out as\n" +
			"a node's root. skerryd runs from there on any Linux: DIR/usr/bin/skerryd server.",
		Example: "  skerry release programs --arch arm64 -o out/arm64",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			src, err := compose.FindSource(cmd.Context(), source)
			if err != nil {
				return err
			}
			if out == "" {
				out = filepath.Join(src.Dir, "out", arch)
			}
			m, err := hostMirrors(cmd, mirrors)
			if err != nil && arch != runtime.GOARCH { // else nothing of Debian's is needed
				return err
			}
			store := &debian.Store{Dir: cacheDir(), Mirrors: m.All(), Retry: 5 * time.Second}
			kubernetes, err := compose.Programs(cmd.Context(), src, arch, out, false, store, compose.NewLog(cmd.ErrOrStderr()))
			if err != nil {
				return fmt.Errorf("release programs: %w", err)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: Skerry %s with Kubernetes %s\n", out, src.Version, kubernetes)
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&arch, "arch", "amd64", "architecture: amd64, arm64 or arm")
	f.StringVarP(&out, "output", "o", "", "folder to fill (default: out/ARCH in the source)")
	f.StringVar(&source, "source", ".", "a folder inside Skerry's source")
	mirrorFlag(cmd, &mirrors)
	return cmd
}
