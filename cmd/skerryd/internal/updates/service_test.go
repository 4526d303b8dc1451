package updates

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"testing/synctest"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/component-base/metrics/legacyregistry"

	"github.com/skerry-os/skerry/image/releasetest"
	"github.com/skerry-os/skerry/pkg/drain"
	"github.com/skerry-os/skerry/pkg/linux"
	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/powercut"
	"github.com/skerry-os/skerry/pkg/release"
	"github.com/skerry-os/skerry/pkg/repository"
	"github.com/skerry-os/skerry/pkg/rollout"
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

// The verdict about a release holds the node to what it had before, and to nothing else: a node whose server was down is not
// judged by it, but neither kept for no more than that skerryd starts.
func TestWhatATrialWaitsFor(t *testing.T) {
	good := record.Before{API: true, Ready: true, Leased: true, Serves: true, Network: []string{"a default route for IPv4"}}
	unready := record.Before{API: true, Leased: true, Network: good.Network}
	offline := record.Before{Network: good.Network}
	with := func(b record.Before, change func(*record.Before)) *record.Before { change(&b); return &b }
	for name, tt := range map[string]struct {
		before *record.Before
		change func(b *bench)
		want   string
	}{
		"as before":                       {&good, func(*bench) {}, ""},
		"nothing is known of before":      {nil, func(*bench) {}, ""},
		"nothing is known, not Ready":     {nil, func(b *bench) { b.is(false) }, "the node to be Ready"},
		"not Ready":                       {&good, func(b *bench) { b.is(false) }, "the node to be Ready"},
		"no API":                          {&good, func(b *bench) { b.down.Store(true) }, "the API: "},
		"no network":                      {&good, func(b *bench) { b.n.network = func() []string { return nil } }, "a default route for IPv4, which was there before"},
		"unready: as before":              {&unready, func(b *bench) { b.is(false) }, ""},
		"unready: no network":             {&unready, func(b *bench) { b.n.network = func() []string { return nil } }, "a default route for IPv4"},
		"unready: no API":                 {&unready, func(b *bench) { b.down.Store(true) }, "the API: "},
		"unready: nothing takes writes":   {&unready, (*bench).stale, "the datastore to take the node's lease"},
		"unready: it just started":        {&unready, func(b *bench) { b.started = time.Now() }, "skerryd to run for 1m0s"},
		"offline: as before":              {&offline, func(b *bench) { b.down.Store(true) }, ""},
		"offline: no network":             {&offline, func(b *bench) { b.down.Store(true); b.n.network = func() []string { return nil } }, "a default route for IPv4"},
		"offline: it just started":        {&offline, func(b *bench) { b.down.Store(true); b.started = time.Now() }, "skerryd to run for 1m0s"},
		"offline: the source is lost":     {with(offline, func(b *record.Before) { b.Reachable = true }), func(b *bench) { b.down.Store(true); b.lose() }, "update source"},
		"offline: the source was lost":    {&offline, func(b *bench) { b.down.Store(true); b.lose() }, ""},
		"Ready, the source is lost":       {with(good, func(b *record.Before) { b.Reachable = true }), (*bench).lose, "update source"},
		"Ready, the source was lost":      {&good, (*bench).lose, ""},
		"Ready, source is there":          {with(good, func(b *record.Before) { b.Reachable = true }), func(*bench) {}, ""},
		"unready, services are not asked": {&unready, func(b *bench) { b.serves.Store(false) }, ""},
		"services":                        {&good, func(b *bench) { b.serves.Store(false) }, "kube-proxy"},
	} {
		b := newBench(t, machine.Update{})
		b.n.Config.Source = b.repo
		b.started = time.Now().Add(-time.Hour)
		b.renew()
		tt.change(b)
		got, _ := b.waits(t.Context(), tt.before)
		if (got == "") != (tt.want == "") || !strings.HasPrefix(got, tt.want) {
			t.Errorf("%s: waits for %q, want %q", name, got, tt.want)
		}
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

// Before an update it is known how the node is. One look that fails, or a moment in which the node is not Ready, is no state of
// it; an API that has not answered for long is.
func TestHowTheNodeIsBefore(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(b *bench) // at the start, beside it
		want   record.Before
		took   time.Duration // at least
	}{
		"Ready":               {func(*bench) {}, record.Before{API: true, Ready: true, Leased: true, Serves: true}, 0},
		"one look fails":      {func(b *bench) { b.down.Store(true); time.Sleep(2 * time.Second); b.down.Store(false) }, record.Before{API: true, Ready: true, Leased: true, Serves: true}, 2 * time.Second},
		"away for minutes":    {func(b *bench) { b.down.Store(true); time.Sleep(9 * time.Minute); b.renew(); b.down.Store(false) }, record.Before{API: true, Ready: true, Leased: true, Serves: true}, 9 * time.Minute},
		"away for good":       {func(b *bench) { b.down.Store(true) }, record.Before{}, lost},
		"away since long":     {func(b *bench) { b.down.Store(true); b.started = b.started.Add(-time.Hour) }, record.Before{}, 0},
		"not Ready":           {func(b *bench) { b.is(false); b.serves.Store(false) }, record.Before{API: true, Leased: true}, blink},
		"not Ready, a moment": {func(b *bench) { b.is(false); time.Sleep(10 * time.Second); b.is(true) }, record.Before{API: true, Ready: true, Leased: true, Serves: true}, 9 * time.Second},
	} {
		b := newBench(t, machine.Update{})
		b.n.network = func() []string { return nil }
		synctest.Test(t, func(t *testing.T) {
			b.started = time.Now()
			b.renew()
			began := time.Now()
			go tt.change(b)
			synctest.Wait()
			got, err := b.before(t.Context())
			if took := time.Since(began); err != nil || !slices.Equal(got.Pods, tt.want.Pods) || got.API != tt.want.API || got.Ready != tt.want.Ready || got.Leased != tt.want.Leased || got.Serves != tt.want.Serves || took < tt.took || took > lost+time.Minute {
				t.Errorf("%s: %+v, %v, after %v", name, got, err, took)
			}
		})
	}
}

// The web source is asked for after an update only if it answered before it, wherever the release came from.
func TestAStickWhileTheSourceIsDown(t *testing.T) {
	for name, up := range map[string]bool{"down": false, "up": true} {
		b := newBench(t, machine.Update{Stick: true})
		b.stick()
		b.n.Config.Source = b.repo
		if !up {
			b.lose()
		}
		err := b.look(t.Context())
		r := b.record()
		if err != nil || r.Phase != record.Trying || b.restarts.Load() != 1 || r.Before == nil || r.Before.Reachable != up {
			t.Fatalf("%s: %v, %+v, %+v", name, err, r, r.Before)
		}
		if waits, _ := b.waits(t.Context(), r.Before); waits != "" {
			t.Errorf("%s: the trial waits for %s", name, waits)
		}
	}
}

// What one source tries is told although another is good: in the record, once as an event, and as metrics.
func TestASecondSourceHidesNothing(t *testing.T) {
	b := newBench(t, machine.Update{Stick: true, Policy: machine.UpdateCheck})
	b.stick()
	b.alter(b.repo)
	b.n.Config.Source = b.repo
	before := counts(t, "signature")
	b.n.Updater.Version = "1.1.0" // so that the stick has nothing newer
	for range 2 {
		if err := b.look(t.Context()); err == nil || errors.Is(err, repository.ErrUpToDate) || !strings.Contains(err.Error(), b.repo) {
			t.Errorf("got %v", err)
		}
	}
	r := b.record()
	if s := r.Sources[b.repo]; s.Kind != "signature" || s.Problem == "" || !strings.Contains(r.Problem, s.Problem) || len(r.Sources) != 2 {
		t.Errorf("record %+v", r)
	}
	if e := b.events("UpdateRefused"); len(e) != 1 || !strings.HasPrefix(e[0], b.repo+": ") {
		t.Errorf("events %q", e)
	}
	if n := counts(t, "signature"); n != before+2 {
		t.Errorf("the counter went from %v to %v", before, n)
	}
	b.n.Updater.Version = "1.0.0" // the stick's is newer now, and is brought
	b.n.Config.Policy = ""
	if err := b.look(t.Context()); err != nil || b.restarts.Load() != 1 {
		t.Errorf("%v, restarted %d times", err, b.restarts.Load())
	}
	if b.record().Sources[b.repo].Kind != "signature" {
		t.Error("the attack is forgotten")
	}
}

// counts is how many looks were refused for a reason.
func counts(t *testing.T, kind string) float64 {
	t.Helper()
	all, err := legacyregistry.DefaultGatherer.Gather()
	check(t, err)
	for _, f := range all {
		if f.GetName() != "skerry_update_refusals_total" {
			continue
		}
		for _, m := range f.GetMetric() {
			if m.GetLabel()[0].GetValue() == kind {
				return m.GetCounter().GetValue()
			}
		}
	}
	return 0
}

// What runs, whether it is on trial, when which source was looked at and what was wrong: all of it is a metric.
func TestMetrics(t *testing.T) {
	registerMetrics()
	id := machine.Identity{Release: machine.Release{Version: "1.1.0"}, Boot: machine.Boot{Slot: slot.B, Trial: true}}
	r := record.Record{Phase: record.Trying, Failed: []record.Failure{{}, {}}}
	r.Looked("https://u", "it is old", "expired", time.Unix(1000, 0))
	show(id, r)
	all, err := legacyregistry.DefaultGatherer.Gather()
	check(t, err)
	var got []string
	for _, f := range all {
		for _, m := range f.GetMetric() {
			text := f.GetName()
			for _, l := range m.GetLabel() {
				text += " " + l.GetValue()
			}
			if m.GetGauge() != nil {
				got = append(got, text+" "+time.Duration(m.GetGauge().GetValue()).String())
			}
		}
	}
	for _, want := range []string{
		"skerry_update_info trying b 1.1.0 1ns", "skerry_update_trial 1ns", "skerry_update_last_check_timestamp_seconds https://u 1µs",
		"skerry_update_source_problem expired https://u 1ns", "skerry_update_failed_releases 2ns",
	} {
		if !slices.Contains(got, want) {
			t.Errorf("there is no %q in %q", want, got)
		}
	}
}

// A look ends as the node config, the plans and the window say.
func TestALook(t *testing.T) {
	for name, tt := range map[string]struct {
		change   func(b *bench)
		restarts int32
		want     error
	}{
		"brings what is newer":   {func(*bench) {}, 1, nil},
		"only tells":             {func(b *bench) { b.n.Config.Policy = machine.UpdateCheck }, 0, nil},
		"a plan decides":         {func(b *bench) { b.planned.Store(true) }, 0, nil},
		"nothing is newer":       {func(b *bench) { b.n.Updater.Version = "1.1.0" }, 0, nil},
		"the source is away":     {(*bench).lose, 0, repository.ErrUnreachable},
		"the source is attacked": {func(b *bench) { b.alter(b.repo) }, 0, repository.ErrUntrusted},
		"somebody else is at it": {func(b *bench) { _, err := b.n.lock(); check(b.t, err) }, 0, errOther},
	} {
		b := newBench(t, machine.Update{})
		b.n.Config.Source = b.repo
		tt.change(b)
		err := b.look(t.Context())
		if !errors.Is(err, tt.want) || (err != nil) != (tt.want != nil) || b.restarts.Load() != tt.restarts {
			t.Errorf("%s: %v, restarted %d times", name, err, b.restarts.Load())
		}
	}
}

// The loop looks soon after the start, then at its pace; what travelled waits for the window, and goes on at its start.
func TestTheLoopAwaitsTheWindow(t *testing.T) {
	b := newBench(t, machine.Update{Interval: "6h"})
	b.n.Config.Source = b.repo
	synctest.Test(t, func(t *testing.T) {
		b.started = time.Now()
		at := b.n.Updater.Now().UTC().Add(5 * time.Hour).Truncate(time.Hour)
		b.n.Config.Windows = []string{at.Format("15:04") + "-" + at.Add(10*time.Minute).Format("15:04")}
		ctx, cancel := context.WithCancel(t.Context())
		var all sync.WaitGroup
		all.Go(func() { b.loop(ctx) })
		time.Sleep(time.Hour)
		synctest.Wait()
		if r := b.record(); r.Phase != record.Waiting || b.restarts.Load() != 0 {
			t.Errorf("after an hour: %+v", r)
		}
		for b.restarts.Load() == 0 && b.n.Updater.Now().Before(at.Add(time.Hour)) {
			time.Sleep(10 * time.Second)
			b.renew()
			synctest.Wait()
		}
		if late := b.n.Updater.Now().Sub(at); b.restarts.Load() != 1 || late < 0 || late > 2*time.Minute {
			t.Errorf("restarted %d times, %v after the window opened", b.restarts.Load(), late)
		}
		cancel()
		all.Wait()
	})
}

// awaitsWindow gives what becomes of a look whose update has waited an hour for a window that opens later.
func (b *bench) awaitsWindow(t *testing.T) <-chan error {
	b.started = time.Now()
	at := b.n.Updater.Now().UTC().Add(5 * time.Hour).Truncate(time.Hour)
	b.n.Config.Windows = []string{at.Format("15:04") + "-" + at.Add(10*time.Minute).Format("15:04")}
	looked := make(chan error, 1)
	go func() { looked <- b.look(t.Context()) }()
	time.Sleep(time.Hour)
	synctest.Wait()
	b.renew()
	return looked
}

// A person does not wait for a window, and need not wait for what does.
func TestByHandDuringAWait(t *testing.T) {
	b := newBench(t, machine.Update{})
	b.n.Config.Source = b.repo
	synctest.Test(t, func(t *testing.T) {
		looked := b.awaitsWindow(t)
		var said []string
		began := time.Now()
		err := b.asked(t.Context(), Ask{Do: DoApply}, func(text string) { said = append(said, text) })
		if err != nil || b.restarts.Load() != 1 || time.Since(began) > time.Minute || !strings.Contains(strings.Join(said, "\n"), "restarting into slot b, release 1.1.0") {
			t.Errorf("%v after %v, restarted %d times, said %q", err, time.Since(began), b.restarts.Load(), said)
		}
		if err := <-looked; !errors.Is(err, errOther) {
			t.Errorf("the one that waited: %v", err)
		}
	})
}

// By hand is the same way: the node's health is noted, the datastore saved and the pods taken off. An agent whose server is down
// gets a trial that is not about its server.
func TestByHandIsTheSameWay(t *testing.T) {
	for _, do := range []string{DoApply, DoRollback} {
		for _, down := range []bool{false, true} {
			b := newBench(t, machine.Update{})
			b.n.Config.Source = b.repo
			b.down.Store(down)
			b.started = time.Now().Add(-time.Hour)
			var done []string
			b.n.Updater.Snapshot = func(context.Context) (*record.Saved, error) {
				done = append(done, "snapshot")
				return &record.Saved{Snapshot: "s"}, nil
			}
			b.o.Others = func(context.Context) (bool, error) { return true, nil }
			if err := b.asked(t.Context(), Ask{Do: do}, func(string) {}); err != nil {
				t.Fatalf("%s: %v", do, err)
			}
			r := b.record()
			node, err := b.cluster.Tracker().Get(corev1.SchemeGroupVersion.WithResource("nodes"), "", "n")
			check(t, err)
			if r.Before == nil || r.Before.Ready == down || len(r.Before.Network) == 0 || !r.Before.Reachable || r.Saved == nil || strings.Join(done, " ") != "snapshot" || node.(*corev1.Node).Spec.Unschedulable == down || b.restarts.Load() != 1 {
				t.Errorf("%s, server down %v: %+v, %+v, %v, cordoned %v", do, down, r, r.Before, done, node.(*corev1.Node).Spec.Unschedulable)
			}
			if waits, _ := b.waits(t.Context(), r.Before); down && waits != "" {
				t.Errorf("%s: the trial of an agent whose server is down waits for %s", do, waits)
			}
		}
	}
}

// Where no skerryd runs, a command still takes the machine to another release, and the trial is about what is known.
func TestByHandWithoutSkerryd(t *testing.T) {
	b := newBench(t, machine.Update{})
	b.n.Config.Source = b.repo
	b.n.Updater.Hooks = update.Hooks{}
	restarted := 0
	check(t, b.n.Alone(t.Context(), Ask{Do: DoRollback}, func(string) {}, func(string) error { restarted++; return nil }))
	if r := b.record(); r.Before == nil || r.Before.Ready || r.Before.API || !r.Before.Reachable || len(r.Before.Network) == 0 || restarted != 1 {
		t.Errorf("%+v, %+v", r, r.Before)
	}
}

// A plan does not wait for the node's window either.
func TestAPlanDuringAWait(t *testing.T) {
	b := newBench(t, machine.Update{})
	b.n.Config.Source = b.repo
	synctest.Test(t, func(t *testing.T) {
		looked := b.awaitsWindow(t)
		p := newPlanned(b.service)
		p.refused = map[string]string{}
		node, err := b.cluster.CoreV1().Nodes().Get(t.Context(), "n", metav1.GetOptions{})
		check(t, err)
		p.node = node
		check(t, p.report(t.Context(), record.Idle))
		if r := rollout.ReportOf(p.node); r == nil || r.Phase != "" || b.waiting.Load() == nil {
			t.Errorf("a node that waits for its window reports %+v", r)
		}
		check(t, p.serve(t.Context(), &rollout.Request{Plan: "p", Version: "1.1.0"}))
		if err := <-looked; !errors.Is(err, errOther) || b.restarts.Load() != 1 || len(p.refused) > 0 || p.trouble != "" || b.n.Updater.Want != "" {
			t.Errorf("%v, restarted %d times, refused %v, %s", err, b.restarts.Load(), p.refused, p.trouble)
		}
		// What is not there may come, and a source that does not answer may answer.
		check(t, p.serve(t.Context(), &rollout.Request{Plan: "p", Version: "1.0.5"}))
		if len(p.refused) > 0 || p.trouble == "" {
			t.Errorf("what is not there: refused %v, %q", p.refused, p.trouble)
		}
		b.lose()
		check(t, p.serve(t.Context(), &rollout.Request{Plan: "p", Version: "1.3.0"}))
		if len(p.refused) > 0 || p.trouble == "" {
			t.Errorf("no source: refused %v, %q", p.refused, p.trouble)
		}
	})
}

// Pods leave where others can take them; what keeps them is told, and a server that is away keeps no update.
func TestDrainBeforeAnUpdate(t *testing.T) {
	yes := true
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "db", UID: "db", OwnerReferences: []metav1.OwnerReference{{Kind: "ReplicaSet", Name: "x", Controller: &yes}}},
		Spec:       corev1.PodSpec{NodeName: "n"},
	}
	for name, tt := range map[string]struct {
		others   bool
		down     bool
		policy   drain.Policy
		cordoned bool
		stuck    bool
		err      error
	}{
		"alone":           {policy: drain.Stop},
		"skip":            {others: true, policy: drain.Skip, cordoned: true, stuck: true},
		"stop":            {others: true, policy: drain.Stop, cordoned: true, stuck: true, err: drain.ErrStuck},
		"server is away":  {others: true, down: true, policy: drain.Stop},
		"nobody can tell": {others: false, down: true, policy: drain.Stop},
	} {
		b := newBench(t, machine.Update{})
		check(t, b.cluster.Tracker().Add(pod.DeepCopy()))
		b.cluster.PrependReactor("create", "pods", func(clienttesting.Action) (bool, runtime.Object, error) { return true, nil, nil }) // asked, it stays
		b.down.Store(tt.down)
		b.o.Others = func(context.Context) (bool, error) {
			if tt.down {
				return tt.others, errors.New("connection refused")
			}
			return tt.others, nil
		}
		stuck, err := b.drain(t.Context(), time.Millisecond, tt.policy)
		b.down.Store(false)
		node, gerr := b.cluster.CoreV1().Nodes().Get(t.Context(), "n", metav1.GetOptions{})
		if !errors.Is(err, tt.err) || (err != nil) != (tt.err != nil) || gerr != nil || node.Spec.Unschedulable != tt.cordoned || strings.Contains(stuck, "default/db") != tt.stuck || (len(b.events("DrainStuck")) == 1) != tt.stuck {
			t.Errorf("%s: %q, %v; cordoned %v, events %q", name, stuck, err, node.Spec.Unschedulable, b.events("DrainStuck"))
		}
		b.undrain(t.Context())
		if node, err := b.cluster.CoreV1().Nodes().Get(t.Context(), "n", metav1.GetOptions{}); err != nil || node.Spec.Unschedulable {
			t.Errorf("%s: stays cordoned: %v", name, err)
		}
	}
}

