// Package notify is both ends of the datagrams by which a service tells its supervisor how far it is: the protocol that
// systemd made (sd_notify), so that skerryd says READY=1 to init on the image and to systemd on any other Linux.
//
// A datagram holds lines of KEY=value. Skerry uses READY=1 once the node is Ready, STATUS=text for what it waits for until
// then, and STOPPING=1 when it goes down.
package notify

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// SocketEnv names the socket to the service.
const SocketEnv = "NOTIFY_SOCKET"

// The lines that Skerry sends.
const (
	Ready    = "READY=1"
	Stopping = "STOPPING=1"
)

// Status is the line that says what the service is doing.
func Status(text string) string { return "STATUS=" + strings.ReplaceAll(text, "\n", " ") }

// maxBytes bounds a datagram; what is longer is cut by the kernel.
const maxBytes = 4096

// Sender is a service's end. The zero Sender tells nobody.
type Sender struct{ socket string }

// Take reads SocketEnv and removes it from the environment: Kubernetes' servers say READY=1 on their own account to whoever
// it names, long before the node is ready, and a container's shim would inherit it.
func Take() (Sender, error) {
	s := Sender{socket: os.Getenv(SocketEnv)}
	return s, os.Unsetenv(SocketEnv)
}

// To is a Sender to a socket that both ends know by name.
func To(socket string) Sender { return Sender{socket} }

// patience is how long a supervisor may leave its queue full.
const patience = time.Second

// Send tells the supervisor the lines, in one datagram. Where no supervisor listens it does nothing.
func (s Sender) Send(lines ...string) error {
	if s.socket == "" {
		return nil
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: s.socket, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("telling the supervisor: %w", err)
	}
	defer conn.Close()
	// A supervisor that does not read any more must not keep a node from stopping.
	if err := conn.SetWriteDeadline(time.Now().Add(patience)); err != nil {
		return fmt.Errorf("telling the supervisor: %s: %w", s.socket, err)
	}
	if _, err := conn.Write([]byte(strings.Join(lines, "\n") + "\n")); err != nil {
		return fmt.Errorf("telling the supervisor: %s: %w", s.socket, err)
	}
	return nil
}

// Message is one datagram.
type Message struct {
	PID    int // of the sender, as the kernel vouches
	Fields map[string]string
}

// Ready says whether the message says so.
func (m Message) Ready() bool { return m.Fields["READY"] == "1" }

// Listener receives what services send.
type Listener struct {
	conn *net.UnixConn
	name string
}

// Listen makes the socket, which only root can send to, and replaces one that is left over.
func Listen(name string) (*Listener, error) {
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		return nil, err
	}
	l := &Listener{conn: conn, name: name}
	if err := errors.Join(os.Chmod(name, 0o600), l.passCredentials()); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", name, err), conn.Close())
	}
	return l, nil
}

func (l *Listener) passCredentials() error {
	raw, err := l.conn.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	err = raw.Control(func(fd uintptr) { serr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1) })
	return errors.Join(err, serr)
}

// Next waits for the next message. After Close it returns net.ErrClosed.
func (l *Listener) Next() (Message, error) {
	buf := make([]byte, maxBytes)
	oob := make([]byte, unix.CmsgSpace(unix.SizeofUcred))
	n, oobn, _, _, err := l.conn.ReadMsgUnix(buf, oob)
	if err != nil {
		return Message{}, err
	}
	m := Message{Fields: parse(string(buf[:n]))}
	if msgs, err := unix.ParseSocketControlMessage(oob[:oobn]); err == nil && len(msgs) > 0 {
		if cred, err := unix.ParseUnixCredentials(&msgs[0]); err == nil {
			m.PID = int(cred.Pid)
		}
	}
	return m, nil
}

// Close removes the socket and ends Next.
func (l *Listener) Close() error { return l.conn.Close() }

// parse reads the lines; one without "=" is no field, and the last of a key counts.
func parse(text string) map[string]string {
	out := map[string]string{}
	for line := range strings.Lines(text) {
		if k, v, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "="); ok && k != "" {
			out[k] = v
		}
	}
	return out
}
