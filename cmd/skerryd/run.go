package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"k8s.io/client-go/transport"

	"github.com/skerry-os/skerry/cmd/skerryd/internal/host"
	"github.com/skerry-os/skerry/cmd/skerryd/internal/settings"
	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/notify"
	"github.com/skerry-os/skerry/pkg/outbound"
	"github.com/skerry-os/skerry/pkg/server"
	"github.com/skerry-os/skerry/pkg/supervise"
	"github.com/skerry-os/skerry/pkg/version"
)

// slowStart is when the components' complaints are written although the node may yet become ready.
const slowStart = 30 * time.Second

// runNode is a server or agent from its settings to its end. prepare makes its services; it may wait for others, and tells
// what it waits for.
func runNode(ctx context.Context, role string, a *machine.Agent, prepare func(ctx context.Context, status func(string)) ([]supervise.Service, error)) error {
	began := time.Now()
	shareRegistry()
	log, gate, err := setUpLogging(a.Debug)
	if err != nil {
		return err
	}
	socket := os.Getenv(notify.SocketEnv)
	supervisor, err := notify.Take()
	if err != nil {
		return err
	}
	// What a failed or a slow start was about, the components know best.
	defer gate.open(true)
	slow := time.AfterFunc(slowStart, func() { gate.open(true) })
	defer slow.Stop()
	log.Info("skerryd", "version", version.Version(), "kubernetes", kubernetesVersion(), "role", role, "data", a.DataDir)
	takeProxy(a)
	if err := readToken(a); err != nil {
		return settings.Usage(err)
	}
	release, err := host.Claim(a.DataDir)
	if err != nil {
		return err
	}
	defer release()

	services, err := prepare(ctx, func(status string) { _ = supervisor.Send(notify.Status(status)) })
	if err != nil {
		return err
	}
	group, err := supervise.New(services)
	if err != nil {
		return err
	}
	ending := func() bool {
		status, _ := group.Status()
		return len(status.In(supervise.Stopping))+len(status.In(supervise.Stopped)) > 0
	}
	gate.ending.Store(&ending)
	defer context.AfterFunc(ctx, gate.shut)()
	told := make(chan struct{})
	tellCtx, stopTelling := context.WithCancel(context.WithoutCancel(ctx))
	go func() {
		defer close(told)
		tell(tellCtx, log, supervisor, group, func() {
			gate.open(false)
			settleMemory()
			settleTimers(log)
			log.Info("ready", "after", time.Since(began).Round(time.Millisecond), "cpu", cpuTime().Round(time.Millisecond))
		})
	}()
	err = group.Run(ctx, log)
	stopTelling()
	<-told
	if errors.Is(err, supervise.ErrAgain) && ctx.Err() == nil {
		release()
		return again(socket)
	}
	return err
}

// takeProxy adds what the environment says to the settings of the way out.
func takeProxy(a *machine.Agent) {
	proxy := outbound.Take(outbound.Settings{HTTP: a.HTTPProxy, HTTPS: a.HTTPSProxy, No: a.NoProxy})
	a.HTTPProxy, a.HTTPSProxy, a.NoProxy = proxy.HTTP, proxy.HTTPS, proxy.No
}

// again replaces this process by a new run of the same command. Kubernetes' components cannot start twice in one.
func again(socket string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	env := server.KeepUntold(os.Environ())
	if socket != "" {
		env = append(env, notify.SocketEnv+"="+socket)
	}
	return fmt.Errorf("%s: starting again: %w", self, syscall.Exec(self, os.Args, env))
}

// readToken takes the token from its file.
func readToken(a *machine.Agent) error {
	return readSecret("token", &a.Token, a.TokenFile, a.Problems)
}

// readAgentToken takes the token for agents from its file.
func readAgentToken(s *machine.Server) error {
	return readSecret("agent-token", &s.AgentToken, s.AgentTokenFile, s.Problems)
}

// readSecret reads the value of a setting that may stand in a file of its own, "" if it does not.
func readSecret(setting string, value *string, file string, problems func() []machine.Problem) error {
	if file == "" {
		return nil
	}
	if *value != "" {
		return fmt.Errorf("--%[1]s-file: there is a --%[1]s too; leave one out", setting)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("--%s-file: %w", setting, err)
	}
	if *value = strings.TrimSpace(string(b)); *value == "" {
		return fmt.Errorf("--%s-file: %s is empty", setting, file)
	}
	if all := problems(); len(all) > 0 {
		return fmt.Errorf("--%s-file: %s: %w", setting, file, all[0])
	}
	return nil
}

// reloadCertificates sets how often the components look whether their certificates have changed. Upstream's five minutes are
// right for certificates that live for a year.
func reloadCertificates(lifetime time.Duration) {
	transport.CertCallbackRefreshDuration = min(transport.CertCallbackRefreshDuration, max(lifetime/50, time.Second))
}

var errMoved = fmt.Errorf("this machine's address has changed: %w", supervise.ErrAgain)

// addressEvery is how often a change of address is looked for; it must be the same twice.
const addressEvery = 5 * time.Second

// addressService starts everything anew when an address of the node has gone and another has come: certificates, the components'
// settings and what others are told hang on it. Pods run on.
func addressService(now []netip.Addr, find func() ([]netip.Addr, error)) supervise.Service {
	return supervise.Service{Name: "address", Run: func(ctx context.Context, ready func()) error {
		ready()
		var seen []netip.Addr
		tick := time.NewTicker(addressEvery)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return nil
			}
			found, err := find()
			if err != nil || !host.Moved(now, found) {
				seen = nil // no network at all is waited out
				continue
			}
			if slices.Equal(found, seen) {
				slog.Info("this machine's address has changed; starting again", "before", now, "now", found)
				return errMoved
			}
			seen = found
		}
	}}
}
