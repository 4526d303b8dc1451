package server

import (
	"bytes"
	"cmp"
	"context"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"time"

	componentversion "k8s.io/component-base/version"

	"github.com/skerry-os/skerry/pkg/atomicfile"
	"github.com/skerry-os/skerry/pkg/datastore"
	"github.com/skerry-os/skerry/pkg/datastore/etcd"
	"github.com/skerry-os/skerry/pkg/datastore/snapshot"
	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/outbound"
	"github.com/skerry-os/skerry/pkg/pki"
	"github.com/skerry-os/skerry/pkg/supervise"
	"github.com/skerry-os/skerry/pkg/version"
)

// Stored is a server's datastore and the copies of it.
type Stored struct {
	Store     datastore.Store
	Snapshots *snapshot.Snapshots
}

// StoredConfig says whose datastore it is.
type StoredConfig struct {
	Settings machine.Server
	NodeName string
	NodeIP   netip.Addr
	Nodes    func() []netip.Addr   // of the cluster; may be nil
	Tell     func(datastore.Event) // gets what an operator should see; may be nil
}

// UsesEtcd reports whether a server with these settings runs a member of etcd: it is told to begin a cluster or to join one, or it
// has one from before.
func UsesEtcd(s machine.Server) bool {
	return s.DatastoreEndpoint == "" && (s.ClusterInit || s.Server != "" || etcd.Exists(databaseDir(s)))
}

// Alone reports whether the cluster can have no other server than this: the datastore is a file of its own. Nothing needs a lease
// then, nor its writing every few seconds.
func Alone(s machine.Server) bool { return !s.Multiple() && !UsesEtcd(s) }

func databaseDir(s machine.Server) string { return filepath.Join(s.DataDir, "server", "db") }

// OpenStored reads the settings; it does not touch the data.
func OpenStored(c StoredConfig) (*Stored, error) {
	s, node, tell := c.Settings, c.NodeName, c.Tell
	dir := databaseDir(s)
	timeout, err := time.ParseDuration(s.S3Timeout)
	if err != nil {
		return nil, err
	}
	sc := snapshot.Config{
		Dir:       cmp.Or(s.SnapshotDir, filepath.Join(dir, "snapshots")),
		Retention: s.SnapshotRetention,
		Node:      node,
		Skerry:    version.Version(), Kubernetes: componentversion.Get().GitVersion,
		Tell: tell,
	}
	if s.S3 {
		networks, err := s.Networks()
		if err != nil {
			return nil, err
		}
		var own []netip.Addr
		if c.NodeIP.IsValid() {
			own = append(own, c.NodeIP)
		}
		never := outbound.Never(networks, s.ClusterDomain, own)
		sc.S3 = &snapshot.S3{
			Endpoint: s.S3Endpoint, EndpointCA: s.S3EndpointCA, SkipSSLVerify: s.S3SkipSSLVerify, Insecure: s.S3Insecure,
			AccessKey: s.S3AccessKey, SecretKey: s.S3SecretKey, SessionToken: s.S3SessionToken,
			Bucket: s.S3Bucket, Lookup: s.S3BucketLookupType, Region: s.S3Region, Folder: s.S3Folder, Proxy: s.S3Proxy,
			Proxies: outbound.Settings{HTTP: s.HTTPProxy, HTTPS: s.HTTPSProxy, No: s.NoProxy}.Func(never, c.Nodes),
			Timeout: timeout, Retention: s.S3Retention,
		}
	}
	snapshots, err := snapshot.New(sc)
	if err != nil {
		return nil, err
	}
	if UsesEtcd(s) {
		store, err := openEtcd(c)
		if err != nil {
			return nil, err
		}
		return &Stored{store, snapshots}, nil
	}
	store, err := datastore.Open(datastore.Config{
		Dir:      dir,
		Endpoint: s.DatastoreEndpoint,
		CAFile:   s.DatastoreCAFile, CertFile: s.DatastoreCertFile, KeyFile: s.DatastoreKeyFile,
		Recover: snapshots.Recover(datastore.SQLite),
		Tell:    tell,
	})
	if err != nil {
		return nil, err
	}
	return &Stored{store, snapshots}, nil
}

func openEtcd(c StoredConfig) (datastore.Store, error) {
	files, err := pki.EnsureEtcd(pki.Config{
		DataDir: c.Settings.DataDir, NodeName: c.NodeName, NodeIPs: []netip.Addr{c.NodeIP}, Lifetime: c.Settings.Lifetime(), Now: time.Now(),
	})
	if err != nil {
		return nil, err
	}
	var hosts []string
	for _, s := range machine.ServerURLs(c.Settings.Server) {
		u, err := url.Parse(s)
		if err != nil {
			return nil, err
		}
		hosts = append(hosts, u.Hostname())
	}
	return etcd.New(etcd.Config{
		Dir: databaseDir(c.Settings), Name: c.NodeName, IP: c.NodeIP, TLS: etcd.TLS(*files),
		Join: hosts, Reset: c.Settings.ClusterReset, Tell: c.Tell,
	}), nil
}

// snapshotService saves snapshots by the clock. It never fails: a server lives without them, and events tell of it.
func snapshotService(s *Stored, schedule string) (supervise.Service, error) {
	when, err := snapshot.ParseSchedule(schedule)
	if err != nil {
		return supervise.Service{}, err
	}
	return supervise.Service{Name: "snapshots", Needs: []string{datastore.Name}, Run: func(ctx context.Context, ready func()) error {
		ready()
		s.Snapshots.Run(ctx, s.Store, when)
		return nil
	}}, nil
}

// SettingsFile is where a server keeps the settings it runs with, so that the commands beside it need not be told them again.
func SettingsFile(dataDir string) string { return filepath.Join(dataDir, "server", "settings.yaml") }

func keepSettings(s machine.Server) error {
	s.Token = "" // it has a file of its own
	if s.AgentTokenFile != "" {
		s.AgentToken = ""
	}
	data, err := machine.SettingsYAML(&s)
	if err != nil {
		return err
	}
	name := SettingsFile(s.DataDir)
	if old, err := os.ReadFile(name); err == nil && bytes.Equal(old, data) {
		return nil
	}
	return atomicfile.Write(name, data, 0o600)
}
