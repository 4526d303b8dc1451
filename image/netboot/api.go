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
	return s.Fleet.Find(m.MAC, m.Serial, m.UUID)
}

// verdict is what a machine is to do now, without changing anything of it.
func (s *Server) verdict(m *Machine, h protocol.Hello) (protocol.Answer, Node) {
	wait := func(format string, a ...any) protocol.Answer {
		return protocol.Answer{Do: protocol.Wait, Why: fmt.Sprintf(format, a...)}
	}
	n, known, err := s.node(m)
	switch {
	case err != nil:
		return wait("its node config cannot be used: %v", err), n
	case !known:
		return wait("nobody knows this machine (%s); on the server: skerry pxe approve %s --config FILE", described(m), m.MAC), n
	case n.Board != "" && startedBy(n.Board) != h.Board:
		return wait("it runs the installer of board %s, and the fleet says it is a %s", h.Board, n.Board), n
	}
	c, err := machine.Decode(n.File, n.Config)
	if err != nil {
		return wait("its node config cannot be used: %v", err), n
	}
	if bios := startedBy(n.Board) != n.Board; n.Board != "" && !c.Install.Diskless && bios != (h.Firmware == protocol.BIOS) {
		return wait("it was started by its %s, and the fleet says it is a %s, which is not for that: change one of them", strings.ToUpper(h.Firmware), n.Board), n
	}
	same := subtle.ConstantTimeCompare([]byte(m.Session), []byte(hash(h.Session))) == 1
	switch {
	case !m.Installed.IsZero():
		return protocol.Answer{Do: protocol.Leave, Name: n.Name, Why: m.fate() + "; to install it anew: skerry pxe approve " + m.MAC + " --reinstall"}, n
	case h.Holds != "" && !m.Again && !c.Install.Diskless && !same:
		return protocol.Answer{Do: protocol.Leave, Name: n.Name, ID: h.Holds, Why: "its disk holds an installation of this machine; to install it anew: skerry pxe approve " + m.MAC + " --reinstall"}, n
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
		if m.Install == "" {
			m.Install = newID()
		}
		var n Node
		a, n = s.verdict(m, h)
		m.Node = n.Name
		switch a.Do {
		case protocol.Wait:
			m.Stage, m.Error = StageWaiting, a.Why
		case protocol.Leave:
			if m.Installed.IsZero() { // the folder was lost, the disk was not
				m.Installed, m.Install = time.Now().UTC(), clean(a.ID)
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

// handOut gives the node config, once. That it was given is on the disk before it is sent.
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
