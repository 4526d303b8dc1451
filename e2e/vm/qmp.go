package vm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"
)

// dialUnix connects to a socket in dir however long dir's name is: a socket's address holds 107 bytes, so the folder is
// named by a descriptor.
func dialUnix(ctx context.Context, dir, name string) (net.Conn, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close() // only a name
	var dialer net.Dialer
	c, err := dialer.DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), name))
	if err != nil {
		var op *net.OpError
		if errors.As(err, &op) {
			err = op.Err
		}
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, name), err)
	}
	return c, nil
}

// qmp runs one command of QEMU's machine protocol on a connection of its own: QEMU serves one client at a time, and
// machines are shared between processes.
func (v *VM) qmp(ctx context.Context, command string, arguments any) (json.RawMessage, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	c, err := dialUnix(ctx, v.dir, qmpSock)
	if err != nil {
		return nil, err
	}
	defer c.Close() // the answer has been read
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer stop()

	in, out := json.NewDecoder(c), json.NewEncoder(c)
	var greeting struct{ QMP json.RawMessage }
	if err := in.Decode(&greeting); err != nil {
		return nil, err
	}
	if _, err := call(in, out, "qmp_capabilities", nil); err != nil {
		return nil, err
	}
	return call(in, out, command, arguments)
}

func call(in *json.Decoder, out *json.Encoder, command string, arguments any) (json.RawMessage, error) {
	req := map[string]any{"execute": command}
	if arguments != nil {
		req["arguments"] = arguments
	}
	if err := out.Encode(req); err != nil {
		return nil, err
	}
	for {
		var m struct {
			Return json.RawMessage
			Error  *struct{ Desc string }
			Event  string
		}
		if err := in.Decode(&m); err != nil {
			return nil, err
		}
		switch {
		case m.Error != nil:
			return nil, fmt.Errorf("QEMU refuses %s: %s", command, m.Error.Desc)
		case m.Event == "":
			return m.Return, nil
		}
	}
}

// Written is how many bytes the machine has written to its disks so far, and in how many requests.
func (v *VM) Written(ctx context.Context) (bytes, requests int64, err error) {
	answer, err := v.qmp(ctx, "query-blockstats", nil)
	if err != nil {
		return 0, 0, err
	}
	var all []struct {
		Stats struct {
			Bytes    int64 `json:"wr_bytes"`
			Requests int64 `json:"wr_operations"`
		}
	}
	if err := json.Unmarshal(answer, &all); err != nil {
		return 0, 0, err
	}
	for _, d := range all {
		bytes, requests = bytes+d.Stats.Bytes, requests+d.Stats.Requests
	}
	return bytes, requests, nil
}
