package crictl

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func (t *tool) listImages() *cobra.Command {
	var quiet, whole, digests, verbose bool
	var output string
	cmd := &cobra.Command{Use: "images [NAME]", Aliases: []string{"image", "img"}, Short: "List images", Args: cobra.MaximumNArgs(1), Example: "  crictl images -o json"}
	f := cmd.Flags()
	f.BoolVarP(&quiet, "quiet", "q", false, "only their IDs")
	f.BoolVar(&whole, "no-trunc", false, "whole IDs")
	f.BoolVar(&digests, "digests", false, "with their digests")
	f.BoolVarP(&verbose, "verbose", "v", false, "every name and digest")
	f.StringVarP(&output, "output", "o", "", "table or json")
	cmd.RunE = t.run(func(cmd *cobra.Command, args []string) error {
		asJSON, err := wantsJSON(output)
		if err != nil {
			return err
		}
		filter := &cri.ImageFilter{}
		if len(args) > 0 {
			filter.Image = &cri.ImageSpec{Image: args[0]}
		}
		list, err := t.images.ListImages(cmd.Context(), filter)
		if err != nil {
			return err
		}
		slices.SortFunc(list, func(a, b *cri.Image) int { return strings.Compare(imageNames(a)[0], imageNames(b)[0]) })
		if asJSON {
			messages := make([]proto.Message, 0, len(list))
			for _, i := range list {
				messages = append(messages, i)
			}
			return printJSON(cmd, "images", messages...)
		}
		var ids []string
		var rows [][]string
		head := []string{"IMAGE", "TAG", "IMAGE ID", "SIZE"}
		if digests {
			head = []string{"IMAGE", "TAG", "DIGEST", "IMAGE ID", "SIZE"}
		}
		for _, i := range list {
			ids = append(ids, i.Id)
			id := shorten(i.Id)
			if whole {
				id = i.Id
			}
			digest := "<none>"
			if len(i.RepoDigests) > 0 {
				_, digest, _ = strings.Cut(i.RepoDigests[0], "@")
			}
			if verbose {
				rows = append(rows, []string{"ID: " + i.Id}, []string{"RepoTags: " + strings.Join(i.RepoTags, ", ")},
					[]string{"RepoDigests: " + strings.Join(i.RepoDigests, ", ")}, []string{"Size: " + bytesText(i.Size)}, []string{""})
				continue
			}
			for _, name := range imageNames(i) {
				repo, tag := name, "<none>"
				if n := strings.LastIndex(name, ":"); n > strings.LastIndex(name, "/") {
					repo, tag = name[:n], name[n+1:]
				}
				row := []string{repo, tag, id, bytesText(i.Size)}
				if digests {
					row = slices.Insert(row, 2, shorten(digest))
				}
				rows = append(rows, row)
			}
		}
		switch {
		case quiet:
			return lines(cmd, ids)
		case verbose:
			var texts []string
			for _, r := range rows {
				texts = append(texts, r[0])
			}
			return lines(cmd, texts)
		}
		return table(cmd, head, rows)
	})
	return cmd
}

// imageNames are an image's tags, or its name without one.
func imageNames(i *cri.Image) []string {
	switch {
	case len(i.RepoTags) > 0:
		return i.RepoTags
	case len(i.RepoDigests) > 0:
		name, _, _ := strings.Cut(i.RepoDigests[0], "@")
		return []string{name}
	}
	return []string{"<none>"}
}

func (t *tool) inspectImage() *cobra.Command {
	cmd := &cobra.Command{Use: "inspecti IMAGE...", Short: "Show all about images", Example: "  crictl inspecti skerry.local/pause:1"}
	cmd.Flags().StringP("output", "o", "json", "json")
	cmd.RunE = t.run(func(cmd *cobra.Command, args []string) error {
		var out []json.RawMessage
		err := each(args, "image", func(name string) error {
			r, err := t.images.ImageStatus(cmd.Context(), &cri.ImageSpec{Image: name}, true)
			if err != nil {
				return err
			}
			if r.Image == nil {
				return fmt.Errorf("no image is called %q", name)
			}
			text, err := withInfo(r.Image, r.Info)
			out = append(out, text)
			return err
		})
		if len(out) > 0 {
			err = errors.Join(printRaw(cmd, out), err)
		}
		return err
	})
	return cmd
}

