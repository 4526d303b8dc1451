// Package etcd is the kind of datastore that several servers share: each runs a member of an etcd cluster inside its own
// process. More than half of the servers must be up for anything to be stored; three can lose one.
//
// Members speak to each other, and to servers that want to join, by TLS with certificates of two authorities of etcd's own. The
// API of the same server uses a socket that only this user can open.
//
// A server that joins is a learner first: it copies the data and counts for nothing, so that a slow or broken newcomer cannot
// stop the cluster. It is promoted when it has caught up, and only then is ready.
package etcd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	clientsnapshot "go.etcd.io/etcd/client/v3/snapshot"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"github.com/skerry-os/skerry/pkg/atomicfile"
	"github.com/skerry-os/skerry/pkg/datastore"
	"github.com/skerry-os/skerry/pkg/supervise"
)

// etcd's log grows by files of 64 MiB, of which it makes one ahead, at its start too; its database by less. It ends when it finds no
// room for either, so it takes no more writes while there is room for one of each, and as much is kept back for a start.
const (
	reserveSize = 96 << 20
	fullAt      = 80 << 20
)

// The ports that other servers call.
const (
	ClientPort = 2379
	PeerPort   = 2380
)

// A heartbeat each half second and an election after five: what a disk that takes a second for a sync can bear. A lost leader
// is missed for five seconds.
const (
	heartbeat = 500 * time.Millisecond
	election  = 5 * time.Second
)

// ReasonRemoved is the reason of the event of a server that was removed from the cluster.
const ReasonRemoved = "EtcdMemberRemoved"

const maxSocketPath = 107

// TLS is the files of a member; a pair is a certificate and its key in one file.
type TLS struct {
	ServerCA, PeerCA     string
	ServerPair, PeerPair string
	ClientPair           string
}

// Config says who the member is.
type Config struct {
	Dir  string // the socket, and the folder etcd
	Name string // the node's
	IP   netip.Addr
	TLS  TLS

	// Join are hosts of servers whose cluster a server without data joins, through the first that answers. None: it makes a cluster.
	Join []string

	// Reset forgets all other members; Run returns ErrReset when that is done.
	Reset bool

	// Ports differ from ClientPort and PeerPort in tests; so does what the file may have, in bytes.
	ClientPort, PeerPort int
	Quota                int64

	Tell func(datastore.Event) // may be nil
}

// ErrReset is what Run returns after a reset that worked.
var ErrReset = errors.New("etcd: all other servers are forgotten; start without --cluster-reset now, and let the others join again with their folder server/db removed")

// Store is the member as a datastore.Store.
type Store struct {
	Config
	id    atomic.Uint64
	disk  *datastore.Disk
	fatal chan error    // why etcd cannot go on
	hurry int           // looks at the alarms so many times as often, in tests
	beat  time.Duration // a leader says so often that it is there
	elect time.Duration // without a leader for so long, a member wants to be it
}

var _ datastore.Store = (*Store)(nil)

// New makes the store; it touches nothing.
func New(c Config) *Store {
	if c.ClientPort == 0 {
		c.ClientPort = ClientPort
	}
	if c.PeerPort == 0 {
		c.PeerPort = PeerPort
	}
	s := &Store{Config: c, fatal: make(chan error, 1), beat: heartbeat, elect: election}
	s.disk = datastore.NewDisk(datastore.Config{Dir: c.Dir, Tell: c.Tell}, reserveSize, fullAt)
	return s
}

// Exists reports whether the folder of a datastore has an etcd member.
func Exists(dir string) bool {
	for _, name := range []string{"etcd", "etcd.restored"} {
		if _, err := os.Stat(filepath.Join(dir, name, "member")); err == nil {
			return true
		}
	}
	return false
}

// Kind is etcd.
func (s *Store) Kind() string { return datastore.Etcd }

// Endpoint is the socket.
func (s *Store) Endpoint() string { return "unix://" + s.socket() }

func (s *Store) socket() string   { return filepath.Join(s.Dir, "etcd.sock") }
func (s *Store) data() string     { return filepath.Join(s.Dir, "etcd") }
func (s *Store) restored() string { return filepath.Join(s.Dir, "etcd.restored") }

func (s *Store) peerURL() string {
	return "https://" + net.JoinHostPort(s.IP.String(), strconv.Itoa(s.PeerPort))
}

func (s *Store) clientURL() string {
	return "https://" + net.JoinHostPort(s.IP.String(), strconv.Itoa(s.ClientPort))
}

