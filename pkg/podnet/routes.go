package podnet

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// route is one of ours, in a form that can be compared.
type route struct {
	dst         netip.Prefix
	via, src    netip.Addr // invalid: none
	link        int        // 0: unreachable
	onlink      bool
	unreachable bool
}

// Metrics: the kernel's usual ones, and one behind every other route for what is unreachable.
const (
	metric4         = 0
	metric6         = 1024
	metricLastWords = 1 << 16
)

func (r route) metric() int {
	switch {
	case r.unreachable:
		return metricLastWords
	case r.dst.Addr().Is6():
		return metric6
	}
	return metric4
}

// routes lists what leads to the others.
func (n *Network) routes(own []netip.Prefix, others []Node) (want []route, err error) {
	var faults []error
	for _, c := range n.cfg.Cluster {
		want = append(want, route{dst: c.Masked(), unreachable: true})
	}
	for _, o := range others {
		for _, s := range o.Subnets {
			r := route{dst: s.Masked(), link: n.link.index}
			switch n.cfg.Backend {
			case HostGW:
				var ok bool
				if r.via, ok = o.address(s.Addr().Is6()); !ok {
					faults = append(faults, fmt.Errorf("node %s: pods have %s, and host-gw needs an address of the node in that family; set --node-ip", o.Name, s))
					continue
				}
				if r.link, err = neighbouring(r.via); err != nil {
					faults = append(faults, fmt.Errorf("node %s: %w", o.Name, err))
					continue
				}
			case VXLAN:
				r.via, r.onlink = gateway(s), true
				fallthrough
			default:
				r.src = sourceFor(own, s)
			}
			want = append(want, r)
		}
	}
	return want, errors.Join(faults...)
}

// sourceFor is this node's gateway address in the family.
func sourceFor(own []netip.Prefix, to netip.Prefix) netip.Addr {
	for _, s := range own {
		if s.Addr().Is6() == to.Addr().Is6() {
			return gateway(s)
		}
	}
	return netip.Addr{}
}

// neighbouring gives the link on which the address is, without a router between.
func neighbouring(address netip.Addr) (int, error) {
	ways, err := netlink.RouteGet(address.AsSlice())
	if err != nil {
		return 0, fmt.Errorf("%s: %w", address, err)
	}
	for _, w := range ways {
		if w.Gw == nil {
			return w.LinkIndex, nil
		}
	}
	return 0, fmt.Errorf("%s is behind a router, which host-gw cannot cross; use --flannel-backend vxlan or wireguard-native", address)
}

// syncRoutes makes our routes those of want: first what is new, in place of what it replaces, then what is stale goes.
func syncRoutes(want []route) error {
	have, err := listRoutes()
	if err != nil {
		return err
	}
	var faults []error
	kept := map[routeKey]bool{}
	for _, w := range want {
		kept[w.key()] = true
		if have[w.key()] == w {
			continue
		}
		if err := netlink.RouteReplace(w.entry()); err != nil {
			faults = append(faults, fmt.Errorf("route to %s: %w", w.dst, err))
		}
	}
	for key, h := range have {
		if !kept[key] {
			if err := netlink.RouteDel(h.entry()); err != nil && !errors.Is(err, unix.ESRCH) {
				faults = append(faults, fmt.Errorf("removing the route to %s: %w", h.dst, err))
			}
		}
	}
	return errors.Join(faults...)
}

// routeKey is what there can be one route for.
type routeKey struct {
	dst    netip.Prefix
	metric int
}

func (r route) key() routeKey { return routeKey{r.dst, r.metric()} }

func (r route) entry() *netlink.Route {
	e := &netlink.Route{Dst: ipNet(r.dst), Protocol: protocol, Priority: r.metric(), Table: unix.RT_TABLE_MAIN}
	if r.unreachable {
		e.Type = unix.RTN_UNREACHABLE
		return e
	}
	e.LinkIndex = r.link
	if r.via.IsValid() {
		e.Gw = r.via.AsSlice()
	} else if r.dst.Addr().Is4() {
		e.Scope = netlink.SCOPE_LINK
	}
	if r.src.IsValid() {
		e.Src = r.src.AsSlice()
	}
	if r.onlink {
		e.Flags = unix.RTNH_F_ONLINK
	}
	return e
}

func listRoutes() (map[routeKey]route, error) {
	out := map[routeKey]route{}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		// Without a type in the filter the kernel's answer would lack the unreachable ones.
		list, err := netlinksafe.RouteListFiltered(family, &netlink.Route{Protocol: protocol, Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
		if errors.Is(err, unix.EAFNOSUPPORT) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("routes: %w", err)
		}
		for _, e := range list {
			if e.Dst == nil {
				continue
			}
			dst, ok := prefixOf(e.Dst)
			if !ok {
				continue
			}
			r := route{dst: dst, unreachable: e.Type == unix.RTN_UNREACHABLE}
			if !r.unreachable {
				r.link, r.onlink = e.LinkIndex, e.Flags&unix.RTNH_F_ONLINK != 0
				if a, ok := netip.AddrFromSlice(e.Gw); ok {
					r.via = a.Unmap()
				}
				if a, ok := netip.AddrFromSlice(e.Src); ok {
					r.src = a.Unmap()
				}
			}
			out[routeKey{dst, e.Priority}] = r
		}
	}
	return out, nil
}
