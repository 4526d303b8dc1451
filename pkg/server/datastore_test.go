package server

import (
	"encoding/base64"
	"encoding/pem"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"

	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/outbound/outboundtest"
)

// An S3 server is reached as other things elsewhere are: through https-proxy, but for what no-proxy names. A proxy of its own wins.
func TestSnapshotsGoThroughTheProxy(t *testing.T) {
	s3 := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/xml")
		_, _ = io.WriteString(w, `<ListBucketResult><Name>snapshots</Name></ListBucketResult>`)
	}))
	defer s3.Close()
	ca := base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s3.Certificate().Raw}))
	for name, c := range map[string]struct {
		no               string
		own              bool
		everybodys, ours bool // which proxy is asked
	}{
		"for everything":        {everybodys: true},
		"not for this":          {no: "elsewhere.invalid,.example.invalid"},
		"for something else":    {no: "elsewhere.invalid", everybodys: true},
		"its own":               {own: true, ours: true},
		"its own, all the same": {no: ".example.invalid", own: true, ours: true},
	} {
		t.Run(name, func(t *testing.T) {
			everybodys, ours := outboundtest.New(t, s3.Listener.Addr().String()), outboundtest.New(t, s3.Listener.Addr().String())
			s := machine.DefaultServer()
			s.DataDir, s.HTTPSProxy, s.NoProxy = t.TempDir(), everybodys.URL, c.no
			s.S3, s.S3Endpoint, s.S3EndpointCA, s.S3Bucket, s.S3BucketLookupType = true, "s3.example.invalid", ca, "snapshots", "path"
			s.S3AccessKey, s.S3SecretKey, s.S3Timeout, s.S3SkipSSLVerify = "key", "secret", "10s", true
			if c.own {
				s.S3Proxy = ours.URL
			}
			stored, err := OpenStored(StoredConfig{Settings: s, NodeName: "n"})
			if err != nil {
				t.Fatal(err)
			}
			_, err = stored.Snapshots.List(t.Context())
			if want := c.everybodys || c.ours; (err == nil) != want {
				t.Errorf("listing: %v", err)
			}
			const connect = "CONNECT s3.example.invalid:443"
			if slices.Contains(everybodys.Asked(), connect) != c.everybodys || slices.Contains(ours.Asked(), connect) != c.ours {
				t.Errorf("the proxy for everything was asked for %q, S3's own for %q", everybodys.Asked(), ours.Asked())
			}
		})
	}
}
