package snapshot

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

// S3 says where an S3 server keeps snapshots too. The fields are K3s's --etcd-s3-* settings.
type S3 struct {
	Endpoint, EndpointCA string
	SkipSSLVerify        bool
	AccessKey, SecretKey string
	SessionToken         string
	Bucket, Lookup       string
	Region, Folder       string
	Insecure             bool                             // plain HTTP
	Proxy                string                           // a URL; "" is what Proxies says
	Proxies              func(*url.URL) (*url.URL, error) // nil: none
	Timeout              time.Duration
	Retention            int
}

// bucket is a place in an S3 server.
type bucket struct {
	S3
	client *minio.Client
}

func newBucket(c S3) (*bucket, error) {
	if c.Bucket == "" {
		return nil, errors.New("--s3-bucket: say which bucket snapshots go to")
	}
	c.Endpoint = cmp.Or(c.Endpoint, "s3.amazonaws.com")
	transport, err := minio.DefaultTransport(!c.Insecure)
	if err != nil {
		return nil, err
	}
	if !c.Insecure {
		transport.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: c.SkipSSLVerify} //nolint:gosec // somebody asked for it by name
		if c.EndpointCA != "" {
			if transport.TLSClientConfig.RootCAs, err = authorities(c.EndpointCA); err != nil {
				return nil, err
			}
		}
	}
	transport.Proxy = nil
	if c.Proxies != nil {
		transport.Proxy = func(r *http.Request) (*url.URL, error) { return c.Proxies(r.URL) }
	}
	if c.Proxy != "" {
		proxy, err := url.Parse(c.Proxy)
		if err != nil {
			return nil, fmt.Errorf("--s3-proxy: %w", err)
		}
		transport.Proxy = http.ProxyURL(proxy)
	}
	lookup := map[string]minio.BucketLookupType{"": minio.BucketLookupAuto, "auto": minio.BucketLookupAuto, "dns": minio.BucketLookupDNS, "path": minio.BucketLookupPath}
	how, ok := lookup[c.Lookup]
	if !ok {
		return nil, fmt.Errorf("--s3-bucket-lookup-type: %q is not one; write auto, dns or path", c.Lookup)
	}
	creds := credentials.NewStaticV4(c.AccessKey, c.SecretKey, c.SessionToken)
	if c.AccessKey == "" && c.SecretKey == "" {
		creds = credentials.NewEnvAWS()
	}
	client, err := minio.New(c.Endpoint, &minio.Options{Creds: creds, Secure: !c.Insecure, Region: c.Region, BucketLookup: how, Transport: transport, MaxRetries: 3})
	if err != nil {
		return nil, fmt.Errorf("--s3-endpoint: %s: %w", c.Endpoint, err)
	}
	return &bucket{S3: c, client: client}, nil
}

// authorities reads PEM, from a file or as K3s takes it too, base64-encoded in the setting itself.
func authorities(setting string) (*x509.CertPool, error) {
	data, err := os.ReadFile(setting)
	if err != nil {
		if data, _ = base64.StdEncoding.DecodeString(setting); len(data) == 0 {
			return nil, fmt.Errorf("--s3-endpoint-ca: %w", err)
		}
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(data) {
		return nil, errors.New("--s3-endpoint-ca: holds no certificate")
	}
	return pool, nil
}

func (b *bucket) String() string { return "s3://" + path.Join(b.Bucket, b.Folder) }

func (b *bucket) key(name string) string { return path.Join(b.Folder, name) }

// limited calls f with a context that ends in time, and puts the place in front of its error.
func (b *bucket) limited(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(b.Timeout, 5*time.Minute))
	defer cancel()
	if err := f(ctx); err != nil {
		return fmt.Errorf("%s at %s: %w", b, b.Endpoint, err)
	}
	return nil
}

func (b *bucket) list(ctx context.Context) (out []Entry, err error) {
	prefix := ""
	if b.Folder != "" {
		prefix = strings.TrimSuffix(b.Folder, "/") + "/"
	}
	err = b.limited(ctx, func(ctx context.Context) error {
		for o := range b.client.ListObjects(ctx, b.Bucket, minio.ListObjectsOptions{Prefix: prefix}) {
			if o.Err != nil {
				return o.Err
			}
			if name := strings.TrimPrefix(o.Key, prefix); strings.HasSuffix(name, suffix) && validName.MatchString(name) {
				out = append(out, Entry{Name: name, Place: b.String(), Size: o.Size, Created: createdAt(name, o.LastModified)})
			}
		}
		return nil
	})
	return out, err
}

func (b *bucket) put(ctx context.Context, name, file string) error {
	return b.limited(ctx, func(ctx context.Context) error {
		_, err := b.client.FPutObject(ctx, b.Bucket, b.key(name), file, minio.PutObjectOptions{ContentType: "application/x-tar", NumThreads: 1})
		return err
	})
}

func (b *bucket) get(ctx context.Context, name, file string) error {
	return b.limited(ctx, func(ctx context.Context) error {
		return b.client.FGetObject(ctx, b.Bucket, b.key(name), file, minio.GetObjectOptions{})
	})
}

func (b *bucket) remove(ctx context.Context, name string) error {
	return b.limited(ctx, func(ctx context.Context) error {
		return b.client.RemoveObject(ctx, b.Bucket, b.key(name), minio.RemoveObjectOptions{})
	})
}
