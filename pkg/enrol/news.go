package enrol

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/skerry-os/skerry/pkg/join"
	"github.com/skerry-os/skerry/pkg/pki"
)

// lookEvery is how often a node asks what its cluster shares, more or less.
const lookEvery = time.Minute

// quick is how long a start waits for news: a node starts without them too.
const quick = 2 * time.Second

// refresh looks for news at a node's start, so that it need not start twice. Only a server's word that the node was removed stops it.
func (c Config) refresh(ctx context.Context, s *State) (*State, error) {
	servers, err := c.withOwn(slices.Clone(s.Servers))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, quick)
	defer cancel()
	now, err := c.news(ctx, s, servers, quick)
	if removed(err) {
		return nil, err
	}
	if now == nil {
		return s, nil
	}
	if why := c.unlike(now, s); why != "" {
		slog.Info("learned at the start", "news", why)
	}
	return now, nil
}

// removed says whether err is a server's word that the node is not one of its cluster any more.
func removed(err error) bool {
	var no *join.Refusal
	return errors.As(err, &no) && no.Status == http.StatusForbidden && !no.Wait
}

// news asks the servers what the cluster shares, until one answers, and keeps what is new; nil if nothing is. New authorities are
// followed at once: the node gets certificates of theirs.
func (c Config) news(ctx context.Context, s *State, servers []string, limit time.Duration) (*State, error) {
	var a *join.Answer
	err := errors.New("no server is known")
	for _, addr := range servers {
		if a, err = c.look(ctx, addr, s, limit); err == nil {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	if pki.Newer(s.ServerCA, a.ServerCA) || pki.Newer(s.ClientCA, a.ClientCA) {
		slog.Info("the cluster's authorities are being rotated; asking for certificates of the new ones")
		return Renew(ctx, c, s, servers)
	}
	now := *s
	now.Settings = a.Settings
	if len(c.changes(s.Settings, now.Settings)) == 0 {
		return nil, nil
	}
	return &now, now.save(c.DataDir)
}

func (c Config) look(ctx context.Context, addr string, s *State, limit time.Duration) (*join.Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	r := join.Request{Node: c.NodeName, Machine: c.Machine, Addresses: s.Addresses, Time: time.Now()}
	return join.Look(ctx, addr, s.Pairs[pki.KubeletClient], s.ServerCA, r)
}

// unlike says what a node that started with old must start anew for; "" for nothing.
func (c Config) unlike(s, old *State) string {
	var why []string
	if list := c.changes(old.Settings, s.Settings); len(list) > 0 {
		why = append(why, "the cluster's settings have changed: "+strings.Join(list, "; "))
	}
	if !bytes.Equal(s.ServerCA, old.ServerCA) || !bytes.Equal(s.ClientCA, old.ClientCA) {
		why = append(why, "the cluster's authorities have changed")
	}
	return strings.Join(why, "; ")
}

// changes lists the settings that differ, for a person.
func (c Config) changes(before, now map[string]any) (out []string) {
	if c.Known != nil {
		var errs [2]error
		before, errs[0] = c.Known(before)
		now, errs[1] = c.Known(now)
		if err := errors.Join(errs[:]...); err != nil {
			slog.Warn("the cluster's settings are not understood; going on with those of before", "err", err)
			return nil
		}
	}
	names := maps.Clone(before)
	if names == nil {
		names = map[string]any{}
	}
	maps.Copy(names, now)
	for _, name := range slices.Sorted(maps.Keys(names)) {
		a, b := text(before[name]), text(now[name])
		if a != b {
			out = append(out, fmt.Sprintf("%s was %s and is %s", name, a, b))
		}
	}
	return out
}

// text writes a setting as JSON does, so that those of a file and those of an answer look alike.
func text(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Sprint(v)
	}
	return string(b)
}
