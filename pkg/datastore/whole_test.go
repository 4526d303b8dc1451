package datastore

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/skerry-os/skerry/pkg/datastore/databases"
)

// cutter carries connections to a database and ends them, all at once, after so many bytes of its answers.
type cutter struct {
	left atomic.Int64 // bytes until the cut; negative: there is none
	cuts atomic.Int64
}

func (c *cutter) listen(t *testing.T, to string) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	c.left.Store(-1)
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to)
			if err != nil {
				_ = in.Close()
				continue
			}
			go func() { _, _ = io.Copy(out, in); _ = out.Close() }()
			go func() {
				defer in.Close()  //nolint:errcheck // it is cut
				defer out.Close() //nolint:errcheck // it is cut
				b := make([]byte, 4096)
				for {
					n, err := out.Read(b)
					if err != nil {
						return
					}
					if _, err := in.Write(b[:n]); err != nil {
						return
					}
					if c.left.Load() >= 0 && c.left.Add(-int64(n)) < 0 {
						c.left.Store(-1)
						c.cuts.Add(1)
						return
					}
				}
			}()
		}
	}()
	return l.Addr().String()
}

// However far a database's answer gets before the connection is lost, a list is whole or an error, and a watch misses nothing.
func TestAnswersAreWhole(t *testing.T) {
	for name, newOne := range databases.Kinds {
		t.Run(name, func(t *testing.T) {
			d := newOne(t, databases.Place{})
			d.Start()
			_, direct, _ := strings.Cut(strings.NewReplacer("tcp(", "", ")", "").Replace(d.URL), "word@")
			direct = strings.TrimSuffix(direct, "/cluster")
			var cut cutter
			url := strings.Replace(d.URL, direct, cut.listen(t, direct), 1)
			store := open(t, Config{Dir: filepath.Join(t.TempDir(), "db"), Endpoint: url})
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			up, out := channels()
			go func() { out <- store.Run(ctx, func() { close(up) }) }()
			select {
			case <-up:
			case err := <-out:
				t.Fatal(err)
			case <-time.After(time.Minute):
				t.Fatal("not ready")
			}
			client := dial(t, store)
			defer client.Close() //nolint:errcheck // the test is over
			const objects = 300
			for i := range objects {
				create(t, client, fmt.Sprintf("/registry/pods/%03d", i), strings.Repeat("x", 4000))
			}
			if r, err := client.Get(ctx, "/registry/pods/", clientv3.WithPrefix()); err != nil || len(r.Kvs) != objects {
				t.Fatalf("undisturbed: %v, %v", r, err)
			}
			if r, err := client.Get(ctx, "\x00", clientv3.WithFromKey()); err != nil || len(r.Kvs) < objects {
				t.Fatalf("everything: %v", err)
			}
			wrong := 0
			for _, after := range []int64{100, 5_000, 50_000, 200_000, 400_000, 700_000, 1_000_000, 1_150_000} {
				for _, limit := range []int64{0, 500, 100} {
					cut.left.Store(after)
					short, done := context.WithTimeout(ctx, 10*time.Second)
					r, err := client.Get(short, "/registry/pods/", clientv3.WithPrefix(), clientv3.WithLimit(limit))
					done()
					want := objects
					if limit == 100 {
						want = 100
					}
					if err == nil && len(r.Kvs) != want {
						wrong++
						t.Errorf("cut after %d bytes, limit %d: %d of %d objects, and no error", after, limit, len(r.Kvs), want)
					}
					cut.left.Store(-1)
				}
			}
			for _, after := range []int64{50_000, 700_000, 2_000_000} {
				cut.left.Store(after)
				short, done := context.WithTimeout(ctx, 5*time.Second)
				seen, last := 0, ""
				for w := range client.Watch(short, "/registry/pods/", clientv3.WithPrefix(), clientv3.WithRev(2)) {
					if w.Err() != nil {
						break // and whoever watches begins again
					}
					for _, e := range w.Events {
						want := fmt.Sprintf("/registry/pods/%03d", seen)
						if last = string(e.Kv.Key); last != want {
							t.Fatalf("cut after %d bytes: %s comes after %d events, and those between are lost", after, last, seen)
						}
						seen++
					}
					if seen == objects {
						break
					}
				}
				done()
				cut.left.Store(-1)
				t.Logf("cut after %d bytes: a watch saw %d of %d", after, seen, objects)
			}
			t.Logf("%d connections were cut, %d answers were wrong", cut.cuts.Load(), wrong)
			if cut.cuts.Load() == 0 {
				t.Error("nothing was cut")
			}
			cancel()
			if err := <-out; err != nil {
				t.Error(err)
			}
		})
	}
}

// breaking is a result that breaks off after so many rows.
type breaking struct{ rows int }

func (b *breaking) Columns() []string { return []string{"id"} }
func (b *breaking) Close() error      { return nil }
func (b *breaking) Next(dest []driver.Value) error {
	if b.rows == 0 {
		return errors.New("disk I/O error")
	}
	b.rows--
	dest[0] = int64(b.rows)
	return nil
}

// A SQLite file that cannot be read further is noticed by whoever scans, and by whoever asks for the rows' error.
func TestBrokenRowsCannotBeRead(t *testing.T) {
	r := &rows{Rows: &breaking{rows: 2}}
	dest := make([]driver.Value, 1)
	for range 2 {
		if err := r.Next(dest); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Next(dest); err != nil {
		t.Fatal(err)
	}
	var n sql.NullInt64
	if err := n.Scan(dest[0]); err == nil || !strings.Contains(err.Error(), "disk I/O error") {
		t.Errorf("read as a number: %v", err)
	}
	if err := r.Next(dest); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("the end: %v", err)
	}
}
