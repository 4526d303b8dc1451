package pki

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/skerry-os/skerry/pkg/atomicfile"
	"github.com/skerry-os/skerry/pkg/token"
)

// A rotation replaces the authorities under a running cluster, in two steps with any time between them.
//
// Rotate makes new ones. Each is signed by itself, and its key once more by the authority before it: whoever trusts only the old
// one finds the way from a new certificate to it by that cross-signed certificate, which goes along with every certificate that
// the new authority signs. Whoever has the new one trusts both. So it does not matter who hears of it first: nobody is refused in
// either direction, nodes that are off and pods that read the CA once included.
//
// Finish forgets the old ones. From then on, who still hangs on them is refused.
//
// A pair's file holds the authority that signs; beside it, a file with the cross-signed and the old certificate exists during a
// rotation. It counts only if it belongs to the pair, so that a power cut between the two leaves the old authority or the new.

// authority is a CA that can sign.
type authority struct {
	*pair
	cross, old *x509.Certificate // during a rotation
}

// authorities are the pairs of authorities of a server, below the data folder; those of etcd are not everywhere.
func authorities() []string {
	return append([]string{"server/tls/server-ca.pem", "server/tls/client-ca.pem", "server/tls/request-header-ca.pem"}, EtcdAuthorities()...)
}

// beforeOf is the file beside a pair's.
func beforeOf(pairFile string) string { return strings.TrimSuffix(pairFile, ".pem") + ".before.crt" }

func readAuthority(pairFile string) (*authority, error) {
	p, err := readPair(pairFile)
	if err != nil {
		return nil, err
	}
	return withPredecessor(p, beforeOf(pairFile))
}

func withPredecessor(p *pair, file string) (*authority, error) {
	a := &authority{pair: p}
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return a, nil
	}
	if err != nil {
		return nil, err
	}
	der := certificates(data)
	if len(der) != 2 {
		return nil, fmt.Errorf("%s: holds %d certificates instead of two; restore it from another server, or remove it: nodes that have not followed the rotation must then join again", file, len(der))
	}
	var both [2]*x509.Certificate
	for i, d := range der {
		if both[i], err = x509.ParseCertificate(d); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
	}
	if p.key.PublicKey.Equal(both[0].PublicKey) {
		a.cross, a.old = both[0], both[1]
	}
	return a, nil
}

// trusted is what others check certificates against, the authority that signs in front.
func (a *authority) trusted() []byte {
	out := a.certPEM()
	if a.old != nil {
		out = append(out, encode("CERTIFICATE", a.old.Raw)...)
	}
	return out
}

// chain is what follows a certificate that the authority has signed. With the authorities behind it, a server's can be checked
// by who knows no more than an authority's digest. The oldest is the last, where older clients look.
func (a *authority) chain(server bool) (out []byte) {
	if a.cross != nil {
		out = encode("CERTIFICATE", a.cross.Raw)
	}
	if server {
		out = append(out, a.trusted()...)
	}
	return out
}

// succeed makes the authority that takes a's place, as its pair's file and the one beside it.
func (a *authority) succeed(now time.Time) (pairFile, before []byte, err error) {
	name, _, _ := strings.Cut(a.cert.Subject.CommonName, "@")
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: fmt.Sprintf("%s@%d", name, now.Unix())},
		NotBefore:             now.Add(-Backdate),
		NotAfter:              now.Add(10 * Lifetime),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	fresh, err := newPair(template, nil)
	if err != nil {
		return nil, nil, err
	}
	// The same name and key; valid no longer than who vouches for it.
	template.SubjectKeyId = fresh.cert.SubjectKeyId
	if template.NotAfter.After(a.cert.NotAfter) {
		template.NotAfter = a.cert.NotAfter
	}
	cross, err := x509.CreateCertificate(rand.Reader, template, a.cert, &fresh.key.PublicKey, a.key)
	if err != nil {
		return nil, nil, err
	}
	return fresh.pem(), append(encode("CERTIFICATE", cross), a.certPEM()...), nil
}

