package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/skerry-os/skerry/pkg/atomicfile"
	"github.com/skerry-os/skerry/pkg/machine"
)

// hostKeyFile is on the data partition, so that clients meet the same machine after an update.
const hostKeyFile = machine.DataDir + "/debug/ssh_host_ed25519_key"

const (
	// loginTime is how long a client may take to show its key.
	loginTime = 30 * time.Second
	// mostGuests is how many clients may be at that at once. More are sent away.
	mostGuests = 16
	// refusedEach is how often refusals are told: the whole web may knock.
	refusedEach = time.Minute
	// partingTime is what sessions have to end when the server does.
	partingTime = 2 * time.Second
)

// server lets root in with one of the config's keys, and nothing and nobody else: no password, no other user, no forwarding.
type server struct {
	config *ssh.ServerConfig
	keys   func() ([]string, error) // as they are now: a key that was taken out of the config does not open any more
	out    io.Writer                // a line for each thing that happens, which init shows on the console
	home   string                   // of root
	guests chan struct{}

	outMu    sync.Mutex
	refused  int
	lastTold time.Time
}

// serve serves until ctx ends. The file is init's: without a key in it nothing listens.
func serve(ctx context.Context, file, keyFile string) error {
	c, err := readSSH(file)
	if err != nil {
		return err
	}
	if len(c.Keys) == 0 {
		return fmt.Errorf("%s: has no keys, so nobody may log in", file)
	}
	key, err := hostKey(keyFile)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", fmt.Sprintf(":%d", c.ListenPort()))
	if err != nil {
		return err
	}
	s := newServer(key, func() ([]string, error) {
		c, err := readSSH(file)
		return c.Keys, err
	}, home, os.Stdout)
	s.say("port %d is open to %d keys; this machine's own is %s", c.ListenPort(), len(c.Keys), ssh.FingerprintSHA256(key.PublicKey()))
	return s.run(ctx, l)
}

func readSSH(file string) (c machine.SSH, err error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return c, err
	}
	if err := json.Unmarshal(data, &c); err != nil {
		return c, fmt.Errorf("%s: %w", file, err)
	}
	return c, nil
}

// hostKey reads the machine's own key, or makes it, once.
func hostKey(file string) (ssh.Signer, error) {
	data, err := os.ReadFile(file)
	if err == nil {
		key, err := ssh.ParsePrivateKey(data)
		if err != nil {
			return nil, fmt.Errorf("%s: %w; remove it: a new one is made, which clients will ask about", file, err)
		}
		return key, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	_, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		return nil, err
	}
	block, err := ssh.MarshalPrivateKey(private, "")
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return nil, err
	}
	if err := atomicfile.Write(file, pem.EncodeToMemory(block), 0o600); err != nil {
		return nil, err
	}
	return ssh.NewSignerFromKey(private)
}

func newServer(key ssh.Signer, keys func() ([]string, error), home string, out io.Writer) *server {
	s := &server{keys: keys, home: home, out: out, guests: make(chan struct{}, mostGuests)}
	s.config = &ssh.ServerConfig{PublicKeyCallback: s.knows, ServerVersion: "SSH-2.0-Skerry"}
	s.config.AddHostKey(key)
	return s
}

// Who came in, in ssh.Permissions.
const (
	fingerprint = "fingerprint"
	comment     = "comment"
)

// knows says whether a key is one of the config's.
func (s *server) knows(c ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
	if c.User() != "root" {
		return nil, errors.New("there is no user but root")
	}
	lines, err := s.keys()
	if err != nil {
		return nil, err
	}
	for _, line := range lines {
		known, name, _, _, err := ssh.ParseAuthorizedKey([]byte(line))
		if err == nil && bytes.Equal(known.Marshal(), key.Marshal()) {
			return &ssh.Permissions{Extensions: map[string]string{fingerprint: ssh.FingerprintSHA256(key), comment: name}}, nil
		}
	}
	return nil, errors.New("the key is none of the config's")
}

func (s *server) say(format string, a ...any) {
	s.outMu.Lock()
	defer s.outMu.Unlock()
	_, _ = fmt.Fprintf(s.out, format+"\n", a...)
}

// refuse tells of clients that did not get in, with the reason of the last one.
func (s *server) refuse(from net.Addr, why error) {
	s.outMu.Lock()
	defer s.outMu.Unlock()
	s.refused++
	if time.Since(s.lastTold) < refusedEach {
		return
	}
	_, _ = fmt.Fprintf(s.out, "refused %d times, the last time %s: %v\n", s.refused, from, why)
	s.lastTold, s.refused = time.Now(), 0
}

// run serves a listener until ctx ends, and returns when all sessions have.
func (s *server) run(ctx context.Context, l net.Listener) error {
	var clients sync.WaitGroup
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	for {
		c, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				_ = c.Close()
			}
			all := make(chan struct{})
			go func() { clients.Wait(); close(all) }()
			select {
			case <-all:
			case <-time.After(partingTime + time.Second): // who left its session keeps running; init ends it with all the rest
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return err
		case err != nil: // of one client, or too many open files
			s.refuse(l.Addr(), err)
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		clients.Go(func() { s.client(ctx, c) })
	}
}

// client serves one connection.
func (s *server) client(ctx context.Context, c net.Conn) {
	defer func() { _ = c.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	conn, channels, requests, err := s.letIn(c)
	if err != nil {
		if ctx.Err() == nil {
			s.refuse(c.RemoteAddr(), err)
		}
		return
	}
	came := time.Now()
	who := fmt.Sprintf("%s, key %s", c.RemoteAddr(), conn.Permissions.Extensions[fingerprint])
	if name := conn.Permissions.Extensions[comment]; name != "" {
		who += fmt.Sprintf(" (%s)", name)
	}
	s.say("root came in from %s", who)
	go ssh.DiscardRequests(requests) // a client that asks whether anybody is there is content with a no
	var sessions sync.WaitGroup
	for n := range channels {
		if n.ChannelType() != "session" {
			_ = n.Reject(ssh.Prohibited, "this server forwards nothing")
			continue
		}
		channel, requests, err := n.Accept()
		if err != nil {
			break // the client is gone
		}
		sessions.Go(func() { serveSession(s.home, channel, requests) })
	}
	sessions.Wait()
	s.say("root left, who came from %s, after %v", c.RemoteAddr(), time.Since(came).Round(time.Second))
}

// letIn is the way to a connection with somebody who has a key.
func (s *server) letIn(c net.Conn) (*ssh.ServerConn, <-chan ssh.NewChannel, <-chan *ssh.Request, error) {
	select {
	case s.guests <- struct{}{}:
		defer func() { <-s.guests }()
	default:
		return nil, nil, nil, fmt.Errorf("%d others are about to log in", mostGuests)
	}
	if err := c.SetDeadline(time.Now().Add(loginTime)); err != nil {
		return nil, nil, nil, err
	}
	conn, channels, requests, err := ssh.NewServerConn(c, s.config)
	if err != nil {
		return nil, nil, nil, err
	}
	return conn, channels, requests, c.SetDeadline(time.Time{})
}