func (s *Store) tell(warning bool, reason, message string) {
	slog.Warn(message, "reason", reason)
	if s.Tell != nil {
		s.Tell(datastore.Event{Warning: warning, Reason: reason, Message: message})
	}
}

// Run runs the member until ctx ends. It waits for the other members as long as it takes.
func (s *Store) Run(ctx context.Context, ready func()) error {
	if n := len(s.socket()); n > maxSocketPath {
		return fmt.Errorf("%s: a socket's path may have %d characters and this has %d; use a shorter data directory", s.socket(), maxSocketPath, n)
	}
	if err := os.MkdirAll(s.Dir, 0o700); err != nil {
		return err
	}
	for {
		if err := s.await(ctx, ready); err != nil || ctx.Err() != nil {
			return err
		}
		if err := s.run(ctx, ready); !errors.Is(err, errAside) {
			return err
		}
	}
}

// run runs the member until ctx ends, or it leaves the storing to the others.
func (s *Store) run(ctx context.Context, ready func()) error {
	if err := s.finishSwap(); err != nil {
		return err
	}
	config, err := s.config()
	if err != nil {
		return err
	}
	if s.Reset || !Exists(s.Dir) {
		if err := s.forget(); err != nil {
			return err
		}
	}
	if !Exists(s.Dir) {
		if err := s.begin(ctx, config); err != nil || ctx.Err() != nil {
			return err
		}
	}
	config.ForceNewCluster = s.Reset
	if err := os.Remove(s.socket()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	e, err := s.start(ctx, config)
	if err != nil || e == nil {
		return err
	}
	if err = s.serve(ctx, e, ready); errors.Is(err, errFatal) {
		return err // one that cannot go on cannot close either
	}
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		shut(e)
	}()
	select {
	case <-closed:
		return err
	case fatal := <-s.fatal: // its last write has found no room
		return s.ended(fatal)
	}
}

// errFatal is in the error of a member that etcd itself would have ended the process for.
var errFatal = errors.New("etcd cannot go on")

// ended says what becomes of a server whose member cannot go on. Where the disk is to blame, everything is started anew and waits for
// room: a member cannot be closed that stopped in the middle of a write.
func (s *Store) ended(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		s.disk.Look(true)
		return fmt.Errorf("%w: %w: %w", errFatal, err, supervise.ErrAgain)
	}
	return fmt.Errorf("%w: %w", errFatal, err)
}

// serve waits until the member is one of the cluster's, and for its end.
func (s *Store) serve(ctx context.Context, e *embed.Etcd, ready func()) error {
	s.id.Store(uint64(e.Server.MemberID()))
	if err := os.Chmod(s.socket(), 0o600); err != nil {
		return err
	}
	if err := s.awaitMember(ctx, e); err != nil || ctx.Err() != nil {
		return err
	}
	if s.Reset {
		return ErrReset
	}
	ready()
	var beside sync.WaitGroup
	watching, stop := context.WithCancel(ctx)
	leave := make(chan struct{})
	beside.Go(func() {
		if s.watch(watching, e) {
			close(leave)
		}
	})
	var err error
	select {
	case <-ctx.Done():
	case <-leave:
		err = errAside
	case err = <-s.fatal:
		stop() // what watches may wait for the member in vain
		return s.ended(err)
	case err = <-e.Err():
		err = s.failed(ctx, e, err)
	case <-e.Server.StopNotify():
		err = s.stopped(ctx, e)
	}
	stop()
	beside.Wait()
	return err
}

// shut closes a member. Its Close waits for listeners that begin once the member is ready, so one that is not is stopped first.
func shut(e *embed.Etcd) {
	select {
	case <-e.Server.ReadyNotify():
	default:
		e.Server.HardStop()
	}
	e.Close()
}

