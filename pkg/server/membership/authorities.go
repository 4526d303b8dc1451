package membership

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/skerry-os/skerry/pkg/pki"
)

// Once the authorities were rotated, a Secret holds those that all servers must have. It is as secret as the token, which opens
// the way to them too.
const (
	authoritiesName = "skerry-authorities"
	authoritiesType = corev1.SecretType("skerry.io/authorities")
	tlsFolder       = "server/tls"

	// Servers take new authorities up, and start anew, one after the other: etcd needs most of them.
	turnKey   = "skerry.io/turn"
	turnLimit = 3 * time.Minute // after it, another goes on
	turnWait  = 5 * time.Second
)

func filesOf(s *corev1.Secret) map[string][]byte {
	out := map[string][]byte{}
	for name, data := range s.Data {
		out[path.Join(tlsFolder, name)] = data
	}
	return out
}

func dataOf(files map[string][]byte) map[string][]byte {
	out := map[string][]byte{}
	for name, data := range files {
		out[path.Base(name)] = data
	}
	return out
}

func rotating(files map[string][]byte) bool { return len(files) > len(pki.Finish(files)) }

// authority names the one this server signs nodes' certificates with.
func (m *Members) authority() (string, error) {
	ca, err := os.ReadFile(m.cfg.Files.ServerCA)
	if err != nil {
		return "", err
	}
	return pki.Name(ca), nil
}

// readAuthorities gives nil if they were never rotated.
func readAuthorities(ctx context.Context, client kubernetes.Interface) (*corev1.Secret, error) {
	s, err := client.CoreV1().Secrets(kubeSystem).Get(ctx, authoritiesName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	return s, err
}

// Rotation is where a rotation of the authorities is.
type Rotation struct {
	Began   string   `json:"began,omitempty"`   // when the authorities of now were made; "" if they were never rotated
	Open    bool     `json:"open"`              // the old ones are trusted too
	Behind  []string `json:"behind,omitempty"`  // nodes that have no certificates of the new ones yet, servers among them
	Waiting string   `json:"waiting,omitempty"` // the server that takes them up now
}

// ReadRotation tells where a rotation is.
func ReadRotation(ctx context.Context, client kubernetes.Interface) (*Rotation, error) {
	s, err := readAuthorities(ctx, client)
	if err != nil || s == nil {
		return &Rotation{}, err
	}
	out := &Rotation{Began: s.Annotations[beganKey], Open: rotating(filesOf(s)), Waiting: s.Annotations[turnKey]}
	now := s.Annotations[nameKey]
	all, err := Records(ctx, client)
	for _, r := range all {
		if !r.Removed && strings.TrimSuffix(r.Authority, "+") != now {
			out.Behind = append(out.Behind, r.Node)
		}
	}
	return out, err
}

const (
	beganKey = "skerry.io/began"
	nameKey  = "skerry.io/authority"
)

// RotateAuthorities makes new authorities for the whole cluster. dataDir is that of a server; it and the others take them up while
// they run. The old ones are trusted until FinishRotation.
func RotateAuthorities(ctx context.Context, client kubernetes.Interface, dataDir string, now time.Time) error {
	s, err := readAuthorities(ctx, client)
	if err != nil {
		return err
	}
	if s != nil && rotating(filesOf(s)) {
		return fmt.Errorf("a rotation that began at %s is not finished; see skerryd certificate rotate-ca --status, and end it with --finish", s.Annotations[beganKey])
	}
	if s != nil {
		if same, err := onDisk(dataDir, filesOf(s)); err != nil {
			return err
		} else if !same {
			return errors.New("this server has not taken up the last rotation yet; it does within a minute while it runs")
		}
	}
	files, err := pki.Rotate(now, dataDir)
	if errors.Is(err, pki.ErrRotating) {
		return fmt.Errorf("%w, on this server alone: the cluster knows of no rotation; restore server/tls from another server or a backup", err)
	}
	if err != nil {
		return err
	}
	fresh := s == nil
	if fresh {
		s = &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: authoritiesName, Namespace: kubeSystem}, Type: authoritiesType}
	}
	s.Data = dataOf(files)
	s.Annotations = map[string]string{beganKey: now.UTC().Format(timeLayout), nameKey: pki.Name(files[path.Join(tlsFolder, "server-ca.pem")])}
	api := client.CoreV1().Secrets(kubeSystem)
	if fresh {
		_, err = api.Create(ctx, s, metav1.CreateOptions{})
	} else {
		_, err = api.Update(ctx, s, metav1.UpdateOptions{})
	}
	if apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) {
		return errors.New("somebody else began a rotation at the same moment; see skerryd certificate rotate-ca --status")
	}
	return err
}

