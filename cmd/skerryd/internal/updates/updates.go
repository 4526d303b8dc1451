// Package updates drives pkg/update on a node: when to look, when to restart, how healthy the node is. It is where updates and
// Kubernetes meet.
package updates

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"time"

	cryptorand "crypto/rand"

	"golang.org/x/sys/unix"

	"github.com/skerry-os/skerry/pkg/atomicfile"
	"github.com/skerry-os/skerry/pkg/linux"
	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/repository"
	"github.com/skerry-os/skerry/pkg/slot"
	"github.com/skerry-os/skerry/pkg/update"
	"github.com/skerry-os/skerry/pkg/update/host"
	"github.com/skerry-os/skerry/pkg/update/record"
)

// Config reads what init took from the node config.
func Config() (machine.Update, error) {
	var u machine.Update
	data, err := os.ReadFile("/" + machine.UpdateFile)
	if errors.Is(err, fs.ErrNotExist) {
		return u, nil
	}
	if err != nil {
		return u, err
	}
	if err := json.Unmarshal(data, &u); err != nil {
		return u, fmt.Errorf("/%s: %w", machine.UpdateFile, err)
	}
	return u, nil
}

// Node is this machine, ready to be updated.
type Node struct {
	Updater *update.Updater
	Config  machine.Update
	ID      machine.Identity
	host    *host.Host
	log     *slog.Logger
	web     *http.Client
}

// Open opens this machine. host.ErrNoSlots means that it is none of ours to update.
//
// proxy says how to reach the source; nil is what the environment says, of which the engine's process has nothing left.
func Open(log *slog.Logger, proxy func(*url.URL) (*url.URL, error)) (*Node, error) {
	id, err := host.Identity()
	if err != nil {
		return nil, err
	}
	conf, err := Config()
	if err != nil {
		return nil, err
	}
	trusted, root, err := host.Trust(os.DirFS("/"))
	if err != nil {
		return nil, err
	}
	seed, err := seedOf(filepath.Join(filepath.Dir(host.RecordFile), "seed"))
	if err != nil {
		return nil, err
	}
	h, err := host.Open(id)
	if err != nil {
		return nil, err
	}
	n := &Node{Config: conf, ID: id, host: h, log: log, web: client(proxy)}
	n.Updater = &update.Updater{
		Machine: update.Machine{
			Arch: id.Release.Arch, Board: id.Boot.Board, Version: id.Release.Version, Channel: conf.Channel, Seed: seed, Booted: id.Boot.Slot,
			Kubernetes: id.Release.Kubernetes, Floor: id.Boot.Floor, Debug: id.Release.Debug || conf.Debug,
			Selector: h.Selector, Roots: map[slot.ID]update.Device{}, Trusted: trusted,
		},
		Store: record.File(host.RecordFile), Root: root, Dir: host.MetadataDir, Now: time.Now,
	}
	for s, d := range h.Roots {
		n.Updater.Roots[s] = d
	}
	return n, nil
}

// Close gives the disk back.
func (n *Node) Close() error { return n.host.Close() }

// seedOf is this machine's place among all, made up once.
func seedOf(name string) (string, error) {
	data, err := os.ReadFile(name)
	if err == nil && len(data) > 0 {
		return string(data), nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	b := make([]byte, 16)
	_, _ = cryptorand.Read(b) // never fails
	seed := hex.EncodeToString(b)
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return "", err
	}
	return seed, atomicfile.Write(name, []byte(seed), 0o600)
}

// Lock keeps the service and a person's commands from working at the same time.
func Lock() (unlock func(), err error) {
	name := filepath.Join(filepath.Dir(host.RecordFile), "lock")
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(errors.New("an update is under way; see skerryd update status"), f.Close())
	}
	return func() { _ = f.Close() }, nil
}

// stall is how long a server may say nothing.
const stall = time.Minute

// client does not wait for ever for anything, and takes as long as it takes for a file that does come.
func client(proxy func(*url.URL) (*url.URL, error)) *http.Client {
	by := http.ProxyFromEnvironment
	if proxy != nil {
		by = func(r *http.Request) (*url.URL, error) { return proxy(r.URL) }
	}
	d := &net.Dialer{Timeout: 30 * time.Second}
	return &http.Client{Transport: &http.Transport{
		Proxy: by,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			c, err := d.DialContext(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			return impatient{c}, nil
		},
		TLSHandshakeTimeout: 30 * time.Second, ResponseHeaderTimeout: stall, IdleConnTimeout: stall, MaxIdleConnsPerHost: 2,
	}}
}

type impatient struct{ net.Conn }

func (c impatient) Read(b []byte) (int, error) {
	if err := c.SetReadDeadline(time.Now().Add(stall)); err != nil {
		return 0, err
	}
	return c.Conn.Read(b)
}

// Check looks at the sources in turn: the config's, then sticks.
func (n *Node) Check(ctx context.Context, force bool) (*repository.Package, error) {
	var errs []error
	sources, err := n.sources()
	if err != nil {
		return nil, err
	}
	for _, s := range sources {
		n.Updater.Source = s
		p, err := n.Updater.Check(ctx, force)
		if err == nil {
			return p, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", s, err))
	}
	if len(errs) == 0 {
		return nil, errors.New("the node config names no source of updates (update.source), and no stick with a repository is plugged in")
	}
	return nil, errors.Join(errs...)
}

func (n *Node) sources() ([]repository.Source, error) {
	var out []repository.Source
	if n.Config.Source != "" {
		s, err := repository.NewSource(n.Config.Source, n.web)
		if err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	if !n.Config.Stick {
		return out, nil
	}
	parts, err := linux.Volumes(os.DirFS("/sys"))
	if err != nil {
		return nil, err
	}
	for _, p := range parts {
		if p.DiskDev() == n.ID.Boot.Disk {
			continue
		}
		f, err := os.Open(p.Dev())
		if err != nil {
			continue // it was pulled out
		}
		s, err := repository.NewStick(p.Dev(), f, p.Size)
		if err != nil {
			_ = f.Close()
			continue
		}
		out = append(out, s) // the file lives as long as the look at it, which ends with this process or the next collection
	}
	return out, nil
}

// jitter spreads machines that were switched on together.
func jitter(d time.Duration, share float64) time.Duration {
	return d + time.Duration((2*rand.Float64()-1)*share*float64(d))
}
