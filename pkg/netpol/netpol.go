// Package netpol makes NetworkPolicies rules of the kernel's packet filter, in a table of its own (inet skerry_policy).
//
// Why not sigs.k8s.io/kube-network-policies: it asks a program in user space about the first packets of every connection,
// through NFQUEUE. That costs each connection a way out of the kernel and back, and while the program restarts connections
// either wait or pass unchecked. Here the kernel holds all it needs: verdicts stay in force while skerryd is updated, restarted
// or dead, a connection costs two hash look-ups, and no kernel module is needed that kube-proxy does not need too.
//
// How the table is made:
//
//	maps in4, in6, eg4, eg6   address of an isolated pod of this node -> goto the chain of its group
//	chain g-…                 a group: pods that the same policies select; jumps to each of these, then drops
//	chain p-…                 a policy in one direction: one accepting rule per peer and ports
//	sets s4-…, s6-…           addresses of the pods that a selector selects, one per distinct selector of all policies
//	sets n4-…, n6-…           address and number of a named port
//
// A pod that comes or goes is a change of elements, in one transaction with one run of nft, whatever the number of policies:
// no chain is touched, and no packet ever meets half a change.
//
// What holds:
//   - A pod that no policy selects is not looked at. Packets of connections that stood before are accepted, also when a later
//     policy would refuse a new one like them.
//   - Packets between a pod and its own node pass, whatever the policies say: kubelet's probes come from there. They do not pass
//     the forward hook, where the rules are. So does what a pod sends to itself through a Service.
//   - Policies see a packet behind kube-proxy's address translation: a Service's backend, and the client's own address.
//   - Pods in the host's network are not selected, neither as subjects nor as peers; an ipBlock with the node's address matches
//     them.
//   - A pod's rules are there before its first process starts: the CNI plugin asks for them (Server) and waits. Others learn a
//     new pod's address from its status; until then a policy that would let it in does not.
package netpol

import (
	"crypto/sha256"
	"encoding/hex"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// Table is the name of the table, in the family inet.
const Table = "skerry_policy"

// Pod is what policies want to know of one.
type Pod struct {
	Namespace, Name string
	Labels          labels.Set
	Addresses       []netip.Addr
	Node            string
	Ports           []Port // those with names
	Created         time.Time
}

// Port is a named port of a pod.
type Port struct {
	Name     string
	Protocol string // tcp, udp, sctp
	Number   uint16
}

func (p *Pod) key() string { return p.Namespace + "/" + p.Name }

// FromPod reads a Pod; nil is one that policies do not concern: in the host's network, or over.
func FromPod(o *corev1.Pod) *Pod {
	if o.Spec.HostNetwork || o.Status.Phase == corev1.PodSucceeded || o.Status.Phase == corev1.PodFailed {
		return nil
	}
	p := &Pod{Namespace: o.Namespace, Name: o.Name, Labels: o.Labels, Node: o.Spec.NodeName, Created: o.CreationTimestamp.Time}
	for _, ip := range o.Status.PodIPs {
		if a, err := netip.ParseAddr(ip.IP); err == nil {
			p.Addresses = append(p.Addresses, a.Unmap())
		}
	}
	add := func(c corev1.Container) {
		for _, port := range c.Ports {
			if port.Name != "" && port.ContainerPort > 0 && port.ContainerPort < 1<<16 {
				p.Ports = append(p.Ports, Port{port.Name, protocolWord(&port.Protocol), uint16(port.ContainerPort)})
			}
		}
	}
	for _, c := range o.Spec.Containers {
		add(c)
	}
	for _, c := range o.Spec.InitContainers {
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways { // a sidecar
			add(c)
		}
	}
	return p
}

// protocolWord is nft's word; one that is not given is TCP.
func protocolWord(p *corev1.Protocol) string {
	if p == nil || *p == "" {
		return "tcp"
	}
	switch *p {
	case corev1.ProtocolUDP:
		return "udp"
	case corev1.ProtocolSCTP:
		return "sctp"
	}
	return "tcp"
}

// short makes a name of a text of any length.
func short(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:8])
}
