package snapshot

import (
	"context"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/skerry-os/skerry/pkg/datastore"
)

func open(t *testing.T, c datastore.Config) datastore.Store {
	t.Helper()
	s, err := datastore.Open(c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// with runs a store while f talks to it.
func with(t *testing.T, store datastore.Store, f func(*clientv3.Client)) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	up, out := make(chan struct{}), make(chan error, 1)
	go func() { out <- store.Run(ctx, sync.OnceFunc(func() { close(up) })) }()
	select {
	case <-up:
	case err := <-out:
		t.Fatal(err)
	}
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{store.Endpoint()}, DialTimeout: 10 * time.Second, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	f(client)
	_ = client.Close()
	cancel()
	if err := <-out; err != nil {
		t.Error(err)
	}
}

func create(t *testing.T, c *clientv3.Client, key, value string) {
	t.Helper()
	r, err := c.Txn(t.Context()).If(clientv3.Compare(clientv3.ModRevision(key), "=", 0)).Then(clientv3.OpPut(key, value)).Commit()
	if err != nil || !r.Succeeded {
		t.Fatalf("creating %s: %v, %v", key, r, err)
	}
}

func value(t *testing.T, c *clientv3.Client, key string) string {
	t.Helper()
	r, err := c.Get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Kvs) == 0 {
		return ""
	}
	return string(r.Kvs[0].Value)
}

