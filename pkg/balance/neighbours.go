package balance

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

const (
	nearby       = 22 // bits: of a wider network, the part around this machine is looked at
	knock        = time.Second
	knockers     = 64
	searchFirst  = 15 * time.Second // a server that starts anew is back sooner
	searchLonger = 10 * time.Minute
)

// Neighbours makes a Search of this machine's own IPv4 networks: a server whose address has changed is most often still in them. It
// finds who listens on the port; whether that is a server of the cluster, Check says. The longer there is none, the more seldom it
// looks.
func Neighbours(port string) func(ctx context.Context) []string {
	var last time.Time
	pause := searchFirst
	return func(ctx context.Context) []string {
		switch since := time.Since(last); {
		case since > 2*searchLonger: // the servers worked for a while
			last, pause = time.Now(), searchFirst
			return nil
		case since < pause:
			return nil
		}
		found := listening(ctx, own(), port)
		last, pause = time.Now(), min(2*pause, searchLonger)
		return found
	}
}

// own are the networks of this machine's interfaces.
func own() (networks []netip.Prefix) {
	here, err := net.InterfaceAddrs()
	if err != nil {
		return nil
	}
	for _, a := range here {
		p, err := netip.ParsePrefix(a.String())
		if err != nil || !p.Addr().Is4() || p.Addr().IsLoopback() || p.Bits() > 30 {
			continue
		}
		if p.Bits() < nearby {
			p = netip.PrefixFrom(p.Addr(), nearby)
		}
		networks = append(networks, p)
	}
	return networks
}

// listening are the addresses in the networks, the machine's own left out, where somebody listens on the port.
func listening(ctx context.Context, networks []netip.Prefix, port string) (found []string) {
	addrs := make(chan netip.Addr)
	var mu sync.Mutex
	var all sync.WaitGroup
	for range knockers {
		all.Go(func() {
			for ip := range addrs {
				at := net.JoinHostPort(ip.String(), port)
				c, err := (&net.Dialer{Timeout: knock}).DialContext(ctx, "tcp", at)
				if err != nil {
					continue
				}
				_ = c.Close()
				mu.Lock()
				found = append(found, at)
				mu.Unlock()
			}
		})
	}
	for _, n := range networks {
		for ip := n.Masked().Addr(); n.Contains(ip) && ctx.Err() == nil; ip = ip.Next() {
			if ip != n.Addr() {
				addrs <- ip
			}
		}
	}
	close(addrs)
	all.Wait()
	slices.Sort(found)
	return slices.Compact(found)
}
