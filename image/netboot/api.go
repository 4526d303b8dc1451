package netboot

import (
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/skerry-os/skerry/image/netboot/protocol"
	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/seed"
)

// maxBody bounds what a machine may send.
const maxBody = 64 << 10

// serveWeb serves until ctx ends. Streams never end by themselves; others get no longer than a slow machine needs.
func (s *Server) serveWeb(ctx context.Context, l net.Listener, h http.Handler, streams bool) error {
	srv := &http.Server{
		Handler: h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
		ErrorLog:    log.New(discard{}, "", 0), // clients that go away are not news
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	if !streams {
		srv.WriteTimeout = time.Hour
	}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	if err := srv.Serve(l); err != nil && ctx.Err() == nil {
		return err
	}
	return nil
}

type discard struct{}

func (discard) Write(b []byte) (int, error) { return len(b), nil }

// neighbourOf asks the kernel which hardware address a packet of an IP address came from. What the machine itself says of its
// hardware address is not believed.
func neighbourOf(iface string, a netip.Addr) (string, error) {
	l, err := netlink.LinkByName(iface)
	if err != nil {
		return "", err
	}
	list, err := netlink.NeighList(l.Attrs().Index, netlink.FAMILY_V4)
	if err != nil {
		return "", err
	}
	for _, n := range list {
		if ip, ok := netip.AddrFromSlice(n.IP.To4()); ok && ip == a && len(n.HardwareAddr) == 6 {
			return n.HardwareAddr.String(), nil
		}
	}
	return "", fmt.Errorf("the hardware address of %v is not known on %s; machine and server must be on one network, without a router between", a, iface)
}

// caller is the hardware address a request comes from.
func (s *Server) caller(r *http.Request) (string, netip.Addr, error) {
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return "", netip.Addr{}, err
	}
	mac, err := s.neighbour(peer.Addr().Unmap())
	return mac, peer.Addr().Unmap(), err
}

// refusal is an error with its HTTP status.
type refusal struct {
	status int
	error
}

func (s *Server) apiHandler() http.Handler {
	mux := http.NewServeMux()
	handle := func(path string, f func(mac string, from netip.Addr, r *http.Request) (any, error)) {
		mux.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) {
			r.Body = http.MaxBytesReader(w, r.Body, maxBody)
			mac, from, err := s.caller(r)
			var out any
			if err != nil {
				err = refusal{http.StatusForbidden, err}
			} else {
				out, err = f(mac, from, r)
			}
			if err != nil {
				status := http.StatusInternalServerError
				var no refusal
				if errors.As(err, &no) {
					status = no.status
				}
				s.Log("%s: %s: %v", mac, path, err)
				w.Header().Set("Content-Type", "application/json")
				w.WriteHeader(status)
				_ = json.NewEncoder(w).Encode(protocol.Fault{Error: err.Error()})
				return
			}
			w.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(w).Encode(out)
		})
	}
	handle(protocol.HelloPath, s.hello)
	handle(protocol.ConfigPath, s.handOut)
	handle(protocol.ReportPath, s.report)
	return mux
}

func readHello(r *http.Request) (h protocol.Hello, err error) {
	if err := json.NewDecoder(r.Body).Decode(&h); err != nil {
		return h, refusal{http.StatusBadRequest, err}
	}
	if len(h.Session) < 32 {
		return h, refusal{http.StatusBadRequest, errors.New("the session is too short")}
	}
	return h, nil
}

// node finds what the machine is to be. A config that a person gave with the approval goes before the fleet's.
func (s *Server) node(m *Machine) (Node, bool, error) {
	if m.Approved {
		data, err := s.config(m.MAC)
		if err == nil {
			c, err := machine.Decode(m.MAC+".yaml", data)
			if err != nil {
				return Node{}, false, err
			}
			return Node{Name: c.Hostname, File: m.MAC + ".yaml", Config: data}, true, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return Node{}, false, err
		}
	}
	return s.Fleet.Find(m.claim())
}

