package localstorage

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
)

// Node is the node's half.
type Node struct {
	Name       string // of the Node
	Kubeconfig string // file: the node's own, as kubelet has it
	Root       string // folder of the volumes' folders; made when the first is
}

// again is how long after a fault the node tries once more.
const again = 15 * time.Second

// Run follows the requests until ctx ends. Nothing that goes wrong with a volume ends it. A folder that is being emptied then
// stays as it is, under a name that the next start finds again.
func (n Node) Run(ctx context.Context, ready func()) error {
	config, err := clientcmd.BuildConfigFromFlags("", n.Kubeconfig)
	if err != nil {
		return fmt.Errorf("%s: %w", n.Kubeconfig, err)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("%s: %w", n.Kubeconfig, err)
	}
	factory := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithTweakListOptions(func(o *metav1.ListOptions) {
		o.FieldSelector = fields.OneTermEqualSelector("metadata.name", n.Name).String()
	}), informers.WithTransform(func(object any) (any, error) {
		if o, ok := object.(*corev1.Node); ok { // only the annotations are looked at
			return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: o.Name, ResourceVersion: o.ResourceVersion, Annotations: o.Annotations}}, nil
		}
		return object, nil
	}))
	seen := make(chan *corev1.Node, 1)
	see := func(object any) {
		if o, ok := object.(*corev1.Node); ok {
			select {
			case <-seen: // only the newest counts
			default:
			}
			seen <- o
		}
	}
	if _, err := factory.Core().V1().Nodes().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: see, UpdateFunc: func(_, o any) { see(o) }}); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	factory.Start(ctx.Done())
	defer func() { cancel(); factory.Shutdown() }()
	ready()

	store := &store{root: n.Root, failed: map[string]failure{}, finished: make(chan struct{}, 1)}
	retry := time.NewTimer(again)
	defer retry.Stop()
	for current := (*corev1.Node)(nil); ; {
		select {
		case <-ctx.Done():
			return nil
		case current = <-seen:
		case <-store.finished:
		case <-retry.C:
		}
		if current == nil {
			continue
		}
		var asked request
		var said report
		readAnnotation(current, requestAnnotation, &asked)
		readAnnotation(current, reportAnnotation, &said)
		answer, empty := store.fulfil(asked), len(asked.Make)+len(asked.Remove) == 0
		if len(answer.Failed) > 0 {
			retry.Reset(again)
		}
		if sameReport(answer, said) || empty && current.Annotations[reportAnnotation] == "" {
			continue
		}
		patch, err := annotate(reportAnnotation, answer, empty)
		if err != nil {
			return err
		}
		if _, err := client.CoreV1().Nodes().Patch(ctx, n.Name, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil && ctx.Err() == nil {
			slog.Warn("volumes: the server does not hear what was done; trying again", "err", err)
			retry.Reset(again)
		}
	}
}

// store is the folders of this node's volumes.
type store struct {
	root     string
	emptying string             // the folder that is being emptied, one at a time
	failed   map[string]failure // folders that could not be emptied
	finished chan struct{}      // told when emptying has ended
	result   chan error
}

type failure struct {
	error
	at time.Time
}

const removedPrefix = ".removed-"