// What ended with the machine is under way no more, and why an update failed is an event once.
func TestALifeBegins(t *testing.T) {
	for _, phase := range []record.Phase{record.Writing, record.Waiting} {
		b := newBench(t, machine.Update{})
		check(t, b.n.Updater.Store.Save(record.Record{Phase: phase, To: "1.1.0", Slot: slot.B}))
		b.begin(t.Context())
		b.begin(t.Context())
		if r := b.record(); r.Phase != record.Idle || !strings.Contains(r.Reason, "release 1.1.0") || r.HasFailed("1.1.0") {
			t.Errorf("%s: %+v", phase, r)
		}
		if e := b.events("UpdateFailed"); len(e) != 1 {
			t.Errorf("%s: events %q", phase, e)
		}
	}
}

// The ways to others are those of the machine's own devices, however they are built on, and not those of pods.
func TestNetwork(t *testing.T) {
	link := func(names ...string) map[string]bool {
		out := map[string]bool{}
		for _, n := range names {
			out[n] = true
		}
		return out
	}
	sys := fstest.MapFS{}
	for name, has := range map[string]map[string]bool{
		"eth0": link("device"), "bond0": link("lower_eth1"), "eth1": link("device"), "bond0.7": link("lower_bond0"),
		"cni0": link("lower_veth1"), "veth1": link("address"), "flannel.1": link("lower_eth0"), "lo": link("address"),
	} {
		for f := range has {
			sys["class/net/"+name+"/"+f] = &fstest.MapFile{}
		}
	}
	p := netip.MustParsePrefix
	all := map[string][]netip.Prefix{
		"eth0": {p("192.0.2.7/24"), p("fe80::1/64"), p("2001:db8::7/64"), p("192.0.2.9/32")}, "bond0.7": {p("198.51.100.3/25")},
		"cni0": {p("10.42.0.1/24")}, "flannel.1": {p("10.42.0.0/32")}, "lo": {p("127.0.0.1/8")},
	}
	const head = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"
	proc := fstest.MapFS{
		"net/route":      {Data: []byte(head + "eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n")},
		"net/ipv6_route": {Data: []byte("00000000000000000000000000000000 00 00000000000000000000000000000000 00 fe800000000000000000000000000001 00000400 00000001 00000000 00000003     eth0\n")},
	}
	want := []string{"a default route for IPv4", "a default route for IPv6", "an address in 192.0.2.0/24", "an address in 198.51.100.0/25", "an address in 2001:db8::/64"}
	if got := network(sys, proc, all); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	none := fstest.MapFS{
		"net/route":      {Data: []byte(head + "eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n")},
		"net/ipv6_route": {Data: []byte("00000000000000000000000000000000 00 00000000000000000000000000000000 00 00000000000000000000000000000000 ffffffff 00000001 00000000 00200200       lo\n")},
	}
	if got := network(sys, none, nil); len(got) > 0 {
		t.Errorf("of nothing: %q", got)
	}
}