// config is what etcd is told at every start.
func (s *Store) config() (*embed.Config, error) {
	c := embed.NewConfig()
	c.Name, c.Dir = s.Name, s.data()
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(s.heard())
	peer, err := url.Parse(s.peerURL())
	if err != nil {
		return nil, err
	}
	client, err := url.Parse(s.clientURL())
	if err != nil {
		return nil, err
	}
	c.ListenPeerUrls, c.AdvertisePeerUrls = []url.URL{*peer}, []url.URL{*peer}
	c.ListenClientUrls = []url.URL{*client, {Scheme: "unix", Path: s.socket()}}
	c.AdvertiseClientUrls = []url.URL{*client}
	c.PeerTLSInfo = transport.TLSInfo{CertFile: s.TLS.PeerPair, KeyFile: s.TLS.PeerPair, ClientCertAuth: true, TrustedCAFile: s.TLS.PeerCA}
	c.ClientTLSInfo = transport.TLSInfo{CertFile: s.TLS.ServerPair, KeyFile: s.TLS.ServerPair, ClientCertAuth: true, TrustedCAFile: s.TLS.ServerCA}
	c.TlsMinVersion = "TLS1.3"
	c.InitialCluster = s.Name + "=" + s.peerURL()
	c.TickMs, c.ElectionMs = uint(s.beat.Milliseconds()), uint(s.elect.Milliseconds())
	c.EnableGRPCGateway = false
	c.MaxRequestBytes = 3 << 20 >> 1 // etcd's own limit, which Kubernetes counts on
	c.QuotaBackendBytes = s.quota()
	c.BootstrapDefragThresholdMegabytes = 64
	c.WarningApplyDuration, c.WarningUnaryRequestDuration = time.Second, 2*time.Second // a busy small machine is no news
	return c, nil
}

// start starts the member, again and again while its neighbours cannot be asked.
func (s *Store) start(ctx context.Context, config *embed.Config) (*embed.Etcd, error) {
	for {
		e, err := s.startOnce(config)
		if err == nil {
			return e, nil
		}
		if errors.Is(err, errFatal) {
			return nil, err
		}
		if Exists(s.Dir) || config.ClusterState == embed.ClusterStateFlagNew {
			return nil, fmt.Errorf("etcd: %w", err)
		}
		slog.Warn("etcd: waiting for a server to join", "servers", s.Join, "err", err)
		select {
		case <-time.After(2 * time.Second):
		case <-ctx.Done():
			return nil, nil
		}
	}
}

// startOnce returns also where etcd would not.
func (s *Store) startOnce(config *embed.Config) (*embed.Etcd, error) {
	type started struct {
		*embed.Etcd
		err error
	}
	done := make(chan started, 1)
	go func() {
		e, err := embed.StartEtcd(config)
		done <- started{e, err}
	}()
	select {
	case now := <-done:
		return now.Etcd, now.err
	case err := <-s.fatal:
		return nil, s.ended(err)
	}
}

// awaitMember returns once the member is a full one that others can reach.
func (s *Store) awaitMember(ctx context.Context, e *embed.Etcd) error {
	remind, lead := time.NewTicker(30*time.Second), time.NewTicker(20*time.Millisecond)
	defer remind.Stop()
	defer lead.Stop()
	for waiting := true; waiting; {
		select {
		case <-e.Server.ReadyNotify():
			waiting = false
		case <-lead.C:
			if !s.takeLead(ctx, e) {
				lead.Stop()
			}
		case <-remind.C:
			slog.Warn("etcd: waiting for the other servers: more than half of them must be up; if they are lost for good, start with --cluster-reset")
		case err := <-s.fatal:
			return s.ended(err)
		case err := <-e.Err():
			return s.failed(ctx, e, err)
		case <-e.Server.StopNotify():
			return s.stopped(ctx, e)
		case <-ctx.Done():
			return nil
		}
	}
	if err := s.promote(ctx, e); err != nil {
		return err
	}
	return s.announce(ctx, e)
}

// takeLead has a member that is alone elect itself at once, which it would do after five to ten seconds: there is no leader to wait for.
// The message is the one by which a leader hands over (raft thesis, section 3.10); a member with others that are not known yet asks
// them for their votes. It reports whether to try again: before its log is read, a member does not listen.
func (s *Store) takeLead(ctx context.Context, e *embed.Etcd) bool {
	self := e.Server.MemberID()
	members := e.Server.Cluster().Members()
	if e.Server.Leader() != 0 || len(members) > 1 {
		return false
	}
	if len(members) == 1 && members[0].ID == self && !members[0].IsLearner {
		id := uint64(self)
		if err := e.Server.Process(ctx, &raftpb.Message{Type: raftpb.MsgTimeoutNow.Enum(), From: &id, To: &id}); err != nil {
			slog.Debug("etcd: taking the lead", "err", err)
		}
	}
	return true
}

// failed tells the errors of a member that stops from those of its listeners.
func (s *Store) failed(ctx context.Context, e *embed.Etcd, err error) error {
	select {
	case <-e.Server.StoppingNotify():
		return s.stopped(ctx, e)
	default:
		return fmt.Errorf("etcd: %w", err)
	}
}