func newSnapshots(t *testing.T, c Config) *Snapshots {
	t.Helper()
	c.Node, c.Kubernetes, c.Skerry = "north", "v1.37.2", "1.0.0"
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// A snapshot that was taken while the store was written to brings back what was there, from a folder and from an S3 server, and
// what was there instead is kept.
func TestSaveAndRestore(t *testing.T) {
	server, backend := s3Server(t)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	s3 := &S3{
		Endpoint: server.Listener.Addr().String(), EndpointCA: ca, AccessKey: accessKey, SecretKey: secretKey,
		Bucket: bucketKey, Lookup: "path", Region: "us-east-1", Folder: "clusters/north", Timeout: time.Minute, Retention: 1,
	}
	c := datastore.Config{Dir: filepath.Join(t.TempDir(), "db")}
	store := open(t, c)
	s := newSnapshots(t, Config{Dir: filepath.Join(t.TempDir(), "snapshots"), Retention: 2, S3: s3})

	var saved []Entry
	with(t, store, func(client *clientv3.Client) {
		create(t, client, "/registry/a", "one")
		for range 3 {
			e, err := s.Save(t.Context(), store, OnDemand)
			if err != nil {
				t.Fatal(err)
			}
			saved = append(saved, e)
		}
		create(t, client, "/registry/b", "two")
	})
	list, err := s.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range list {
		names = append(names, e.Place[:2]+e.Name)
	}
	// Two in the folder and one in the bucket are kept, the newest.
	if len(list) != 3 || list[len(list)-1].Name != saved[1].Name {
		t.Errorf("the list is %q", names)
	}
	last := saved[2]
	if err := os.RemoveAll(s.Dir); err != nil { // the disk is lost, the bucket is not
		t.Fatal(err)
	}
	m, aside, err := s.Restore(t.Context(), store, strings.TrimSuffix(last.Name, suffix))
	if err != nil {
		t.Fatal(err)
	}
	if m.Node != "north" || m.Datastore != datastore.SQLite || m.Revision == 0 {
		t.Errorf("it says %+v", m)
	}
	if _, err := os.Stat(aside); err != nil {
		t.Errorf("the old file: %v", err)
	}
	with(t, store, func(client *clientv3.Client) {
		if a, b := value(t, client, "/registry/a"), value(t, client, "/registry/b"); a != "one" || b != "" {
			t.Errorf("restored: a is %q, b is %q", a, b)
		}
	})

	// Whoever has not the keys gets nothing, and is told where; the folder's copy is made all the same.
	for name, change := range map[string]func(*S3){
		"SignatureDoesNotMatch": func(c *S3) { c.SecretKey = "another" },
		"certificate":           func(c *S3) { c.EndpointCA = "" },
		"bucket does not exist": func(c *S3) { c.Bucket = "elsewhere" },
		"connection refused":    func(c *S3) { c.Endpoint = "127.0.0.1:1" },
	} {
		t.Run(name, func(t *testing.T) {
			c := *s3
			c.Timeout = 5 * time.Second
			change(&c)
			s := newSnapshots(t, Config{Dir: t.TempDir(), S3: &c})
			e, err := s.Save(t.Context(), store, OnDemand)
			text := strings.ToLower(errString(err))
			if e.Name == "" || (!strings.Contains(text, strings.ToLower(name)) && !strings.Contains(text, "signature is not that") && !strings.Contains(text, "deadline")) || !strings.Contains(text, "s3://"+c.Bucket) {
				t.Errorf("saved %q, error %v", e.Name, err)
			}
			if _, err := os.Stat(filepath.Join(e.Place, e.Name)); err != nil {
				t.Error(err)
			}
		})
	}
	if l, err := backend.ListBucket(bucketKey, nil, gofakes3Page()); err != nil || len(l.Contents) != 1 {
		t.Errorf("the bucket holds %v, %v", l, err)
	}
}

func errString(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// What cannot be restored is refused in a line that says why, before anything is touched.
func TestRefused(t *testing.T) {
	c := datastore.Config{Dir: filepath.Join(t.TempDir(), "db")}
	store := open(t, c)
	s := newSnapshots(t, Config{Dir: t.TempDir()})
	var good Entry
	with(t, store, func(client *clientv3.Client) {
		create(t, client, "/registry/a", strings.Repeat("x", 100_000))
		var err error
		if good, err = s.Save(t.Context(), store, OnDemand); err != nil {
			t.Fatal(err)
		}
	})
	data, err := os.ReadFile(filepath.Join(s.Dir, good.Name))
	if err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(c.File())
	if err != nil {
		t.Fatal(err)
	}
	replaced := func(old, with string) []byte {
		if len(old) != len(with) || !strings.Contains(string(data), old) {
			t.Fatalf("%q is not in the snapshot", old)
		}
		return []byte(strings.Replace(string(data), old, with, 1))
	}
	changed := append([]byte(nil), data...)
	changed[len(changed)-2048]++
	for name, c := range map[string]struct {
		data []byte
		want string
	}{
		"newer format":     {replaced(`"format": 1,`, `"format": 9,`), "is from a newer version (format 9, written by Skerry 1.0.0); update this machine first"},
		"newer Kubernetes": {replaced("v1.37.2", "v1.38.0"), "is from a newer version: it was written by Kubernetes v1.38.0"},
		"etcd":             {replaced(`"content": "kine"`, `"content": "etcd"`), "this server uses sqlite"},
		"one byte":         {changed, "is damaged: the checksum of its data"},
		"half":             {data[:len(data)/2], "is damaged"},
		"empty":            {nil, "is not a snapshot of Skerry"},
		"other file":       {[]byte(strings.Repeat("no tar", 1000)), "is not a snapshot of Skerry"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "x"+suffix)
			if err := os.WriteFile(file, c.data, 0o600); err != nil {
				t.Fatal(err)
			}
			_, _, err := s.Restore(t.Context(), store, file)
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("error is %v, want %q", err, c.want)
			}
			if strings.HasPrefix(name, "newer") && !errors.Is(err, ErrNewer) {
				t.Error("it is not ErrNewer")
			}
		})
	}
	for name, want := range map[string]string{"nothing": "there is no snapshot nothing", "..": "is not the name of a snapshot", "": "is not the name"} {
		if _, _, err := s.Restore(t.Context(), store, name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", name, err)
		}
	}
	if after, err := os.ReadFile(c.File()); err != nil || string(after) != string(before) {
		t.Errorf("the database has changed (%v)", err)
	}
	if left, _ := filepath.Glob(filepath.Join(s.Dir, partial+"*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// A damaged database comes back from the newest snapshot that is whole, with an event and the damaged file kept.
func TestDamagedDatabaseRestoresItself(t *testing.T) {
	s := newSnapshots(t, Config{Dir: t.TempDir()})
	var told []datastore.Event
	var mu sync.Mutex
	c := datastore.Config{Dir: filepath.Join(t.TempDir(), "db"), Recover: s.Recover(datastore.SQLite), Tell: func(e datastore.Event) {
		mu.Lock()
		defer mu.Unlock()
		told = append(told, e)
	}}
	store := open(t, c)
	with(t, store, func(client *clientv3.Client) {
		create(t, client, "/registry/a", strings.Repeat("x", 20_000))
		if _, err := s.Save(t.Context(), store, Scheduled); err != nil {
			t.Fatal(err)
		}
		newest, err := s.Save(t.Context(), store, Scheduled)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(s.Dir, newest.Name)
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		data[len(data)-1600]++
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
	})
	data, err := os.ReadFile(c.File())
	if err != nil {
		t.Fatal(err)
	}
	clear(data[8192 : len(data)-4096])
	if err := os.WriteFile(c.File(), data, 0o600); err != nil {
		t.Fatal(err)
	}
	with(t, store, func(client *clientv3.Client) {
		if got := value(t, client, "/registry/a"); len(got) != 20_000 {
			t.Errorf("a has %d bytes", len(got))
		}
		create(t, client, "/registry/b", "more")
	})
	mu.Lock()
	defer mu.Unlock()
	if len(told) != 1 || told[0].Reason != datastore.ReasonRestored || !strings.Contains(told[0].Message, "the damaged file is kept as "+c.Dir) {
		t.Errorf("told: %+v", told)
	}
	kept, err := filepath.Glob(c.File() + ".before-*")
	if err != nil || len(kept) != 1 {
		t.Fatalf("kept: %v, %v", kept, err)
	}
	if got, err := os.ReadFile(kept[0]); err != nil || string(got) != string(data) {
		t.Errorf("the kept file is not the damaged one (%v)", err)
	}
}

// The clock saves and tells, also when saving does not work.
func TestSchedule(t *testing.T) {
	events := make(chan datastore.Event, 4)
	s := newSnapshots(t, Config{Dir: t.TempDir(), Tell: func(e datastore.Event) { events <- e }})
	store := open(t, datastore.Config{Dir: filepath.Join(t.TempDir(), "db")})
	ctx, cancel := context.WithCancel(t.Context())
	var done sync.WaitGroup
	done.Go(func() { s.Run(ctx, store, every(10*time.Millisecond)) })
	if e := <-events; e.Reason != ReasonFailed || !e.Warning {
		t.Errorf("without a database: %+v", e)
	}
	with(t, store, func(client *clientv3.Client) {
		create(t, client, "/registry/a", "one")
		for e := range events {
			if e.Reason == ReasonSaved {
				break
			}
		}
		cancel()
		done.Wait()
	})
	if list, err := s.List(t.Context()); err != nil || len(list) == 0 || !strings.HasPrefix(list[0].Name, Scheduled+"-north-") {
		t.Errorf("saved: %v, %v", list, err)
	}
	for text, ok := range map[string]bool{"0 */12 * * *": true, "@daily": true, "0 */12 * *": false, "@never": false, "61 * * * *": false, "": false} {
		if _, err := ParseSchedule(text); (err == nil) != ok {
			t.Errorf("%q: %v", text, err)
		}
	}
}

type every time.Duration

func (e every) Next(t time.Time) time.Time { return t.Add(time.Duration(e)) }