// A person's command reaches the service over its socket: what is said comes, then how it ended; who hangs up calls it off.
func TestControlSocket(t *testing.T) {
	dir, err := os.MkdirTemp("", "control") // a socket's name is short
	check(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	if err := Call(t.Context(), socket, Ask{Do: DoCheck}, nil); !errors.Is(err, ErrNotRunning) {
		t.Errorf("nobody listens: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	begun, ended := make(chan struct{}), make(chan error, 1)
	var served sync.WaitGroup
	served.Go(func() {
		_ = Listen(ctx, socket, func(ctx context.Context, a Ask, say func(string)) error {
			say(a.Do + " begins")
			if !a.Force {
				return errors.New("there is no room")
			}
			if a.Do == DoApply {
				close(begun)
				<-ctx.Done()
				ended <- context.Cause(ctx)
			}
			return nil
		})
	})
	for {
		if fi, err := os.Stat(socket); err == nil && fi.Mode().Perm() == 0o600 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	var said []string
	say := func(text string) { said = append(said, text) }
	if err := Call(t.Context(), socket, Ask{Do: DoRollback}, say); err == nil || err.Error() != "there is no room" {
		t.Errorf("got %v", err)
	}
	check(t, Call(t.Context(), socket, Ask{Do: DoRollback, Force: true}, say))
	if !slices.Equal(said, []string{"rollback begins", "rollback begins"}) {
		t.Errorf("said %q", said)
	}
	person, leave := context.WithCancelCause(t.Context())
	away := errors.New("Ctrl-C")
	go func() { <-begun; leave(away) }()
	if err := Call(person, socket, Ask{Do: DoApply, Force: true}, say); !errors.Is(err, away) {
		t.Errorf("left: %v", err)
	}
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "went away") {
		t.Errorf("the service goes on: %v", err)
	}
	cancel()
	served.Wait()
}