// stopped says why a member ended by itself.
func (s *Store) stopped(ctx context.Context, e *embed.Etcd) error {
	if e.Server.Cluster().Member(e.Server.MemberID()) != nil && !s.forgotten(ctx, e) {
		return errors.New("etcd: it stopped by itself")
	}
	aside := s.data() + ".removed-" + time.Now().UTC().Format("20060102T150405")
	if err := errors.Join(s.forget(), os.Rename(s.data(), aside), atomicfile.SyncDir(s.Dir)); err != nil {
		return err
	}
	s.tell(true, ReasonRemoved, "etcd: this server was removed from the cluster, because its node was deleted, or the others were reset; its data is kept as "+aside)
	return fmt.Errorf("etcd: this server was removed from the cluster; it joins again when it starts with --server (its data is kept as %s)", aside)
}

// forgotten asks the members that this one knows whether they know it. One that was away while it was removed is turned away by
// them and stops, and never learns why.
func (s *Store) forgotten(ctx context.Context, e *embed.Etcd) bool {
	for _, m := range e.Server.Cluster().Members() {
		if m.ID == e.Server.MemberID() || len(m.ClientURLs) == 0 {
			continue
		}
		c, err := s.others(m.ClientURLs...)
		if err != nil {
			continue
		}
		ask, cancel := context.WithTimeout(ctx, 10*time.Second)
		list, err := c.MemberList(ask)
		cancel()
		_ = c.Close() // answered
		if err == nil {
			return !slices.ContainsFunc(list.Members, func(o *etcdserverpb.Member) bool { return o.ID == uint64(e.Server.MemberID()) })
		}
	}
	return false
}

// Client calls the member over its socket.
func (s *Store) Client() (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{Endpoints: []string{s.Endpoint()}, DialTimeout: 10 * time.Second, Logger: zap.NewNop()})
}

// others calls members elsewhere.
func (s *Store) others(endpoints ...string) (*clientv3.Client, error) {
	info := transport.TLSInfo{CertFile: s.TLS.ClientPair, KeyFile: s.TLS.ClientPair, TrustedCAFile: s.TLS.ServerCA}
	config, err := info.ClientConfig()
	if err != nil {
		return nil, err
	}
	return clientv3.New(clientv3.Config{Endpoints: endpoints, TLS: config, DialTimeout: 10 * time.Second, Logger: zap.NewNop()})
}

// with calls f with the member over its socket, in time.
func (s *Store) with(ctx context.Context, f func(context.Context, *clientv3.Client) error) error {
	if _, err := os.Stat(s.socket()); err != nil {
		return errors.New("etcd: it does not run here; start the server")
	}
	c, err := s.Client()
	if err != nil {
		return err
	}
	defer c.Close() //nolint:errcheck // f has said it all
	if err := f(ctx, c); err != nil {
		return fmt.Errorf("etcd: %w", err)
	}
	return nil
}

// Check asks etcd, whose members compare their data with each other, whether it has found anything wrong.
func (s *Store) Check(ctx context.Context) error {
	return s.with(ctx, func(ctx context.Context, c *clientv3.Client) error {
		alarms, err := c.AlarmList(ctx)
		if err != nil {
			return err
		}
		for _, a := range alarms.Alarms {
			if a.Alarm == etcdserverpb.AlarmType_CORRUPT {
				return fmt.Errorf("member %x: %w", a.MemberID, datastore.ErrDamaged)
			}
		}
		return nil
	})
}

// Size is etcd's database.
func (s *Store) Size(ctx context.Context) (size int64, err error) {
	err = s.with(ctx, func(ctx context.Context, c *clientv3.Client) error {
		status, err := c.Status(ctx, s.Endpoint())
		if err == nil {
			size = status.DbSize
		}
		return err
	})
	return size, err
}

// Snapshot is etcd's own, with its checksum behind it.
func (s *Store) Snapshot(ctx context.Context, file string) (rev datastore.Revision, err error) {
	err = s.with(ctx, func(ctx context.Context, c *clientv3.Client) error {
		status, err := c.Status(ctx, s.Endpoint())
		if err != nil {
			return err
		}
		rev = datastore.Revision(status.Header.Revision)
		_, err = clientsnapshot.SaveWithVersion(ctx, zap.NewNop(), clientv3.Config{Endpoints: []string{s.Endpoint()}, DialTimeout: 10 * time.Second, Logger: zap.NewNop()}, file)
		return err
	})
	return rev, err
}
