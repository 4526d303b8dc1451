package uki

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
)

// Enrolled gives the certificate that a file made by EnrolFile brings into its variable.
func Enrolled(auth []byte) (*x509.Certificate, error) {
	const timestamp, listHeader, owner = 16, 28, 16
	if len(auth) < timestamp+4 {
		return nil, errors.New("is too short for a signed variable")
	}
	size := uint64(le.Uint32(auth[timestamp:]))
	if size > uint64(len(auth)-timestamp) {
		return nil, fmt.Errorf("has a signature of %d bytes in a file of %d", size, len(auth))
	}
	list := auth[timestamp+size:]
	kind, err := guid(guidX509)
	if err != nil {
		return nil, err
	}
	if len(list) < listHeader+owner || !bytes.Equal(list[:16], kind) {
		return nil, errors.New("holds no X.509 certificate")
	}
	if total, header, each := le.Uint32(list[16:]), le.Uint32(list[20:]), le.Uint32(list[24:]); int64(total) != int64(len(list)) || header != 0 || int64(each)+listHeader != int64(total) {
		return nil, errors.New("does not hold exactly one certificate")
	}
	return x509.ParseCertificate(list[listHeader+owner:])
}
