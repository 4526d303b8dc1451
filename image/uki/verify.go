package uki

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
)

// Verify says whether a PE file carries an Authenticode signature by the key of one of the certificates. It reads what Sign and the
// usual signing tools write; firmware has the last word.
func Verify(file []byte, certs ...*x509.Certificate) error {
	p, err := parse(file)
	if err != nil {
		return err
	}
	offset, size := p.security()
	if size == 0 {
		return errors.New("is not signed")
	}
	if uint64(offset)+uint64(size) != uint64(len(file)) || size < 8 {
		return errors.New("has bytes behind its signature, or a signature outside the file")
	}
	sum, err := p.digest()
	if err != nil {
		return err
	}
	if len(certs) == 0 {
		return errors.New("there is no certificate to check its signature by")
	}
	var errs []error
	for table := file[offset:]; len(table) > 0; {
		if len(table) < 8 {
			return errors.New("has a damaged signature header")
		}
		length := uint64(le.Uint32(table))
		if length < 8 || length > uint64(len(table)) || le.Uint16(table[6:]) != 2 {
			return errors.New("has a damaged signature header")
		}
		for _, cert := range certs {
			err := verifyOne(table[8:length], sum, cert)
			if err == nil {
				return nil
			}
			errs = append(errs, err)
		}
		table = table[min((length+7)&^7, uint64(len(table))):]
	}
	return errors.Join(errs...)
}

// verifyOne checks one signature.
func verifyOne(pkcs7, sum []byte, cert *x509.Certificate) error {
	var outer contentInfo
	if _, err := asn1.Unmarshal(pkcs7, &outer); err != nil || !outer.Type.Equal(oidSignedData) {
		return errors.New("has a signature that is not PKCS#7")
	}
	var sd signedData
	if _, err := asn1.Unmarshal(outer.Content.Bytes, &sd); err != nil {
		return fmt.Errorf("has a signature that cannot be read: %w", err)
	}
	var value asn1.RawValue
	if _, err := asn1.Unmarshal(sd.Content.Content.Bytes, &value); err != nil {
		return fmt.Errorf("has a signature over nothing: %w", err)
	}
	var data indirectData
	if _, err := asn1.Unmarshal(sd.Content.Content.Bytes, &data); err != nil || !data.Digest.Algorithm.Algorithm.Equal(oidSHA256) {
		return errors.New("has a signature that is not over a SHA-256 digest")
	}
	if !bytes.Equal(data.Digest.Digest, sum) {
		return fmt.Errorf("was changed after signing: its digest is %x, the signature's %x", sum[:4], data.Digest.Digest[:min(4, len(data.Digest.Digest))])
	}
	digest := sha256.Sum256(value.Bytes)
	if len(sd.Signers) != 1 {
		return fmt.Errorf("has %d signers; one is read", len(sd.Signers))
	}
	return verifySigner(sd.Signers[0], digest[:], cert)
}

func verifySigner(s signerInfo, digest []byte, cert *x509.Certificate) error {
	var found bool
	for rest := s.Attributes.Bytes; len(rest) > 0; {
		var a attribute
		var err error
		if rest, err = asn1.Unmarshal(rest, &a); err != nil {
			return fmt.Errorf("has damaged signature attributes: %w", err)
		}
		var got []byte
		if a.Type.Equal(oidMessageDigest) && len(a.Values) == 1 {
			if _, err := asn1.Unmarshal(a.Values[0].FullBytes, &got); err != nil || !bytes.Equal(got, digest) {
				return errors.New("has a signature over another digest")
			}
			found = true
		}
	}
	if !found {
		return errors.New("has a signature without a digest")
	}
	signed, err := asn1.Marshal(asn1.RawValue{Class: asn1.ClassUniversal, Tag: asn1.TagSet, IsCompound: true, Bytes: s.Attributes.Bytes})
	if err != nil {
		return err
	}
	if err := cert.CheckSignature(x509.SHA256WithRSA, signed, s.Signature); err != nil {
		return fmt.Errorf("is not signed by %s: %w", cert.Subject.CommonName, err)
	}
	return nil
}
