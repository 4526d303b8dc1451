package crictl

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func (t *tool) pod(ctx context.Context, id string) (string, error) {
	list, err := t.runtime.ListPodSandbox(ctx, nil)
	if err != nil {
		return "", err
	}
	ids := make([]string, 0, len(list))
	for _, p := range list {
		ids = append(ids, p.Id)
	}
	return pick("pod", id, ids)
}

func (t *tool) pods() *cobra.Command {
	var quiet, whole, latest bool
	var name, namespace, state, id, output string
	var labels []string
	var last int
	cmd := &cobra.Command{Use: "pods", Short: "List pods", Args: cobra.NoArgs, Example: "  crictl pods --namespace kube-system -q"}
	f := cmd.Flags()
	f.BoolVarP(&quiet, "quiet", "q", false, "only their IDs")
	f.BoolVar(&whole, "no-trunc", false, "whole IDs")
	f.BoolVarP(&latest, "latest", "l", false, "the newest one")
	f.IntVarP(&last, "last", "n", 0, "the newest N")
	f.StringVar(&name, "name", "", "those whose name has this in it")
	f.StringVar(&namespace, "namespace", "", "those of namespaces with this in their name")
	f.StringVarP(&state, "state", "s", "", "ready or notready")
	f.StringVar(&id, "id", "", "those whose ID begins with this")
	f.StringSliceVar(&labels, "label", nil, "those with this label, as key=value; repeatable")
	f.StringVarP(&output, "output", "o", "", "table or json")
	cmd.RunE = t.run(func(cmd *cobra.Command, _ []string) error {
		asJSON, err := wantsJSON(output)
		if err != nil {
			return err
		}
		filter := &cri.PodSandboxFilter{}
		switch strings.ToLower(state) {
		case "":
		case "ready":
			filter.State = &cri.PodSandboxStateValue{State: cri.PodSandboxState_SANDBOX_READY}
		case "notready":
			filter.State = &cri.PodSandboxStateValue{State: cri.PodSandboxState_SANDBOX_NOTREADY}
		default:
			return fmt.Errorf("--state: %q is neither ready nor notready", state)
		}
		for _, l := range labels {
			key, value, _ := strings.Cut(l, "=")
			if filter.LabelSelector == nil {
				filter.LabelSelector = map[string]string{}
			}
			filter.LabelSelector[key] = value
		}
		list, err := t.runtime.ListPodSandbox(cmd.Context(), filter)
		if err != nil {
			return err
		}
		list = slices.DeleteFunc(list, func(p *cri.PodSandbox) bool {
			return !strings.Contains(p.GetMetadata().GetName(), name) || !strings.Contains(p.GetMetadata().GetNamespace(), namespace) || !strings.HasPrefix(p.Id, id)
		})
		slices.SortStableFunc(list, func(a, b *cri.PodSandbox) int { return int(b.CreatedAt - a.CreatedAt) })
		if latest {
			last = 1
		}
		if last > 0 && last < len(list) {
			list = list[:last]
		}
		if asJSON {
			messages := make([]proto.Message, 0, len(list))
			for _, p := range list {
				messages = append(messages, p)
			}
			return printJSON(cmd, "items", messages...)
		}
		if quiet {
			ids := make([]string, 0, len(list))
			for _, p := range list {
				ids = append(ids, p.Id)
			}
			return lines(cmd, ids)
		}
		cut := shorten
		if whole {
			cut = func(s string) string { return s }
		}
		var rows [][]string
		for _, p := range list {
			ready := "Ready"
			if p.State != cri.PodSandboxState_SANDBOX_READY {
				ready = "NotReady"
			}
			handler := p.RuntimeHandler
			if handler == "" {
				handler = "(default)"
			}
			m := p.GetMetadata()
			rows = append(rows, []string{cut(p.Id), ago(time.Unix(0, p.CreatedAt)), ready, m.GetName(), m.GetNamespace(), strconv.Itoa(int(m.GetAttempt())), handler})
		}
		return table(cmd, []string{"POD ID", "CREATED", "STATE", "NAME", "NAMESPACE", "ATTEMPT", "RUNTIME"}, rows)
	})
	return cmd
}

