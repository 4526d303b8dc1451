package uki

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
)

var (
	oidSignedData    = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}
	oidData          = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1}
	oidContentType   = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 3}
	oidMessageDigest = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 4}
	oidRSA           = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}
	oidSHA256        = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}
	oidIndirectData  = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 2, 1, 4}
	oidPEImageData   = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 2, 1, 15}

	algSHA256 = pkix.AlgorithmIdentifier{Algorithm: oidSHA256, Parameters: asn1.NullRawValue}
	algRSA    = pkix.AlgorithmIdentifier{Algorithm: oidRSA, Parameters: asn1.NullRawValue}
)

type contentInfo struct {
	Type    asn1.ObjectIdentifier
	Content asn1.RawValue `asn1:"optional"`
}

type signedData struct {
	Version      int
	Digests      []pkix.AlgorithmIdentifier `asn1:"set"`
	Content      contentInfo
	Certificates asn1.RawValue
	Signers      []signerInfo `asn1:"set"`
}

type signerInfo struct {
	Version         int
	Issuer          issuerAndSerial
	DigestAlgorithm pkix.AlgorithmIdentifier
	Attributes      asn1.RawValue `asn1:"optional"`
	Algorithm       pkix.AlgorithmIdentifier
	Signature       []byte
}

type issuerAndSerial struct {
	Issuer asn1.RawValue
	Serial *big.Int
}

type attribute struct {
	Type   asn1.ObjectIdentifier
	Values []asn1.RawValue `asn1:"set"`
}

type digestInfo struct {
	Algorithm pkix.AlgorithmIdentifier
	Digest    []byte
}

type indirectData struct {
	Data   peAttribute
	Digest digestInfo
}

type peAttribute struct {
	Type  asn1.ObjectIdentifier
	Value peImageData
}

// peImageData is Authenticode's SpcPeImageData with the empty file name that every signer writes.
type peImageData struct {
	Flags asn1.BitString
	File  asn1.RawValue
}

// explicit wraps DER in the context tag n.
func explicit(n int, der []byte) asn1.RawValue {
	return asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: n, IsCompound: true, Bytes: der}
}

// Signer is a Secure Boot key and its certificate.
type Signer struct {
	Key  crypto.Signer // RSA
	Cert *x509.Certificate
}

// Sign gives a copy of a PE file with an Authenticode signature of each signer, in their order: firmware that trusts one of them
// starts it. The same file and keys give the same bytes: there is no signing time in it.
func Sign(file []byte, by ...Signer) ([]byte, error) {
	p, err := parse(file)
	if err != nil {
		return nil, err
	}
	if _, size := p.security(); size != 0 {
		return nil, errors.New("is signed already")
	}
	out := bytes.Clone(file)
	out = append(out, make([]byte, up(len(out), 8)-len(out))...) // before hashing: the padding is covered
	p.data = out
	sum, err := p.digest()
	if err != nil {
		return nil, err
	}
	var table []byte
	for _, s := range by {
		pkcs7, err := authenticode(sum, s)
		if err != nil {
			return nil, fmt.Errorf("signing: %w", err)
		}
		body := append(pkcs7, make([]byte, up(len(pkcs7), 8)-len(pkcs7))...)
		table = le.AppendUint32(table, uint32(8+len(body)))
		table = le.AppendUint16(table, 0x0200) // WIN_CERT_REVISION_2_0
		table = le.AppendUint16(table, 0x0002) // WIN_CERT_TYPE_PKCS_SIGNED_DATA
		table = append(table, body...)
	}
	dir := out[p.dirs+8*securityDirectory:]
	le.PutUint32(dir, uint32(len(out)))
	le.PutUint32(dir[4:], uint32(len(table)))
	return append(out, table...), nil
}

func authenticode(sum []byte, by Signer) ([]byte, error) {
	// SpcLink [2] { SpcString [0] "" }
	link := explicit(0, []byte{0xa2, 0x02, 0x80, 0x00})
	content, err := asn1.Marshal(indirectData{
		Data:   peAttribute{oidPEImageData, peImageData{Flags: asn1.BitString{}, File: link}},
		Digest: digestInfo{algSHA256, sum},
	})
	if err != nil {
		return nil, err
	}
	// The digest covers the value of SpcIndirectData without its tag and length.
	var value asn1.RawValue
	if _, err := asn1.Unmarshal(content, &value); err != nil {
		return nil, err
	}
	digest := sha256.Sum256(value.Bytes)
	attributes, err := signedAttributes(oidIndirectData, digest[:])
	if err != nil {
		return nil, err
	}
	sd, err := sign(contentInfo{oidIndirectData, explicit(0, content)}, attributes, nil, by)
	if err != nil {
		return nil, err
	}
	return asn1.Marshal(contentInfo{oidSignedData, explicit(0, sd)})
}

// signedAttributes gives the DER of the attribute set, as SET OF: that form is what gets signed.
func signedAttributes(contentType asn1.ObjectIdentifier, digest []byte) ([]byte, error) {
	typ, err := asn1.Marshal(contentType)
	if err != nil {
		return nil, err
	}
	dig, err := asn1.Marshal(digest)
	if err != nil {
		return nil, err
	}
	return asn1.MarshalWithParams([]attribute{
		{oidContentType, []asn1.RawValue{{FullBytes: typ}}},
		{oidMessageDigest, []asn1.RawValue{{FullBytes: dig}}},
	}, "set")
}

// sign makes a SignedData over the attributes, or over the message itself where there are none.
func sign(content contentInfo, attributes, message []byte, by Signer) ([]byte, error) {
	info := signerInfo{
		Version: 1, Issuer: issuerAndSerial{asn1.RawValue{FullBytes: by.Cert.RawIssuer}, by.Cert.SerialNumber},
		DigestAlgorithm: algSHA256, Algorithm: algRSA,
	}
	if attributes != nil {
		message = attributes
		var set asn1.RawValue
		if _, err := asn1.Unmarshal(attributes, &set); err != nil {
			return nil, err
		}
		info.Attributes = explicit(0, set.Bytes) // [0] IMPLICIT SET OF
	}
	if _, ok := by.Key.Public().(*rsa.PublicKey); !ok {
		return nil, fmt.Errorf("the key is a %T; firmware checks RSA", by.Key.Public())
	}
	var err error
	if info.Signature, err = crypto.SignMessage(by.Key, rand.Reader, message, crypto.SHA256); err != nil {
		return nil, err
	}
	return asn1.Marshal(signedData{
		Version: 1, Digests: []pkix.AlgorithmIdentifier{algSHA256}, Content: content,
		Certificates: explicit(0, by.Cert.Raw), Signers: []signerInfo{info},
	})
}
