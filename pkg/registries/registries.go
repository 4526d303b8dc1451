// Package registries fetches images as registries.yaml says: K3s's file, with mirrors, rewrites, credentials and TLS. It is read
// again when it changes; a change holds for the next pull.
//
// containerd knows mirrors, but neither rewrites nor credentials that change. So where there is a registries.yaml, or a proxy to
// go through, containerd asks a small server in this process for everything, on the loopback address, and that server asks the
// mirrors and the registry. Without either, containerd asks the registries itself. The credentials of a pod's imagePullSecrets
// go to the registry that they are for and to no mirror; a mirror's own are in registries.yaml.
//
// A registries.yaml that cannot be read stops pulls, with its fault as the reason, and nothing else: guessing would ask the
// wrong hosts. The server answers only who knows a secret that stands in a file that root alone may read.
package registries

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/skerry-os/skerry/pkg/atomicfile"
)

// DefaultFile is where registries.yaml is when no setting says otherwise.
const DefaultFile = "/etc/skerry/registries.yaml"

// Config says what to read and for whom.
type Config struct {
	File  string                           // registries.yaml; need not be there
	Hosts string                           // containerd's config_path; made by this package alone
	Proxy func(*url.URL) (*url.URL, error) // nil: none

	MirrorsOnly bool // a registry that has mirrors is not asked itself, unless it is one of its endpoints
}

// secretHeader carries what only containerd can know.
const secretHeader = "X-Skerry-Registries"

// look is how often the file is looked at where changes are not told.
const look = 10 * time.Second

// Server answers containerd.
type Server struct {
	cfg    Config
	secret string

	mu      sync.Mutex
	current *source
	seen    string // what the file was when current was made of it
}

// New makes a Server; Run starts it.
func New(cfg Config) *Server { return &Server{cfg: cfg, secret: rand.Text()} }

// Run answers until ctx ends, and calls ready once containerd can ask.
func (s *Server) Run(ctx context.Context, ready func()) error {
	var listen net.ListenConfig
	l, err := listen.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("registries: %w", err)
	}
	// No timeout for a whole answer: a layer may take as long as the line is slow.
	srv := &http.Server{Handler: s, ReadHeaderTimeout: 10 * time.Second, ErrorLog: slog.NewLogLogger(slog.Default().Handler(), slog.LevelDebug)}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	defer func() { _ = srv.Close() }()

	var events chan fsnotify.Event
	if watch, err := fsnotify.NewWatcher(); err == nil {
		defer func() { _ = watch.Close() }()
		if watch.Add(filepath.Dir(s.cfg.File)) == nil {
			events = watch.Events
		}
	}
	tick := time.NewTicker(look)
	defer tick.Stop()
	wrote := ""
	for {
		if text := s.hostsFile(l.Addr().String()); text != wrote {
			if err := writeHosts(s.cfg.Hosts, text); err != nil {
				return err
			}
			wrote = text
		}
		ready()
		select {
		case <-ctx.Done():
			return nil
		case err := <-served:
			return fmt.Errorf("registries: %w", err)
		case <-events:
		case <-tick.C:
		}
	}
}

// hostsFile is containerd's file for every registry, or nothing when containerd shall ask by itself.
func (s *Server) hostsFile(address string) string {
	if s.cfg.Proxy == nil && !s.load().exists {
		return ""
	}
	return fmt.Sprintf("server = \"http://%s\"\ncapabilities = [\"pull\", \"resolve\"]\n[header]\n  %s = %q\n", address, secretHeader, s.secret)
}

func writeHosts(dir, text string) error {
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	def := filepath.Join(dir, "_default")
	if text == "" {
		return os.MkdirAll(dir, 0o700)
	}
	if err := os.MkdirAll(def, 0o700); err != nil {
		return err
	}
	return atomicfile.Write(filepath.Join(def, "hosts.toml"), []byte(text), 0o600)
}

// source is one state of the file, with the connections and tokens that belong to it.
type source struct {
	exists      bool
	err         error
	mirrorsOnly bool
	*config
	clients *clients
}

// load gives what the file says now. Looking is cheap: it is read only when it is another than before.
func (s *Server) load() *source {
	s.mu.Lock()
	defer s.mu.Unlock()
	info, err := os.Stat(s.cfg.File)
	now := "none"
	switch {
	case err == nil:
		now = fmt.Sprint(info.ModTime().UnixNano(), info.Size())
	case !errors.Is(err, fs.ErrNotExist):
		now = err.Error()
	}
	if s.current != nil && s.seen == now {
		return s.current
	}
	first := s.current == nil
	next := &source{mirrorsOnly: s.cfg.MirrorsOnly, config: &config{}, clients: newClients(s.cfg.Proxy)}
	data, err := os.ReadFile(s.cfg.File)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		next.exists, next.err = true, err
	default:
		next.exists = true
		if next.config, next.err = parse(s.cfg.File, data); next.config == nil {
			next.config = &config{}
		}
	}
	switch {
	case next.err != nil:
		slog.Error("registries: no image can be pulled until this is mended", "err", next.err)
	case next.exists:
		slog.Info("registries: read", "file", s.cfg.File, "mirrors", len(next.mirrors), "configs", len(next.hosts))
	case !first:
		slog.Info("registries: file is gone; registries are asked directly", "file", s.cfg.File)
	}
	if s.current != nil {
		s.current.clients.close()
	}
	s.current, s.seen = next, now
	return next
}

func (s *Server) knows(r *http.Request) bool {
	return subtle.ConstantTimeCompare([]byte(r.Header.Get(secretHeader)), []byte(s.secret)) == 1
}
