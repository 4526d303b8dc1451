package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"time"

	"github.com/skerry-os/skerry/cmd/skerryd/internal/settings"
	"github.com/skerry-os/skerry/pkg/enrol"
	"github.com/skerry-os/skerry/pkg/join"
	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/pki"
	"github.com/skerry-os/skerry/pkg/server"
	"github.com/skerry-os/skerry/pkg/server/membership"
	"github.com/skerry-os/skerry/pkg/server/secrets"
	"github.com/skerry-os/skerry/pkg/supervise"
)

// thisMachine is who this machine is to a cluster.
func thisMachine(a machine.Agent) (join.Machine, error) {
	s := machine.DefaultServer()
	s.Agent = a
	address := "an unknown address"
	if ips, err := nodeIPs(s); err == nil {
		address = ips[0].String()
	}
	return enrol.ThisMachine("/", a.DataDir, address)
}

func membersConfig(s machine.Server, name string, self join.Machine, ips []netip.Addr, files *pki.Files, secret *secrets.Files) membership.Config {
	c := membership.Config{
		DataDir: s.DataDir, NodeName: name, Machine: self, Addresses: ips, Port: s.HTTPSListenPort, Files: files, Lifetime: s.Lifetime(),
		Token: s.Token, AgentToken: s.AgentToken, Settings: s.Shared(), Replace: s.NodeReplace, Alone: alone(s),
	}
	if secret.Token != "" && s.Token == "" {
		c.Token = secret.Token
	}
	for text := range strings.SplitSeq(s.ServiceCIDR, ",") {
		if p, err := netip.ParsePrefix(strings.TrimSpace(text)); err == nil {
			c.Services = append(c.Services, p)
		}
	}
	return c
}

// joinServers makes a server one of its cluster's, once.
func joinServers(ctx context.Context, s machine.Server, name string, self join.Machine, status func(string)) error {
	if s.Server == "" || enrol.Joined(s.DataDir) {
		return nil
	}
	status("joining " + s.Server)
	return enrol.JoinServer(ctx, enrol.Config{
		DataDir: s.DataDir, Server: s.Server, Token: s.Token, NodeName: name, Machine: self, Tell: status,
		Addresses: func(map[string]any) ([]netip.Addr, error) { return nodeIPs(s) },
	}, func(shared map[string]any) error {
		var errs []error
		for _, p := range s.Differences(shared) {
			errs = append(errs, fmt.Errorf("--%w", p))
		}
		return settings.Usage(errors.Join(errs...))
	})
}

// certificatesService renews the certificates of a server while it runs. Who uses them reads them again.
func certificatesService(c pki.Config, renewed func() error) supervise.Service {
	return supervise.Service{Name: "certificates", Run: func(ctx context.Context, ready func()) error {
		ready()
		tick := time.NewTicker(min(time.Minute, c.Lifetime/50)) // skerryd certificate rotate takes files away
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return nil
			}
			c.Now = time.Now()
			_, err := pki.Ensure(c)
			if err == nil {
				err = renewed()
			}
			if err != nil {
				slog.Error("the certificates are not renewed; trying again", "err", err)
			}
		}
	}}
}

// alone says why no other server can join; "" if one can.
func alone(s machine.Server) string {
	if s.Multiple() || server.UsesEtcd(s) {
		return ""
	}
	return "this cluster's datastore is a file on this server (SQLite), so it has one server; a cluster of several begins with --cluster-init or --datastore-endpoint"
}
