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
	proxy := outbound.Take(outbound.Settings{HTTP: a.HTTPProxy, HTTPS: a.HTTPSProxy, No: a.NoProxy})
	a.HTTPProxy, a.HTTPSProxy, a.NoProxy = proxy.HTTP, proxy.HTTPS, proxy.No
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

// again replaces this process by a new run of the same command. Kubernetes' components cannot start twice in one.
func again(socket string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	env := os.Environ()
	if socket != "" {
		env = append(env, notify.SocketEnv+"="+socket)
	}
	return fmt.Errorf("%s: starting again: %w", self, syscall.Exec(self, os.Args, env))
}

// readToken takes the token from its file.
func readToken(a *machine.Agent) error {
	if a.TokenFile == "" {
		return nil
	}
	if a.Token != "" {
		return errors.New("--token-file: there is a --token too; leave one out")
	}
	b, err := os.ReadFile(a.TokenFile)
	if err != nil {
		return fmt.Errorf("--token-file: %w", err)
	}
	if a.Token = strings.TrimSpace(string(b)); a.Token == "" {
		return fmt.Errorf("--token-file: %s is empty", a.TokenFile)
	}
	if problems := a.Problems(); len(problems) > 0 {
		return fmt.Errorf("--token-file: %s: %w", a.TokenFile, problems[0])
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

// addressService starts everything anew when the node's address has gone and another has come: certificates, the components'
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
			if err != nil || host.Has(now...) || slices.Equal(found, now) {
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
