package uki

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
)

// Enrolled gives the certificates that a file made by EnrolFile or AddFile brings into its variable, of which there is one at least.
func Enrolled(auth []byte) ([]*x509.Certificate, error) {
	const timestamp = 16
	if len(auth) < timestamp+4 {
		return nil, errors.New("is too short for a signed variable")
	}
	size := uint64(le.Uint32(auth[timestamp:]))
	if size > uint64(len(auth)-timestamp) {
		return nil, fmt.Errorf("has a signature of %d bytes in a file of %d", size, len(auth))
	}
	raw, err := Certificates(auth[timestamp+size:])
	if err != nil {
		return nil, err
	}
	var certs []*x509.Certificate
	for _, der := range raw {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		certs = append(certs, c)
	}
	if len(certs) == 0 {
		return nil, errors.New("holds no X.509 certificate")
	}
	return certs, nil
}

// Certificates gives the certificates in a Secure Boot variable's data, in DER. What it holds of other kinds, such as digests, is
// left out.
func Certificates(data []byte) ([][]byte, error) {
	const listHeader, owner = 28, 16
	kind, err := guid(guidX509)
	if err != nil {
		return nil, err
	}
	var out [][]byte
	for len(data) > 0 {
		if len(data) < listHeader {
			return nil, errors.New("has a list of certificates that is cut off")
		}
		total, header, each := uint64(le.Uint32(data[16:])), uint64(le.Uint32(data[20:])), uint64(le.Uint32(data[24:]))
		if total > uint64(len(data)) || each <= owner || total < listHeader+header+each || (total-listHeader-header)%each != 0 {
			return nil, errors.New("has a list of certificates that is cut off")
		}
		if bytes.Equal(data[:16], kind) {
			for list := data[listHeader+header : total]; len(list) > 0; list = list[each:] {
				out = append(out, list[owner:each])
			}
		}
		data = data[total:]
	}
	return out, nil
}
