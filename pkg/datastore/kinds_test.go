package datastore_test

import (
	"context"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/skerry-os/skerry/pkg/datastore"
	"github.com/skerry-os/skerry/pkg/datastore/databases"
	"github.com/skerry-os/skerry/pkg/datastore/etcd"
	"github.com/skerry-os/skerry/pkg/pki"
)

var numbers = flag.Bool("numbers", false, "compare the kinds of datastores; `make bench` does")

// What the child of a test runs: a store of this kind in this folder.
const (
	childKind = "SKERRY_TEST_KIND"
	childDir  = "SKERRY_TEST_DIR"
)

func TestMain(m *testing.M) {
	if kind := os.Getenv(childKind); kind != "" {
		flag.Parse()
		store, err := openKind(kind, os.Getenv(childDir), "")
		if err == nil {
			err = store.Run(context.Background(), func() { fmt.Println("ready") })
		}
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// openKind opens a store in dir, which must be short.
func openKind(kind, dir, url string) (datastore.Store, error) {
	if kind != datastore.Etcd {
		return datastore.Open(datastore.Config{Dir: filepath.Join(dir, "db"), Endpoint: url})
	}
	if err := os.MkdirAll(filepath.Join(dir, "server/tls"), 0o700); err != nil {
		return nil, err
	}
	ip := netip.AddrFrom4([4]byte{127, 0, 77, 1})
	f, err := pki.EnsureEtcd(pki.Config{DataDir: dir, NodeName: "n", NodeIPs: []netip.Addr{ip}, Now: time.Now()})
	if err != nil {
		return nil, err
	}
	return etcd.New(etcd.Config{Dir: filepath.Join(dir, "db"), Name: "n", IP: ip, TLS: etcd.TLS(*f)}), nil
}

func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "sk")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func dial(t testing.TB, s datastore.Store) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{s.Endpoint()}, DialTimeout: 10 * time.Second, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func create(ctx context.Context, c *clientv3.Client, key, value string) (int64, error) {
	r, err := c.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", 0)).Then(clientv3.OpPut(key, value)).Commit()
	if err == nil && !r.Succeeded {
		err = fmt.Errorf("%s is there already", key)
	}
	if err != nil {
		return 0, err
	}
	return r.Header.Revision, nil
}

// However often a store is killed while many write to it, what was answered is there afterwards, and the data is whole.
func TestKilledWhileWriting(t *testing.T) {
	for _, kind := range []string{datastore.SQLite, datastore.Etcd} {
		t.Run(kind, func(t *testing.T) {
			dir := shortDir(t)
			store, err := openKind(kind, dir, "")
			if err != nil {
				t.Fatal(err)
			}
			var answered []string
			for round := range 5 {
				cmd := exec.Command(os.Args[0])
				cmd.Env = append(os.Environ(), childKind+"="+kind, childDir+"="+dir)
				cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
				var log strings.Builder
				cmd.Stderr = &log
				out, err := cmd.StdoutPipe()
				if err != nil {
					t.Fatal(err)
				}
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				if n, err := out.Read(make([]byte, 16)); n == 0 {
					t.Fatalf("round %d: %v\n%s", round, err, log.String())
				}
				client := dial(t, store)
				ctx, cancel := context.WithCancel(t.Context())
				var mu sync.Mutex
				var writers sync.WaitGroup
				enough := make(chan struct{}, 10_000)
				for w := range 8 {
					writers.Go(func() {
						for i := 0; ctx.Err() == nil; i++ {
							key := fmt.Sprintf("/registry/%d-%d-%d", round, w, i)
							if _, err := create(ctx, client, key, strings.Repeat("x", 2000)); err != nil {
								return
							}
							mu.Lock()
							answered = append(answered, key)
							mu.Unlock()
							enough <- struct{}{}
						}
					})
				}
				for range 100 + 37*round {
					<-enough
				}
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
				_ = cmd.Wait()
				cancel()
				writers.Wait()
				_ = client.Close()
			}
			ctx, cancel := context.WithCancel(t.Context())
			up, out := make(chan struct{}), make(chan error, 1)
			go func() { out <- store.Run(ctx, sync.OnceFunc(func() { close(up) })) }()
			select {
			case <-up:
			case err := <-out:
				t.Fatal(err)
			}
			client := dial(t, store)
			r, err := client.Get(ctx, "/registry/", clientv3.WithPrefix(), clientv3.WithKeysOnly())
			if err != nil {
				t.Fatal(err)
			}
			there := map[string]bool{}
			for _, kv := range r.Kvs {
				there[string(kv.Key)] = true
			}
			lost := slices.DeleteFunc(slices.Clone(answered), func(key string) bool { return there[key] })
			t.Logf("%d writes were answered, %d are lost", len(answered), len(lost))
			if len(answered) == 0 || len(lost) > 0 {
				t.Errorf("lost: %v", lost)
			}
			if err := store.Check(ctx); err != nil {
				t.Error(err)
			}
			_ = client.Close()
			cancel()
			if err := <-out; err != nil {
				t.Error(err)
			}
		})
	}
}

// TestNumbers compares the kinds in one run, on one disk, each of them with every answered write on the disk.
func TestNumbers(t *testing.T) {
	if !*numbers {
		t.Skip("measures for minutes: add -args -numbers (or run make bench)")
	}
	base := os.Getenv("SKERRY_BENCH_DIR") // a tmpfs would make durability free
	fmt.Printf("\n| datastore | creates/s | updates/s | list of 5,000 objects |\n|---|---|---|---|\n")
	for _, kind := range []string{datastore.SQLite, datastore.Etcd, datastore.PostgreSQL} {
		url := ""
		if kind == datastore.PostgreSQL {
			db := databases.PostgreSQL(t, databases.Place{})
			db.Start()
			url = db.URL
		}
		dir, err := os.MkdirTemp(base, "sk")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir) //nolint:errcheck // the test is over
		measure(t, kind, dir, url)
	}
}

