package stock

import (
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/skerry-os/skerry/e2e/nodes"
)

var (
	compare = flag.Bool("compare", false, "measure skerryd next to upstream's separate programs; `make bench` does")
	out     = flag.String("out", "", "absolute path of the folder with built programs")
	idle    = flag.Duration("idle", 3*time.Minute, "how long a cluster is left alone before memory, processor time and writes are read")
	hollow  = flag.Int("hollow", 200, "how many hollow agents a server gets")
)

// bare switches off whatever upstream's programs do not have.
const bare = "coredns,ingress,servicelb,local-storage,metrics-server,network-policy,helm-controller,runtimes"

// side is one of the clusters that are compared.
type side struct {
	name   string
	start  func(t *testing.T, n *nodes.Node) (kubeconfig string, pids func() []int)
	agents bool // measure an agent and hollow agents too
}

// figures has one row for each thing measured and one column for each side.
type figures struct {
	sides []string
	rows  []string
	cells map[string]map[string]string
}

func (f *figures) set(side, row, format string, a ...any) {
	if !slices.Contains(f.rows, row) {
		f.rows = append(f.rows, row)
		f.cells[row] = map[string]string{}
	}
	f.cells[row][side] = fmt.Sprintf(format, a...)
	fmt.Fprintf(os.Stderr, "  %s: %s: %s\n", side, row, f.cells[row][side])
}

func (f *figures) print() {
	fmt.Printf("\n| figure | %s |\n|---|%s\n", strings.Join(f.sides, " | "), strings.Repeat("---|", len(f.sides)))
	for _, row := range f.rows {
		fmt.Printf("| %s |", row)
		for _, s := range f.sides {
			fmt.Printf(" %s |", f.cells[row][s])
		}
		fmt.Println()
	}
}

// TestCompare measures and prints. It judges nothing: times on a shared machine are no test.
func TestCompare(t *testing.T) {
	if !*compare {
		t.Skip("measures for half an hour: add -compare (or run make bench)")
	}
	skerryd := func(flags ...string) func(t *testing.T, n *nodes.Node) (string, func() []int) {
		return func(_ *testing.T, n *nodes.Node) (string, func() []int) {
			n.Start("server", flags...)
			return n.Kubeconfig(), func() []int { return []int{n.PID()} }
		}
	}
	sides := []side{
		{"upstream's programs, etcd", func(t *testing.T, n *nodes.Node) (string, func() []int) {
			c := New(t, n, filepath.Join(*out, "stock"), filepath.Join(*out, "amd64/usr/libexec/skerry"))
			c.Start()
			return c.Admin(), c.PIDs
		}, false},
		{"skerryd bare, etcd", skerryd("--disable", bare, "--cluster-init"), false},
		{"skerryd bare, SQLite", skerryd("--disable", bare), false},
		{"skerryd whole, SQLite", skerryd(), true},
	}
	f := figures{cells: map[string]map[string]string{}}
	defer f.print()
	for _, s := range sides {
		f.sides = append(f.sides, s.name)
		t.Run(s.name, func(t *testing.T) { measure(t, &f, s) })
	}
}

func measure(t *testing.T, f *figures, s side) {
	w := nodes.New(t, filepath.Join(*out, "amd64/usr/bin"))
	n := w.Node("s1")
	begin := time.Now()
	kubeconfig, pids := s.start(t, n)
	var c kubernetes.Interface
	n.Eventually("the node is Ready", func() (bool, string) {
		var err error
		if c == nil {
			if c, err = client(n, kubeconfig, ""); err != nil {
				c = nil
				return false, err.Error()
			}
		}
		node, err := c.CoreV1().Nodes().Get(t.Context(), "s1", metav1.GetOptions{})
		if err != nil {
			return false, err.Error()
		}
		return ready(node), "not Ready"
	})
	f.set(s.name, "start → node Ready", "%.1f s", time.Since(begin).Seconds())

	leave(t, *idle/3)
	before := Of(t, pids()...)
	leave(t, *idle)
	after := Of(t, pids()...)
	f.set(s.name, "idle: memory (PSS), processes", "%.0f MB, %d", float64(after.Memory)/1e6, after.Processes)
	f.set(s.name, "idle: processor", "%.1f %% of a core", 100*(after.CPU-before.CPU).Seconds()/idle.Seconds())
	f.set(s.name, "idle: written to disk in an hour", "%.0f MB", float64(after.Written-before.Written)/1e6*time.Hour.Seconds()/idle.Seconds())

	writes(t, f, s.name, c)
	if s.agents {
		a := w.Node("a1")
		a.Start("agent", "--server", n.URL(), "--token", n.Token())
		a.Ready()
		leave(t, *idle/3)
		f.set(s.name, "an agent: memory (PSS)", "%.0f MB", float64(Of(t, a.PID()).Memory)/1e6)
		crowd(t, f, s.name, n, kubeconfig, c, pids)
	}
}

func ready(node *corev1.Node) bool {
	for _, cond := range node.Status.Conditions {
		if cond.Type == corev1.NodeReady {
			return cond.Status == corev1.ConditionTrue
		}
	}
	return false
}

func leave(t *testing.T, d time.Duration) {
	select {
	case <-time.After(d):
	case <-t.Context().Done():
		t.Fatal(t.Context().Err())
	}
}

