package main

import (
	"context"
	"os"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/skerry-os/skerry/pkg/machine"
)

// change is a part of the config that a running machine takes up.
type change struct {
	key string
	do  func(context.Context, *system, *machine.Config) error
}

// changes are in the order that a start does them. A key that is not here takes a restart of the machine.
var changes = []change{
	{"modules", func(_ context.Context, s *system, c *machine.Config) error { return s.loadNamed(c.Modules) }},
	{"sysctls", func(_ context.Context, _ *system, c *machine.Config) error { return setSysctls(c.Sysctls) }},
	{"network", func(_ context.Context, s *system, c *machine.Config) error { s.network.Apply(c.Network); return nil }},
	{"ntp", func(_ context.Context, s *system, c *machine.Config) error { s.askTime(c.NTP.Servers); return nil }},
	{"logs", func(_ context.Context, s *system, c *machine.Config) error { s.holdLogs(c.Logs); return nil }},
	{"ssh", func(_ context.Context, s *system, c *machine.Config) error { return s.applySSH(c.SSH) }},
	{"files", func(_ context.Context, _ *system, c *machine.Config) error { return writeKept("/", c) }},
	{"registries", func(_ context.Context, _ *system, c *machine.Config) error { return writeKept("/", c) }},
	{"manifests", func(_ context.Context, _ *system, c *machine.Config) error { return writeKept("/", c) }},
}

// watchConfig takes up what changes on the config partition while the machine runs: whoever remounts it writable there can edit it.
// A config with a fault is told of, and the one before goes on.
func (s *system) watchConfig(ctx context.Context) {
	seen, running := s.told, s.config
	look := time.NewTicker(lookAtConfig)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-look.C:
			seen, running = s.lookAgain(ctx, seen, running)
		}
	}
}

// lookAgain gives what stands on the partition now, and the config that is in force.
func (s *system) lookAgain(ctx context.Context, seen told, running *machine.Config) (told, *machine.Config) {
	now := readToldFrom(os.DirFS(configDir), s.policy)
	if now.data == nil || now.same(seen) {
		return seen, running // a partition that was pulled out is no change
	}
	if now.err != nil {
		s.complain("%s was changed, and is refused: %s; the one before goes on", configName, oneLine(now.err))
		return now, running
	}
	s.note("config", "")
	s.inForce.Store(&now)
	if err := keepGood(goodConfig, now); err != nil {
		s.console.sayf("config: keeping it as the last good one: %s", oneLine(err))
	}
	return now, s.takeUp(ctx, running, now.config)
}

// takeUp applies what differs, and gives the config to compare the next one with. What takes a restart is compared with what the
// machine started with, so that a change that is taken back needs none.
func (s *system) takeUp(ctx context.Context, running, next *machine.Config) *machine.Config {
	var done []string
	for _, c := range changes {
		if !slices.Contains(differences(running, next), c.key) {
			continue
		}
		if err := c.do(ctx, s, next); err != nil {
			s.console.sayf("config: %s: %s", c.key, oneLine(err))
			continue
		}
		done = append(done, c.key)
	}
	if len(done) > 0 {
		s.console.sayf("config: changed and in force: %s", strings.Join(done, ", "))
	}
	s.note("restart", "")
	if late := needRestart(s.config, next); len(late) > 0 {
		s.note("restart", "the config's "+strings.Join(late, ", ")+" changed; restart the machine for it")
		s.console.sayf("config: changed, and needs a restart of the machine: %s", strings.Join(late, ", "))
	}
	return next
}

// differences lists the top-level keys of two configs that are not the same.
func differences(a, b *machine.Config) (keys []string) {
	va, vb := reflect.ValueOf(a).Elem(), reflect.ValueOf(b).Elem()
	for f := range va.Type().Fields() {
		if !reflect.DeepEqual(va.FieldByIndex(f.Index).Interface(), vb.FieldByIndex(f.Index).Interface()) {
			name, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
			keys = append(keys, name)
		}
	}
	return keys
}

// needRestart lists what differs from the config that the machine started with and is not taken up while it runs.
func needRestart(started, next *machine.Config) (keys []string) {
	for _, key := range differences(started, next) {
		if !slices.ContainsFunc(changes, func(c change) bool { return c.key == key }) {
			keys = append(keys, key)
		}
	}
	if !reflect.DeepEqual(layered(started), layered(next)) {
		keys = append(keys, "files below /etc")
	}
	if started.Network.Proxy != next.Network.Proxy {
		keys = append(keys, "network.proxy")
	}
	return keys
}