// stranger says why a machine is not given the node of the fleet that it claims to be, "" if it is.
func (s *Server) stranger(m *Machine, n Node) (string, error) {
	if n.Key == "" || m.Bound == n.Key {
		return "", nil
	}
	owners, err := s.owners(n.Key, m)
	if err != nil {
		return "", err
	}
	_, first := n.Beside[seed.Name]
	approve := "on the server: skerry pxe approve " + m.MAC
	switch {
	case len(owners) > 0:
		o := owners[0]
		return fmt.Sprintf("node %s is another machine already, %s, which %s. If this one takes its place, %s. If the other one is not yours, it may have this node's config and token: skerryd node remove %s",
			n.Name, described(o), o.fate(), approve, n.Name), nil
	case n.Said != "" && !s.TrustSerials:
		return fmt.Sprintf("it says that it is node %s, by its %s, and anybody on this network can say that; if it is, %s", n.Name, n.Said, approve), nil
	case n.Said != "" && first:
		return fmt.Sprintf("it says that it is node %s, by its %s, and that node gets the cluster's keys; if it is, %s", n.Name, n.Said, approve), nil
	}
	return "", nil
}

// verdict is what a machine is to do now, without changing anything of it.
func (s *Server) verdict(m *Machine, h protocol.Hello) (protocol.Answer, Node) {
	wait := func(format string, a ...any) protocol.Answer {
		return protocol.Answer{Do: protocol.Wait, Why: fmt.Sprintf(format, a...)}
	}
	n, known, err := s.node(m)
	c := new(machine.Config)
	if err == nil && known {
		if c, err = machine.Decode(n.File, n.Config); err != nil {
			c = new(machine.Config)
		}
	}
	anew := "; to install it anew: skerry pxe approve " + m.MAC + " --reinstall"
	if !known && err == nil {
		anew += " --config FILE"
	}
	same := subtle.ConstantTimeCompare([]byte(m.Session), []byte(hash(h.Session))) == 1
	// First what changes nothing on the machine: it must not wait for a person before it starts from its own disk.
	switch {
	case !m.Installed.IsZero():
		return protocol.Answer{Do: protocol.Leave, Name: n.Name, Why: m.fate() + anew}, n
	case h.Holds != "" && !m.Again && !c.Install.Diskless && !same:
		return protocol.Answer{Do: protocol.Leave, Name: n.Name, ID: h.Holds, Why: "its disk holds an installation of this machine" + anew}, n
	case err != nil:
		return wait("its node config cannot be used: %v", err), n
	case !known && s.LeaveUnknown:
		return protocol.Answer{Do: protocol.Leave, Why: leftAlone + m.MAC + " --config FILE"}, n
	case !known:
		return wait("nobody knows this machine (%s); on the server: skerry pxe approve %s --config FILE", described(m), m.MAC), n
	}
	if why, err := s.stranger(m, n); err != nil {
		return wait("whether it is node %s cannot be told: %v", n.Name, err), n
	} else if why != "" {
		return wait("%s", why), n
	}
	bios := startedBy(n.Board) != n.Board
	switch {
	case n.Board != "" && startedBy(n.Board) != h.Board:
		return wait("it runs the installer of board %s, and the fleet says it is a %s", h.Board, n.Board), n
	case n.Board != "" && !c.Install.Diskless && bios != (h.Firmware == protocol.BIOS):
		return wait("it was started by its %s, and the fleet says it is a %s, which is not for that: change one of them", strings.ToUpper(h.Firmware), n.Board), n
	case !m.Handed.IsZero() && !same && !c.Install.Diskless:
		return wait("%s; if that was this machine, and it lost its power: skerry pxe approve %s", m.fate(), m.MAC), n
	}
	rel := s.releaseFor(h)
	if rel == nil {
		return wait("no release for board %s is served any more; add one with --release", h.Board), n
	}
	return protocol.Answer{Do: protocol.Install, Name: n.Name, ID: m.Install, Again: m.Again, Why: "its node config is " + n.Name,
		Release: "http://" + net.JoinHostPort(s.self.Addr().String(), strconv.Itoa(s.httpPort)) + "/release/" + rel.path() + "/"}, n
}

// leftAlone is for machines that nobody knows, where such machines are not to wait.
const leftAlone = "is in no fleet, and such machines are left alone; to install it: skerry pxe approve "

func (s *Server) releaseFor(h protocol.Hello) *Release {
	for _, k := range s.kernels {
		if k.Board == h.Board && k.Arch == h.Arch {
			return k.Release
		}
	}
	return nil
}

func described(m *Machine) string {
	var out []string
	for _, p := range []string{m.MAC, m.Model, m.Serial} {
		if p != "" {
			out = append(out, p)
		}
	}
	return strings.Join(out, ", ")
}