func measure(t *testing.T, kind, dir, url string) {
	store, err := openKind(kind, dir, url)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	up, out := make(chan struct{}), make(chan error, 1)
	go func() { out <- store.Run(ctx, sync.OnceFunc(func() { close(up) })) }()
	select {
	case <-up:
	case err := <-out:
		t.Fatal(err)
	}
	client := dial(t, store)
	const objects, writers = 5000, 16
	value := strings.Repeat("x", 1024)
	revisions := make([]int64, objects)
	all := func(f func(i int) error) float64 {
		began := time.Now()
		var wg sync.WaitGroup
		for w := range writers {
			wg.Go(func() {
				for i := w; i < objects; i += writers {
					if err := f(i); err != nil {
						t.Errorf("%s: %v", kind, err)
						return
					}
				}
			})
		}
		wg.Wait()
		return objects / time.Since(began).Seconds()
	}
	creates := all(func(i int) (err error) {
		revisions[i], err = create(ctx, client, fmt.Sprintf("/registry/pods/%05d", i), value)
		return err
	})
	updates := all(func(i int) error {
		key := fmt.Sprintf("/registry/pods/%05d", i)
		r, err := client.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", revisions[i])).Then(clientv3.OpPut(key, value)).Else(clientv3.OpGet(key)).Commit()
		if err == nil && !r.Succeeded {
			err = fmt.Errorf("%s: conflict", key)
		}
		return err
	})
	var lists []time.Duration
	for range 9 {
		began := time.Now()
		r, err := client.Get(ctx, "/registry/pods/", clientv3.WithPrefix())
		if err != nil || len(r.Kvs) != objects {
			t.Fatalf("%s: list: %v", kind, err)
		}
		lists = append(lists, time.Since(began))
	}
	slices.Sort(lists)
	fmt.Printf("| %s | %.0f | %.0f | %v |\n", kind, creates, updates, lists[len(lists)/2].Round(100*time.Microsecond))
	_ = client.Close()
	cancel()
	if err := <-out; err != nil {
		t.Error(err)
	}
}
