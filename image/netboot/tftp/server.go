// Package tftp serves files to the firmware of machines: reading only, RFC 1350 with the options of RFC 2347, 2348 (block
// size), 2349 (timeout, size) and 7440 (window).
package tftp

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"
)

// File is an open file of the server.
type File interface {
	io.ReaderAt
	io.Closer
}

// Server answers read requests.
type Server struct {
	// Open gives the file and its size in bytes. An error that is fs.ErrNotExist is told to the client as "no such file"; so is
	// ErrNone, of which the log says nothing.
	Open func(name string, client netip.AddrPort) (File, int64, error)
	// Log gets a line for each transfer that did not end well; may be nil.
	Log func(format string, a ...any)
	// Wait is how long an answer may take before the last packets are sent again; 0: one second. The client's own wish goes
	// before it.
	Wait time.Duration
	// Tries is how often the same packets are sent before a client counts as gone; 0: six.
	Tries int

	mu     sync.Mutex
	active map[netip.AddrPort]bool
}

// ErrNone is in the error of a file that is not meant to be there.
var ErrNone = errors.New("there is no such file")

// mostTransfers is how many run at a time; clients ask again, so others wait without knowing.
const mostTransfers = 512

// Serve answers requests that come in on conn until ctx ends, and returns when all transfers have ended. conn is closed.
func (s *Server) Serve(ctx context.Context, conn *net.UDPConn) error {
	ctx, cancel := context.WithCancel(ctx)
	var transfers sync.WaitGroup
	defer transfers.Wait()
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	defer func() { _ = conn.Close() }()
	buf := make([]byte, maxRequest+1)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("tftp: %w", err)
		}
		req, err := parseRequest(buf[:n])
		if err != nil {
			code := codeIllegal
			if errors.Is(err, errWrite) {
				code = codeDenied
			}
			_, _ = conn.WriteToUDPAddrPort(errorPacket(code, err.Error()), from)
			continue
		}
		if !s.begin(from) {
			continue // the client repeats a request whose answer is on its way
		}
		local := conn.LocalAddr().(*net.UDPAddr)
		transfers.Go(func() {
			defer s.end(from)
			if err := s.transfer(ctx, local, from, req); err != nil && !errors.Is(err, errDeclined) && !errors.Is(err, ErrNone) && ctx.Err() == nil && s.Log != nil {
				s.Log("tftp: %s to %s: %v", req.name, from.Addr(), err)
			}
		})
	}
}

func (s *Server) begin(from netip.AddrPort) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.active == nil {
		s.active = map[netip.AddrPort]bool{}
	}
	if s.active[from] || len(s.active) >= mostTransfers {
		return false
	}
	s.active[from] = true
	return true
}

func (s *Server) end(from netip.AddrPort) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.active, from)
}

// transfer serves one request from a port of its own, as the protocol wants it.
func (s *Server) transfer(ctx context.Context, local *net.UDPAddr, to netip.AddrPort, req request) error {
	conn, err := net.DialUDP("udp", &net.UDPAddr{IP: local.IP, Zone: local.Zone}, net.UDPAddrFromAddrPort(to))
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // everything was sent or lost
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	file, size, err := s.Open(req.name, to)
	if err != nil {
		code := codeOther
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrNone) {
			code = codeNotFound
		}
		_, _ = conn.Write(errorPacket(code, err.Error()))
		return err
	}
	defer file.Close() //nolint:errcheck // only read
	t := &transfer{conn: conn, file: file, size: size, terms: req.agree(size), wait: s.Wait, tries: s.Tries}
	if t.wait == 0 {
		t.wait = time.Second
	}
	if t.seconds > 0 {
		t.wait = time.Duration(t.seconds) * time.Second
	}
	if t.tries == 0 {
		t.tries = 6
	}
	err = t.run()
	if err != nil && !errors.Is(err, errGone) && !errors.Is(err, errDeclined) {
		_, _ = conn.Write(errorPacket(codeOther, err.Error()))
	}
	return err
}

// transfer is one file on its way.
type transfer struct {
	terms
	conn  *net.UDPConn
	file  File
	size  int64
	wait  time.Duration
	tries int
	buf   [mostBlock + 4]byte
}

// errDeclined is how firmware ends that only wanted to know the size of the file.
var errDeclined = errors.New("the client only asked")

var errGone = errors.New("the client does not answer any more; was its cable pulled or its power cut?")

// run sends everything. Blocks are counted from 1; block 0 is the agreement.
func (t *transfer) run() error {
	last := t.size/int64(t.block) + 1 // the last is shorter than a block, and may be empty
	acked := int64(0)
	if t.oack != nil {
		if acked = -1; t.size < 0 {
			return errors.New("a file of negative size")
		}
	}
	for acked < last {
		next, err := t.round(acked, last)
		if err != nil {
			return err
		}
		acked = next
	}
	return nil
}

// round sends the window behind the block acked and returns the block that was acknowledged then. It repeats itself when no
// answer comes, and only then: a repeated acknowledgement is not answered, or two packets would be doubled for ever.
func (t *transfer) round(acked, last int64) (int64, error) {
	for range t.tries {
		end := min(acked+int64(t.window), last)
		if acked < 0 {
			if _, err := t.conn.Write(t.oack); err != nil {
				return 0, t.unsent(err)
			}
			end = 0
		} else if err := t.send(acked+1, end); err != nil {
			return 0, err
		}
		got, ok, err := t.await(acked, end)
		if acked < 0 && err != nil && !errors.Is(err, errGone) {
			return 0, errDeclined
		}
		if err != nil || ok {
			return got, err
		}
	}
	return 0, errGone
}

func (t *transfer) send(from, to int64) error {
	for b := from; b <= to; b++ {
		binary.BigEndian.PutUint16(t.buf[:], opData)
		binary.BigEndian.PutUint16(t.buf[2:], uint16(b)) // wraps to 0, as all clients expect
		at := (b - 1) * int64(t.block)
		n := int(min(int64(t.block), t.size-at))
		if got, err := t.file.ReadAt(t.buf[4:4+n], at); got < n {
			return fmt.Errorf("reading at byte %d: %w", at, err)
		}
		if _, err := t.conn.Write(t.buf[:4+n]); err != nil {
			return t.unsent(err)
		}
	}
	return nil
}

// unsent makes "connection refused" out of an ICMP message what it is.
func (t *transfer) unsent(err error) error { return fmt.Errorf("%w (%w)", errGone, err) }

// await waits for an acknowledgement of a block behind acked, up to end.
func (t *transfer) await(acked, end int64) (int64, bool, error) {
	if err := t.conn.SetReadDeadline(time.Now().Add(t.wait)); err != nil {
		return 0, false, err
	}
	var in [maxRequest]byte
	for {
		n, err := t.conn.Read(in[:])
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return 0, false, nil
		}
		if err != nil {
			return 0, false, t.unsent(err)
		}
		r, ok := parseReply(in[:n])
		switch {
		case !ok:
			continue
		case r.end != nil:
			return 0, false, r.end
		}
		for b := end; b > acked; b-- {
			if uint16(b) == r.block {
				return b, true, nil
			}
		}
	}
}
