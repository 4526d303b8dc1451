package server

import (
	"bytes"
	"cmp"
	"context"
	"os"
	"path/filepath"
	"time"

	componentversion "k8s.io/component-base/version"

	"github.com/skerry-os/skerry/pkg/atomicfile"
	"github.com/skerry-os/skerry/pkg/datastore"
	"github.com/skerry-os/skerry/pkg/datastore/snapshot"
	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/supervise"
	"github.com/skerry-os/skerry/pkg/version"
)

// Stored is a server's datastore and the copies of it.
type Stored struct {
	Store     datastore.Store
	Snapshots *snapshot.Snapshots
}

// OpenStored reads the settings; it does not touch the data. tell gets what an operator should see, and may be nil.
func OpenStored(s machine.Server, node string, tell func(datastore.Event)) (*Stored, error) {
	dir := filepath.Join(s.DataDir, "server", "db")
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
		sc.S3 = &snapshot.S3{
			Endpoint: s.S3Endpoint, EndpointCA: s.S3EndpointCA, SkipSSLVerify: s.S3SkipSSLVerify, Insecure: s.S3Insecure,
			AccessKey: s.S3AccessKey, SecretKey: s.S3SecretKey, SessionToken: s.S3SessionToken,
			Bucket: s.S3Bucket, Lookup: s.S3BucketLookupType, Region: s.S3Region, Folder: s.S3Folder,
			Timeout: timeout, Retention: s.S3Retention,
		}
	}
	snapshots, err := snapshot.New(sc)
	if err != nil {
		return nil, err
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
