package keys

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/skerry-os/skerry/image/uki"
	"github.com/skerry-os/skerry/pkg/atomicfile"
)

// Rotated lists the keys that Rotate and Retire know.
var Rotated = append([]string{releaseName}, SecureBoot...)

// Rotate gives a key a successor. Both are in force then, until Retire, so that machines go over by ordinary updates:
//
//   - release: manifests and configs are signed by both, and releases trust both. A machine that knows the old one alone takes such
//     a release, and from then on knows both.
//   - db: kernel images and boot loaders are signed by both. Releases bring NAME-update.auth, by which the firmware of a machine
//     learns the new certificate, on the word of KEK.
//   - KEK and PK: releases bring NAME-update.auth, on the word of PK and of the PK before.
//
// Nothing else of the folder changes. One of PK, KEK and db goes over at a time: what one's update is signed by, all machines know.
func (s *Set) Rotate(name string, src Source, now time.Time) error {
	if err := s.canRotate(name); err != nil {
		return err
	}
	if pub, ok := src.Public[name]; ok && (name == releaseName && KeyID(pub) == s.ReleaseID() || name != releaseName && KeyID(pub) == s.pair(name).Key.ID()) {
		return fmt.Errorf("%s: that is the key it has; make another one", name)
	}
	tmp, err := os.MkdirTemp(s.dir, ".rotate-") // 0700
	if err != nil {
		return err
	}
	keep := false // the only copy of a key that a certificate was signed for
	defer func() {
		if !keep {
			_ = os.RemoveAll(tmp)
		}
	}()
	public := certExt
	if name == releaseName {
		public = pubExt
		_, err = src.MakePublic(tmp, name)
	} else {
		err = s.makeNext(tmp, name, src, now)
	}
	if err != nil {
		return err
	}
	for _, ext := range []string{public, keyExt, labelExt} {
		if err := s.keepOld(name, ext); err != nil {
			return err
		}
	}
	keep = true
	if err := Replace(s.dir, tmp, name); err != nil {
		return fmt.Errorf("%w; move the rest by hand: it is in %s", err, tmp)
	}
	keep = false
	next, err := Load(s.dir, src.Sign)
	if err == nil {
		*s = *next
	}
	return err
}

// Replace moves the files of a key and what belongs to it from one folder to another, in place of what the key had there.
func Replace(dir, from, name string) error {
	made, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, ext := range []string{keyExt, labelExt} { // of a key that is elsewhere there is none, or was none
		if _, err := os.Stat(filepath.Join(from, name+ext)); errors.Is(err, fs.ErrNotExist) {
			if err := os.Remove(filepath.Join(dir, name+ext)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	for _, e := range made {
		if err := os.Rename(filepath.Join(from, e.Name()), filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return atomicfile.SyncDir(dir)
}

func (s *Set) canRotate(name string) error {
	if name == releaseName {
		if s.Before != nil {
			return errors.New("release: machines are going over to a new key already; end that first with: skerry keys retire DIR release")
		}
		return nil
	}
	p := s.pair(name)
	if p == nil {
		return fmt.Errorf("%q: is not one of %s", name, strings.Join(Rotated, ", "))
	}
	for _, p := range s.Pairs() {
		if p.Before != nil {
			return fmt.Errorf("%s: machines are going over to a new key already; end that first with: skerry keys retire DIR %s", p.Name, p.Name)
		}
	}
	return s.above(name).Key.Check()
}

// above is the pair whose key signs what changes a variable.
func (s *Set) above(name string) *Pair {
	if name == "db" {
		return &s.KEK
	}
	return &s.PK
}

// makeNext makes the next key of Secure Boot in dir, and signs what brings it to firmware.
func (s *Set) makeNext(dir, name string, src Source, now time.Time) error {
	old := *s.pair(name)
	p, err := src.makePair(dir, name, old.Cert.Subject.CommonName, now)
	if err != nil {
		return err
	}
	up := s.above(name)
	by := uki.Signer{Key: up.Key, Cert: up.Cert}
	add := uki.AddFile
	if name == "PK" {
		add = uki.EnrolFile // there is one platform key
	}
	if p.Update, err = add(name, s.GUID, []*x509.Certificate{p.Cert}, now, by); err != nil {
		return err
	}
	if err := atomicfile.Write(filepath.Join(dir, name+updateEnd+authExt), p.Update, 0o644); err != nil {
		return err
	}
	next := *s
	next.dir, p.Before = dir, &old
	*next.pair(name) = p
	names := []string{name}
	if name == "PK" {
		names = []string{"PK", "KEK"} // both on the word of the new one
	}
	return next.writeEnrol(now, names...)
}

// keepOld copies a file of the key to the name of the old one.
func (s *Set) keepOld(name, ext string) error {
	data, err := os.ReadFile(filepath.Join(s.dir, name+ext))
	switch {
	case errors.Is(err, fs.ErrNotExist) && ext == labelExt:
		data = []byte(name + "\n") // so that a signing command goes on to find it
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	}
	perm := fs.FileMode(0o644)
	if ext == keyExt {
		perm = 0o600
	}
	return atomicfile.Write(filepath.Join(s.dir, name+oldEnd+ext), data, perm)
}

// Retire ends what Rotate began: the old key is forgotten. A machine that does not know the new one by then takes no update any more.
func (s *Set) Retire(name string, now time.Time) error {
	if !slices.Contains(Rotated, name) {
		return fmt.Errorf("%q: is not one of %s", name, strings.Join(Rotated, ", "))
	}
	public := certExt
	if name == releaseName {
		if s.Before == nil {
			return errors.New("release: has no key before it")
		}
		s.Before, public = nil, pubExt
	} else {
		p := s.pair(name)
		if p.Before == nil {
			return fmt.Errorf("%s: has no key before it", name)
		}
		if err := s.above(name).Key.Check(); err != nil {
			return err
		}
		p.Before, p.Update = nil, nil
		if err := s.writeEnrol(now, name); err != nil {
			return err
		}
	}
	for _, file := range []string{name + updateEnd + authExt, name + oldEnd + public, name + oldEnd + keyExt, name + oldEnd + labelExt} {
		if err := os.Remove(filepath.Join(s.dir, file)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return atomicfile.SyncDir(s.dir)
}
