package network

import (
	"context"
	"encoding/binary"
	"net/netip"
	"strings"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// heard is what a link's routers said last of name servers.
type heard struct {
	servers []netip.Addr
	search  []string
}

// Options of router advertisements (RFC 8106).
const (
	optRDNSS = 25
	optDNSSL = 31
)

// hearRouters follows the name servers in router advertisements until ctx ends. The kernel does the rest of those messages and
// hands on the options that it has no use for.
func (m *Manager) hearRouters(ctx context.Context) error {
	s, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_ND_USEROPT)
	if err != nil {
		return err
	}
	defer s.Close()
	if err := s.SetReceiveTimeout(&unix.Timeval{Sec: 1}); err != nil { // closing does not wake a reader
		return err
	}
	for ctx.Err() == nil {
		msgs, _, err := s.Receive()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			select { // a timeout, or messages that were lost: routers repeat themselves
			case <-ctx.Done():
			case <-time.After(10 * time.Millisecond):
			}
			continue
		}
		for _, msg := range msgs {
			if msg.Header.Type == unix.RTM_NEWNDUSEROPT {
				m.hear(msg.Data)
			}
		}
	}
	return nil
}

// hear takes a struct nduseroptmsg (linux/rtnetlink.h) and the option behind it.
func (m *Manager) hear(data []byte) {
	const head = 16
	if len(data) < head || data[0] != unix.AF_INET6 {
		return
	}
	link := int(binary.NativeEndian.Uint32(data[4:]))
	opts := data[head:]
	opts = opts[:min(len(opts), int(binary.NativeEndian.Uint16(data[2:])))]
	m.mu.Lock()
	h, served := m.heard[link], m.served[link] != nil
	if !served || !h.read(opts) {
		m.mu.Unlock()
		return
	}
	m.heard[link] = h
	m.mu.Unlock()
	if err := m.writeResolvConf(); err != nil {
		m.Log("%v", err)
	}
}

// read takes options of one kind, and says whether they were of use. A lifetime of 0 takes back what was said.
func (h *heard) read(opts []byte) bool {
	used := false
	for len(opts) >= 8 {
		size := int(opts[1]) * 8
		if size < 8 || size > len(opts) {
			return used
		}
		kind, over, body := opts[0], binary.BigEndian.Uint32(opts[4:]) == 0, opts[8:size]
		switch kind {
		case optRDNSS:
			h.servers = nil
			for len(body) >= 16 && !over {
				if a := netip.AddrFrom16([16]byte(body)); a.IsGlobalUnicast() {
					h.servers = append(h.servers, a)
				}
				body = body[16:]
			}
			used = true
		case optDNSSL:
			h.search = nil
			if !over {
				h.search = labels(body)
			}
			used = true
		}
		opts = opts[size:]
	}
	return used
}

// labels reads domains as DNS messages hold them, without pointers.
func labels(b []byte) (out []string) {
	var parts []string
	for len(b) > 0 {
		n := int(b[0])
		switch {
		case n == 0:
			if len(parts) > 0 {
				out = append(out, strings.Join(parts, "."))
			}
			parts, b = nil, b[1:]
		case n > 63 || n >= len(b):
			return out
		default:
			if !plainLabel(b[1 : 1+n]) {
				return out // it would end up in a file that others read
			}
			parts, b = append(parts, string(b[1:1+n])), b[1+n:]
		}
	}
	return out
}

func plainLabel(b []byte) bool {
	for _, c := range b {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' {
			return false
		}
	}
	return true
}
