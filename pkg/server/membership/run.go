package membership

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"k8s.io/client-go/kubernetes"

	"github.com/skerry-os/skerry/pkg/join"
	"github.com/skerry-os/skerry/pkg/server/secrets"
	"github.com/skerry-os/skerry/pkg/supervise"
)

// follow is how often a server looks whether another has changed the token.
const follow = time.Minute

// Service keeps this server's own entry and its token files right. The API must be ready for it; nobody waits for it.
func (m *Members) Service() supervise.Service {
	return supervise.Service{Name: "membership", Needs: []string{"kube-apiserver"}, Run: func(ctx context.Context, ready func()) error {
		ready()
		client, err := m.api()
		if err != nil {
			return err
		}
		stop, err := m.followRemoved(ctx, client)
		if err != nil {
			return err
		}
		defer stop()
		registered, seeded := false, false
		var looked time.Time
		for {
			wait := time.Second // the namespace may not be there yet
			if !registered || m.Removed(m.cfg.NodeName) {
				if registered, err = m.register(ctx, client); err != nil {
					return err
				}
			}
			if !seeded {
				seeded = m.storePending(ctx, client)
			}
			if m.followToken(ctx, client) && registered && seeded {
				wait = follow
				if now := time.Now(); now.Sub(looked) > expiryEvery {
					looked = now
					m.tellExpiry(ctx, client, now)
				}
				again, err := m.followAuthorities(ctx, client)
				switch {
				case err != nil && ctx.Err() == nil:
					slog.Error("the cluster's new authorities are not taken up; trying again", "err", err)
				case again:
					return fmt.Errorf("the cluster's authorities have changed: %w", supervise.ErrAgain)
				}
			}
			select {
			case <-time.After(wait):
			case <-ctx.Done():
				return nil
			}
		}
	}}
}

// register keeps the name of this server's node from others. A server that was removed is told so by an error; one that is alone
// goes on, because nobody else could take it in.
func (m *Members) register(ctx context.Context, client kubernetes.Interface) (done bool, err error) {
	authority, err := m.authority()
	if err != nil {
		slog.Error("this server's entry", "err", err)
		return false, nil
	}
	removed := false
	err = change(ctx, client, m.cfg.NodeName, func(r *Record, fresh bool) (bool, error) {
		if r.Removed {
			var err error
			if removed, err = othersAlive(ctx, client, m.cfg.NodeName); err != nil || removed {
				return false, err
			}
		}
		if !fresh && r.Machine == m.cfg.Machine && !r.Removed {
			changed := r.Authority != authority
			r.Authority = authority
			return changed, nil
		}
		if !fresh && r.Machine.ID != m.cfg.Machine.ID {
			slog.Info("this server's node has another machine than before", "node", m.cfg.NodeName, "before", describe(r.Machine), "now", describe(m.cfg.Machine))
		}
		*r = Record{Machine: join.Machine{ID: m.cfg.Machine.ID, Description: m.cfg.Machine.Description}, Joined: time.Now().UTC().Format(timeLayout), Authority: authority}
		return true, nil
	})
	if removed {
		return false, errServerRemoved(m.cfg.NodeName)
	}
	if err != nil && ctx.Err() == nil {
		slog.Debug("this server's entry", "err", err)
	}
	return err == nil, nil
}

// followToken writes a rotated token into this server's files.
func (m *Members) followToken(ctx context.Context, client kubernetes.Interface) bool {
	now, err := ServerToken(ctx, client)
	if err != nil {
		slog.Debug("the cluster's token", "err", err)
		return false
	}
	if now == "" || now == m.fileToken() {
		return true
	}
	if m.cfg.Token != "" {
		slog.Warn("the token in this server's settings is not the cluster's any more: it was rotated; take it out of the settings, or write the new one")
	}
	if err := secrets.WriteToken(m.cfg.DataDir, now, m.cfg.Files.ServerCA); err != nil {
		slog.Warn("the cluster's new token was not written", "err", err)
		return false
	}
	return true
}
