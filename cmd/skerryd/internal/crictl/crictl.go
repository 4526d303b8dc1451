// Package crictl is the command of that name: it shows and changes what the container runtime has, below Kubernetes. Names,
// flags and columns are those of the crictl that people know, for those parts that are used in scripts and at the console.
package crictl

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sort"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis"
	criclient "k8s.io/cri-client/pkg"
	"k8s.io/klog/v2"
)

// tool is one call of crictl: what its flags say and, once connect was called, both halves of the runtime.
type tool struct {
	endpoint string
	timeout  time.Duration
	runtime  cri.RuntimeService
	images   cri.ImageManagerService
}

// New makes the command. socket is the runtime's, where no flag and no variable names another.
func New(socket string) *cobra.Command {
	t := &tool{}
	root := &cobra.Command{
		Use: "crictl", Short: "Look at and change this node's containers, pods and images",
		Example:       "  crictl ps -a\n  crictl logs --tail 20 -f 3f2a\n  crictl exec -it 3f2a sh",
		SilenceUsage:  true,
		SilenceErrors: true,
		// Its own flags stand before the subcommand, whose letters mean other things.
		TraverseChildren: true,
	}
	endpoint := "unix://" + socket
	if v := os.Getenv("CONTAINER_RUNTIME_ENDPOINT"); v != "" {
		endpoint = v
	}
	root.Flags().StringVarP(&t.endpoint, "runtime-endpoint", "r", endpoint, "the runtime's socket [$CONTAINER_RUNTIME_ENDPOINT]")
	root.Flags().StringP("image-endpoint", "i", "", "taken for the other crictl's sake: it is the runtime's")
	root.Flags().DurationVarP(&t.timeout, "timeout", "t", 2*time.Minute, "how long the runtime may take to answer")
	root.Flags().BoolP("debug", "D", false, "taken for the other crictl's sake")
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(
		t.ps(), t.inspect(), t.logs(), t.exec(), t.stop(), t.remove(), t.stats(),
		t.pods(), t.inspectPod(), t.stopPod(), t.removePod(), t.podStats(),
		t.listImages(), t.inspectImage(), t.pull(), t.removeImage(), t.imageFilesystem(),
		t.info(), t.version(),
	)
	return root
}

// run is a command's RunE, with the runtime at hand.
func (t *tool) run(f func(cmd *cobra.Command, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		klog.SetOutput(io.Discard)
		klog.LogToStderr(false)
		ctx := cmd.Context()
		endpoint := t.endpoint
		if !strings.Contains(endpoint, "://") {
			endpoint = "unix://" + endpoint
		}
		if path, ok := strings.CutPrefix(endpoint, "unix://"); ok {
			if _, err := os.Stat(path); err != nil {
				return fmt.Errorf("%w; does skerryd run here? (another --data-dir has another socket: --runtime-endpoint)", err)
			}
		}
		var err error
		//nolint:staticcheck // the builder that replaces it brings nothing here
		if t.runtime, err = criclient.NewRemoteRuntimeService(ctx, endpoint, t.timeout, nil, false); err != nil {
			return err
		}
		defer func() { _ = t.runtime.Close(context.WithoutCancel(ctx)) }()
		//nolint:staticcheck // as above
		if t.images, err = criclient.NewRemoteImageService(ctx, endpoint, t.timeout, nil, false); err != nil {
			return err
		}
		return f(cmd, args)
	}
}

const short = 13 // of an ID, as tables show it

func shorten(id string) string {
	id = strings.TrimPrefix(id, "sha256:")
	if len(id) > short {
		return id[:short]
	}
	return id
}

// ago is how long ago a time was, in words.
func ago(t time.Time) string {
	d := time.Since(t)
	unit := func(n int, name string) string {
		if n == 1 {
			return "About a " + name + " ago"
		}
		return fmt.Sprintf("%d %ss ago", n, name)
	}
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%d seconds ago", int(d.Seconds()))
	case d < time.Hour:
		return unit(int(d.Minutes()), "minute")
	case d < 48*time.Hour:
		return unit(int(d.Hours()), "hour")
	}
	return fmt.Sprintf("%d days ago", int(d.Hours()/24))
}

