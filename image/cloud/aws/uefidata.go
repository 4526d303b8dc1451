package aws

import (
	"bytes"
	"compress/zlib"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/skerry-os/skerry/image/cloud/publish"
)

// Vendors of the variables, as EFI writes GUIDs: the first three fields little-endian.
var (
	efiGlobal   = []byte{0x61, 0xdf, 0xe4, 0x8b, 0xca, 0x93, 0xd2, 0x11, 0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c}
	efiSecurity = []byte{0xcb, 0xb2, 0x19, 0xd7, 0x3a, 0x3d, 0x96, 0x45, 0xa3, 0xbc, 0xda, 0xd0, 0x0e, 0x67, 0x65, 0x6f}
	vendors     = map[string][]byte{"PK": efiGlobal, "KEK": efiGlobal, "db": efiSecurity}
)

// attributes: kept without power, there before and while the system runs, changed only by who signs.
const attributes = 0x27

// UEFIData encodes variables as RegisterImage takes them. The form is that of github.com/awslabs/python-uefivars: base64 of
// the magic, the CRC-32C of what follows, version 0, and a zlib stream of the variables. (Its preset dictionary only makes
// the text shorter; a stream without one is read too.)
func UEFIData(vars []publish.Variable) (string, error) {
	le := binary.LittleEndian
	raw := le.AppendUint64(nil, uint64(len(vars)))
	bytesOf := func(b []byte) { raw = append(le.AppendUint64(raw, uint64(len(b))), b...) }
	for _, v := range vars {
		vendor, known := vendors[v.Name]
		if !known {
			return "", fmt.Errorf("UEFI variable %s: is not one of PK, KEK, db", v.Name)
		}
		when, data, err := v.Enrolment()
		if err != nil {
			return "", err
		}
		bytesOf([]byte(v.Name))
		bytesOf(data)
		raw = append(raw, vendor...)
		raw = le.AppendUint32(raw, attributes)
		raw = append(raw, when...)
		bytesOf(make([]byte, 32)) // no digest of a certificate
	}
	body := bytes.NewBuffer(le.AppendUint32(nil, 0))
	z, err := zlib.NewWriterLevel(body, zlib.BestCompression)
	if err == nil {
		_, err = z.Write(raw)
	}
	if err == nil {
		err = z.Close()
	}
	if err != nil {
		return "", err
	}
	head := le.AppendUint32([]byte("AMZNUEFI"), crc32.Checksum(body.Bytes(), crc32.MakeTable(crc32.Castagnoli)))
	return base64.StdEncoding.EncodeToString(append(head, body.Bytes()...)), nil
}
