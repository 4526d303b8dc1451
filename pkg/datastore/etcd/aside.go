package etcd

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/client/pkg/v3/transport"

	"github.com/skerry-os/skerry/pkg/atomicfile"
)

// The reasons of the events of a member that leaves the storing to the others, and of its return.
const (
	ReasonAside = "EtcdAside"
	ReasonBack  = "EtcdBack"
)

const (
	asideEvery = 2 * time.Second
	askLimit   = 3 * time.Second // for a neighbour's answer
	missLimit  = 3               // so many looks in a row find the others unable
)

// errAside ends a member whose disk is full and that the others can do without.
var errAside = errors.New("the others store alone")

// neighbours are the other members that count, kept in a file for a start on a full disk.
type neighbours struct {
	ID   uint64   `json:"id"`   // of this member
	URLs []string `json:"urls"` // where the others listen for clients
}

func (s *Store) neighboursFile() string { return filepath.Join(s.Dir, "etcd.neighbours") }

// knows reads the file; none is a member that is alone.
func (s *Store) knows() (n neighbours) {
	data, err := os.ReadFile(s.neighboursFile())
	if err == nil {
		err = json.Unmarshal(data, &n)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		slog.Warn("etcd: reading who the other servers are", "file", s.neighboursFile(), "err", err)
		return neighbours{}
	}
	return n
}

