package machine

import (
	"slices"
	"strings"
	"time"
)

// Datastore holds the settings of where the cluster's state is kept, and its copies. The also tag is the name that K3s gives a
// setting, where it is another one; both are taken.
type Datastore struct {
	DatastoreEndpoint string `yaml:"datastore-endpoint" help:"database that keeps the cluster's state, as postgres://USER:PASSWORD@HOST:5432/DATABASE or mysql://USER:PASSWORD@tcp(HOST:3306)/DATABASE (default: SQLite in data-dir)"`
	DatastoreCAFile   string `yaml:"datastore-cafile" help:"certificate authority of that database, as a PEM file"`
	DatastoreCertFile string `yaml:"datastore-certfile" help:"certificate to show to that database, as a PEM file"`
	DatastoreKeyFile  string `yaml:"datastore-keyfile" help:"key of that certificate, as a PEM file"`

	ClusterInit             bool   `yaml:"cluster-init" help:"keep the state in an etcd of several servers, and be the first; a server that has SQLite moves over to it"`
	ClusterReset            bool   `yaml:"cluster-reset" help:"forget all other servers of the etcd cluster, after more than half of them were lost, and exit"`
	ClusterResetRestorePath string `yaml:"cluster-reset-restore-path" help:"snapshot that cluster-reset restores, by name or path"`

	DisableSnapshots     bool   `yaml:"disable-snapshots" also:"etcd-disable-snapshots" help:"save no snapshots by the clock"`
	SnapshotScheduleCron string `yaml:"snapshot-schedule-cron" also:"etcd-snapshot-schedule-cron" help:"when to save a snapshot of the datastore, in cron's five fields"`
	SnapshotRetention    int    `yaml:"snapshot-retention" also:"etcd-snapshot-retention" help:"how many snapshots to keep; 0 is all"`
	SnapshotDir          string `yaml:"snapshot-dir" also:"etcd-snapshot-dir" help:"folder for snapshots (default: server/db/snapshots in data-dir)"`

	S3                 bool   `yaml:"s3" also:"etcd-s3" help:"keep snapshots on an S3 server too"`
	S3Endpoint         string `yaml:"s3-endpoint" also:"etcd-s3-endpoint" help:"host and port of the S3 server"`
	S3EndpointCA       string `yaml:"s3-endpoint-ca" also:"etcd-s3-endpoint-ca" help:"certificate authority of the S3 server, as a PEM file"`
	S3SkipSSLVerify    bool   `yaml:"s3-skip-ssl-verify" also:"etcd-s3-skip-ssl-verify" help:"trust any certificate of the S3 server"`
	S3AccessKey        string `yaml:"s3-access-key" also:"etcd-s3-access-key" help:"access key for S3"`
	S3SecretKey        string `yaml:"s3-secret-key" also:"etcd-s3-secret-key" help:"secret key for S3"`
	S3SessionToken     string `yaml:"s3-session-token" also:"etcd-s3-session-token" help:"session token for S3"`
	S3Bucket           string `yaml:"s3-bucket" also:"etcd-s3-bucket" help:"bucket for snapshots"`
	S3BucketLookupType string `yaml:"s3-bucket-lookup-type" also:"etcd-s3-bucket-lookup-type" help:"where the bucket's name stands in requests: auto, dns or path"`
	S3Region           string `yaml:"s3-region" also:"etcd-s3-region" help:"region of the bucket"`
	S3Folder           string `yaml:"s3-folder" also:"etcd-s3-folder" help:"folder in the bucket"`
	S3Insecure         bool   `yaml:"s3-insecure" also:"etcd-s3-insecure" help:"speak to the S3 server without TLS"`
	S3Proxy            string `yaml:"s3-proxy" also:"etcd-s3-proxy" help:"proxy to reach the S3 server through, as http://HOST:PORT (default: http-proxy, https-proxy and no-proxy)"`
	S3Timeout          string `yaml:"s3-timeout" also:"etcd-s3-timeout" help:"how long one operation on the S3 server may take"`
	S3Retention        int    `yaml:"s3-retention" also:"etcd-s3-retention" help:"how many snapshots to keep on the S3 server (default: snapshot-retention)"`
}

