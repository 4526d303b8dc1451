package tftp

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Operations of RFC 1350 and RFC 2347.
const (
	opRead  = 1
	opWrite = 2
	opData  = 3
	opAck   = 4
	opError = 5
	opOACK  = 6
)

// Codes of an error packet.
const (
	codeOther    = 0
	codeNotFound = 1
	codeDenied   = 2
	codeIllegal  = 4
	codeOptions  = 8
)

// maxRequest bounds a request: RFC 2347 says 512 bytes.
const maxRequest = 512

// request is a read request.
type request struct {
	name    string
	mode    string
	options map[string]string // names in small letters
}

// parseRequest reads a read request. The error is for the client's eyes too.
func parseRequest(b []byte) (request, error) {
	if len(b) < 4 || len(b) > maxRequest {
		return request{}, fmt.Errorf("a request of %d bytes", len(b))
	}
	switch op := binary.BigEndian.Uint16(b); op {
	case opRead:
	case opWrite:
		return request{}, errWrite
	default:
		return request{}, fmt.Errorf("operation %d is not a request", op)
	}
	if b[len(b)-1] != 0 {
		return request{}, errors.New("the request does not end with a zero byte")
	}
	fields := strings.Split(string(b[2:len(b)-1]), "\x00")
	if len(fields) < 2 || len(fields)%2 != 0 || fields[0] == "" {
		return request{}, errors.New("the request lacks a name, a mode or the value of an option")
	}
	r := request{name: fields[0], mode: strings.ToLower(fields[1]), options: map[string]string{}}
	if r.mode != "octet" {
		return request{}, fmt.Errorf("mode %.20q is not served, only octet", fields[1])
	}
	for i := 2; i < len(fields); i += 2 {
		r.options[strings.ToLower(fields[i])] = fields[i+1]
	}
	return r, nil
}

var errWrite = errors.New("files are read here, not written")

// terms are what both sides agree on.
type terms struct {
	block   int // bytes
	window  int // blocks sent before an acknowledgement is waited for
	seconds int // before something is sent again; 0: the server's own
	oack    []byte
}

// Limits of the options, from RFC 2348, 2349 and 7440. A block and its headers fit into an Ethernet frame: fragments get lost
// together, and firmware is bad at joining them.
const (
	leastBlock    = 8
	mostBlock     = 1468
	defaultBlock  = 512
	mostWindow    = 32
	leastSeconds  = 1
	mostSeconds   = 255
	largestBlock  = 65464
	largestWindow = 65535
)

// agree picks the terms for a file of n bytes. An option that makes no sense is left out of the answer, as if unknown.
func (r request) agree(n int64) terms {
	t := terms{block: defaultBlock, window: 1}
	var answer bytes.Buffer
	add := func(name string, value int64) { fmt.Fprintf(&answer, "%s\x00%d\x00", name, value) }
	number := func(name string, least, most int) (int, bool) {
		v, ok := r.options[name]
		if !ok {
			return 0, false
		}
		k, err := strconv.Atoi(v)
		return k, err == nil && k >= least && k <= most
	}
	if k, ok := number("blksize", leastBlock, largestBlock); ok {
		t.block = min(k, mostBlock)
		add("blksize", int64(t.block))
	}
	if k, ok := number("timeout", leastSeconds, mostSeconds); ok {
		t.seconds = k
		add("timeout", int64(k))
	}
	if _, ok := r.options["tsize"]; ok {
		add("tsize", n)
	}
	if k, ok := number("windowsize", 1, largestWindow); ok {
		t.window = min(k, mostWindow)
		add("windowsize", int64(t.window))
	}
	if answer.Len() > 0 {
		t.oack = append([]byte{0, opOACK}, answer.Bytes()...)
	}
	return t
}

// reply is what a client sends during a transfer: an acknowledgement or its end.
type reply struct {
	block uint16
	end   error // the client gave up, and why
}

// parseReply reads one; ok is false for what is neither.
func parseReply(b []byte) (r reply, ok bool) {
	if len(b) < 4 {
		return r, false
	}
	n := binary.BigEndian.Uint16(b[2:])
	switch binary.BigEndian.Uint16(b) {
	case opAck:
		return reply{block: n}, true
	case opError:
		text, _, _ := bytes.Cut(b[4:], []byte{0})
		return reply{end: fmt.Errorf("the client gave up: %.80q (code %d)", text, n)}, true
	}
	return r, false
}

// errorPacket tells a client what is wrong.
func errorPacket(code int, text string) []byte {
	b := binary.BigEndian.AppendUint16([]byte{0, opError}, uint16(code))
	return append(append(b, text[:min(len(text), maxRequest-5)]...), 0)
}