// forget is for a member that has no neighbours any more: whoever is written there belongs to another cluster.
func (s *Store) forget() error {
	if err := os.Remove(s.neighboursFile()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// remember writes the file when the members have changed. On a full disk it is tried again with the next look.
func (w *watcher) remember() {
	now := w.neighbours()
	if reflect.DeepEqual(now, w.kept) {
		return
	}
	data, err := json.Marshal(now)
	if err == nil {
		err = atomicfile.Write(w.neighboursFile(), data, 0o600)
	}
	if err == nil {
		w.kept = now
	}
}

func (w *watcher) neighbours() neighbours {
	n := neighbours{ID: uint64(w.e.Server.MemberID())}
	for _, m := range w.e.Server.Cluster().Members() {
		if m.ID != w.e.Server.MemberID() && !m.IsLearner {
			n.URLs = append(n.URLs, m.ClientURLs...)
		}
	}
	slices.Sort(n.URLs)
	return n
}

// spare reports whether the others can store without this member: that they are more than half of all, have a leader, and room. The
// alarm of a full disk is one after the other for all members, so of two whose disks fill at once one goes and the other sees it.
func (w *watcher) spare(ctx context.Context) bool {
	if time.Since(w.asked) < asideEvery/time.Duration(max(1, w.hurry)) {
		return false
	}
	w.asked = time.Now()
	var full []uint64
	for _, a := range w.e.Server.Alarms() {
		if a.Alarm == etcdserverpb.AlarmType_NOSPACE {
			full = append(full, a.MemberID)
		}
	}
	urls := w.neighbours().URLs
	able := make(chan bool, len(urls))
	for _, u := range urls {
		go func() { able <- w.able(ctx, u, full) }()
	}
	count := 0
	for range urls {
		if <-able {
			count++
		}
	}
	return count > (len(urls)+1)/2
}

// able asks one neighbour.
func (s *Store) able(ctx context.Context, endpoint string, full []uint64) bool {
	c, err := s.others(endpoint)
	if err != nil {
		return false
	}
	defer c.Close() //nolint:errcheck // answered
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	r, err := c.Status(ctx, endpoint)
	return err == nil && r.Leader != 0 && !r.IsLearner && !slices.Contains(full, r.Header.MemberId)
}

// stored asks the neighbours for the list of the members, which they must agree on: so it says that they can store, too. It must
// name this member, or they are another cluster by now.
func (s *Store) stored(ctx context.Context, n neighbours) (names []string, err error) {
	if len(n.URLs) == 0 {
		return nil, errors.New("there are none")
	}
	c, err := s.others(n.URLs...)
	if err != nil {
		return nil, err
	}
	defer c.Close() //nolint:errcheck // answered
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	list, err := c.MemberList(ctx)
	if err != nil {
		return nil, err
	}
	member := false
	for _, m := range list.Members {
		if m.ID == n.ID {
			member = true
		} else {
			names = append(names, m.Name)
		}
	}
	if !member {
		return nil, errors.New("they have removed this server")
	}
	return names, nil
}

// aside has this server use the others' etcd while its own disk is full: its socket leads to theirs, so that its API, and kubelet,
// which is to make room, go on. It returns when there is room, when the others need this member to store anything, and at
// once if they cannot do without it.
func (s *Store) aside(ctx context.Context, ready func()) error {
	n := s.knows()
	names, err := s.stored(ctx, n)
	if err != nil {
		return nil //nolint:nilerr // then it is needed
	}
	if err := os.Remove(s.socket()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	l, err := net.Listen("unix", s.socket())
	if err != nil {
		return err
	}
	if err := os.Chmod(s.socket(), 0o600); err != nil {
		return errors.Join(err, l.Close())
	}
	s.id.Store(n.ID)
	var calls sync.WaitGroup
	calling, hangUp := context.WithCancel(ctx)
	calls.Go(func() { s.lead(calling, l, n.URLs) })
	defer calls.Wait()
	defer hangUp()
	s.tell(true, ReasonAside, fmt.Sprintf("etcd: while the disk of %s is full, this server stores nothing and uses the etcd of the others (%s); if one more is lost meanwhile, the cluster may not be able to store anything: make room",
		s.Dir, strings.Join(names, ", ")))
	ready()
	tick := time.NewTicker(asideEvery / time.Duration(max(1, s.hurry)))
	defer tick.Stop()
	for missed := 0; ; {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if !s.disk.Look(false) {
			s.tell(false, ReasonBack, "etcd: there is room again, this server stores with the others")
			return nil
		}
		if _, err := s.stored(ctx, n); err == nil {
			missed = 0
		} else if missed++; missed == missLimit {
			if ctx.Err() == nil {
				s.tell(true, ReasonBack, fmt.Sprintf("etcd: the other servers cannot store alone (%v); this one stores again, as far as its disk allows", err))
			}
			return nil
		}
	}
}

// lead joins each caller of the socket with the first neighbour that answers, until ctx ends.
func (s *Store) lead(ctx context.Context, l net.Listener, urls []string) {
	var calls sync.WaitGroup
	defer calls.Wait()
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	for {
		from, err := l.Accept()
		if err != nil {
			return
		}
		calls.Go(func() {
			defer from.Close() //nolint:errcheck // what was to be said is said
			to, err := s.call(ctx, urls)
			if err != nil {
				return
			}
			defer to.Close() //nolint:errcheck // likewise
			defer context.AfterFunc(ctx, func() { _, _ = from.Close(), to.Close() })()
			var back sync.WaitGroup
			back.Go(func() {
				_, _ = io.Copy(from, to)
				_ = from.Close()
			})
			_, _ = io.Copy(to, from)
			_ = to.Close()
			back.Wait()
		})
	}
}

// call opens a connection to a neighbour's etcd. The bytes of HTTP/2 are the same on the socket and inside TLS.
func (s *Store) call(ctx context.Context, urls []string) (conn net.Conn, err error) {
	info := transport.TLSInfo{CertFile: s.TLS.ClientPair, KeyFile: s.TLS.ClientPair, TrustedCAFile: s.TLS.ServerCA}
	config, err := info.ClientConfig()
	if err != nil {
		return nil, err
	}
	config.NextProtos = []string{"h2"}
	d := tls.Dialer{NetDialer: &net.Dialer{Timeout: askLimit}, Config: config}
	err = errors.New("no other server is known")
	for _, text := range urls {
		u, perr := url.Parse(text)
		if perr != nil {
			continue
		}
		if conn, err = d.DialContext(ctx, "tcp", u.Host); err == nil {
			return conn, nil
		}
	}
	return nil, err
}

// belongs says whether this member is one of several, and is to stay that.
func (s *Store) belongs() bool {
	if _, err := os.Stat(s.restored()); err == nil || s.Reset || !Exists(s.Dir) {
		return false // it becomes the first of a new cluster
	}
	return len(s.knows().URLs) > 0
}

// await returns once the member may start: there is room, or the others need it.
func (s *Store) await(ctx context.Context, ready func()) error {
	for told := false; ctx.Err() == nil; told = true {
		if s.belongs() && s.disk.Look(false) {
			if err := s.aside(ctx, ready); err != nil || ctx.Err() != nil {
				return err
			}
		}
		if s.disk.Room(!told) {
			return nil
		}
		select {
		case <-ctx.Done():
		case <-time.After(asideEvery):
		}
	}
	return nil
}
