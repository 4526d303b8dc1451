package etcd

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/storage/schema"

	"github.com/skerry-os/skerry/pkg/datastore"
)

// The reasons of the events of etcd's alarms.
const (
	ReasonNoSpace   = "EtcdNoSpace"
	ReasonSpace     = "EtcdSpaceRecovered"
	ReasonCorrupted = "EtcdCorrupt"
)

const (
	// quota is how large etcd's file may become; past it, etcd takes nothing but deletions. etcd's own advice for the most.
	quota = 8 << 30

	diskEvery   = time.Second // it may fill fast
	alarmsEvery = 10 * time.Second
	defragEvery = 5 * time.Minute // it holds the member up for seconds
	defragLimit = 2 * time.Minute
)

// watch looks after the disk and this member's alarms until ctx ends, or the disk is full and the others can do without this member.
func (s *Store) watch(ctx context.Context, e *embed.Etcd) (leave bool) {
	hurry := time.Duration(max(1, s.hurry))
	disk, tick := time.NewTicker(diskEvery/hurry), time.NewTicker(alarmsEvery/hurry)
	defer disk.Stop()
	defer tick.Stop()
	w := watcher{Store: s, e: e, kept: s.knows()}
	for {
		select {
		case <-disk.C:
			if w.full = s.disk.Look(false); w.full || w.refused {
				w.refuse(ctx, w.full)
			}
			if w.refused && w.spare(ctx) {
				if w.refuse(ctx, false); !w.refused {
					return true
				}
			}
		case <-tick.C:
			w.alarms(ctx)
			w.remember()
		case <-ctx.Done():
			return false
		}
	}
}

// watcher is what watch remembers.
type watcher struct {
	*Store
	e       *embed.Etcd
	full    bool // the disk
	refused bool // because of it, nothing is taken
	said    string
	told    map[etcdserverpb.AlarmType]bool
	large   bool
	tried   time.Time // to shrink the file
	asked   time.Time // the others, whether they can do without this member
	kept    neighbours
}

// on are the alarms of this member.
func (w *watcher) on() map[etcdserverpb.AlarmType]bool {
	now := map[etcdserverpb.AlarmType]bool{}
	for _, a := range w.e.Server.Alarms() {
		if a.MemberID == uint64(w.e.Server.MemberID()) {
			now[a.Alarm] = true
		}
	}
	return now
}

// refuse has etcd take nothing but deletions while the disk is full, as it does by itself when its file has all that it may have. The
// members agree on it: what one cannot store, none may, until that one has left the storing to the others.
func (w *watcher) refuse(ctx context.Context, full bool) {
	if w.on()[etcdserverpb.AlarmType_NOSPACE] == full {
		w.refused = full
		return
	}
	action := etcdserverpb.AlarmRequest_DEACTIVATE
	if full {
		action = etcdserverpb.AlarmRequest_ACTIVATE
	}
	ctx, cancel := context.WithTimeout(ctx, alarmsEvery)
	defer cancel()
	_, err := w.e.Server.Alarm(ctx, &etcdserverpb.AlarmRequest{Action: action, MemberID: uint64(w.e.Server.MemberID()), Alarm: etcdserverpb.AlarmType_NOSPACE})
	if err == nil {
		w.refused = full
	} else if err.Error() != w.said {
		w.said = err.Error()
		slog.Warn("etcd: telling the others how full the disk is; trying again", "full", full, "err", err)
	}
}

// alarms tells of this member's alarms. When the file has reached its quota and there is room in it again, because objects were
// deleted and compacted, it gives the room back and ends the alarm.
func (w *watcher) alarms(ctx context.Context) {
	now := w.on()
	size, used := w.e.Server.Backend().Size(), w.e.Server.Backend().SizeInUse()
	datastore.ObserveSize(datastore.Etcd, size)
	noSpace := now[etcdserverpb.AlarmType_NOSPACE] && !w.full && !w.refused // because of the file, not of the disk
	if noSpace && size < w.quota()/2 {
		w.refuse(ctx, false) // the disk was full before this start
		noSpace = false
	}
	if now[etcdserverpb.AlarmType_CORRUPT] && !w.told[etcdserverpb.AlarmType_CORRUPT] {
		w.tell(true, ReasonCorrupted, "etcd: this server's data differs from the others'; stop it, remove server/db/etcd from its data folder, and let it join again")
	}
	if noSpace && !w.told[etcdserverpb.AlarmType_NOSPACE] {
		w.tell(true, ReasonNoSpace, fmt.Sprintf("etcd: its file has %d MiB, all that it may have; only deletions are taken until there is room: find out what fills it (kubectl get --raw /metrics, apiserver_resource_objects) and delete that",
			w.quota()>>20))
	}
	now[etcdserverpb.AlarmType_NOSPACE] = noSpace
	w.told = now
	if noSpace {
		recount(w.e)
		used = w.e.Server.Backend().SizeInUse()
	}
	if big := size > w.quota()/10*8; big != w.large {
		if w.large = big; big && !noSpace {
			w.tell(true, datastore.ReasonLarge, fmt.Sprintf("etcd: its file has %d of the %d MiB that it may have", size>>20, w.quota()>>20))
		}
	}
	if !noSpace || used >= w.quota()/10*8 || time.Since(w.tried) <= defragEvery {
		return
	}
	w.tried = time.Now()
	if err := w.makeRoom(ctx, w.e); err != nil {
		if ctx.Err() == nil {
			slog.Warn("etcd: making room; trying again", "err", err)
		}
		return
	}
	w.tell(false, ReasonSpace, fmt.Sprintf("etcd: there is room again, %d MiB are in use", used>>20))
}

// recount brings etcd's figure of what is in use up to date. bbolt counts a page as free only when a later transaction has begun,
// and while etcd takes no writes there may be none: what was deleted would look as if it were still in use. Deleting what is
// not there changes nothing and is a transaction; the first lets pages go, the second counts them.
func recount(e *embed.Etcd) {
	b := e.Server.Backend()
	for range 2 {
		tx := b.BatchTx()
		tx.LockOutsideApply()
		tx.UnsafeDelete(schema.Meta, []byte("skerry: no such key"))
		tx.Unlock()
		b.ForceCommit()
	}
}

// makeRoom shrinks the file to what is in use, and ends the alarm.
func (s *Store) makeRoom(ctx context.Context, e *embed.Etcd) error {
	ctx, cancel := context.WithTimeout(ctx, defragLimit)
	defer cancel()
	return s.with(ctx, func(ctx context.Context, c *clientv3.Client) error {
		if _, err := c.Defragment(ctx, s.Endpoint()); err != nil {
			return err
		}
		_, err := c.AlarmDisarm(ctx, &clientv3.AlarmMember{MemberID: uint64(e.Server.MemberID()), Alarm: etcdserverpb.AlarmType_NOSPACE})
		return err
	})
}

func (s *Store) quota() int64 {
	if s.Quota > 0 {
		return s.Quota
	}
	return mostFor(strconv.IntSize)
}

// mostFor bounds the file where pointers have 32 bits: all of it is mapped into memory, whose addresses end at 3 GiB, and bbolt
// refuses more than 2 GiB. The alarm must come first.
func mostFor(bits int) int64 {
	if bits < 64 {
		return 1 << 30
	}
	return quota
}
