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
	"strings"
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
	log     *slog.Logger
	web     *http.Client
	close   func() error
	dir     string // for what is not the record
	control string // socket
	network func() []string
	parts   func() ([]linux.Partition, error) // all volumes of the machine
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
	n := &Node{
		Config: conf, ID: id, log: log, web: client(proxy), close: h.Close, dir: filepath.Dir(host.RecordFile), control: host.ControlSocket,
		network: func() []string { return network(os.DirFS("/sys"), os.DirFS("/proc"), addresses()) },
		parts:   func() ([]linux.Partition, error) { return linux.Volumes(os.DirFS("/sys")) },
	}
	n.Updater = &update.Updater{
		Machine: update.Machine{
			Arch: id.Release.Arch, Board: id.Boot.Board, Version: id.Release.Version, Channel: conf.Channel, Seed: seed, Booted: id.Boot.Slot,
			Kubernetes: id.Release.Kubernetes, Floor: id.Boot.Floor, Debug: id.Release.Debug || conf.Debug,
			Selector: h.Selector, Roots: map[slot.ID]update.Device{}, Trusted: trusted,
		},
		Store: record.File(host.RecordFile), Root: root, Dir: host.MetadataDir, Free: host.Free, Now: time.Now,
	}
	for s, d := range h.Roots {
		n.Updater.Roots[s] = d
	}
	return n, nil
}

// Close gives the disk back.
func (n *Node) Close() error { return n.close() }

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

// lock keeps whoever updates this machine from working at the same time.
func (n *Node) lock() (unlock func(), err error) {
	name := filepath.Join(n.dir, "lock")
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

// Check looks at the sources in turn: the config's, then sticks. repository.ErrUpToDate is for all of them.
func (n *Node) Check(ctx context.Context, force bool) (*repository.Package, error) {
	sources, err := n.sources()
	if err != nil {
		return nil, err
	}
	if len(sources) == 0 {
		return nil, errors.New("the node config names no source of updates (update.source), and no stick with a repository is plugged in")
	}
	var names []string
	for _, s := range sources {
		names = append(names, s.String())
	}
	if err := n.only(names); err != nil {
		return nil, err
	}
	var errs []error
	var nothing error
	for _, s := range sources {
		n.Updater.Source = s
		p, err := n.Updater.Check(ctx, force)
		refused(update.Kind(err))
		switch {
		case err == nil:
			return p, nil
		case errors.Is(err, repository.ErrUpToDate):
			nothing = fmt.Errorf("%s: %w", s, err)
		default:
			errs = append(errs, fmt.Errorf("%s: %w", s, err))
		}
	}
	if len(errs) == 0 {
		return nil, nothing
	}
	return nil, errors.Join(errs...)
}

// only makes the record forget sources that are there no more.
func (n *Node) only(names []string) error {
	r, err := n.Updater.Store.Load()
	if err != nil {
		return err
	}
	before := len(r.Sources)
	if r.Only(names...); len(r.Sources) == before {
		return nil
	}
	return n.Updater.Store.Save(r)
}

// volumes names the volumes that are plugged in.
func (n *Node) volumes() string {
	parts, err := n.parts()
	if err != nil {
		return ""
	}
	var names []string
	for _, p := range parts {
		names = append(names, p.Name)
	}
	return strings.Join(names, " ")
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
	parts, err := n.parts()
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
