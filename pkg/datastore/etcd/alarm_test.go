package etcd

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/skerry-os/skerry/pkg/datastore"
)

// A full etcd says so and takes deletions; when there is room again, it takes everything without anybody's help.
func TestFull(t *testing.T) {
	s := newServer(t, 1, nil)
	var mu sync.Mutex
	var told []datastore.Event
	s.store.Quota, s.store.hurry = 16<<20, 50
	s.store.Tell = func(e datastore.Event) {
		mu.Lock()
		defer mu.Unlock()
		told = append(told, e)
	}
	saw := func(reason string) {
		t.Helper()
		deadline := time.Now().Add(time.Minute)
		for {
			mu.Lock()
			for _, e := range told {
				if e.Reason == reason {
					mu.Unlock()
					return
				}
			}
			all := fmt.Sprint(told)
			mu.Unlock()
			if time.Now().After(deadline) {
				t.Fatalf("%s is not told: %s", reason, all)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	s.start().ready()
	c := s.client()
	var err error
	for i := 0; err == nil && i < 1000; i++ {
		_, err = c.Put(t.Context(), fmt.Sprintf("/k/%d", i), strings.Repeat("x", 200<<10))
	}
	if !errors.Is(err, rpctypes.ErrNoSpace) {
		t.Fatalf("it never became full: %v", err)
	}
	saw(ReasonNoSpace)
	r, err := c.Delete(t.Context(), "/k/", clientv3.WithPrefix())
	if err != nil {
		t.Fatalf("a deletion: %v", err)
	}
	if _, err := c.Compact(t.Context(), r.Header.Revision, clientv3.WithCompactPhysical()); err != nil {
		t.Fatal(err)
	}
	saw(ReasonSpace)
	eventually(t, func(ctx context.Context) error {
		_, err := c.Put(ctx, "/k/again", "y")
		return err
	})
	s.end()
}
