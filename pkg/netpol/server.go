package netpol

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/skerry-os/skerry/pkg/cni"
)

// Serve answers the CNI plugin on a socket of its own until ctx ends.
func (c *Controller) Serve(ctx context.Context, socket string) error {
	if err := os.Remove(socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(socket), 0o711); err != nil {
		return err
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		return fmt.Errorf("network policy: %w", err)
	}
	if err := os.Chmod(socket, 0o600); err != nil {
		_ = l.Close()
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	var all sync.WaitGroup
	defer all.Wait()
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("network policy: %s: %w", socket, err)
		}
		all.Go(func() { c.serve(ctx, conn) })
	}
}

func (c *Controller) serve(ctx context.Context, conn net.Conn) {
	defer conn.Close() //nolint:errcheck // the other end is gone
	ctx, cancel := context.WithTimeout(ctx, cni.AdmitTime)
	defer cancel()
	_ = conn.SetDeadline(time.Now().Add(cni.AdmitTime + time.Second))
	var ask cni.AdmitRequest
	var answer cni.AdmitAnswer
	if err := json.NewDecoder(conn).Decode(&ask); err != nil {
		answer.Error = err.Error()
	} else if err := c.Admit(ctx, Pod{Namespace: ask.Namespace, Name: ask.Name, Addresses: ask.Addresses, Node: c.node}); err != nil {
		answer.Error = err.Error()
	}
	_ = json.NewEncoder(conn).Encode(answer)
}
