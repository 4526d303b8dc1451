package controller

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/mholt/acmez/v3"
	"github.com/mholt/acmez/v3/acme"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/skerry-os/skerry/pkg/gateway"
)

// Names in the ingress's namespace. acmeConfig is a person's ConfigMap; as long as it exists, certificates can be asked for. Its
// keys: email; directory, Let's Encrypt's unless set; ca.crt, for a directory with a private CA.
const (
	acmeConfig     = "acme"
	acmeChallenges = "acme-challenges" // ConfigMap: token -> what every instance answers for it
	acmeAccount    = "acme-account"    // Secret: the account's key
	letsEncrypt    = "https://acme-v02.api.letsencrypt.org/directory"
)

// Issuers count failures, so the pauses grow; certificates are renewed when a third of their life is left.
const (
	firstPause = time.Minute
	lastPause  = 6 * time.Hour
	lookAgain  = time.Hour
)

// issuer gets certificates from an ACME issuer and keeps them as Secrets, from which every instance serves them.
type issuer struct {
	client    kubernetes.Interface
	namespace string
	watch     *watcher
	poke      func()

	mu     sync.Mutex
	hosts  []string
	change chan struct{}
	failed map[string]failure
}

type failure struct {
	pause time.Duration
	until time.Time
}

func newIssuer(client kubernetes.Interface, namespace string, w *watcher, poke func()) *issuer {
	return &issuer{client: client, namespace: namespace, watch: w, poke: poke, change: make(chan struct{}, 1), failed: map[string]failure{}}
}

// want says for which hosts there shall be certificates.
func (i *issuer) want(hosts []string) {
	i.mu.Lock()
	same := slices.Equal(i.hosts, hosts)
	i.hosts = hosts
	i.mu.Unlock()
	if !same {
		select {
		case i.change <- struct{}{}:
		default:
		}
	}
}

// run gets and renews certificates until ctx ends.
func (i *issuer) run(ctx context.Context) {
	next := time.NewTimer(0)
	defer next.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-i.change:
		case <-next.C:
		}
		next.Reset(i.pass(ctx))
	}
}

// pass looks at every host and returns when to look again.
func (i *issuer) pass(ctx context.Context) time.Duration {
	i.mu.Lock()
	hosts := slices.Clone(i.hosts)
	i.mu.Unlock()
	again := lookAgain
	for _, host := range hosts {
		if f := i.failed[host]; time.Now().Before(f.until) {
			again = min(again, time.Until(f.until))
			continue
		}
		err := i.ensure(ctx, host)
		if ctx.Err() != nil {
			return again
		}
		if err == nil {
			delete(i.failed, host)
			continue
		}
		f := i.failed[host]
		f.pause = min(max(2*f.pause, firstPause), lastPause)
		f.until = time.Now().Add(f.pause)
		i.failed[host] = f
		again = min(again, f.pause)
		slog.Warn("ACME: no certificate yet", "host", host, "next try in", f.pause.String(), "err", err)
	}
	return again
}

func secretName(host string) string {
	sum := sha256.Sum256([]byte(host))
	return "acme-" + hex.EncodeToString(sum[:10])
}

// ensure gets a certificate for a host unless there is one that lasts.
func (i *issuer) ensure(ctx context.Context, host string) error {
	secrets := i.client.CoreV1().Secrets(i.namespace)
	had, err := secrets.Get(ctx, secretName(host), metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	if err == nil && lastsThird(had.Data[corev1.TLSCertKey]) {
		return nil
	}
	config := i.watch.configMap(acmeConfig)
	if config == nil {
		return fmt.Errorf("ConfigMap %s/%s is gone", i.namespace, acmeConfig)
	}
	chain, key, err := i.obtain(ctx, config, host)
	if err != nil {
		return err
	}
	s := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: i.namespace, Name: secretName(host), Annotations: map[string]string{gateway.ACMEHostAnnotation: host}},
		Type:       corev1.SecretTypeTLS, Data: map[string][]byte{corev1.TLSCertKey: chain, corev1.TLSPrivateKeyKey: key},
	}
	if had != nil && had.UID != "" {
		s.ResourceVersion = had.ResourceVersion
		_, err = secrets.Update(ctx, s, metav1.UpdateOptions{FieldManager: fieldManager})
	} else {
		_, err = secrets.Create(ctx, s, metav1.CreateOptions{FieldManager: fieldManager})
	}
	if err == nil {
		slog.Info("ACME: certificate issued", "host", host)
	}
	return err
}

func lastsThird(data []byte) bool {
	block, _ := pem.Decode(data)
	if block == nil {
		return false
	}
	c, err := x509.ParseCertificate(block.Bytes)
	return err == nil && time.Until(c.NotAfter) > c.NotAfter.Sub(c.NotBefore)/3
}

