package etcd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
)

// begin gives a member without data its place: in a new cluster, or in that of the server to join.
func (s *Store) begin(ctx context.Context, config *embed.Config) error {
	if s.Reset {
		return fmt.Errorf("--cluster-reset: there is no etcd in %s; name a snapshot with --cluster-reset-restore-path", s.Dir)
	}
	if len(s.Join) == 0 {
		if gone, _ := filepath.Glob(s.data() + ".removed-*"); len(gone) > 0 {
			return fmt.Errorf("etcd: this server was removed from its cluster; join it with --server, or remove %s to make a new one", gone[0])
		}
		config.ClusterState = embed.ClusterStateFlagNew
		return s.convert(ctx)
	}
	config.ClusterState = embed.ClusterStateFlagExisting
	for said := false; ; {
		var err error
		for _, host := range s.Join {
			members, tried := s.addTo(ctx, "https://"+net.JoinHostPort(host, strconv.Itoa(s.ClientPort)))
			if tried == nil {
				config.InitialCluster = initialCluster(members, s.peerURL(), s.Name)
				return nil
			}
			err = errors.Join(err, tried)
		}
		if ctx.Err() != nil {
			return nil //nolint:nilerr // a stop is no fault
		}
		if !said {
			said = true
			slog.Warn("etcd: waiting for a server to join", "servers", s.Join, "err", err)
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return nil
		}
	}
}

// addTo makes us a learner. A member at our address is what is left of an attempt that was cut short, or of a machine whose disk
// was replaced: it has no data any more, and goes.
func (s *Store) addTo(ctx context.Context, host string) ([]*etcdserverpb.Member, error) {
	c, err := s.others(host)
	if err != nil {
		return nil, err
	}
	defer c.Close() //nolint:errcheck // answered
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	list, err := c.MemberList(ctx)
	if err != nil {
		return nil, err
	}
	for _, m := range list.Members {
		if slices.Contains(m.PeerURLs, s.peerURL()) || m.Name == s.Name {
			if _, err := c.MemberRemove(ctx, m.ID); err != nil {
				return nil, fmt.Errorf("removing what is left of this server: %w", err)
			}
		}
	}
	added, err := c.MemberAddAsLearner(ctx, []string{s.peerURL()})
	if err != nil {
		return nil, err
	}
	return added.Members, nil
}

func initialCluster(members []*etcdserverpb.Member, own, name string) string {
	var all []string
	for _, m := range members {
		for _, u := range m.PeerURLs {
			n := m.Name
			if u == own {
				n = name
			}
			if n == "" {
				continue // another that has not started yet
			}
			all = append(all, n+"="+u)
		}
	}
	return strings.Join(all, ",")
}

// promote makes a learner a member that counts, once it has caught up. A learner must ask the others for it.
func (s *Store) promote(ctx context.Context, e *embed.Etcd) error {
	if !e.Server.IsLearner() {
		return nil
	}
	for last := ""; ; {
		err := s.promoteOnce(ctx, e)
		if err == nil || errors.Is(err, rpctypes.ErrMemberNotLearner) || !e.Server.IsLearner() {
			return nil
		}
		if ctx.Err() != nil {
			return nil //nolint:nilerr // a stop is no fault
		}
		if err.Error() != last {
			last = err.Error()
			slog.Info("etcd: catching up with the others", "state", last)
		}
		select {
		case <-time.After(300 * time.Millisecond):
		case err := <-s.fatal:
			return s.ended(err)
		case <-e.Server.StopNotify():
			return s.stopped(ctx, e)
		case <-ctx.Done():
			return nil
		}
	}
}

func (s *Store) promoteOnce(ctx context.Context, e *embed.Etcd) error {
	var endpoints []string
	for _, m := range e.Server.Cluster().Members() {
		if m.ID != e.Server.MemberID() && !m.IsLearner {
			endpoints = append(endpoints, m.ClientURLs...)
		}
	}
	c, err := s.others(endpoints...)
	if err != nil {
		return err
	}
	defer c.Close() //nolint:errcheck // answered
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	_, err = c.MemberPromote(ctx, uint64(e.Server.MemberID()))
	return err
}

// announce tells the others our address, if it is another than they know.
func (s *Store) announce(ctx context.Context, e *embed.Etcd) error {
	own := e.Server.Cluster().Member(e.Server.MemberID())
	if own == nil || slices.Equal(own.PeerURLs, []string{s.peerURL()}) {
		return nil
	}
	slog.Info("etcd: telling the others our new address", "address", s.peerURL())
	return s.with(ctx, func(ctx context.Context, c *clientv3.Client) error {
		ctx, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		_, err := c.MemberUpdate(ctx, uint64(e.Server.MemberID()), []string{s.peerURL()})
		return err
	})
}

// Members are the names of the servers that have a member.
func (s *Store) Members(ctx context.Context) (names []string, err error) {
	err = s.with(ctx, func(ctx context.Context, c *clientv3.Client) error {
		list, err := c.MemberList(ctx)
		if err != nil {
			return err
		}
		for _, m := range list.Members {
			names = append(names, m.Name)
		}
		return nil
	})
	return names, err
}

// ID is the member's among the others; 0 before it has started. One that joins again has another.
func (s *Store) ID() uint64 { return s.id.Load() }

// Remove takes the member of a node that was deleted out of the cluster: this one, and not what has joined under the name since.
// It never removes the last one.
func (s *Store) Remove(ctx context.Context, name string, id uint64) error {
	return s.with(ctx, func(ctx context.Context, c *clientv3.Client) error {
		list, err := c.MemberList(ctx)
		if err != nil || !slices.ContainsFunc(list.Members, func(m *etcdserverpb.Member) bool { return m.ID == id }) {
			return err
		}
		if len(list.Members) == 1 {
			return fmt.Errorf("%s is the last server; it stays", name)
		}
		_, err = c.MemberRemove(ctx, id)
		return err
	})
}
