package uki

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const owner = "01234567-89ab-cdef-0123-456789abcdef"

func TestGUID(t *testing.T) {
	b, err := guid(owner)
	if err != nil || !bytes.Equal(b, []byte{0x67, 0x45, 0x23, 0x01, 0xab, 0x89, 0xef, 0xcd, 0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef}) {
		t.Errorf("%x, %v", b, err)
	}
	for _, bad := range []string{"", "0123", strings.Repeat("g", 32)} {
		if _, err := guid(bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

// The file is what UEFI 2.10, section 8.2.2 says, field by field.
func TestEnrolFile(t *testing.T) {
	key, signer := newKey(t, "KEK")
	_, cert := newKey(t, "db")
	when := time.Date(2026, 11, 25, 13, 5, 9, 7, time.FixedZone("", 3600))
	file, err := EnrolFile("db", owner, []*x509.Certificate{cert}, when, Signer{key, signer})
	if err != nil {
		t.Fatal(err)
	}
	if again, err := EnrolFile("db", owner, []*x509.Certificate{cert}, when, Signer{key, signer}); err != nil || !bytes.Equal(file, again) {
		t.Errorf("the same twice gives different bytes (%v)", err)
	}
	if !bytes.Equal(file[:16], []byte{0xea, 0x07, 11, 25, 12, 5, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0}) {
		t.Errorf("time is % x", file[:16])
	}
	length := le.Uint32(file[16:])
	if le.Uint16(file[20:]) != 0x0200 || le.Uint16(file[22:]) != 0x0ef1 || !bytes.Equal(file[24:28], []byte{0x9d, 0xd2, 0xaf, 0x4a}) {
		t.Errorf("certificate header is % x", file[16:40])
	}
	p7, list := file[40:16+length], file[16+length:]
	// EDK2 finds the SHA-256 identifier at this offset of a bare SignedData.
	if !bytes.Equal(p7[13:22], []byte{0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01}) {
		t.Errorf("no SHA-256 where firmware looks for it: % x", p7[:32])
	}
	if le.Uint32(list[16:]) != uint32(len(list)) || le.Uint32(list[20:]) != 0 || le.Uint32(list[24:]) != uint32(16+len(cert.Raw)) || !bytes.Equal(list[44:], cert.Raw) {
		t.Errorf("signature list is % x", list[:44])
	}
	if _, err := EnrolFile("dbx", owner, []*x509.Certificate{cert}, when, Signer{key, signer}); err == nil {
		t.Error("an unknown variable was accepted")
	}

	// What is signed: name, vendor, attributes, time, list.
	message := []byte{'d', 0, 'b', 0}
	message = append(message, 0xcb, 0xb2, 0x19, 0xd7, 0x3a, 0x3d, 0x96, 0x45, 0xa3, 0xbc, 0xda, 0xd0, 0x0e, 0x67, 0x65, 0x6f)
	message = append(message, 0x27, 0, 0, 0)
	message = append(append(message, file[:16]...), list...)
	var sd struct {
		Version      int
		Digests      asn1.RawValue
		Content      asn1.RawValue
		Certificates asn1.RawValue
		Signers      []struct { // without attributes
			Version                            int
			Issuer, DigestAlgorithm, Algorithm asn1.RawValue
			Signature                          []byte
		} `asn1:"set"`
	}
	if _, err := asn1.Unmarshal(p7, &sd); err != nil {
		t.Fatal(err)
	}
	if err := signer.CheckSignature(signer.SignatureAlgorithm, message, sd.Signers[0].Signature); err != nil {
		t.Error(err)
	}
	opensslAgrees(t, p7, message, signer.Raw)
	efitoolsAgrees(t, list, cert.Raw)
}

// opensslAgrees lets OpenSSL check the signature, which wants its usual envelope.
func opensslAgrees(t *testing.T, p7, message, cert []byte) {
	tool, err := exec.LookPath("openssl")
	if err != nil {
		t.Log("openssl is not installed: not asked")
		return
	}
	der, err := asn1.Marshal(contentInfo{oidSignedData, explicit(0, p7)})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	put(t, dir, "p7", der)
	put(t, dir, "message", message)
	put(t, dir, "cert", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}))
	args := []string{"cms", "-verify", "-binary", "-inform", "DER", "-in", "p7", "-content", "message", "-CAfile", "cert", "-purpose", "any", "-out", "/dev/null"}
	cmd := exec.Command(tool, args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("openssl: %v: %s", err, out)
	}
	put(t, dir, "message", append(message, 0))
	cmd = exec.Command(tool, args...)
	cmd.Dir = dir
	if cmd.Run() == nil {
		t.Error("openssl accepts another message")
	}
}

// efitoolsAgrees compares the list with the one that efitools makes.
func efitoolsAgrees(t *testing.T, list, cert []byte) {
	tool, err := exec.LookPath("cert-to-efi-sig-list")
	if err != nil {
		t.Log("efitools is not installed: not asked")
		return
	}
	dir := t.TempDir()
	put(t, dir, "cert", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}))
	cmd := exec.Command(tool, "-g", owner, "cert", "list")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	theirs, err := os.ReadFile(filepath.Join(dir, "list"))
	if err != nil || !bytes.Equal(theirs, list) {
		t.Errorf("efitools makes another list of %d bytes, ours has %d (%v)", len(theirs), len(list), err)
	}
}

func put(t *testing.T, dir, name string, data []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// What adds a certificate says so in what is signed, and what holds two gives two.
func TestAddFile(t *testing.T) {
	key, signer := newKey(t, "KEK")
	_, one := newKey(t, "db")
	_, two := newKey(t, "next db")
	when := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	add, err := AddFile("db", owner, []*x509.Certificate{two}, when, Signer{key, signer})
	if err != nil {
		t.Fatal(err)
	}
	whole, err := EnrolFile("db", owner, []*x509.Certificate{two}, when, Signer{key, signer})
	if err != nil || bytes.Equal(add, whole) || len(add) != len(whole) {
		t.Errorf("adding is signed like writing: %v", err)
	}
	both, err := EnrolFile("db", owner, []*x509.Certificate{one, two}, when, Signer{key, signer})
	if err != nil {
		t.Fatal(err)
	}
	got, err := Enrolled(both)
	if err != nil || len(got) != 2 || !got[0].Equal(one) || !got[1].Equal(two) {
		t.Errorf("%d certificates, %v", len(got), err)
	}
	for cut := 1; cut < 100; cut += 7 {
		if _, err := Enrolled(both[:len(both)-cut]); err == nil {
			t.Errorf("%d bytes cut off and accepted", cut)
		}
	}
	if name, err := VariableOf("db"); err != nil || name != "db-d719b2cb-3d3a-4596-a3bc-dad00e67656f" {
		t.Errorf("%s, %v", name, err)
	}
}

func FuzzCertificates(f *testing.F) {
	_, cert := newKey(f, "db")
	list, err := signatureList(owner, cert)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(list)
	f.Add(append(list, list...))
	f.Fuzz(func(t *testing.T, data []byte) {
		certs, err := Certificates(data)
		size := 0
		for _, c := range certs {
			size += len(c)
		}
		if err == nil && size > len(data) {
			t.Errorf("%d bytes of certificates in %d", size, len(data))
		}
	})
}