// obtain asks the issuer.
func (i *issuer) obtain(ctx context.Context, config *corev1.ConfigMap, host string) (chain, key []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	transport := &http.Transport{Proxy: http.ProxyFromEnvironment, TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12}}
	defer transport.CloseIdleConnections()
	if ca := config.Data["ca.crt"]; ca != "" {
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM([]byte(ca)) {
			return nil, nil, fmt.Errorf("ConfigMap %s: ca.crt holds no certificate", acmeConfig)
		}
		transport.TLSClientConfig.RootCAs = pool
	}
	directory := config.Data["directory"]
	if directory == "" {
		directory = letsEncrypt
	}
	client := acmez.Client{
		Client:           &acme.Client{Directory: directory, HTTPClient: &http.Client{Transport: transport, Timeout: time.Minute}, Logger: slog.Default()},
		ChallengeSolvers: map[string]acmez.Solver{acme.ChallengeTypeHTTP01: (*solver)(i)},
	}
	account, err := i.account(ctx, &client, config.Data["email"])
	if err != nil {
		return nil, nil, err
	}
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	certs, err := client.ObtainCertificateForSANs(ctx, account, private, []string{host})
	if err != nil {
		return nil, nil, err
	}
	if len(certs) == 0 {
		return nil, nil, errors.New("the issuer gave no certificate")
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, nil, err
	}
	return certs[0].ChainPEM, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// account is the account of the key in the Secret, which is made if missing.
func (i *issuer) account(ctx context.Context, client *acmez.Client, email string) (acme.Account, error) {
	a := acme.Account{TermsOfServiceAgreed: true}
	if email != "" {
		a.Contact = []string{"mailto:" + email}
	}
	secrets := i.client.CoreV1().Secrets(i.namespace)
	had, err := secrets.Get(ctx, acmeAccount, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return a, err
		}
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return a, err
		}
		_, err = secrets.Create(ctx, &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Namespace: i.namespace, Name: acmeAccount},
			Data:       map[string][]byte{"key": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})},
		}, metav1.CreateOptions{FieldManager: fieldManager})
		if err != nil {
			return a, err
		}
		a.PrivateKey = key
	case err != nil:
		return a, err
	default:
		block, _ := pem.Decode(had.Data["key"])
		if block == nil {
			return a, fmt.Errorf("secret %s/%s: key is not PEM; delete the Secret to register anew", i.namespace, acmeAccount)
		}
		key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		if err != nil {
			return a, fmt.Errorf("secret %s/%s: key: %w", i.namespace, acmeAccount, err)
		}
		private, ok := key.(*ecdsa.PrivateKey)
		if !ok {
			return a, fmt.Errorf("secret %s/%s: key is not of the kind used here; delete the Secret to register anew", i.namespace, acmeAccount)
		}
		a.PrivateKey = private
	}
	return client.NewAccount(ctx, a) // gives the existing one of a known key
}

// solver shows challenges to the issuer through every instance.
type solver issuer

// Present implements acmez.Solver.
func (s *solver) Present(ctx context.Context, c acme.Challenge) error {
	return s.edit(ctx, func(data map[string]string) { data[c.Token] = c.KeyAuthorization })
}

// CleanUp implements acmez.Solver.
func (s *solver) CleanUp(ctx context.Context, c acme.Challenge) error {
	return s.edit(context.WithoutCancel(ctx), func(data map[string]string) { delete(data, c.Token) })
}

// Wait waits until this instance has seen the challenge; the others see it at about the same time.
func (s *solver) Wait(ctx context.Context, c acme.Challenge) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for s.watch.challenge(c.Token) == "" {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
	return nil
}

func (s *solver) edit(ctx context.Context, change func(map[string]string)) error {
	maps := s.client.CoreV1().ConfigMaps(s.namespace)
	for {
		m, err := maps.Get(ctx, acmeChallenges, metav1.GetOptions{})
		missing := apierrors.IsNotFound(err)
		if err != nil && !missing {
			return err
		}
		if missing {
			m = &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: s.namespace, Name: acmeChallenges}}
		}
		if m.Data == nil {
			m.Data = map[string]string{}
		}
		change(m.Data)
		if missing {
			_, err = maps.Create(ctx, m, metav1.CreateOptions{FieldManager: fieldManager})
		} else {
			_, err = maps.Update(ctx, m, metav1.UpdateOptions{FieldManager: fieldManager})
		}
		if !apierrors.IsConflict(err) && !apierrors.IsAlreadyExists(err) {
			return err
		}
	}
}

// ChallengePath is where issuers look.
const ChallengePath = "/.well-known/acme-challenge/"

// ServeChallenge answers an issuer's question, and says whether it was one that has an answer.
func (c *Controller) ServeChallenge(w http.ResponseWriter, r *http.Request) bool {
	token, ok := bytes.CutPrefix([]byte(r.URL.Path), []byte(ChallengePath))
	if !ok || len(token) == 0 {
		return false
	}
	answer := c.Challenge(string(token))
	if answer == "" {
		return false
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	_, _ = w.Write([]byte(answer))
	return true
}
