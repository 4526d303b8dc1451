package tftp

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/skerry-os/skerry/image/imagetest"
)

type memory struct{ *bytes.Reader }

func (memory) Close() error { return nil }

func noise(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(n)})
	_, _ = r.Read(b)
	return b
}

// serve runs a server with the files on a port of the loopback.
func serve(t *testing.T, s *Server, files map[string][]byte) string {
	t.Helper()
	s.Open = func(name string, _ netip.AddrPort) (File, int64, error) {
		data, ok := files[strings.TrimPrefix(name, "/")]
		if !ok {
			return nil, 0, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
		}
		return memory{bytes.NewReader(data)}, int64(len(data)), nil
	}
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, conn) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return conn.LocalAddr().String()
}

// client is a plain one, in the order of the RFC. lose says which of its packets, counted from 0, never arrive.
type client struct {
	options []string
	lose    func(n int) bool
	stop    int // blocks after which it falls silent; 0: never
	sent    int
	seen    map[uint16]int
}

func (c *client) put(conn *net.UDPConn, b []byte, to *net.UDPAddr) {
	n := c.sent
	c.sent++
	if c.lose == nil || !c.lose(n) {
		_, _ = conn.WriteToUDP(b, to)
	}
}

func (c *client) get(addr, name string) ([]byte, map[string]string, error) {
	server, err := net.ResolveUDPAddr("udp4", addr)
	if err != nil {
		return nil, nil, err
	}
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return nil, nil, err
	}
	defer conn.Close() //nolint:errcheck // a test's
	ask := append([]byte{0, opRead}, strings.Join(append([]string{name, "octet"}, c.options...), "\x00")+"\x00"...)
	out, to, block, window, size := ask, server, 1, 1, defaultBlock
	agreed := map[string]string{}
	var content bytes.Buffer
	c.seen = map[uint16]int{}
	c.put(conn, out, to)
	buf := make([]byte, 2048)
	fresh := 0
	for silent := 0; silent < 20; {
		_ = conn.SetReadDeadline(time.Now().Add(150 * time.Millisecond))
		n, from, err := conn.ReadFromUDP(buf)
		if err != nil {
			silent++
			c.put(conn, out, to)
			fresh = 0
			continue
		}
		silent = 0
		to = from
		switch binary.BigEndian.Uint16(buf) {
		case opError:
			return nil, nil, fmt.Errorf("error %d: %s", binary.BigEndian.Uint16(buf[2:]), bytes.TrimRight(buf[4:n], "\x00"))
		case opOACK:
			fields := strings.Split(strings.TrimRight(string(buf[2:n]), "\x00"), "\x00")
			for i := 0; i+1 < len(fields); i += 2 {
				agreed[fields[i]] = fields[i+1]
			}
			if v := agreed["blksize"]; v != "" {
				_, _ = fmt.Sscan(v, &size)
			}
			if v := agreed["windowsize"]; v != "" {
				_, _ = fmt.Sscan(v, &window)
			}
			out = []byte{0, opAck, 0, 0}
			c.put(conn, out, to)
		case opData:
			b := binary.BigEndian.Uint16(buf[2:])
			c.seen[b]++
			if b != uint16(block) {
				if b == uint16(block-1) { // the acknowledgement of all so far was lost
					c.put(conn, out, to)
					fresh = 0
				}
				continue
			}
			content.Write(buf[4:n])
			if c.stop > 0 && block == c.stop {
				return content.Bytes(), agreed, nil
			}
			fresh++
			out = []byte{0, opAck, buf[2], buf[3]}
			block++
			if n-4 < size {
				_, _ = conn.WriteToUDP(out, to) // the last one always arrives here: nobody would ask again
				return content.Bytes(), agreed, nil
			}
			if fresh == window {
				c.put(conn, out, to)
				fresh = 0
			}
		}
	}
	return nil, nil, fmt.Errorf("the server went silent at block %d", block)
}

func TestFilesArriveWhole(t *testing.T) {
	files := map[string][]byte{"empty": {}, "short": noise(100), "even": noise(1024), "long": noise(100_000), "edge": noise(1468 * 3), "wraps": noise(70_000 * 8)}
	addr := serve(t, &Server{}, files)
	for name, want := range files {
		for _, options := range [][]string{nil, {"blksize", "1468", "tsize", "0"}, {"blksize", "8", "windowsize", "16"}, {"BLKSIZE", "1000", "timeout", "2", "windowsize", "4", "tsize", "0", "unheard", "of"}} {
			if options == nil && name == "wraps" {
				continue // 512-byte blocks do not wrap
			}
			got, agreed, err := (&client{options: options}).get(addr, name)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s with %v: %d bytes of %d, %v", name, options, len(got), len(want), err)
			}
			if _, asked := agreed["tsize"]; asked && agreed["tsize"] != fmt.Sprint(len(want)) {
				t.Errorf("%s: size %s, want %d", name, agreed["tsize"], len(want))
			}
			if agreed["unheard"] != "" {
				t.Error("an option nobody knows was agreed to")
			}
		}
	}
}

// Every packet may get lost, in each direction (a lost one of the server's looks to it as a lost acknowledgement).
func TestLostPacketsAreSentAgain(t *testing.T) {
	want := noise(40_000)
	addr := serve(t, &Server{Wait: 50 * time.Millisecond}, map[string][]byte{"f": want})
	for n := range 12 {
		c := &client{options: []string{"windowsize", "8"}, lose: func(i int) bool { return i == n || i%7 == 5 }}
		got, _, err := c.get(addr, "f")
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("packet %d lost: %d bytes, %v", n, len(got), err)
		}
	}
}

