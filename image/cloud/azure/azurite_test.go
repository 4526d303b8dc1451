package azure

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/arm"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"

	"github.com/skerry-os/skerry/image/cloud/publish"
)

// fakeToken is a credential for Azurite, which looks at a token's claims and not at its signature.
type fakeToken struct{}

func (fakeToken) GetToken(_ context.Context, o policy.TokenRequestOptions) (azcore.AccessToken, error) {
	now := time.Now()
	part := func(v map[string]any) string {
		data, err := json.Marshal(v)
		if err != nil {
			panic(err) // strings and numbers
		}
		return base64.RawURLEncoding.EncodeToString(data)
	}
	claims := map[string]any{
		"aud": strings.TrimSuffix(o.Scopes[0], "/.default"), "iss": "https://sts.windows.net/00000000-0000-4000-8000-000000000000/",
		"nbf": now.Add(-time.Minute).Unix(), "iat": now.Add(-time.Minute).Unix(), "exp": now.Add(time.Hour).Unix(),
	}
	return azcore.AccessToken{Token: part(map[string]any{"alg": "RS256", "typ": "JWT"}) + "." + part(claims) + ".c2ln", ExpiresOn: now.Add(time.Hour)}, nil
}

// azurite starts Microsoft's emulator of the Blob service, and gives its address and the certificate to trust. `make test-clouds`
// installs it.
func azurite(t *testing.T) (string, *x509.Certificate) {
	t.Helper()
	program := os.Getenv("SKERRY_AZURITE")
	if program == "" {
		t.Skip("SKERRY_AZURITE names no azurite-blob; make test-clouds installs one")
	}
	dir := t.TempDir()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}, &x509.Certificate{SerialNumber: big.NewInt(1)}, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{"cert.pem": {Type: "CERTIFICATE", Bytes: der}, "key.pem": {Type: "PRIVATE KEY", Bytes: secret}} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(t.Context(), program, "--blobHost", "127.0.0.1", "--blobPort", "0", "--location", dir, "--silent", "--disableTelemetry", "--skipApiVersionCheck",
		"--oauth", "basic", "--cert", filepath.Join(dir, "cert.pem"), "--key", filepath.Join(dir, "key.pem"))
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	address := make(chan string, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if _, at, ok := strings.Cut(lines.Text(), "listens on "); ok {
				select {
				case address <- strings.TrimSpace(at):
				default: // said before
				}
			}
		}
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		<-done
		_ = cmd.Wait() // how it ends is its own affair
	})
	select {
	case at := <-address:
		return at, cert
	case <-done:
		t.Fatal("azurite ended before it listened")
	case <-time.After(time.Minute):
		t.Fatal("azurite does not listen")
	}
	return "", nil
}

// cutLine is the line to the Blob service.
type cutLine struct {
	next  http.RoundTripper
	pages atomic.Int32
	stop  int32 // drop all after so many
}

func (l *cutLine) Do(r *http.Request) (*http.Response, error) {
	if r.URL.Query().Get("comp") == "page" {
		if n := l.pages.Add(1); l.stop > 0 && n > l.stop {
			return nil, errors.New("the line is down")
		}
	}
	return l.next.RoundTrip(r)
}

// Microsoft's own emulator takes what is sent to the Blob service: containers, page blobs, ranges, metadata, tokens.
func TestAzurite(t *testing.T) {
	address, cert := azurite(t)
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	line := &cutLine{next: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}, stop: 3}
	o := arm.ClientOptions{}
	o.Transport, o.Retry = line, policy.RetryOptions{MaxRetries: 2, RetryDelay: time.Millisecond}
	p, err := open(t.Context(), "subscription", fakeToken{}, o, func(string, ...any) {})
	if err != nil {
		t.Fatal(err)
	}
	store := &storageAccount{}
	store.Properties.Endpoints.Blob = address + "/devstoreaccount1"
	c, err := p.containerOf(store, Place{})
	if err != nil {
		t.Fatal(err)
	}
	b := c.NewPageBlobClient("skerry.vhd")
	content, d := testDisk()
	opts := options()
	opts.Parallel = 1

	// The line goes down after three parts, and comes back. (Damage is azuretest's: Azurite does not look at Content-MD5 of pages.)
	if err := p.upload(t.Context(), c, b, d, &opts, &publish.Report{}); err == nil || !strings.Contains(err.Error(), "the line is down") {
		t.Fatal(err)
	}
	has, err := ranges(t.Context(), b)
	if err != nil || len(has) == 0 || !has.covers(0, 1<<19) || has.covers(20<<20, 512) {
		t.Fatalf("%v, %v", has, err)
	}
	line.stop = 0
	opts.Parallel = 4
	r := &publish.Report{}
	if err := p.upload(t.Context(), c, b, d, &opts, r); err != nil || r.Uploaded != r.Blocks-3 {
		t.Fatalf("%+v, %v", r, err)
	}
	got := make([]byte, d.Size)
	if _, err := b.DownloadBuffer(t.Context(), got, nil); err != nil || !bytes.Equal(got, content) {
		t.Errorf("another disk arrived: %v", err)
	}
	now, err := findBlob(t.Context(), b)
	if err != nil || now == nil || !now.done || now.disk != d.ID || now.size != d.Size {
		t.Errorf("%+v, %v", now, err)
	}
	sent := line.pages.Load()
	if err := p.upload(t.Context(), c, b, d, &opts, r); err != nil || line.pages.Load() != sent {
		t.Errorf("sent again: %v", err)
	}
	d.ID = "other"
	if err := p.upload(t.Context(), c, b, d, &opts, r); err == nil || !strings.Contains(err.Error(), "is there and holds something else") {
		t.Error(err)
	}
	if _, err := b.Delete(t.Context(), nil); err != nil {
		t.Error(err)
	}
	if now, err := findBlob(t.Context(), b); now != nil || err != nil {
		t.Errorf("%v, %v", now, err)
	}
}
