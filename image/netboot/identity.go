package netboot

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"time"

	"github.com/skerry-os/skerry/image/netboot/protocol"
	"github.com/skerry-os/skerry/pkg/atomicfile"
)

// Authority is the CA that machines know their server by. Whoever has its key can take a machine's place of server.
type Authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

const (
	caFile   = "ca.crt"
	keyFile  = "ca.key"
	lifetime = 20 * 365 * 24 * time.Hour // machines do not look at the clock
)

// OpenAuthority reads the CA of a state folder, or makes one there.
func OpenAuthority(dir string) (*Authority, error) {
	keyPEM, err := os.ReadFile(filepath.Join(dir, keyFile))
	if errors.Is(err, fs.ErrNotExist) {
		return newAuthority(dir)
	}
	if err != nil {
		return nil, err
	}
	certPEM, err := os.ReadFile(filepath.Join(dir, caFile))
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, fmt.Errorf("%s: %w; remove %s and %s to make new ones (kernel images are made anew then)", dir, err, caFile, keyFile)
	}
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s: is a %T; an ECDSA key is wanted", filepath.Join(dir, keyFile), pair.PrivateKey)
	}
	return &Authority{pair.Leaf, key}, nil
}

func newAuthority(dir string) (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	t := certificate("Skerry network boot")
	t.IsCA, t.BasicConstraintsValid, t.KeyUsage = true, true, x509.KeyUsageCertSign
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	// The key comes last: with it the pair is whole.
	if err := atomicfile.Write(filepath.Join(dir, caFile), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644); err != nil {
		return nil, err
	}
	return &Authority{cert, key}, atomicfile.Write(filepath.Join(dir, keyFile), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), 0o600)
}

func certificate(name string) *x509.Certificate {
	serial := make([]byte, 16)
	_, _ = rand.Read(serial) // never fails
	now := time.Now().Add(-time.Hour)
	return &x509.Certificate{SerialNumber: new(big.Int).SetBytes(serial), Subject: pkix.Name{CommonName: name}, NotBefore: now, NotAfter: now.Add(lifetime)}
}

// Pin is what kernel images carry.
func (a *Authority) Pin() string { return protocol.Pin(a.cert.Raw) }

// serverTLS makes a certificate for this run of the server. Its key is nowhere but in memory.
func (a *Authority) serverTLS() (*tls.Config, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	t := certificate(protocol.ServerName)
	t.DNSNames, t.KeyUsage, t.ExtKeyUsage = []string{protocol.ServerName}, x509.KeyUsageDigitalSignature, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	der, err := x509.CreateCertificate(rand.Reader, t, a.cert, key.Public(), a.key)
	if err != nil {
		return nil, err
	}
	return &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{{Certificate: [][]byte{der, a.cert.Raw}, PrivateKey: key}}}, nil
}