func (t *tool) inspectPod() *cobra.Command {
	cmd := &cobra.Command{Use: "inspectp POD...", Short: "Show all about pods", Example: "  crictl inspectp 9b1c"}
	cmd.Flags().StringP("output", "o", "json", "json")
	cmd.RunE = t.run(func(cmd *cobra.Command, args []string) error {
		var out []json.RawMessage
		err := each(args, "pod", func(id string) error {
			full, err := t.pod(cmd.Context(), id)
			if err != nil {
				return err
			}
			r, err := t.runtime.PodSandboxStatus(cmd.Context(), full, true)
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

func (t *tool) stopPod() *cobra.Command {
	return &cobra.Command{
		Use: "stopp POD...", Short: "Stop pods; kubelet starts them again", Example: "  crictl stopp 9b1c",
		RunE: t.run(func(cmd *cobra.Command, args []string) error {
			return each(args, "pod", func(id string) error {
				full, err := t.pod(cmd.Context(), id)
				if err != nil {
					return err
				}
				if err := t.runtime.StopPodSandbox(cmd.Context(), full); err != nil {
					return err
				}
				return lines(cmd, []string{"Stopped sandbox " + id})
			})
		}),
	}
}

func (t *tool) removePod() *cobra.Command {
	cmd := &cobra.Command{Use: "rmp [POD...]", Short: "Remove pods that have ended", Example: "  crictl rmp 9b1c"}
	force := cmd.Flags().BoolP("force", "f", false, "stop those that run, first")
	all := cmd.Flags().BoolP("all", "a", false, "all of them; those that run only with --force")
	cmd.RunE = t.run(func(cmd *cobra.Command, args []string) error {
		ctx := cmd.Context()
		list, err := t.runtime.ListPodSandbox(ctx, nil)
		if err != nil {
			return err
		}
		ready := map[string]bool{}
		for _, p := range list {
			ready[p.Id] = p.State == cri.PodSandboxState_SANDBOX_READY
			if *all && (*force || !ready[p.Id]) {
				args = append(args, p.Id)
			}
		}
		if *all && len(args) == 0 {
			return nil
		}
		return each(args, "pod", func(id string) error {
			full, err := t.pod(ctx, id)
			if err != nil {
				return err
			}
			if ready[full] {
				if !*force {
					return fmt.Errorf("pod %s runs; stop it first (stopp), or use --force", id)
				}
				if err := t.runtime.StopPodSandbox(ctx, full); err != nil {
					return err
				}
			}
			if err := t.runtime.RemovePodSandbox(ctx, full); err != nil {
				return err
			}
			return lines(cmd, []string{"Removed sandbox " + id})
		})
	})
	return cmd
}

func (t *tool) podStats() *cobra.Command {
	var output string
	cmd := &cobra.Command{Use: "statsp [POD]", Short: "Show what pods use", Args: cobra.MaximumNArgs(1), Example: "  crictl statsp"}
	cmd.Flags().StringVarP(&output, "output", "o", "", "table or json")
	cmd.RunE = t.run(func(cmd *cobra.Command, args []string) error {
		asJSON, err := wantsJSON(output)
		if err != nil {
			return err
		}
		filter := &cri.PodSandboxStatsFilter{}
		if len(args) > 0 {
			if filter.Id, err = t.pod(cmd.Context(), args[0]); err != nil {
				return err
			}
		}
		list, err := t.runtime.ListPodSandboxStats(cmd.Context(), filter)
		if err != nil {
			return err
		}
		if asJSON {
			messages := make([]proto.Message, 0, len(list))
			for _, s := range list {
				messages = append(messages, s)
			}
			return printJSON(cmd, "stats", messages...)
		}
		var rows [][]string
		for _, s := range list {
			rows = append(rows, []string{
				shorten(s.GetAttributes().GetId()), s.GetAttributes().GetMetadata().GetName(),
				fmt.Sprintf("%.2f", float64(s.GetLinux().GetCpu().GetUsageNanoCores().GetValue())/1e7),
				bytesText(s.GetLinux().GetMemory().GetWorkingSetBytes().GetValue()),
			})
		}
		return table(cmd, []string{"POD", "NAME", "CPU %", "MEM"}, rows)
	})
	return cmd
}