// fulfil does what it can of a request at once, starts what takes longer, and says how things are.
func (s *store) fulfil(asked request) report {
	out := report{Root: s.root}
	fail := func(folder string, err error) {
		if out.Failed == nil {
			out.Failed = map[string]string{}
		}
		if len(out.Failed) < 5 { // the reason is the same for most
			out.Failed[folder] = err.Error()
		}
		slog.Warn("volume", "folder", filepath.Join(s.root, folder), "err", err)
	}
	if len(asked.Make)+len(asked.Remove) == 0 {
		return out
	}
	if s.emptying != "" {
		select {
		case err := <-s.result:
			delete(s.failed, s.emptying)
			if err != nil {
				s.failed[s.emptying] = failure{err, time.Now()}
			}
			s.emptying = ""
		default:
		}
	}
	root, err := s.open()
	if err != nil {
		for _, f := range slices.Concat(asked.Make, asked.Remove) {
			fail(f, err)
		}
		return out
	}
	defer func() { _ = root.Close() }()
	for _, f := range asked.Make {
		if err := makeFolder(root, f); err != nil {
			fail(f, err)
			continue
		}
		out.Made = append(out.Made, f)
	}
	for _, f := range asked.Remove {
		// A failure is told until the folder is gone, also while it is tried again.
		before, failed := s.failed[f]
		if failed {
			fail(f, before)
		}
		if f != "" && f == s.emptying || failed && time.Since(before.at) < again {
			continue
		}
		gone, err := s.remove(root, f)
		switch {
		case err != nil:
			fail(f, err)
		case gone:
			delete(s.failed, f)
			out.Removed = append(out.Removed, f)
		}
	}
	return out
}

func (s *store) open() (*os.Root, error) {
	if real, err := filepath.EvalSymlinks(s.root); err == nil {
		s.root = real // mounts are known by it
	}
	// Volumes are open to all inside it, so it is open to root alone.
	if err := os.MkdirAll(filepath.Dir(s.root), 0o755); err != nil {
		return nil, err
	}
	if err := os.Mkdir(s.root, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	return os.OpenRoot(s.root)
}

// makeFolder makes a folder that is complete when it has its name, and on the disk before anyone hears of it.
func makeFolder(root *os.Root, folder string) error {
	if err := checkFolder(folder); err != nil {
		return err
	}
	if info, err := root.Lstat(folder); err == nil {
		if !info.IsDir() {
			return errors.New("something that is no folder has its name")
		}
		return nil
	}
	fresh := ".new-" + folder
	if err := root.Mkdir(fresh, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := root.Chmod(fresh, 0o777); err != nil { // the process's mask does not apply
		return err
	}
	if err := root.Rename(fresh, folder); err != nil {
		return err
	}
	return sync(root)
}

// remove says whether a folder is gone, and if not, starts to empty it, unless another is being emptied.
func (s *store) remove(root *os.Root, folder string) (gone bool, err error) {
	if err := checkFolder(folder); err != nil {
		return false, err
	}
	removed := removedPrefix + folder
	if _, err := root.Lstat(folder); err == nil {
		if m := mountBelow(filepath.Join(s.root, folder)); m != "" {
			return false, fmt.Errorf("%s is mounted inside it; unmount that, and the volume goes", m)
		}
		if err := root.RemoveAll(removed); err != nil { // it was never reported gone, so this is a rest
			return false, err
		}
		if err := root.Rename(folder, removed); err != nil {
			return false, err
		}
		if err := sync(root); err != nil {
			return false, err
		}
	} else if _, err := root.Lstat(removed); errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if s.emptying != "" {
		return false, nil
	}
	s.emptying, s.result = folder, make(chan error, 1)
	go func(result chan<- error) {
		result <- s.empty(removed)
		select {
		case s.finished <- struct{}{}:
		default:
		}
	}(s.result)
	return false, nil
}

func (s *store) empty(removed string) error {
	if m := mountBelow(filepath.Join(s.root, removed)); m != "" {
		return fmt.Errorf("%s is mounted inside it; unmount that, and the volume goes", m)
	}
	root, err := os.OpenRoot(s.root)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	return root.RemoveAll(removed) // never follows a link out of it
}

func sync(root *os.Root) error {
	d, err := root.Open(".")
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// mountBelow is a mount at or inside a folder, "" for none: emptying would go on in what is mounted there.
func mountBelow(folder string) string {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) > 4 {
			// The kernel writes blanks and the like in octal.
			if at := unescape(f[4]); at == folder || strings.HasPrefix(at, folder+"/") {
				return at
			}
		}
	}
	return ""
}

func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func sameReport(a, b report) bool {
	return a.Root == b.Root && slices.Equal(a.Made, b.Made) && slices.Equal(a.Removed, b.Removed) && fmt.Sprint(a.Failed) == fmt.Sprint(b.Failed)
}