// bytesText is a size in decimal units, as images are counted.
func bytesText(n uint64) string {
	units := []string{"B", "kB", "MB", "GB", "TB"}
	f, i := float64(n), 0
	for f >= 1000 && i < len(units)-1 {
		f, i = f/1000, i+1
	}
	return fmt.Sprintf("%.4g%s", f, units[i])
}

// table prints rows in columns.
func table(cmd *cobra.Command, head []string, rows [][]string) error {
	w := tabwriter.NewWriter(cmd.OutOrStdout(), 20, 1, 3, ' ', 0)
	for _, row := range append([][]string{head}, rows...) {
		_, _ = fmt.Fprintln(w, strings.Join(row, "\t"))
	}
	return w.Flush()
}

func lines(cmd *cobra.Command, texts []string) error {
	for _, s := range texts {
		if _, err := fmt.Fprintln(cmd.OutOrStdout(), s); err != nil {
			return err
		}
	}
	return nil
}

// printJSON prints messages of the runtime's interface; keys other than "" put them below one.
func printJSON(cmd *cobra.Command, key string, messages ...proto.Message) error {
	texts := make([]json.RawMessage, 0, len(messages))
	for _, m := range messages {
		b, err := protojson.MarshalOptions{EmitUnpopulated: true}.Marshal(m)
		if err != nil {
			return err
		}
		texts = append(texts, b)
	}
	enc := json.NewEncoder(cmd.OutOrStdout())
	enc.SetIndent("", "  ")
	if key != "" {
		return enc.Encode(map[string]any{key: texts})
	}
	if len(texts) == 1 {
		return enc.Encode(texts[0])
	}
	return enc.Encode(texts)
}

// withInfo adds a verbose answer's details, which are JSON in texts.
func withInfo(status proto.Message, info map[string]string) (json.RawMessage, error) {
	b, err := protojson.MarshalOptions{EmitUnpopulated: true}.Marshal(status)
	if err != nil {
		return nil, err
	}
	out := map[string]any{"status": json.RawMessage(b)}
	for key, text := range info {
		if json.Valid([]byte(text)) {
			if key == "info" {
				out["info"] = json.RawMessage(text)
			} else {
				out[key] = json.RawMessage(text)
			}
		} else {
			out[key] = text
		}
	}
	return json.Marshal(out)
}

func printRaw(cmd *cobra.Command, texts []json.RawMessage) error {
	enc := json.NewEncoder(cmd.OutOrStdout())
	enc.SetIndent("", "  ")
	if len(texts) == 1 {
		return enc.Encode(texts[0])
	}
	return enc.Encode(texts)
}

// wantsJSON reads an -o flag.
func wantsJSON(output string) (bool, error) {
	switch output {
	case "", "table":
		return false, nil
	case "json":
		return true, nil
	}
	return false, fmt.Errorf("-o: %q is neither table nor json", output)
}

// pick finds the one thing that an ID begins with.
func pick(kind, id string, all []string) (string, error) {
	var found []string
	for _, full := range all {
		if full == id {
			return full, nil
		}
		if strings.HasPrefix(full, id) {
			found = append(found, full)
		}
	}
	switch {
	case len(found) == 0 || id == "":
		return "", fmt.Errorf("no %s has an ID that begins with %q", kind, id)
	case len(found) > 1:
		sort.Strings(found)
		return "", fmt.Errorf("%d %ss have IDs that begin with %q; write more of it", len(found), kind, id)
	}
	return found[0], nil
}

// each does the same with every argument, goes on past faults, and reports them all.
func each(args []string, what string, f func(id string) error) error {
	if len(args) == 0 {
		return fmt.Errorf("name at least one %s", what)
	}
	var errs []error
	for _, id := range args {
		errs = append(errs, f(id))
	}
	return errors.Join(errs...)
}
