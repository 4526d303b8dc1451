package snapshot

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"

	"github.com/skerry-os/skerry/pkg/outbound/outboundtest"
)

const (
	accessKey = "AKIDEXAMPLE"
	secretKey = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
	bucketKey = "snapshots"
)

// s3Server speaks S3 over TLS, and refuses requests that are not signed with the keys: signature version 4 of AWS, recomputed
// from the documents.
func s3Server(t *testing.T) (*httptest.Server, *s3mem.Backend) {
	t.Helper()
	backend := s3mem.New()
	if err := backend.CreateBucket(bucketKey); err != nil {
		t.Fatal(err)
	}
	s3 := gofakes3.New(backend).Server()
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !signed(r) {
			w.Header().Set("Content-Type", "application/xml")
			w.WriteHeader(http.StatusForbidden)
			_, _ = w.Write([]byte("<Error><Code>SignatureDoesNotMatch</Code><Message>The signature is not that of the keys.</Message></Error>"))
			return
		}
		s3.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	return server, backend
}

// A server that only the proxy can reach is reached.
func TestS3Proxy(t *testing.T) {
	server, _ := s3Server(t)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	proxy := outboundtest.New(t, server.Listener.Addr().String())
	b, err := newBucket(S3{
		Endpoint: "s3.example.com", EndpointCA: ca, AccessKey: accessKey, SecretKey: secretKey, Bucket: bucketKey, Lookup: "path", Region: "us-east-1",
		Timeout: 20 * time.Second, Proxy: proxy.URL, Proxies: func(*url.URL) (*url.URL, error) { return nil, errors.New("the proxy for everything is asked") },
	})
	if err != nil {
		t.Fatal(err)
	}
	_, err = b.list(t.Context())
	if asked := proxy.Asked(); err != nil || len(asked) == 0 || asked[0] != "CONNECT s3.example.com:443" {
		t.Errorf("through the proxy went %q: %v", asked, err)
	}
}

func signed(r *http.Request) bool {
	// AWS4-HMAC-SHA256 Credential=KEY/DATE/REGION/s3/aws4_request, SignedHeaders=a;b, Signature=HEX
	rest, ok := strings.CutPrefix(r.Header.Get("Authorization"), "AWS4-HMAC-SHA256 ")
	if !ok {
		return false
	}
	fields := map[string]string{}
	for part := range strings.SplitSeq(rest, ",") {
		k, v, _ := strings.Cut(strings.TrimSpace(part), "=")
		fields[k] = v
	}
	key, scope, _ := strings.Cut(fields["Credential"], "/")
	if key != accessKey {
		return false
	}
	headers := strings.Split(fields["SignedHeaders"], ";")
	if !slices.Contains(headers, "host") || !slices.Contains(headers, "x-amz-content-sha256") {
		return false
	}
	var b strings.Builder
	b.WriteString(r.Method + "\n" + r.URL.EscapedPath() + "\n" + strings.ReplaceAll(r.URL.Query().Encode(), "+", "%20") + "\n")
	for _, h := range headers {
		value := strings.Join(r.Header.Values(h), ",")
		switch h {
		case "host":
			value = r.Host
		case "content-length":
			value = r.Header.Get("Content-Length")
		}
		b.WriteString(h + ":" + strings.TrimSpace(value) + "\n")
	}
	b.WriteString("\n" + fields["SignedHeaders"] + "\n" + r.Header.Get("X-Amz-Content-Sha256"))
	request := sha256.Sum256([]byte(b.String()))
	text := "AWS4-HMAC-SHA256\n" + r.Header.Get("X-Amz-Date") + "\n" + scope + "\n" + hex.EncodeToString(request[:])
	secret := []byte("AWS4" + secretKey)
	for part := range strings.SplitSeq(scope, "/") {
		secret = mac(secret, part)
	}
	return hmac.Equal([]byte(hex.EncodeToString(mac(secret, text))), []byte(fields["Signature"]))
}

func mac(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(text))
	return h.Sum(nil)
}

// gofakes3Page asks for everything at once.
func gofakes3Page() gofakes3.ListBucketPage { return gofakes3.ListBucketPage{} }
