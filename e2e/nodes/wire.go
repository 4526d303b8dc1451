package nodes

import (
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
)

// The table that disturbs a node's wire. Its hooks come before all others.
const disturb = "table inet wire"

// nft gives the node's nftables a text.
func (n *Node) nft(text string) {
	n.w.t.Helper()
	cmd := exec.Command("nsenter", n.space.enter("--net", "nft", []string{"-f", "-"})...)
	cmd.Stdin = strings.NewReader(text)
	if out, err := cmd.CombinedOutput(); err != nil {
		n.w.t.Fatalf("%s: nft: %v: %s", n.Name, err, out)
	}
}

// Partition cuts the node off from these others, or from everything when none is named. A later call replaces an earlier one.
// Packets vanish; nobody is told.
func (n *Node) Partition(others ...*Node) {
	n.w.t.Helper()
	if len(others) == 0 {
		n.disturb(`iifname "eth0" drop`, `oifname "eth0" drop`)
		return
	}
	var v4, v6 []string
	for _, o := range others {
		v4, v6 = append(v4, o.IP.String()), append(v6, o.IP6().String())
	}
	set4, set6 := strings.Join(v4, ", "), strings.Join(v6, ", ")
	n.disturb(fmt.Sprintf("ip saddr { %s } drop\nip6 saddr { %s } drop", set4, set6), fmt.Sprintf("ip daddr { %s } drop\nip6 daddr { %s } drop", set4, set6))
}

// Lose drops this share of the packets that come in, at random; 100 is 99.9. A later call replaces an earlier one.
func (n *Node) Lose(percent int) {
	n.w.t.Helper()
	n.disturb(fmt.Sprintf(`iifname "eth0" numgen random mod 1000 < %d drop`, min(percent*10, 999)), "")
}

func (n *Node) disturb(in, out string) {
	n.w.t.Helper()
	n.nft(fmt.Sprintf(`%[1]s
delete %[1]s
%[1]s {
	chain in { type filter hook prerouting priority -400; policy accept; %[2]s
	}
	chain out { type filter hook postrouting priority 400; policy accept; %[3]s
	}
}`, disturb, in, out))
}

// Heal ends what Partition, Lose, Lag and Unplug do.
func (n *Node) Heal() {
	n.w.t.Helper()
	n.endLag()
	n.w.ip("link set %s master bridge", n.link)
	n.nft(disturb + "\ndelete " + disturb)
	n.w.ip("link set %s up", n.link)
}

// Unplug takes the cable out: the link goes down, which the node notices.
func (n *Node) Unplug() {
	n.w.t.Helper()
	n.w.ip("link set %s down", n.link)
}

// SetIP gives the node other addresses, as a new lease would.
func (n *Node) SetIP(ip netip.Addr) {
	n.w.t.Helper()
	n.IP = ip
	n.address()
}

// OnNode runs f on a thread that is in the node's network. Connections made there go on working elsewhere.
func (n *Node) OnNode(f func() error) error { return n.space.within(f) }