// FinishRotation makes the cluster forget the old authorities. It refuses while a node hangs on them, unless forced: such a node
// must then join again with a token.
func FinishRotation(ctx context.Context, client kubernetes.Interface, force bool) error {
	s, err := readAuthorities(ctx, client)
	if err != nil {
		return err
	}
	if s == nil || !rotating(filesOf(s)) {
		return errors.New("no rotation is under way; begin one with skerryd certificate rotate-ca")
	}
	at, err := ReadRotation(ctx, client)
	if err != nil {
		return err
	}
	if len(at.Behind) > 0 && !force {
		return fmt.Errorf("%s: still with certificates of the old authority; a node that runs follows within minutes, one that is off when it is back "+
			"(skerryd node remove takes one out that is gone for good, --force strands those that are left)", strings.Join(at.Behind, ", "))
	}
	s.Data = dataOf(pki.Finish(filesOf(s)))
	_, err = client.CoreV1().Secrets(kubeSystem).Update(ctx, s, metav1.UpdateOptions{})
	return err
}

// onDisk says whether a server has these authorities.
func onDisk(dataDir string, files map[string][]byte) (bool, error) {
	for name, data := range files {
		have, err := os.ReadFile(filepath.Join(dataDir, name))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return false, err
		}
		if !slices.Equal(have, data) {
			return false, nil
		}
	}
	left, err := filepath.Glob(filepath.Join(dataDir, tlsFolder, "*.before.crt"))
	return len(left) == 0 || rotating(files), err
}

// followAuthorities takes new ones up; then this server must start anew.
func (m *Members) followAuthorities(ctx context.Context, client kubernetes.Interface) (again bool, err error) {
	for {
		s, err := readAuthorities(ctx, client)
		if err != nil || s == nil {
			return false, err
		}
		files := filesOf(s)
		same, err := onDisk(m.cfg.DataDir, files)
		if err != nil {
			return false, err
		}
		who, since, _ := strings.Cut(s.Annotations[turnKey], " ")
		mine := who == m.cfg.NodeName
		if same {
			if !mine {
				return false, nil
			}
			delete(s.Annotations, turnKey) // started with them: the next server may
			_, err = client.CoreV1().Secrets(kubeSystem).Update(ctx, s, metav1.UpdateOptions{})
			return false, err
		}
		began, err := time.Parse(timeLayout, since)
		if free := who == "" || mine || err != nil || time.Since(began) > turnLimit; free {
			if s.Annotations == nil {
				s.Annotations = map[string]string{}
			}
			s.Annotations[turnKey] = m.cfg.NodeName + " " + time.Now().UTC().Format(timeLayout)
			_, err = client.CoreV1().Secrets(kubeSystem).Update(ctx, s, metav1.UpdateOptions{})
			if err == nil {
				return m.adopt(ctx, client, files)
			}
			if !apierrors.IsConflict(err) {
				return false, err
			}
		}
		select {
		case <-time.After(turnWait):
		case <-ctx.Done():
			return false, nil
		}
	}
}

func (m *Members) adopt(ctx context.Context, client kubernetes.Interface, files map[string][]byte) (bool, error) {
	changed, err := pki.Adopt(m.cfg.DataDir, files)
	if err != nil || !changed {
		return false, err
	}
	what := "the new authorities are taken up; the old ones are trusted until skerryd certificate rotate-ca --finish"
	if !rotating(files) {
		what = "the old authorities are forgotten"
	}
	slog.Info(what)
	m.event(ctx, client, m.cfg.NodeName, corev1.EventTypeNormal, "AuthoritiesRotated", what)
	return true, nil
}