func (s *Server) hello(mac string, from netip.Addr, r *http.Request) (any, error) {
	h, err := readHello(r)
	if err != nil {
		return nil, err
	}
	var a protocol.Answer
	before := ""
	_, err = s.note(mac, func(m *Machine) error {
		before = m.Stage + m.Error
		m.Serial, m.Model, m.Arch, m.Board, m.Firmware, m.Address = clean(h.Serial), clean(h.Model), clean(h.Arch), clean(h.Board), clean(h.Firmware), from.String()
		if u := strings.ToLower(clean(h.UUID)); u != "" {
			m.UUID = u
		}
		m.Cards = nil
		for _, text := range h.MACs[:min(len(h.MACs), mostCards)] {
			if mac, ok := NormalMAC(text); ok {
				m.Cards = append(m.Cards, mac)
			}
		}
		if m.Install == "" {
			m.Install = newID()
		}
		var n Node
		a, n = s.verdict(m, h)
		a.Warnings = s.warnings()
		m.Node, m.Key = n.Name, n.Key
		switch {
		case a.Do == protocol.Wait:
			m.Stage, m.Error = StageWaiting, a.Why
		case a.Do == protocol.Leave && m.Installed.IsZero() && a.ID == "":
			m.Stage, m.Error = StageLeft, a.Why
		case a.Do == protocol.Leave:
			if m.Installed.IsZero() { // the folder was lost, the disk was not
				m.Installed, m.Install = time.Now().UTC(), clean(a.ID)
				if why, err := s.stranger(m, n); why == "" && err == nil {
					m.Bound = n.Key
				}
			}
			m.Stage, m.Error = protocol.StageInstalled, ""
		default:
			if m.Stage == StageBooting || m.Stage == StageWaiting || m.Stage == StageSeen || m.Stage == "" {
				m.Stage = StageHello
			}
			m.Error = ""
		}
		if before != m.Stage+m.Error {
			s.Log("%s: %s: %s", described(m), a.Do, a.Why)
		}
		return nil
	})
	return a, err
}

// clean keeps what a machine says of itself short and printable: it is shown on pages and terminals.
func clean(text string) string {
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r > 0x7e {
			return -1
		}
		return r
	}, text)
	return strings.TrimSpace(text[:min(len(text), 64)])
}

// mostCards bounds what is kept of a machine's cards.
const mostCards = 32

// handOut gives the node config, once, and a node of the fleet to one machine. That it was given is on the disk before it is sent.
func (s *Server) handOut(mac string, _ netip.Addr, r *http.Request) (any, error) {
	h, err := readHello(r)
	if err != nil {
		return nil, err
	}
	var config protocol.Config
	_, err = s.note(mac, func(m *Machine) error {
		a, n := s.verdict(m, h)
		if a.Do != protocol.Install {
			return refusal{http.StatusForbidden, errors.New(a.Why)}
		}
		if m.Session != hash(h.Session) {
			m.Session, m.Handed = hash(h.Session), time.Now().UTC()
			s.Log("%s: node config %s handed out", described(m), n.Name)
			if c, err := machine.Decode(n.File, n.Config); err == nil && n.Key == "" {
				if text := advice(n.File, c); text != "" {
					s.Log("%s", text)
				}
			}
		}
		if n.Key != "" {
			m.Bound = n.Key
		}
		m.Stage, config = protocol.StageFetch, protocol.Config{Node: n.Config, Beside: n.Beside}
		return nil
	})
	return config, err
}

func (s *Server) report(mac string, _ netip.Addr, r *http.Request) (any, error) {
	var p protocol.Report
	if err := json.NewDecoder(r.Body).Decode(&p); err != nil {
		return nil, refusal{http.StatusBadRequest, err}
	}
	_, err := s.note(mac, func(m *Machine) error {
		if subtle.ConstantTimeCompare([]byte(m.Session), []byte(hash(p.Session))) != 1 {
			return refusal{http.StatusForbidden, errors.New("the report is of another start of the machine")}
		}
		stage := m.Stage
		switch p.Stage {
		case protocol.StageFetch, protocol.StageWrite, protocol.StageVerify, protocol.StageFailed, protocol.StageRunning:
		case protocol.StageInstalled:
			m.Installed, m.Again = time.Now().UTC(), false
		default:
			return refusal{http.StatusBadRequest, fmt.Errorf("stage %.20q is not one", p.Stage)}
		}
		m.Stage, m.Done, m.Total, m.Disk, m.Error = p.Stage, p.Done, p.Total, clean(p.Disk), strings.Join(strings.Fields(p.Error), " ")
		if stage != m.Stage || m.Error != "" {
			s.Log("%s: %s %s %s", described(m), m.Stage, m.Disk, m.Error)
		}
		return nil
	})
	return struct{}{}, err
}
