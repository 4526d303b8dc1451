package podnet

import (
	"context"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Watch calls changed when links, addresses or our routes change, until ctx ends: a node's address may move, a device may be
// taken away. Calls come often and mean no more than "look again".
func Watch(ctx context.Context, changed func()) error {
	done := make(chan struct{})
	links, addresses, routes := make(chan netlink.LinkUpdate, 64), make(chan netlink.AddrUpdate, 64), make(chan netlink.RouteUpdate, 64)
	lost := make(chan error, 3)
	fail := func(err error) {
		select {
		case lost <- err:
		default:
		}
	}
	defer drain(done, links, addresses, routes)
	if err := netlink.LinkSubscribeWithOptions(links, done, netlink.LinkSubscribeOptions{ErrorCallback: fail}); err != nil {
		close(links)
		close(addresses)
		close(routes)
		return fmt.Errorf("watching links: %w", err)
	}
	if err := netlink.AddrSubscribeWithOptions(addresses, done, netlink.AddrSubscribeOptions{ErrorCallback: fail}); err != nil {
		close(addresses)
		close(routes)
		return fmt.Errorf("watching addresses: %w", err)
	}
	if err := netlink.RouteSubscribeWithOptions(routes, done, netlink.RouteSubscribeOptions{ErrorCallback: fail}); err != nil {
		close(routes)
		return fmt.Errorf("watching routes: %w", err)
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-lost:
			return fmt.Errorf("watching the network: %w", err)
		case _, ok := <-links:
			if !ok {
				return fmt.Errorf("watching links: the kernel hung up")
			}
			changed()
		case _, ok := <-addresses:
			if !ok {
				return fmt.Errorf("watching addresses: the kernel hung up")
			}
			changed()
		case r, ok := <-routes:
			if !ok {
				return fmt.Errorf("watching routes: the kernel hung up")
			}
			// Pods' own routes come and go all the time and are the plugin's business.
			if r.Type == unix.RTM_DELROUTE && r.Protocol == protocol {
				changed()
			}
		}
	}
}

// drain ends the subscriptions and waits for them: each closes its channel when it is over.
func drain(done chan struct{}, links <-chan netlink.LinkUpdate, addresses <-chan netlink.AddrUpdate, routes <-chan netlink.RouteUpdate) {
	close(done)
	for range links {
	}
	for range addresses {
	}
	for range routes {
	}
}