func defaultDatastore() Datastore {
	return Datastore{SnapshotScheduleCron: "0 */12 * * *", SnapshotRetention: 5, S3Timeout: "5m0s", S3Region: "us-east-1", S3BucketLookupType: "auto"}
}

// datastoreSchemes are how a datastore-endpoint may begin.
var datastoreSchemes = []string{"postgres", "postgresql", "mysql", "mariadb", "sqlite"}

// problems never repeats an endpoint or a key.
func (s *Datastore) problems(p *problems) {
	if scheme, _, ok := strings.Cut(s.DatastoreEndpoint, "://"); s.DatastoreEndpoint != "" && (!ok || !slices.Contains(datastoreSchemes, scheme)) {
		p.add("is not a database; write postgres://USER:PASSWORD@HOST:5432/DATABASE or mysql://USER:PASSWORD@tcp(HOST:3306)/DATABASE", "datastore-endpoint")
	}
	if s.DatastoreEndpoint != "" && s.ClusterInit {
		p.add("cluster-init is for etcd in this server, and datastore-endpoint for a database elsewhere; choose one", "cluster-init")
	}
	if s.ClusterResetRestorePath != "" && !s.ClusterReset {
		p.add("works together with cluster-reset only; add it, or use skerryd snapshot restore", "cluster-reset-restore-path")
	}
	if (s.DatastoreCertFile == "") != (s.DatastoreKeyFile == "") {
		p.add("datastore-certfile and datastore-keyfile belong together; give both", "datastore-certfile")
	}
	for _, f := range []struct{ key, file string }{
		{"datastore-cafile", s.DatastoreCAFile}, {"datastore-certfile", s.DatastoreCertFile}, {"datastore-keyfile", s.DatastoreKeyFile},
		{"snapshot-dir", s.SnapshotDir},
	} {
		if f.file != "" && !strings.HasPrefix(f.file, "/") {
			p.addf([]any{f.key}, "%q is not an absolute path", f.file)
		}
	}
	if n := len(strings.Fields(s.SnapshotScheduleCron)); n != 5 && !strings.HasPrefix(s.SnapshotScheduleCron, "@") && !s.DisableSnapshots {
		p.addf([]any{"snapshot-schedule-cron"}, "%q has %d fields; write five as in cron, or @daily", s.SnapshotScheduleCron, n)
	}
	if s.SnapshotRetention < 0 {
		p.addf([]any{"snapshot-retention"}, "%d is less than none", s.SnapshotRetention)
	}
	if s.S3 && s.S3Bucket == "" {
		p.add("say which bucket snapshots go to", "s3-bucket")
	}
	if !s.S3 && s.S3Bucket != "" {
		p.add("is given without s3, so that nothing would go there; add s3", "s3-bucket")
	}
	if (s.S3AccessKey == "") != (s.S3SecretKey == "") {
		p.add("s3-access-key and s3-secret-key belong together; give both, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY", "s3-access-key")
	}
	if strings.Contains(s.S3Endpoint, "://") {
		p.addf([]any{"s3-endpoint"}, "%q is a URL; write host:port, and s3-insecure for plain HTTP", s.S3Endpoint)
	}
	if !slices.Contains([]string{"auto", "dns", "path"}, s.S3BucketLookupType) {
		p.addf([]any{"s3-bucket-lookup-type"}, "%q is not one; write auto, dns or path", s.S3BucketLookupType)
	}
	p.proxy("s3-proxy", s.S3Proxy)
	if d, err := time.ParseDuration(s.S3Timeout); err != nil || d <= 0 {
		p.addf([]any{"s3-timeout"}, "%q is not a time; write 5m", s.S3Timeout)
	}
}
