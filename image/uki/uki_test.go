package uki

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skerry-os/skerry/image/imagetest"
)

// stub builds a small PE32+ file: DOS header, headers of 1 KiB, one section.
func stub() []byte {
	b := make([]byte, 0x400)
	copy(b, "MZ")
	le.PutUint32(b[0x3c:], 0x80)
	copy(b[0x80:], "PE\x00\x00")
	coff := b[0x84:]
	le.PutUint16(coff, 0x8664)
	le.PutUint16(coff[2:], 1)
	le.PutUint16(coff[16:], 240)
	le.PutUint16(coff[18:], 0x206)
	opt := coff[20:]
	le.PutUint16(opt, 0x20b)
	le.PutUint32(opt[16:], 0x1000) // entry point
	le.PutUint32(opt[32:], 0x1000)
	le.PutUint32(opt[36:], 0x200)
	le.PutUint32(opt[56:], 0x2000)
	le.PutUint32(opt[60:], 0x400)
	le.PutUint16(opt[68:], 10) // EFI application
	le.PutUint32(opt[108:], 16)
	s := opt[240:]
	copy(s, ".text")
	le.PutUint32(s[8:], 0x10)
	le.PutUint32(s[12:], 0x1000)
	le.PutUint32(s[16:], 0x200)
	le.PutUint32(s[20:], 0x400)
	le.PutUint32(s[36:], 0x60000020)
	return append(b, bytes.Repeat([]byte{0xf4}, 0x200)...)
}

func newKey(t testing.TB, name string) (*rsa.PrivateKey, *x509.Certificate) {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return key, cert
}

func parts() Parts {
	return Parts{
		Stub: stub(), OSRelease: []byte("ID=skerry\n"), Cmdline: "console=ttyS0", Uname: "6.12",
		Initrd: bytes.Repeat([]byte("initrd"), 1000), Linux: bytes.Repeat([]byte("linux"), 3001),
	}
}

func TestSectionsComeBack(t *testing.T) {
	p := parts()
	file, err := Assemble(p)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Sections(file)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string][]byte{".osrel": p.OSRelease, ".cmdline": []byte(p.Cmdline), ".uname": []byte(p.Uname), ".initrd": p.Initrd, ".linux": p.Linux} {
		if !bytes.Equal(got[name], want) {
			t.Errorf("%s: %d bytes came back, want %d", name, len(got[name]), len(want))
		}
	}
	p.Cmdline = strings.Repeat("x", MaxCmdline+1)
	if _, err := Assemble(p); err == nil {
		t.Error("an endless command line was accepted")
	}
}

// Every byte of a signed file but the checksum, which no reader heeds, is covered by the signature or makes it unreadable.
func TestEveryByteIsCovered(t *testing.T) {
	key, cert := newKey(t, "db")
	_, other := newKey(t, "other")
	file, err := Assemble(parts())
	if err != nil {
		t.Fatal(err)
	}
	if err := Verify(file, cert); err == nil {
		t.Error("an unsigned file was accepted")
	}
	signed, err := Sign(file, Signer{key, cert})
	if err != nil {
		t.Fatal(err)
	}
	again, err := Sign(file, Signer{key, cert})
	if err != nil || !bytes.Equal(signed, again) {
		t.Errorf("signing twice gives different bytes (%v)", err)
	}
	if err := Verify(signed, cert); err != nil {
		t.Fatal(err)
	}
	if err := Verify(signed, other); err == nil {
		t.Error("another key's signature was accepted")
	}
	if _, err := Sign(signed, Signer{key, cert}); err == nil {
		t.Error("a signed file was signed again")
	}
	p, err := parse(signed)
	if err != nil {
		t.Fatal(err)
	}
	certs, _ := p.security()
	for i := range int(certs) {
		if i >= p.opt+optCheckSum && i < p.opt+optCheckSum+4 {
			continue
		}
		bad := bytes.Clone(signed)
		bad[i] ^= 0x10
		if Verify(bad, cert) == nil {
			t.Fatalf("byte %#x changed and accepted", i)
		}
	}
	for _, cut := range []int{1, 8, 100, len(signed) - int(certs)} {
		if Verify(signed[:len(signed)-cut], cert) == nil {
			t.Errorf("%d bytes cut off and accepted", cut)
		}
	}
}

// An independent program agrees, on a real stub where there is one.
func TestSbverifyAgrees(t *testing.T) {
	tool := imagetest.Tool(t, "sbverify", "sbsigntool")
	p := parts()
	if real, err := os.ReadFile("/usr/lib/systemd/boot/efi/linuxx64.efi.stub"); err == nil {
		p.Stub = real
	}
	key, cert := newKey(t, "db")
	file, err := Assemble(p)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := Sign(file, Signer{key, cert})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	crt := filepath.Join(dir, "db.crt")
	if err := os.WriteFile(crt, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	check := func(name string, data []byte) error {
		f := filepath.Join(dir, name)
		if err := os.WriteFile(f, data, 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(tool, "--cert", crt, f).CombinedOutput()
		t.Logf("%s: %s", name, bytes.TrimSpace(out))
		return err
	}
	if err := check("signed.efi", signed); err != nil {
		t.Errorf("sbverify refuses the signed file: %v", err)
	}
	otherKey, other := newKey(t, "next db")
	twice, err := Sign(file, Signer{otherKey, other}, Signer{key, cert})
	if err != nil {
		t.Fatal(err)
	}
	if err := check("twice.efi", twice); err != nil {
		t.Errorf("sbverify refuses a file that another signed, too: %v", err)
	}
	for _, c := range []*x509.Certificate{cert, other} {
		if err := Verify(twice, c); err != nil {
			t.Errorf("signed by two: %v", err)
		}
	}
	if _, stranger := newKey(t, "stranger"); Verify(twice, stranger) == nil || Verify(twice) == nil {
		t.Error("signed by two, and accepted for a third or for nobody")
	}
	if err := check("unsigned.efi", file); err == nil {
		t.Error("sbverify accepts an unsigned file")
	}
	signed[len(file)/2] ^= 1
	if err := check("changed.efi", signed); err == nil {
		t.Error("sbverify accepts a changed file")
	}
}

func FuzzParse(f *testing.F) {
	file, err := Assemble(parts())
	if err != nil {
		f.Fatal(err)
	}
	key, cert := newKey(f, "db")
	signed, err := Sign(file, Signer{key, cert})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(stub())
	f.Add(file[:0x800])
	f.Add(signed)
	f.Fuzz(func(t *testing.T, data []byte) {
		_, _ = Sections(data)
		_ = Verify(data, cert)
		if out, err := AddSections(data, Section{".x", []byte("x")}); err == nil {
			if got, err := Sections(out); err != nil || string(got[".x"]) != "x" {
				t.Errorf("an added section did not come back: %q, %v", got[".x"], err)
			}
		}
	})
}

func TestAnImageTakenApartGoesTogetherAgain(t *testing.T) {
	whole, err := Assemble(parts())
	if err != nil {
		t.Fatal(err)
	}
	key, cert := newKey(t, "db")
	signed, err := Sign(whole, Signer{key, cert})
	if err != nil {
		t.Fatal(err)
	}
	p, err := Split(signed)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := Assemble(p); err != nil || !bytes.Equal(again, whole) {
		t.Errorf("another image came out: %v", err)
	}
	if _, err := Split(stub()); err == nil || !strings.Contains(err.Error(), "no section .osrel") {
		t.Errorf("a program that is no kernel image: %v", err)
	}
}
