package wpa

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"time"
)

// Client is a connection to the control socket of one card's wpa_supplicant.
type Client struct {
	asks  *net.UnixConn // a command, an answer
	hears *net.UnixConn // what it says unasked
}

// answerLimit is how long wpa_supplicant may take to answer. It does one thing after the other, and some take a driver's time.
const answerLimit = 5 * time.Second

// maxDatagram is more than wpa_supplicant sends at once.
const maxDatagram = 64 << 10

// Dial connects to the control socket of the card iface in the folder ctrl, and asks to be told of events.
func Dial(ctrl, iface string) (*Client, error) {
	c := new(Client)
	var err error
	if c.asks, err = dial(filepath.Join(ctrl, iface)); err != nil {
		return nil, err
	}
	if c.hears, err = dial(filepath.Join(ctrl, iface)); err == nil {
		var answer string
		if answer, err = ask(c.hears, "ATTACH"); err == nil && answer != "OK" {
			err = fmt.Errorf("wpa_supplicant: ATTACH: %s", answer)
		}
	}
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// dial connects from an address of its own, which an answer needs. Nobody but the other end can send to it.
func dial(name string) (*net.UnixConn, error) {
	own := &net.UnixAddr{Net: "unixgram", Name: "@skerry/wpa/" + rand.Text()}
	return net.DialUnix("unixgram", own, &net.UnixAddr{Net: "unixgram", Name: name})
}

// Close closes the connection.
func (c *Client) Close() error {
	err := c.asks.Close()
	if c.hears != nil {
		err = errors.Join(err, c.hears.Close())
	}
	return err
}

func ask(conn *net.UnixConn, command string) (string, error) {
	if err := conn.SetDeadline(time.Now().Add(answerLimit)); err != nil {
		return "", err
	}
	if _, err := conn.Write([]byte(command)); err != nil {
		return "", fmt.Errorf("wpa_supplicant: %s: %w", command, err)
	}
	buf := make([]byte, maxDatagram)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return "", fmt.Errorf("wpa_supplicant: %s: %w", command, err)
		}
		if text := string(buf[:n]); !strings.HasPrefix(text, "<") { // an event that overtook the answer
			return strings.TrimRight(text, "\n"), nil
		}
	}
}

// Ask sends a command, such as PING, and gives the answer, without the end of its last line.
func (c *Client) Ask(command string) (string, error) { return ask(c.asks, command) }

// Status is the answer to STATUS: what wpa_supplicant does now, by the names it gives.
func (c *Client) Status() (map[string]string, error) {
	text, err := c.Ask("STATUS")
	if err != nil {
		return nil, err
	}
	return pairs(strings.Split(text, "\n")), nil
}

// pairs reads words of the form name=value. Others are left out.
func pairs(words []string) map[string]string {
	out := map[string]string{}
	for _, w := range words {
		if name, value, ok := strings.Cut(w, "="); ok {
			out[name] = value
		}
	}
	return out
}

// Event is one thing wpa_supplicant says unasked.
type Event struct {
	Name   string            // such as CTRL-EVENT-CONNECTED
	Fields map[string]string // its words of the form name=value
}

// ParseEvent reads an event as the socket or the log has it; without "<level>" in front it is one too.
func ParseEvent(text string) Event {
	if level, rest, ok := strings.Cut(text, ">"); ok && strings.HasPrefix(level, "<") {
		text = rest
	}
	name, rest, _ := strings.Cut(strings.TrimSpace(text), " ")
	return Event{name, pairs(words(rest))}
}

// words splits a text at spaces outside of quotes, and takes brackets around words for spaces. A quote behind a backslash is
// one of a network's name.
func words(text string) []string {
	quoted, escaped := false, false
	return strings.FieldsFunc(text, func(r rune) bool {
		if r == '"' && !escaped {
			quoted = !quoted
		}
		escaped = r == '\\' && !escaped
		return !quoted && (r == ' ' || r == '[' || r == ']')
	})
}

// Next waits for the next event, at most for the given time: then, and when ctx ends, ok is false. An error says that the
// connection is of no more use.
func (c *Client) Next(ctx context.Context, wait time.Duration) (e Event, ok bool, err error) {
	if err := c.hears.SetReadDeadline(time.Now().Add(wait)); err != nil {
		return Event{}, false, err
	}
	defer context.AfterFunc(ctx, func() { _ = c.hears.SetReadDeadline(time.Unix(1, 0)) })()
	buf := make([]byte, maxDatagram)
	n, err := c.hears.Read(buf)
	var late net.Error
	if errors.As(err, &late) && late.Timeout() {
		return Event{}, false, nil
	}
	if err != nil {
		return Event{}, false, err
	}
	return ParseEvent(string(buf[:n])), true, nil
}
