package gateway

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/skerry-os/skerry/pkg/gateway/proxy"
)

type pairResult struct {
	pair *tls.Certificate
	err  error
}

type poolResult struct {
	pool *x509.CertPool
	key  string
	err  error
}

// pair reads a TLS Secret.
func (w *world) pair(name types.NamespacedName) (*tls.Certificate, error) {
	if r, ok := w.pairs[name]; ok {
		return r.pair, r.err
	}
	r := pairResult{}
	if s := w.secrets[name]; s == nil {
		r.err = errors.New("does not exist, or is not of type kubernetes.io/tls")
	} else if p, err := tls.X509KeyPair(s.Data[corev1.TLSCertKey], s.Data[corev1.TLSPrivateKeyKey]); err != nil {
		r.err = fmt.Errorf("is no certificate with its key: %w", err)
	} else {
		r.pair = &p
	}
	w.pairs[name] = r
	return r.pair, r.err
}

// acmePair is the certificate that ACME brought for a host; nil when it has yet to come.
func (w *world) acmePair(host string) *tls.Certificate {
	if w.acme == nil {
		w.acme = map[string]types.NamespacedName{}
		for _, s := range w.Secrets {
			if h := s.Annotations[ACMEHostAnnotation]; h != "" && s.Namespace == w.Namespace {
				w.acme[h] = nameOf(s)
			}
		}
	}
	name, ok := w.acme[host]
	if !ok {
		return nil
	}
	p, err := w.pair(name)
	if err != nil {
		return nil
	}
	return p
}

// pool reads a ConfigMap of CA certificates, under ca.crt.
func (w *world) pool(name types.NamespacedName) (*x509.CertPool, string, error) {
	if r, ok := w.pools[name]; ok {
		return r.pool, r.key, r.err
	}
	r := poolResult{}
	if c := w.configMaps[name]; c == nil {
		r.err = errors.New("does not exist")
	} else {
		r.pool, r.err = parsePool([]byte(c.Data["ca.crt"]))
		sum := sha256.Sum256([]byte(c.Data["ca.crt"]))
		r.key = hex.EncodeToString(sum[:])
	}
	w.pools[name] = r
	return r.pool, r.key, r.err
}

func parsePool(data []byte) (*x509.CertPool, error) {
	pool, n := x509.NewCertPool(), 0
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("ca.crt: %w", err)
		}
		pool.AddCert(c)
		n++
	}
	if n == 0 {
		return nil, errors.New("ca.crt holds no certificate")
	}
	return pool, nil
}

// frontendValidation resolves the CAs that clients' certificates must come from.
func (w *world) frontendValidation(l *listener) {
	if l.gateway.Spec.TLS == nil || l.gateway.Spec.TLS.Frontend == nil || l.Protocol != gatewayv1.HTTPSProtocolType {
		return
	}
	f := l.gateway.Spec.TLS.Frontend
	v := f.Default.Validation
	for _, p := range f.PerPort {
		if p.Port == l.Port {
			v = p.TLS.Validation
		}
	}
	if v == nil {
		return
	}
	ca := &proxy.ClientCA{Optional: v.Mode == gatewayv1.AllowInsecureFallback}
	good := 0
	fail := func(reason gatewayv1.ListenerConditionReason, format string, a ...any) {
		l.conds.set(resolvedRefs, false, string(reason), "tls.frontend: "+fmt.Sprintf(format, a...))
	}
	all := x509.NewCertPool()
	for _, r := range v.CACertificateRefs {
		to := types.NamespacedName{Namespace: string(deref(r.Namespace, gatewayv1.Namespace(l.gateway.Namespace))), Name: string(r.Name)}
		switch {
		case r.Group != "" || r.Kind != "ConfigMap":
			fail(gatewayv1.ListenerReasonInvalidCACertificateKind, "%s: CA certificates are read from ConfigMaps", r.Kind)
		case !w.granted(gatewayv1.GroupName, "Gateway", l.gateway.Namespace, "", "ConfigMap", to.Namespace, to.Name):
			fail(gatewayv1.ListenerReasonRefNotPermitted, "ConfigMap %s: no ReferenceGrant there allows it", to)
		default:
			if _, _, err := w.pool(to); err != nil {
				fail(gatewayv1.ListenerReasonInvalidCACertificateRef, "ConfigMap %s: %v", to, err)
				continue
			}
			good++
			for block, rest := pem.Decode([]byte(w.configMaps[to].Data["ca.crt"])); block != nil; block, rest = pem.Decode(rest) {
				if c, err := x509.ParseCertificate(block.Bytes); err == nil {
					all.AddCert(c)
				}
			}
		}
	}
	ca.Pool = all
	l.clientCA = ca
	if good == 0 {
		l.conds.set(accepted, false, string(gatewayv1.ListenerReasonNoValidCACertificate), "tls.frontend: no CA certificate to verify clients with")
		l.conds.set(programmed, false, string(gatewayv1.ListenerReasonInvalid), "no CA certificate to verify clients with")
	}
	if ca.Optional {
		l.gateway.conds.set(string(gatewayv1.GatewayConditionInsecureFrontendValidationMode), true, string(gatewayv1.GatewayReasonConfigurationChanged), "clients without a valid certificate are let in")
	}
}
