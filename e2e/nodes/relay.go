package nodes

import (
	"errors"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// relay carries a node's frames to and from the bridge, late and not all of them: the kernels of test hosts have no netem.
type relay struct {
	delay, jitter time.Duration
	lose          float64
	ends          [2]int // sockets
	stop          chan struct{}
	running       sync.WaitGroup
}

// frame waits for its time. Order is kept.
type frame struct {
	due  time.Time
	data []byte
}

// Lag makes the node's wire a long and bad one: each frame takes delay and up to jitter more, each way, and percent of them are
// lost. Heal ends it; a later call replaces an earlier one.
func (n *Node) Lag(delay, jitter time.Duration, percent float64) {
	n.w.t.Helper()
	n.endLag()
	inner, outer := strings.Replace(n.link, "to", "in", 1), strings.Replace(n.link, "to", "out", 1)
	n.w.ip("link set %s nomaster", n.link)
	n.w.ip("link add %s type veth peer name %s", inner, outer)
	n.w.ip("link set %s master bridge", outer)
	n.w.ip("link set %s up", outer)
	n.w.ip("link set %s up", inner)
	r := &relay{delay: delay, jitter: jitter, lose: percent / 100, stop: make(chan struct{})}
	a, err := n.w.packets(n.link)
	if err != nil {
		n.w.t.Fatal(err)
	}
	b, err := n.w.packets(inner)
	if err != nil {
		n.w.t.Fatal(err)
	}
	r.ends = [2]int{a, b}
	r.running.Go(func() { r.carry(a, b) })
	r.running.Go(func() { r.carry(b, a) })
	n.lag = r
}

// endLag leaves the wire cut: Heal or PullThePlug are next.
func (n *Node) endLag() {
	if n.lag == nil {
		return
	}
	close(n.lag.stop)
	n.lag.running.Wait()
	for _, fd := range n.lag.ends {
		_ = unix.Close(fd)
	}
	n.lag = nil
	n.w.ip("link del %s", strings.Replace(n.link, "to", "in", 1))
}

// packets opens a link of the bridge's namespace for whole frames, each behind a struct virtio_net_hdr (linux/virtio_net.h), which
// tells of checksums and sizes that are left to the card.
func (w *Network) packets(link string) (fd int, err error) {
	err = w.Within(func() error {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		index, err := ifindex(fd, link)
		return errors.Join(err,
			unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1),
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20),
			unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000}),
			unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8, Ifindex: index}))
	})
	return fd, err
}

func ifindex(fd int, link string) (int, error) {
	req, err := unix.NewIfreq(link)
	if err != nil {
		return 0, err
	}
	err = unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, req)
	return int(req.Uint32()), err
}

// carry reads frames from one socket and writes them to the other until stop.
func (r *relay) carry(from, to int) {
	queue := make(chan frame, 4096)
	var writer sync.WaitGroup
	writer.Go(func() {
		for f := range queue {
			time.Sleep(time.Until(f.due))
			_, _ = unix.Write(to, f.data) // what the other side does not take is lost
		}
	})
	defer writer.Wait()
	defer close(queue)
	buffer := make([]byte, 1<<17)
	var last time.Time
	for {
		select {
		case <-r.stop:
			return
		default:
		}
		size, sender, err := unix.Recvfrom(from, buffer, 0)
		if link, is := sender.(*unix.SockaddrLinklayer); err != nil || !is || link.Pkttype == unix.PACKET_OUTGOING || rand.Float64() < r.lose {
			continue
		}
		due := time.Now().Add(r.delay + rand.N(r.jitter+1))
		if due.Before(last) {
			due = last
		}
		last = due
		select {
		case queue <- frame{due, append([]byte(nil), buffer[:size]...)}:
		default: // as a router whose queue is full
		}
	}
}
