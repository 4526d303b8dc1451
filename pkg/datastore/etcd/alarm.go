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

	alarmsEvery = 10 * time.Second
	defragEvery = 5 * time.Minute // it holds the member up for seconds
	defragLimit = 2 * time.Minute
)

// watchAlarms tells of this member's alarms until ctx ends. When the file has reached its quota and there is room in it again,
// because objects were deleted and compacted, it gives the room back and ends the alarm.
func (s *Store) watchAlarms(ctx context.Context, e *embed.Etcd) {
	tick := time.NewTicker(alarmsEvery / time.Duration(max(1, s.hurry)))
	defer tick.Stop()
	told := map[etcdserverpb.AlarmType]bool{}
	var large bool
	var tried time.Time
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		now := map[etcdserverpb.AlarmType]bool{}
		for _, a := range e.Server.Alarms() {
			if a.MemberID == uint64(e.Server.MemberID()) {
				now[a.Alarm] = true
			}
		}
		if now[etcdserverpb.AlarmType_CORRUPT] && !told[etcdserverpb.AlarmType_CORRUPT] {
			s.tell(true, ReasonCorrupted, "etcd: this server's data differs from the others'; stop it, remove server/db/etcd from its data folder, and let it join again")
		}
		if now[etcdserverpb.AlarmType_NOSPACE] && !told[etcdserverpb.AlarmType_NOSPACE] {
			s.tell(true, ReasonNoSpace, fmt.Sprintf("etcd: its file has %d MiB, all that it may have; only deletions are taken until there is room: find out what fills it (kubectl get --raw /metrics, apiserver_resource_objects) and delete that",
				s.quota()>>20))
		}
		told = now
		if now[etcdserverpb.AlarmType_NOSPACE] {
			recount(e)
		}
		size, used := e.Server.Backend().Size(), e.Server.Backend().SizeInUse()
		if big := size > s.quota()/10*8; big != large {
			if large = big; big && !now[etcdserverpb.AlarmType_NOSPACE] {
				s.tell(true, datastore.ReasonLarge, fmt.Sprintf("etcd: its file has %d of the %d MiB that it may have", size>>20, s.quota()>>20))
			}
		}
		if now[etcdserverpb.AlarmType_NOSPACE] && used < s.quota()/10*8 && time.Since(tried) > defragEvery {
			tried = time.Now()
			if err := s.makeRoom(ctx, e); err != nil {
				if ctx.Err() == nil {
					slog.Warn("etcd: making room; trying again", "err", err)
				}
				continue
			}
			s.tell(false, ReasonSpace, fmt.Sprintf("etcd: there is room again, %d MiB are in use", used>>20))
		}
	}
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
