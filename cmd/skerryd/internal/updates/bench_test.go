package updates

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/skerry-os/skerry/image/releasetest"
	"github.com/skerry-os/skerry/pkg/linux"
	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/powercut"
	"github.com/skerry-os/skerry/pkg/release"
	"github.com/skerry-os/skerry/pkg/repository"
	"github.com/skerry-os/skerry/pkg/slot"
	"github.com/skerry-os/skerry/pkg/slot/slottest"
	"github.com/skerry-os/skerry/pkg/update"
	"github.com/skerry-os/skerry/pkg/update/record"
)

// bench is a machine with release 1.0.0 in both slots, its node, and a repository with release 1.1.0.
type bench struct {
	*service
	t        *testing.T
	repo     string
	cluster  *fake.Clientset
	down     atomic.Bool // nobody answers for the API
	serves   atomic.Bool
	disk     *powercut.Disk
	restarts atomic.Int32
	logged   *logged
}

type logged struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

const benchRoot = 2 << 20

func newBench(t *testing.T, conf machine.Update) *bench {
	t.Helper()
	b := &bench{t: t, repo: filepath.Join(t.TempDir(), "repo"), logged: &logged{}}
	now := time.Now()
	one, two := releasetest.New(t, 256<<10), releasetest.New(t, 300<<10)
	roles, err := repository.NewRoles(filepath.Join(t.TempDir(), "roles"), now)
	check(t, err)
	root, err := roles.Root()
	check(t, err)
	for v, r := range map[string]*releasetest.Bench{"1.0.0": one, "1.1.0": two} {
		m := *r.Signed.Manifest()
		m.Version = v
		r.Sign(t, &m)
	}
	_, err = repository.Publish(b.repo, roles, two.Signed, os.DirFS(two.Release), repository.PublishOptions{Now: now})
	check(t, err)
	kernel, err := os.ReadFile(filepath.Join(one.Release, "boot/x86-uefi.efi"))
	check(t, err)
	img := slottest.Volume(t, map[string][]byte{
		"EFI/BOOT/BOOTX64.EFI": []byte("loader"), "EFI/Linux/os-a.efi": kernel, "EFI/Linux/os-b.efi": kernel,
		"loader/loader.conf": []byte("timeout 0\ndefault os-a.efi\neditor no\n"),
	})
	data, err := os.ReadFile(filepath.Join(one.Release, "root.img"))
	check(t, err)
	tail, err := one.Signed.Tail()
	check(t, err)
	for range slot.IDs {
		p := make([]byte, benchRoot)
		copy(p, data)
		copy(p[benchRoot-release.TailSize:], tail)
		img = append(img, p...)
	}
	b.disk = powercut.New(img)
	esp := powercut.Part{D: b.disk, Len: slottest.VolumeSize}
	roots := map[slot.ID]update.Device{
		slot.A: powercut.Part{D: b.disk, At: slottest.VolumeSize, Len: benchRoot}, slot.B: powercut.Part{D: b.disk, At: slottest.VolumeSize + benchRoot, Len: benchRoot},
	}
	booted := slottest.UEFI{}.Boot(esp, "", func([]byte) bool { return true })
	dir := t.TempDir()
	n := &Node{
		Config: conf, dir: dir, control: filepath.Join(dir, "update.sock"), log: slog.New(slog.DiscardHandler), web: http.DefaultClient,
		ID:      machine.Identity{Release: machine.Release{Version: "1.0.0"}, Boot: machine.Boot{Slot: slot.A, Disk: "/dev/vda"}},
		network: func() []string { return []string{"a default route for IPv4"} },
		parts:   func() ([]linux.Partition, error) { return nil, nil },
		close:   func() error { return nil },
		Updater: &update.Updater{
			Machine: update.Machine{
				Arch: "amd64", Board: "x86-uefi", Version: "1.0.0", Seed: "machine", Booted: slot.A,
				Selector: slottest.UEFI{}.Selector(esp, booted), Roots: roots, Trusted: one.Trusted(),
			},
			Store: record.File(filepath.Join(dir, "record.json")), Root: root, Dir: t.TempDir(),
		},
	}
	// The test's clock may stand elsewhere than the one by which the repository was signed.
	n.Updater.Now = func() time.Time {
		at := time.Now()
		if at.Year() == 2000 { // a bubble's of package synctest
			at = now.Add(at.Sub(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)))
		}
		return at
	}
	renewed := metav1.NewMicroTime(time.Now())
	b.cluster = fake.NewClientset(nodeThatIs(true), &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{Name: "n", Namespace: corev1.NamespaceNodeLease}, Spec: coordinationv1.LeaseSpec{RenewTime: &renewed},
	})
	b.cluster.PrependReactor("*", "*", func(clienttesting.Action) (bool, runtime.Object, error) {
		if b.down.Load() {
			return true, nil, errors.New("dial tcp: connect: connection refused")
		}
		return false, nil, nil
	})
	b.serves.Store(true)
	b.service = newService(Options{
		Log: slog.New(slog.NewTextHandler(b.logged, nil)), NodeName: "n", Serves: b.serves.Load,
		Others:  func(context.Context) (bool, error) { return false, nil },
		Restart: func(string) error { b.restarts.Add(1); return nil },
	}, n)
	b.client = b.cluster
	return b
}

