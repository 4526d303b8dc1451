package controller

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"math/big"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/skerry-os/skerry/pkg/gateway"
)

// A renewal is a write to flash storage on an edge node, so it is seldom; an instance that ends gives the lease back.
const (
	leaseName     = "ingress"
	leaseDuration = 40 * time.Second
	renewDeadline = 25 * time.Second
	retryPeriod   = 8 * time.Second
)

// lead takes part in the election until ctx ends.
func (c *Controller) lead(ctx context.Context) {
	lock := &resourcelock.LeaseLock{
		LeaseMeta: metav1.ObjectMeta{Namespace: c.Namespace, Name: leaseName}, Client: c.client.CoordinationV1(),
		LockConfig: resourcelock.ResourceLockConfig{Identity: c.Identity},
	}
	for ctx.Err() == nil {
		e, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
			Lock: lock, LeaseDuration: leaseDuration, RenewDeadline: renewDeadline, RetryPeriod: retryPeriod, ReleaseOnCancel: true, Name: leaseName,
			Callbacks: leaderelection.LeaderCallbacks{
				OnStartedLeading: func(ctx context.Context) {
					slog.Info("leads: writes statuses and Services")
					c.leads.Store(true)
					c.poke()
					go c.acme.run(ctx)
					c.keepCertificate(ctx)
				},
				OnStoppedLeading: func() { c.leads.Store(false) },
			},
		})
		if err != nil {
			slog.Error("leader election", "err", err)
			return
		}
		e.Run(ctx)
	}
}

const (
	certificateLife  = 365 * 24 * time.Hour
	certificateRenew = 30 * 24 * time.Hour
)

// keepCertificate makes sure that there is a certificate to show for names that have none: a connection that fails at TLS tells
// a person less than a page behind a warning.
func (c *Controller) keepCertificate(ctx context.Context) {
	for {
		wait := 12 * time.Hour
		if err := c.ensureCertificate(ctx); err != nil && ctx.Err() == nil {
			slog.Warn("default certificate: trying again", "secret", gateway.DefaultCertificate, "err", err)
			wait = 5 * time.Second
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

func (c *Controller) ensureCertificate(ctx context.Context) error {
	secrets := c.client.CoreV1().Secrets(c.Namespace)
	had, err := secrets.Get(ctx, gateway.DefaultCertificate, metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	if err == nil && (had.Annotations[selfSigned] != "true" || certificateLasts(had.Data[corev1.TLSCertKey], certificateRenew)) {
		return nil // a person's own is theirs to renew
	}
	cert, key, err := newCertificate(time.Now())
	if err != nil {
		return err
	}
	s := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: c.Namespace, Name: gateway.DefaultCertificate, Annotations: map[string]string{selfSigned: "true"}},
		Type:       corev1.SecretTypeTLS, Data: map[string][]byte{corev1.TLSCertKey: cert, corev1.TLSPrivateKeyKey: key},
	}
	if had != nil && had.UID != "" {
		s.ResourceVersion = had.ResourceVersion
		_, err = secrets.Update(ctx, s, metav1.UpdateOptions{FieldManager: fieldManager})
		return err
	}
	_, err = secrets.Create(ctx, s, metav1.CreateOptions{FieldManager: fieldManager})
	return err
}

// selfSigned marks a certificate of our own making.
const selfSigned = "skerry.local/self-signed"

func certificateLasts(data []byte, d time.Duration) bool {
	block, _ := pem.Decode(data)
	if block == nil {
		return false
	}
	c, err := x509.ParseCertificate(block.Bytes)
	return err == nil && time.Until(c.NotAfter) > d
}

func newCertificate(now time.Time) (cert, key []byte, err error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, nil, err
	}
	t := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "ingress default certificate"}, DNSNames: []string{"ingress.invalid"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(certificateLife),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, &private.PublicKey, private)
	if err != nil {
		return nil, nil, err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), nil
}
