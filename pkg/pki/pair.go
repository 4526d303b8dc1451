package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
)

// pair is a certificate and its key.
type pair struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	der  []byte // of the key

	chain []byte // PEM: the certificates that follow in the file
}

// newKey makes an ECDSA key on P-256: a tenth of RSA's time to make and to sign with, and every Kubernetes client knows it.
func newKey() (*ecdsa.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

// newPair makes a key and a certificate after template, signed by ca, or by itself if ca is nil.
func newPair(template *x509.Certificate, ca *authority) (*pair, error) {
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	parent, signer := template, key
	if ca != nil {
		parent, signer = ca.cert, ca.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		return nil, fmt.Errorf("certificate for %q: %w", template.Subject.CommonName, err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, err
	}
	return &pair{cert: cert, key: key, der: keyDER}, nil
}

func (p *pair) certPEM() []byte { return encode("CERTIFICATE", p.cert.Raw) }
func (p *pair) keyPEM() []byte  { return encode("EC PRIVATE KEY", p.der) }
func (p *pair) pem() []byte     { return append(p.certPEM(), p.keyPEM()...) }

func keyPEM(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, err
	}
	return encode("EC PRIVATE KEY", der), nil
}

// readPair reads the first certificate and the first key of a PEM file, and checks that they belong together.
func readPair(name string) (*pair, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	p, err := parsePair(data, data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	for i, c := range certificates(data) {
		if i > 0 {
			p.chain = append(p.chain, encode("CERTIFICATE", c)...)
		}
	}
	return p, os.Chmod(name, 0o600)
}

// certificates are all in a PEM file, as DER.
func certificates(data []byte) (out [][]byte) {
	for {
		var b *pem.Block
		if b, data = pem.Decode(data); b == nil {
			return out
		}
		if b.Type == "CERTIFICATE" {
			out = append(out, b.Bytes)
		}
	}
}

func parsePair(certData, keyData []byte) (*pair, error) {
	b := find(certData, "CERTIFICATE")
	if b == nil {
		return nil, errors.New("holds no certificate")
	}
	cert, err := x509.ParseCertificate(b.Bytes)
	if err != nil {
		return nil, err
	}
	key, err := parseKey(keyData)
	if err != nil {
		return nil, err
	}
	if !key.PublicKey.Equal(cert.PublicKey) {
		return nil, errors.New("the key is not the certificate's")
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, err
	}
	return &pair{cert: cert, key: key, der: der}, nil
}

func parseKey(data []byte) (*ecdsa.PrivateKey, error) {
	b := find(data, "EC PRIVATE KEY")
	if b == nil {
		return nil, errors.New("holds no ECDSA key")
	}
	return x509.ParseECPrivateKey(b.Bytes)
}

func find(data []byte, kind string) *pem.Block {
	for {
		var b *pem.Block
		if b, data = pem.Decode(data); b == nil || b.Type == kind {
			return b
		}
	}
}