func TestAClientThatGoesAwayIsLetGo(t *testing.T) {
	var mu sync.Mutex
	var said []string
	s := &Server{Wait: 10 * time.Millisecond, Tries: 3, Log: func(f string, a ...any) {
		mu.Lock()
		defer mu.Unlock()
		said = append(said, fmt.Sprintf(f, a...))
	}}
	addr := serve(t, s, map[string][]byte{"f": noise(40_000)})
	if _, _, err := (&client{stop: 3}).get(addr, "f"); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		mu.Lock()
		text := strings.Join(said, "\n")
		mu.Unlock()
		if strings.Contains(text, "does not answer") {
			return
		}
	}
	t.Error("nobody noticed")
}

func TestBadRequestsGetAnAnswer(t *testing.T) {
	addr := serve(t, &Server{}, nil)
	conn, err := net.Dial("udp4", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close() //nolint:errcheck // a test's
	for name, c := range map[string]struct{ send, says string }{
		"write":      {"\x00\x02f\x00octet\x00", "not written"},
		"netascii":   {"\x00\x01f\x00netascii\x00", "only octet"},
		"no end":     {"\x00\x01f\x00octet", "zero byte"},
		"half":       {"\x00\x01f\x00octet\x00blksize\x00", "lacks"},
		"no request": {"\x00\x04\x00\x00", "not a request"},
		"too long":   {"\x00\x01" + strings.Repeat("f", 600) + "\x00octet\x00", "bytes"},
	} {
		if _, err := conn.Write([]byte(c.send)); err != nil {
			t.Fatal(err)
		}
		_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
		buf := make([]byte, 1024)
		n, err := conn.Read(buf)
		if err != nil || n < 5 || buf[1] != opError || !strings.Contains(string(buf[4:n]), c.says) {
			t.Errorf("%s: %q, %v", name, buf[:n], err)
		}
	}
	if _, _, err := (&client{}).get(addr, "missing"); err == nil || !strings.HasPrefix(err.Error(), "error 1:") {
		t.Errorf("a missing file: %v", err)
	}
}

func TestTwentyAtATime(t *testing.T) {
	want := noise(2_000_000)
	addr := serve(t, &Server{}, map[string][]byte{"f": want})
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			got, _, err := (&client{options: []string{"blksize", "1468", "windowsize", "8"}}).get(addr, "f")
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
		})
	}
	wg.Wait()
}

// curl's client is somebody else's reading of the same RFCs.
func TestCurlAgrees(t *testing.T) {
	curl := imagetest.Tool(t, "curl", "curl")
	if out, err := exec.Command(curl, "--version").Output(); err != nil || !bytes.Contains(out, []byte("tftp")) {
		t.Fatalf("this curl speaks no TFTP, which Debian's does: %v\n%s", err, out)
	}
	want := noise(300_001)
	addr := serve(t, &Server{}, map[string][]byte{"f": want})
	for _, args := range [][]string{nil, {"--tftp-blksize", "1468"}, {"--tftp-no-options"}} {
		got, err := exec.Command(curl, append(args, "-s", "tftp://"+addr+"/f")...).Output()
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%v: %d bytes, %v", args, len(got), err)
		}
	}
}

func FuzzRequest(f *testing.F) {
	f.Add([]byte("\x00\x01f\x00octet\x00blksize\x001468\x00tsize\x000\x00windowsize\x0016\x00timeout\x003\x00"), int64(1<<20))
	f.Add([]byte("\x00\x02f\x00octet\x00"), int64(0))
	f.Fuzz(func(t *testing.T, b []byte, size int64) {
		r, err := parseRequest(b)
		if err != nil {
			return
		}
		a := r.agree(size)
		if a.block < leastBlock || a.block > mostBlock || a.window < 1 || a.window > mostWindow || a.seconds < 0 || a.seconds > mostSeconds || r.name == "" {
			t.Errorf("%q became %+v", b, a)
		}
	})
}

// What a client may send during a transfer, written anew, is what came: no acknowledgement is taken for another, nothing else is
// taken for one, and what a client says of its end fits on a line of the log.
func FuzzReply(f *testing.F) {
	f.Add([]byte{0, opAck, 1, 2})
	f.Add([]byte{0, opAck, 1, 2, 0})
	f.Add([]byte{0, opAck, 1})
	f.Add([]byte{1, opAck, 1, 2})
	f.Add([]byte{0, opData, 0, 1})
	f.Add([]byte("\x00\x05\x00\x03full\x00"))
	f.Add([]byte("\x00\x05\x00\x08\x1b[31m\n" + strings.Repeat("\u00e9", 300)))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, ok := parseReply(b)
		kind := -1
		if len(b) >= 4 {
			kind = int(binary.BigEndian.Uint16(b))
		}
		if ok != (kind == opAck || kind == opError) || (r.end != nil) != (kind == opError) {
			t.Fatalf("%q became %+v, %v", b, r, ok)
		}
		switch {
		case kind == opAck:
			if again := binary.BigEndian.AppendUint16([]byte{0, opAck}, r.block); !bytes.Equal(again, b[:4]) {
				t.Errorf("%q is the acknowledgement %q", b, again)
			}
		case r.end != nil:
			text := r.end.Error()
			if !strings.Contains(text, fmt.Sprintf("(code %d)", binary.BigEndian.Uint16(b[2:]))) || len(text) > 1000 || strings.ContainsFunc(text, func(c rune) bool { return c < ' ' || c == 0x7f }) {
				t.Errorf("%q ends it with %q", b, text)
			}
		case r.block != 0:
			t.Errorf("%q has a block: %+v", b, r)
		}
	})
}