func nodeThatIs(ready bool) *corev1.Node {
	status := corev1.ConditionFalse
	if ready {
		status = corev1.ConditionTrue
	}
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}, Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: status}}}}
}

// renew keeps the node's lease fresh, by the bubble's clock.
func (b *bench) renew() {
	b.t.Helper()
	now := metav1.NewMicroTime(time.Now())
	check(b.t, b.cluster.Tracker().Update(coordinationv1.SchemeGroupVersion.WithResource("leases"), &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{Name: "n", Namespace: corev1.NamespaceNodeLease}, Spec: coordinationv1.LeaseSpec{RenewTime: &now},
	}, corev1.NamespaceNodeLease))
}

func (b *bench) is(ready bool) {
	b.t.Helper()
	check(b.t, b.cluster.Tracker().Update(corev1.SchemeGroupVersion.WithResource("nodes"), nodeThatIs(ready), ""))
}

func (b *bench) record() record.Record {
	b.t.Helper()
	r, err := b.n.Updater.Store.Load()
	check(b.t, err)
	return r
}

func (b *bench) events(reason string) (messages []string) {
	b.t.Helper()
	list, err := b.cluster.CoreV1().Events("").List(context.Background(), metav1.ListOptions{})
	check(b.t, err)
	for _, e := range list.Items {
		if e.Reason == reason {
			messages = append(messages, e.Message)
		}
	}
	return messages
}

// alter makes the repository's metadata other than it was signed.
func (b *bench) alter(dir string) {
	b.t.Helper()
	name := filepath.Join(dir, "metadata/timestamp.json")
	data, err := os.ReadFile(name)
	check(b.t, err)
	at := bytes.Index(data, []byte(`"sig":"`)) + len(`"sig":"`)
	data[at] = map[bool]byte{true: '1', false: '0'}[data[at] == '0']
	check(b.t, os.WriteFile(name, data, 0o600))
}

// stick makes one with the repository, plugged in.
func (b *bench) stick() {
	b.t.Helper()
	files := map[string][]byte{}
	check(b.t, fs.WalkDir(os.DirFS(b.repo), ".", func(name string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			files["skerry/"+name], err = os.ReadFile(filepath.Join(b.repo, name))
		}
		return err
	}))
	file := filepath.Join(b.t.TempDir(), "stick")
	check(b.t, os.WriteFile(file, slottest.Volume(b.t, files), 0o600))
	b.n.parts = func() ([]linux.Partition, error) {
		return []linux.Partition{{Name: "../" + file, Disk: "sdb", Size: slottest.VolumeSize}}, nil
	}
}

// stale is a lease of before this boot.
func (b *bench) stale() {
	b.t.Helper()
	old := metav1.NewMicroTime(bootTime().Add(-time.Minute))
	check(b.t, b.cluster.Tracker().Update(coordinationv1.SchemeGroupVersion.WithResource("leases"), &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{Name: "n", Namespace: corev1.NamespaceNodeLease}, Spec: coordinationv1.LeaseSpec{RenewTime: &old},
	}, corev1.NamespaceNodeLease))
}

// lose makes the source one that does not answer.
func (b *bench) lose() { b.n.Config.Source = b.t.TempDir() }
