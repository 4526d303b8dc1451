package publish

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Variable is a Secure Boot variable to be there when an instance first starts: what the enrolment file (.auth) of the release
// holds, which is a time, a signature and then the variable's data.
type Variable struct {
	Name string // PK, KEK or db
	Auth []byte
}

// Enrolment takes the file apart, an EFI_VARIABLE_AUTHENTICATION_2: 16 bytes of time, a WIN_CERTIFICATE that begins with its
// length, data.
func (v Variable) Enrolment() (when, data []byte, err error) {
	if len(v.Auth) < 20 {
		return nil, nil, fmt.Errorf("UEFI variable %s: its enrolment file is cut off", v.Name)
	}
	n := int64(binary.LittleEndian.Uint32(v.Auth[16:]))
	if n < 24 || 16+n >= int64(len(v.Auth)) {
		return nil, nil, fmt.Errorf("UEFI variable %s: its enrolment file has no data behind the signature", v.Name)
	}
	return v.Auth[:16], v.Auth[16+n:], nil
}

// certX509 is EFI_CERT_X509_GUID.
const certX509 = "\xa1\x59\xc0\xa5\xe4\x94\xa7\x4a\x87\xb5\xab\x15\x5c\x2b\xf0\x72"

// Certificates gives the certificates in the variable, in DER. The data is a row of EFI_SIGNATURE_LISTs: type, size of the list,
// of its header and of one signature, which is an owner's GUID and the certificate.
func (v Variable) Certificates() ([][]byte, error) {
	_, data, err := v.Enrolment()
	if err != nil {
		return nil, err
	}
	var out [][]byte
	for len(data) > 0 {
		list, err := cutList(data)
		if err != nil {
			return nil, fmt.Errorf("UEFI variable %s: %w", v.Name, err)
		}
		data = data[list.size:]
		for b := list.signatures; len(b) > 0; b = b[list.each:] {
			out = append(out, b[16:list.each])
		}
	}
	return out, nil
}

type signatureList struct {
	size, each int
	signatures []byte
}

func cutList(data []byte) (signatureList, error) {
	none := signatureList{}
	if len(data) < 28 || string(data[:16]) != certX509 {
		return none, errors.New("holds something else than X.509 certificates")
	}
	size, head, each := binary.LittleEndian.Uint32(data[16:]), binary.LittleEndian.Uint32(data[20:]), binary.LittleEndian.Uint32(data[24:])
	if int64(size) > int64(len(data)) || each <= 16 || int64(size) < 28+int64(head)+int64(each) || (size-28-head)%each != 0 {
		return none, errors.New("its list of certificates is cut off")
	}
	return signatureList{int(size), int(each), data[28+head : size]}, nil
}
