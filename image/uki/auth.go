package uki

import (
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"strings"
	"time"
	"unicode/utf16"
)

// GUIDs of the UEFI specification, in text form.
const (
	guidGlobal   = "8be4df61-93ca-11d2-aa0d-00e098032b8c" // vendor of PK and KEK
	guidSecurity = "d719b2cb-3d3a-4596-a3bc-dad00e67656f" // vendor of db
	guidX509     = "a5c059a1-94e4-4aa7-87b5-ab155c2bf072" // EFI_CERT_X509_GUID
	guidPKCS7    = "4aafd29d-68df-49ee-8aa9-347d375665a7" // EFI_CERT_TYPE_PKCS7_GUID
)

// attributes of a Secure Boot variable: non-volatile, boot and runtime access, time-based authenticated write; and what adds to it.
const (
	authAttributes = 0x27
	appendWrite    = 0x40
)

// EnrolFile makes the .auth file that brings certificates into a Secure Boot variable (PK, KEK or db), in place of what is there: an
// EFI_VARIABLE_AUTHENTICATION_2 in front of EFI_SIGNATURE_LISTs. The signer is PK for PK and KEK, KEK for db. when must rise from one
// write of a variable to the next.
func EnrolFile(variable, owner string, certs []*x509.Certificate, when time.Time, by Signer) ([]byte, error) {
	return authFile(variable, owner, certs, when, by, authAttributes)
}

// AddFile makes the .auth file that adds certificates to KEK or db. It is no use in setup mode.
func AddFile(variable, owner string, certs []*x509.Certificate, when time.Time, by Signer) ([]byte, error) {
	return authFile(variable, owner, certs, when, by, authAttributes|appendWrite)
}

// VariableOf gives the name of a Secure Boot variable in the kernel's folder of variables.
func VariableOf(variable string) (string, error) {
	vendor, err := vendorOf(variable)
	return variable + "-" + vendor, err
}

// UpdateAttributes are those that a signed update of a variable is written with: it adds to KEK and db, and replaces PK.
func UpdateAttributes(variable string) uint32 {
	if variable == "PK" {
		return authAttributes
	}
	return authAttributes | appendWrite
}

func vendorOf(variable string) (string, error) {
	switch variable {
	case "PK", "KEK":
		return guidGlobal, nil
	case "db":
		return guidSecurity, nil
	}
	return "", fmt.Errorf("variable %q: is not one of PK, KEK, db", variable)
}

func authFile(variable, owner string, certs []*x509.Certificate, when time.Time, by Signer, attributes uint32) ([]byte, error) {
	vendor, err := vendorOf(variable)
	if err != nil {
		return nil, err
	}
	var list []byte
	for _, c := range certs {
		one, err := signatureList(owner, c)
		if err != nil {
			return nil, err
		}
		list = append(list, one...)
	}
	stamp := efiTime(when)
	var message []byte // what the signature covers; the name goes without its end
	for _, c := range utf16.Encode([]rune(variable)) {
		message = le.AppendUint16(message, c)
	}
	vendorBytes, err := guid(vendor)
	if err != nil {
		return nil, err
	}
	message = append(message, vendorBytes...)
	message = le.AppendUint32(message, attributes)
	message = append(append(message, stamp...), list...)

	sd, err := sign(contentInfo{Type: oidData}, nil, message, by)
	if err != nil {
		return nil, fmt.Errorf("%s.auth: %w", variable, err)
	}
	pkcs7, err := guid(guidPKCS7)
	if err != nil {
		return nil, err
	}
	out := stamp
	out = le.AppendUint32(out, uint32(8+16+len(sd)))
	out = le.AppendUint16(out, 0x0200) // WIN_CERT_REVISION_2_0
	out = le.AppendUint16(out, 0x0ef1) // WIN_CERT_TYPE_EFI_GUID
	out = append(append(out, pkcs7...), sd...)
	return append(out, list...), nil
}

func signatureList(owner string, cert *x509.Certificate) ([]byte, error) {
	kind, err := guid(guidX509)
	if err != nil {
		return nil, err
	}
	own, err := guid(owner)
	if err != nil {
		return nil, fmt.Errorf("owner of the keys: %w", err)
	}
	size := uint32(16 + len(cert.Raw))
	out := le.AppendUint32(kind, 28+size) // SignatureListSize
	out = le.AppendUint32(out, 0)         // SignatureHeaderSize
	out = le.AppendUint32(out, size)      // SignatureSize
	return append(append(out, own...), cert.Raw...), nil
}

// efiTime is an EFI_TIME with the fields zero that authenticated variables must have zero.
func efiTime(t time.Time) []byte {
	t = t.UTC()
	b := le.AppendUint16(nil, uint16(t.Year()))
	b = append(b, byte(t.Month()), byte(t.Day()), byte(t.Hour()), byte(t.Minute()), byte(t.Second()))
	return append(b, make([]byte, 9)...)
}

// guid gives the 16 bytes of a GUID: the first three groups are little-endian numbers, the rest bytes in order.
func guid(text string) ([]byte, error) {
	b, err := hex.DecodeString(strings.ReplaceAll(text, "-", ""))
	if err != nil || len(b) != 16 {
		return nil, fmt.Errorf("GUID %q: is not 32 hex digits", text)
	}
	b[0], b[1], b[2], b[3] = b[3], b[2], b[1], b[0]
	b[4], b[5] = b[5], b[4]
	b[6], b[7] = b[7], b[6]
	return b, nil
}