// ErrRotating says that a rotation has begun and is not finished.
var ErrRotating = errors.New("the authorities are being rotated already")

// Rotate makes successors of all authorities of a server and returns their files, by their names below the data folder. It writes
// nothing: Adopt does. One that is rotated already is ErrRotating.
func Rotate(now time.Time, dataDir string) (map[string][]byte, error) {
	out := map[string][]byte{}
	for _, name := range authorities() {
		a, err := readAuthority(filepath.Join(dataDir, name))
		if errors.Is(err, fs.ErrNotExist) && slices.Contains(EtcdAuthorities(), name) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if a.old != nil {
			return nil, fmt.Errorf("%s: %w", name, ErrRotating)
		}
		if now.After(a.cert.NotAfter) {
			return nil, fmt.Errorf("%s: expired on %s, so nobody trusts what it vouches for; or the clock is wrong", name, a.cert.NotAfter.Format(time.DateOnly))
		}
		if out[name], out[beforeOf(name)], err = a.succeed(now); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// Adopt makes files of Rotate, or those among them that are left after a rotation is finished, a server's own, and says whether
// that changed anything. Authorities whose second file is missing have no predecessor any more.
func Adopt(dataDir string, files map[string][]byte) (changed bool, err error) {
	for _, name := range authorities() {
		data, ok := files[name]
		if !ok {
			continue
		}
		p, err := parsePair(data, data)
		if err != nil {
			return false, fmt.Errorf("%s: %w", name, err)
		}
		if !p.cert.IsCA {
			return false, fmt.Errorf("%s: is not the certificate of an authority", name)
		}
	}
	if err := os.MkdirAll(filepath.Join(dataDir, "server", "tls"), 0o700); err != nil {
		return false, err
	}
	for _, name := range authorities() {
		pairFile := filepath.Join(dataDir, name)
		data, ok := files[name]
		if !ok {
			continue
		}
		// The file beside the pair comes first and goes last: without a pair that it belongs to, it says nothing.
		beside := beforeOf(pairFile)
		before, rotating := files[beforeOf(name)]
		for _, w := range []struct {
			file string
			data []byte
			want bool
		}{{beside, before, rotating}, {pairFile, data, true}} {
			if old, err := os.ReadFile(w.file); !w.want || err == nil && bytes.Equal(old, w.data) {
				continue
			}
			changed = true
			if err := atomicfile.Write(w.file, w.data, 0o600); err != nil {
				return true, err
			}
		}
		if rotating {
			continue
		}
		if err := os.Remove(beside); err == nil {
			changed = true
		} else if !errors.Is(err, fs.ErrNotExist) {
			return true, err
		}
	}
	return changed, nil
}

// Finish is what is left of a rotation's files when the old authorities are forgotten.
func Finish(files map[string][]byte) map[string][]byte {
	out := map[string][]byte{}
	for _, name := range authorities() {
		if data, ok := files[name]; ok {
			out[name] = data
		}
	}
	return out
}

// Newer says whether what b trusts (PEM) comes after what a trusts: b has an authority that was made later, or the same one
// without its predecessor.
func Newer(a, b []byte) bool {
	first := func(data []byte) *x509.Certificate {
		all := certificates(data)
		if len(all) == 0 {
			return nil
		}
		c, err := x509.ParseCertificate(all[0])
		if err != nil {
			return nil
		}
		return c
	}
	ca, cb := first(a), first(b)
	switch {
	case ca == nil || cb == nil:
		return false
	case ca.Equal(cb):
		return len(certificates(b)) < len(certificates(a))
	}
	return cb.NotBefore.After(ca.NotBefore)
}

// Name is a short name of the authority that a CA file (PEM) begins with, and of whether it has a predecessor, to tell who has
// followed a rotation.
func Name(ca []byte) string {
	stage := ""
	if len(certificates(ca)) > 1 {
		stage = "+"
	}
	return token.Pin(ca)[:16] + stage
}
