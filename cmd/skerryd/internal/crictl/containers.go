package crictl

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	"google.golang.org/protobuf/proto"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-client/pkg/logs"
)

func (t *tool) container(ctx context.Context, id string) (string, error) {
	list, err := t.runtime.ListContainers(ctx, nil)
	if err != nil {
		return "", err
	}
	ids := make([]string, 0, len(list))
	for _, c := range list {
		ids = append(ids, c.Id)
	}
	return pick("container", id, ids)
}

var states = map[string]cri.ContainerState{
	"created": cri.ContainerState_CONTAINER_CREATED, "running": cri.ContainerState_CONTAINER_RUNNING,
	"exited": cri.ContainerState_CONTAINER_EXITED, "unknown": cri.ContainerState_CONTAINER_UNKNOWN,
}

func stateName(s cri.ContainerState) string {
	name := strings.TrimPrefix(s.String(), "CONTAINER_")
	return name[:1] + strings.ToLower(name[1:])
}

func (t *tool) ps() *cobra.Command {
	var all, quiet, whole, latest bool
	var name, state, pod, image, output string
	var labels []string
	var last int
	cmd := &cobra.Command{Use: "ps", Short: "List containers; those that run, without -a", Args: cobra.NoArgs, Example: "  crictl ps -a --name coredns -o json"}
	f := cmd.Flags()
	f.BoolVarP(&all, "all", "a", false, "those that have ended, too")
	f.BoolVarP(&quiet, "quiet", "q", false, "only their IDs")
	f.BoolVar(&whole, "no-trunc", false, "whole IDs")
	f.BoolVarP(&latest, "latest", "l", false, "the newest one, whatever its state")
	f.IntVarP(&last, "last", "n", 0, "the newest N, whatever their state")
	f.StringVar(&name, "name", "", "those whose name has this in it")
	f.StringVarP(&state, "state", "s", "", "created, running, exited or unknown")
	f.StringVarP(&pod, "pod", "p", "", "those of this pod's ID")
	f.StringVar(&image, "image", "", "those of images with this in their name")
	f.StringSliceVar(&labels, "label", nil, "those with this label, as key=value; repeatable")
	f.StringVarP(&output, "output", "o", "", "table or json")
	cmd.RunE = t.run(func(cmd *cobra.Command, _ []string) error {
		asJSON, err := wantsJSON(output)
		if err != nil {
			return err
		}
		filter := &cri.ContainerFilter{}
		if latest {
			last = 1
		}
		switch {
		case state != "":
			s, ok := states[strings.ToLower(state)]
			if !ok {
				return fmt.Errorf("--state: %q is not one of created, running, exited, unknown", state)
			}
			filter.State = &cri.ContainerStateValue{State: s}
		case !all && last == 0:
			filter.State = &cri.ContainerStateValue{State: cri.ContainerState_CONTAINER_RUNNING}
		}
		for _, l := range labels {
			key, value, _ := strings.Cut(l, "=")
			if filter.LabelSelector == nil {
				filter.LabelSelector = map[string]string{}
			}
			filter.LabelSelector[key] = value
		}
		list, err := t.runtime.ListContainers(cmd.Context(), filter)
		if err != nil {
			return err
		}
		list = slices.DeleteFunc(list, func(c *cri.Container) bool {
			return !strings.Contains(c.GetMetadata().GetName(), name) || !strings.HasPrefix(c.PodSandboxId, pod) ||
				!strings.Contains(c.GetImage().GetUserSpecifiedImage()+" "+c.GetImage().GetImage(), image)
		})
		slices.SortStableFunc(list, func(a, b *cri.Container) int { return int(b.CreatedAt - a.CreatedAt) })
		if last > 0 && last < len(list) {
			list = list[:last]
		}
		if asJSON {
			messages := make([]proto.Message, 0, len(list))
			for _, c := range list {
				messages = append(messages, c)
			}
			return printJSON(cmd, "containers", messages...)
		}
		if quiet {
			ids := make([]string, 0, len(list))
			for _, c := range list {
				ids = append(ids, c.Id)
			}
			return lines(cmd, ids)
		}
		cut := shorten
		if whole {
			cut = func(s string) string { return s }
		}
		var rows [][]string
		for _, c := range list {
			image := c.GetImage().GetUserSpecifiedImage()
			if image == "" {
				image = cut(c.GetImage().GetImage())
			}
			rows = append(rows, []string{
				cut(c.Id), image, ago(time.Unix(0, c.CreatedAt)), stateName(c.State), c.GetMetadata().GetName(), strconv.Itoa(int(c.GetMetadata().GetAttempt())),
				cut(c.PodSandboxId), c.Labels["io.kubernetes.pod.name"], c.Labels["io.kubernetes.pod.namespace"],
			})
		}
		return table(cmd, []string{"CONTAINER", "IMAGE", "CREATED", "STATE", "NAME", "ATTEMPT", "POD ID", "POD", "NAMESPACE"}, rows)
	})
	return cmd
}