// client is a connection of its own to the API of a node, from that node. It is the administrator's, or as somebody else whom it
// may speak for.
func client(n *nodes.Node, kubeconfig, as string) (kubernetes.Interface, error) {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, err
	}
	config.ContentType = "application/vnd.kubernetes.protobuf"
	config.QPS, config.Burst = 10000, 10000
	if as != "" {
		config.Impersonate = rest.ImpersonationConfig{UserName: "system:node:" + as, Groups: []string{"system:nodes", "system:authenticated"}}
	}
	config.Dial = func(ctx context.Context, network, address string) (conn net.Conn, err error) {
		err = n.OnNode(func() error { conn, err = (&net.Dialer{}).DialContext(ctx, network, address); return err })
		return conn, err
	}
	return kubernetes.NewForConfig(config)
}

// objects is how many the listed collection has, writers how many write at a time.
const objects, writers = 5000, 16

// writes measures an API that is asked to store: creates, updates, and the list of all.
func writes(t *testing.T, f *figures, side string, c kubernetes.Interface) {
	api := c.CoreV1().ConfigMaps("default")
	each := func(do func(i int) error) time.Duration {
		var next atomic.Int64
		var group sync.WaitGroup
		begin := time.Now()
		for range writers {
			group.Go(func() {
				for i := int(next.Add(1)); i <= objects; i = int(next.Add(1)) {
					if err := do(i); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		group.Wait()
		return time.Since(begin)
	}
	text := strings.Repeat("0123456789abcdef", 64)
	object := func(i int, text string) *corev1.ConfigMap {
		return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("object-%d", i)}, Data: map[string]string{"text": text}}
	}
	took := each(func(i int) error {
		_, err := api.Create(t.Context(), object(i, text), metav1.CreateOptions{})
		return err
	})
	f.set(side, "objects of 1 KiB created a second, 16 at a time", "%.0f", objects/took.Seconds())
	took = each(func(i int) error {
		_, err := api.Update(t.Context(), object(i, text[1:]), metav1.UpdateOptions{})
		return err
	})
	f.set(side, "the same, updated a second", "%.0f", objects/took.Seconds())
	var lists []time.Duration
	for range 9 {
		begin := time.Now()
		// Without a resource version the list comes from the datastore, or from a cache that is known to be as new.
		all, err := api.List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if len(all.Items) < objects {
			t.Fatalf("%d objects listed of %d", len(all.Items), objects)
		}
		lists = append(lists, time.Since(begin))
	}
	f.set(side, "list of 5,000, median", "%.0f ms", quantile(lists, 0.5).Seconds()*1000)
	took = each(func(i int) error { return api.Delete(t.Context(), object(i, "").Name, metav1.DeleteOptions{}) })
	f.set(side, "the same, deleted a second", "%.0f", objects/took.Seconds())
}

func quantile(all []time.Duration, q float64) time.Duration {
	slices.Sort(all)
	return all[min(len(all)-1, int(q*float64(len(all))))]
}

// crowd gives a server hollow agents and measures what each costs and how the API answers meanwhile.
func crowd(t *testing.T, f *figures, side string, n *nodes.Node, kubeconfig string, c kubernetes.Interface, pids func() []int) {
	leave(t, *idle/3)
	before := Of(t, pids()...)
	ctx, cancel := context.WithCancel(t.Context())
	var agents sync.WaitGroup
	defer func() { cancel(); agents.Wait() }()
	var up atomic.Int64
	for i := range *hollow {
		name := fmt.Sprintf("hollow-%d", i)
		own, err := client(n, kubeconfig, name)
		if err != nil {
			t.Fatal(err)
		}
		agents.Go(func() {
			if err := Hollow(ctx, own, name, func() { up.Add(1) }); err != nil {
				t.Error(err)
			}
		})
	}
	n.Eventually("all hollow agents are there", func() (bool, string) {
		return int(up.Load()) == *hollow, fmt.Sprintf("%d of %d", up.Load(), *hollow)
	})
	leave(t, *idle/3)
	begin, middle := time.Now(), Of(t, pids()...)
	var gets, lists []time.Duration
	for time.Since(begin) < *idle {
		at := time.Now()
		if _, err := c.CoreV1().Nodes().Get(t.Context(), "hollow-0", metav1.GetOptions{}); err != nil {
			t.Fatal(err)
		}
		gets = append(gets, time.Since(at))
		at = time.Now()
		if _, err := c.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{}); err != nil {
			t.Fatal(err)
		}
		lists = append(lists, time.Since(at))
		leave(t, 200*time.Millisecond)
	}
	after := Of(t, pids()...)
	took := time.Since(begin).Seconds()
	f.set(side, fmt.Sprintf("%d hollow agents: memory for each", *hollow), "%.2f MB", float64(after.Memory-before.Memory)/1e6/float64(*hollow))
	f.set(side, fmt.Sprintf("%d hollow agents: processor", *hollow), "%.0f %% of a core", 100*(after.CPU-middle.CPU).Seconds()/took)
	f.set(side, fmt.Sprintf("%d hollow agents: one node, median, 99th of 100", *hollow), "%.1f, %.1f ms", quantile(gets, 0.5).Seconds()*1000, quantile(gets, 0.99).Seconds()*1000)
	f.set(side, fmt.Sprintf("%d hollow agents: list of nodes, median, 99th of 100", *hollow), "%.1f, %.1f ms", quantile(lists, 0.5).Seconds()*1000, quantile(lists, 0.99).Seconds()*1000)
}
