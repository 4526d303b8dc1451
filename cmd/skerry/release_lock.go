package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/skerry-os/skerry/image/compose"
	"github.com/skerry-os/skerry/pkg/atomicfile"
	"github.com/skerry-os/skerry/pkg/debian"
)

func newReleaseLockCmd() *cobra.Command {
	var source string
	var mirrors, arches []string
	cmd := &cobra.Command{
		Use:   "lock",
		Short: "Pin the newest Debian packages in the source's lock file",
		Long: "Pin the newest Debian packages in the source's lock file. With --arch, those of other architectures stay as they are: for a\n" +
			"mirror that has not got all of them together.",
		Example: "  skerry release lock && git diff image/debian",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			file := filepath.Join(source, compose.LockName)
			had, err := os.ReadFile(file)
			if err != nil {
				return fmt.Errorf("%w: name the source folder with --source", err)
			}
			old, err := debian.ParseLock(file, had)
			if err != nil {
				return err
			}
			want, err := compose.Wanted()
			if err != nil {
				return err
			}
			if err := only(want, arches); err != nil {
				return err
			}
			m, err := hostMirrors(cmd, mirrors)
			if err != nil {
				return err
			}
			say := func(s string) { _, _ = fmt.Fprintln(cmd.ErrOrStderr(), "lock:", s) }
			lock, err := debian.Resolve(cmd.Context(), want, m, filepath.Join(cacheDir(), "apt"), say)
			if err != nil {
				return err
			}
			for arch, packages := range old.Arches {
				if _, renewed := lock.Arches[arch]; !renewed && len(arches) > 0 {
					lock.Arches[arch] = packages
				}
			}
			data, err := lock.Marshal()
			if err != nil {
				return err
			}
			if err := atomicfile.Write(file, data, 0o644); err != nil {
				return err
			}
			say("wrote " + file)
			return nil
		},
	}
	cmd.Flags().StringVar(&source, "source", ".", "the source folder")
	cmd.Flags().StringSliceVar(&arches, "arch", nil, "architecture to renew the packages of; repeatable (default: all)")
	mirrorFlag(cmd, &mirrors)
	return cmd
}

// only leaves architectures in the list; none means all of it.
func only(w *debian.Want, arches []string) error {
	for _, a := range arches {
		if !slices.Contains(w.Arches, a) {
			return fmt.Errorf("--arch %q: is not one of %s", a, strings.Join(w.Arches, ", "))
		}
	}
	if len(arches) > 0 {
		w.Arches = slices.DeleteFunc(w.Arches, func(a string) bool { return !slices.Contains(arches, a) })
	}
	return nil
}

func mirrorFlag(cmd *cobra.Command, mirrors *[]string) {
	cmd.Flags().StringSliceVar(mirrors, "mirror", nil, "base address of a Debian archive (default: those of the host's apt configuration)")
}

// hostMirrors is the flag's archives, or else the host's. One that is named is asked for everything.
func hostMirrors(cmd *cobra.Command, flag []string) (debian.Mirrors, error) {
	if len(flag) > 0 {
		return debian.NewMirrors(flag), nil
	}
	return debian.HostMirrors(cmd.Context())
}

// cacheDir is where downloads are kept between builds.
func cacheDir() string {
	if dir := os.Getenv("SKERRY_CACHE"); dir != "" {
		return dir
	}
	if dir, err := os.UserCacheDir(); err == nil {
		return filepath.Join(dir, "skerry")
	}
	return filepath.Join(os.TempDir(), fmt.Sprintf("skerry-cache-%d", os.Getuid()))
}