func (t *tool) inspect() *cobra.Command {
	cmd := &cobra.Command{Use: "inspect CONTAINER...", Short: "Show all about containers", Example: "  crictl inspect 3f2a"}
	output := cmd.Flags().StringP("output", "o", "json", "json")
	cmd.RunE = t.run(func(cmd *cobra.Command, args []string) error {
		if *output != "json" {
			return fmt.Errorf("-o: %q is not json", *output)
		}
		var out []json.RawMessage
		err := each(args, "container", func(id string) error {
			full, err := t.container(cmd.Context(), id)
			if err != nil {
				return err
			}
			r, err := t.runtime.ContainerStatus(cmd.Context(), full, true)
			if err != nil {
				return err
			}
			text, err := withInfo(r.Status, r.Info)
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

func (t *tool) stop() *cobra.Command {
	cmd := &cobra.Command{Use: "stop CONTAINER...", Short: "Stop containers; kubelet starts them again", Example: "  crictl stop 3f2a"}
	grace := cmd.Flags().Int64("grace", 0, "seconds to end by itself") // -t is the whole call's timeout
	cmd.RunE = t.run(func(cmd *cobra.Command, args []string) error {
		return each(args, "container", func(id string) error {
			full, err := t.container(cmd.Context(), id)
			if err != nil {
				return err
			}
			if err := t.runtime.StopContainer(cmd.Context(), full, *grace); err != nil {
				return err
			}
			return lines(cmd, []string{id})
		})
	})
	return cmd
}

func (t *tool) remove() *cobra.Command {
	cmd := &cobra.Command{Use: "rm [CONTAINER...]", Short: "Remove containers that have ended", Example: "  crictl rm 3f2a"}
	force := cmd.Flags().BoolP("force", "f", false, "stop those that run, first")
	all := cmd.Flags().BoolP("all", "a", false, "all of them; those that run only with --force")
	cmd.RunE = t.run(func(cmd *cobra.Command, args []string) error {
		ctx := cmd.Context()
		list, err := t.runtime.ListContainers(ctx, nil)
		if err != nil {
			return err
		}
		running := map[string]bool{}
		for _, c := range list {
			running[c.Id] = c.State == cri.ContainerState_CONTAINER_RUNNING
			if *all && (*force || !running[c.Id]) {
				args = append(args, c.Id)
			}
		}
		if *all && len(args) == 0 {
			return nil
		}
		return each(args, "container", func(id string) error {
			full, err := t.container(ctx, id)
			if err != nil {
				return err
			}
			if running[full] {
				if !*force {
					return fmt.Errorf("container %s runs; stop it first, or use --force", id)
				}
				if err := t.runtime.StopContainer(ctx, full, 0); err != nil {
					return err
				}
			}
			if err := t.runtime.RemoveContainer(ctx, full); err != nil {
				return err
			}
			return lines(cmd, []string{id})
		})
	})
	return cmd
}

func (t *tool) logs() *cobra.Command {
	var follow, stamps, previous bool
	var tail int64
	var since string
	cmd := &cobra.Command{Use: "logs CONTAINER", Short: "Show what a container wrote", Args: cobra.ExactArgs(1), Example: "  crictl logs -f --tail 20 3f2a"}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on as it writes more")
	cmd.Flags().Int64Var(&tail, "tail", -1, "only the last N lines")
	cmd.Flags().BoolVar(&stamps, "timestamps", false, "with the time of each line")
	cmd.Flags().StringVar(&since, "since", "", "since a time (2006-01-02T15:04:05Z) or for so long (10m)")
	cmd.Flags().BoolVarP(&previous, "previous", "p", false, "of the container before this one")
	cmd.RunE = t.run(func(cmd *cobra.Command, args []string) error {
		ctx := cmd.Context()
		id, err := t.container(ctx, args[0])
		if err != nil {
			return err
		}
		r, err := t.runtime.ContainerStatus(ctx, id, false)
		if err != nil {
			return err
		}
		path := r.GetStatus().GetLogPath()
		if path == "" {
			return fmt.Errorf("container %s keeps no log", args[0])
		}
		if previous {
			attempt := int(r.GetStatus().GetMetadata().GetAttempt())
			if attempt == 0 {
				return fmt.Errorf("container %s is the first of its name", args[0])
			}
			path = filepath.Join(filepath.Dir(path), strconv.Itoa(attempt-1)+".log")
		}
		options := &logs.LogOptions{Follow: follow, Timestamp: stamps}
		if tail >= 0 {
			options.TailLines = &tail
		}
		if since != "" {
			if d, err := time.ParseDuration(since); err == nil {
				options.Since = time.Now().Add(-d)
			} else if options.Since, err = time.Parse(time.RFC3339Nano, since); err != nil {
				return fmt.Errorf("--since: %q is neither a time nor a duration", since)
			}
		}
		return logs.ReadLogs(ctx, path, id, options, t.runtime, cmd.OutOrStdout(), cmd.ErrOrStderr())
	})
	return cmd
}

func (t *tool) exec() *cobra.Command {
	var stdin, tty, sync bool
	cmd := &cobra.Command{Use: "exec CONTAINER COMMAND...", Short: "Run a command in a container", Args: cobra.MinimumNArgs(2), Example: "  crictl exec -it 3f2a sh"}
	cmd.Flags().SetInterspersed(false)
	cmd.Flags().BoolVarP(&stdin, "interactive", "i", false, "with standard input")
	cmd.Flags().BoolVarP(&tty, "tty", "t", false, "on a terminal")
	cmd.Flags().BoolVarP(&sync, "sync", "s", false, "wait for the end, then print")
	cmd.RunE = t.run(func(cmd *cobra.Command, args []string) error {
		ctx := cmd.Context()
		id, err := t.container(ctx, args[0])
		if err != nil {
			return err
		}
		if sync {
			stdout, stderr, err := t.runtime.ExecSync(ctx, id, args[1:], t.timeout)
			_, _ = cmd.OutOrStdout().Write(stdout)
			_, _ = cmd.ErrOrStderr().Write(stderr)
			return err
		}
		r, err := t.runtime.Exec(ctx, &cri.ExecRequest{ContainerId: id, Cmd: args[1:], Stdin: stdin, Tty: tty, Stdout: true, Stderr: !tty})
		if err != nil {
			return err
		}
		u, err := url.Parse(r.Url)
		if err != nil {
			return err
		}
		executor, err := remotecommand.NewSPDYExecutor(&rest.Config{TLSClientConfig: rest.TLSClientConfig{Insecure: u.Scheme == "https"}}, "POST", u)
		if err != nil {
			return err
		}
		options := remotecommand.StreamOptions{Stdout: cmd.OutOrStdout(), Tty: tty}
		if stdin {
			options.Stdin = cmd.InOrStdin()
		}
		if !tty {
			options.Stderr = cmd.ErrOrStderr()
			return executor.StreamWithContext(ctx, options)
		}
		fd := int(os.Stdin.Fd())
		if term.IsTerminal(fd) {
			old, err := term.MakeRaw(fd)
			if err != nil {
				return err
			}
			defer func() { _ = term.Restore(fd, old) }()
			if width, height, err := term.GetSize(fd); err == nil {
				options.TerminalSizeQueue = &onceSize{size: &remotecommand.TerminalSize{Width: uint16(width), Height: uint16(height)}} //nolint:gosec // a terminal's
			}
		}
		return executor.StreamWithContext(ctx, options)
	})
	return cmd
}

// onceSize tells the terminal's size at the start.
type onceSize struct{ size *remotecommand.TerminalSize }

func (o *onceSize) Next() *remotecommand.TerminalSize {
	size := o.size
	o.size = nil
	return size
}

func (t *tool) stats() *cobra.Command {
	var all bool
	var id, output string
	var seconds int
	cmd := &cobra.Command{Use: "stats [CONTAINER]", Short: "Show what containers use", Args: cobra.MaximumNArgs(1), Example: "  crictl stats -o json"}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "those that have ended, too")
	cmd.Flags().StringVar(&id, "id", "", "only the one with this ID")
	cmd.Flags().IntVarP(&seconds, "seconds", "s", 1, "over how long to measure the processor")
	cmd.Flags().StringVarP(&output, "output", "o", "", "table or json")
	cmd.RunE = t.run(func(cmd *cobra.Command, args []string) error {
		ctx := cmd.Context()
		asJSON, err := wantsJSON(output)
		if err != nil {
			return err
		}
		if len(args) > 0 {
			id = args[0]
		}
		filter := &cri.ContainerStatsFilter{}
		if id != "" {
			if filter.Id, err = t.container(ctx, id); err != nil {
				return err
			}
		}
		before, err := t.runtime.ListContainerStats(ctx, filter)
		if err != nil {
			return err
		}
		if asJSON {
			messages := make([]proto.Message, 0, len(before))
			for _, s := range before {
				messages = append(messages, s)
			}
			return printJSON(cmd, "stats", messages...)
		}
		used := map[string]*cri.CpuUsage{}
		for _, s := range before {
			used[s.GetAttributes().GetId()] = s.Cpu
		}
		select {
		case <-time.After(time.Duration(max(1, seconds)) * time.Second): // the time that is measured over
		case <-ctx.Done():
			return ctx.Err()
		}
		now, err := t.runtime.ListContainerStats(ctx, filter)
		if err != nil {
			return err
		}
		var rows [][]string
		for _, s := range now {
			if s.Cpu == nil && !all {
				continue
			}
			percent := 0.0
			if old := used[s.GetAttributes().GetId()]; old != nil && s.Cpu != nil && s.Cpu.Timestamp > old.Timestamp {
				percent = 100 * float64(s.GetCpu().GetUsageCoreNanoSeconds().GetValue()-old.GetUsageCoreNanoSeconds().GetValue()) / float64(s.Cpu.Timestamp-old.Timestamp)
			}
			rows = append(rows, []string{
				shorten(s.GetAttributes().GetId()), s.GetAttributes().GetMetadata().GetName(), fmt.Sprintf("%.2f", percent),
				bytesText(s.GetMemory().GetWorkingSetBytes().GetValue()), bytesText(s.GetWritableLayer().GetUsedBytes().GetValue()),
				strconv.FormatUint(s.GetWritableLayer().GetInodesUsed().GetValue(), 10),
			})
		}
		slices.SortFunc(rows, func(a, b []string) int { return strings.Compare(a[0], b[0]) })
		return table(cmd, []string{"CONTAINER", "NAME", "CPU %", "MEM", "DISK", "INODES"}, rows)
	})
	return cmd
}