func (t *tool) pull() *cobra.Command {
	cmd := &cobra.Command{Use: "pull IMAGE", Short: "Pull an image", Args: cobra.ExactArgs(1), Example: "  crictl pull --creds user:password registry.example.org/app:1"}
	creds := cmd.Flags().String("creds", "", "who pulls, as user:password")
	auth := cmd.Flags().String("auth", "", "the same in base64")
	cmd.RunE = t.run(func(cmd *cobra.Command, args []string) error {
		var a *cri.AuthConfig
		if *creds != "" {
			user, password, ok := strings.Cut(*creds, ":")
			if !ok {
				return errors.New("--creds: write user:password")
			}
			a = &cri.AuthConfig{Username: user, Password: password}
		} else if *auth != "" {
			a = &cri.AuthConfig{Auth: *auth}
		}
		id, err := t.images.PullImage(cmd.Context(), &cri.ImageSpec{Image: args[0], UserSpecifiedImage: args[0]}, a, nil)
		if err != nil {
			return err
		}
		return lines(cmd, []string{"Image is up to date for " + id})
	})
	return cmd
}

func (t *tool) removeImage() *cobra.Command {
	cmd := &cobra.Command{Use: "rmi [IMAGE...]", Short: "Remove images", Example: "  crictl rmi --prune"}
	prune := cmd.Flags().BoolP("prune", "q", false, "those that no container uses and that the release did not bring")
	all := cmd.Flags().BoolP("all", "a", false, "all of them")
	cmd.RunE = t.run(func(cmd *cobra.Command, args []string) error {
		ctx := cmd.Context()
		list, err := t.images.ListImages(ctx, nil)
		if err != nil {
			return err
		}
		used := map[string]bool{}
		if *prune {
			containers, err := t.runtime.ListContainers(ctx, nil)
			if err != nil {
				return err
			}
			for _, c := range containers {
				used[c.ImageRef], used[c.GetImage().GetImage()], used[c.ImageId] = true, true, true
			}
		}
		for _, i := range list {
			if *all || *prune && !i.Pinned && !used[i.Id] && !slices.ContainsFunc(append(i.RepoDigests, i.RepoTags...), func(n string) bool { return used[n] }) {
				args = append(args, i.Id)
			}
		}
		if (*all || *prune) && len(args) == 0 {
			return nil
		}
		return each(args, "image", func(name string) error {
			r, err := t.images.ImageStatus(ctx, &cri.ImageSpec{Image: name}, false)
			if err != nil {
				return err
			}
			if r.Image == nil {
				return fmt.Errorf("no image is called %q", name)
			}
			if err := t.images.RemoveImage(ctx, &cri.ImageSpec{Image: r.Image.Id}); err != nil {
				return err
			}
			var said []string
			for _, n := range imageNames(r.Image) {
				said = append(said, "Deleted: "+n)
			}
			return lines(cmd, said)
		})
	})
	return cmd
}

func (t *tool) imageFilesystem() *cobra.Command {
	cmd := &cobra.Command{Use: "imagefsinfo", Short: "Show how much room images take", Args: cobra.NoArgs, Example: "  crictl imagefsinfo"}
	cmd.Flags().StringP("output", "o", "json", "json")
	cmd.RunE = t.run(func(cmd *cobra.Command, _ []string) error {
		r, err := t.images.ImageFsInfo(cmd.Context())
		if err != nil {
			return err
		}
		return printJSON(cmd, "", r)
	})
	return cmd
}

func (t *tool) info() *cobra.Command {
	cmd := &cobra.Command{Use: "info", Short: "Show the runtime's state and configuration", Args: cobra.NoArgs, Example: "  crictl info"}
	cmd.Flags().StringP("output", "o", "json", "json")
	cmd.RunE = t.run(func(cmd *cobra.Command, _ []string) error {
		r, err := t.runtime.Status(cmd.Context(), true)
		if err != nil {
			return err
		}
		text, err := withInfo(r.Status, r.Info)
		if err != nil {
			return err
		}
		return printRaw(cmd, []json.RawMessage{text})
	})
	return cmd
}

func (t *tool) version() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Show the runtime's version", Args: cobra.NoArgs, Example: "  crictl version",
		RunE: t.run(func(cmd *cobra.Command, _ []string) error {
			v, err := t.runtime.Version(cmd.Context(), "v1")
			if err != nil {
				return err
			}
			return lines(cmd, []string{"Version:  " + v.Version, "RuntimeName:  " + v.RuntimeName, "RuntimeVersion:  " + v.RuntimeVersion, "RuntimeApiVersion:  " + v.RuntimeApiVersion})
		}),
	}
}
