package membership

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/skerry-os/skerry/pkg/pki"
)

const (
	expiryEvery = time.Hour
	tellDaily   = 24 * time.Hour

	// An authority is to be replaced by a person, who plans it.
	authorityRest = 365 * 24 * time.Hour
)

// tellExpiry makes events of certificates that should have been renewed long ago, and of authorities that end within a year.
func (m *Members) tellExpiry(ctx context.Context, client kubernetes.Interface, now time.Time) {
	all, err := pki.List(m.cfg.DataDir)
	if err != nil {
		slog.Warn("the certificates cannot be looked at", "err", err)
		return
	}
	for _, c := range all {
		left := c.Until.Sub(now)
		name, err := filepath.Rel(m.cfg.DataDir, c.File)
		if err != nil {
			name = c.File
		}
		switch {
		case c.CA && left < authorityRest && filepath.Ext(c.File) == ".pem":
			m.daily(ctx, client, now, "AuthorityExpires", fmt.Sprintf("the cluster's authority %s ends on %s; replace it in time: skerryd certificate rotate-ca", name, c.Until.Format(time.DateOnly)))
		case !c.CA && left < pki.Margin(c.Until.Sub(c.From.Add(pki.Backdate)))/2:
			m.daily(ctx, client, now, "CertificateExpires", fmt.Sprintf("the certificate %s ends at %s and was not renewed; see this server's log, and skerryd certificate check", name, c.Until.UTC().Format(time.RFC3339)))
		}
	}
}

func (m *Members) daily(ctx context.Context, client kubernetes.Interface, now time.Time, reason, message string) {
	m.mu.Lock()
	if m.expiry == nil {
		m.expiry = map[string]time.Time{}
	}
	last, told := m.expiry[message]
	if !told || now.Sub(last) >= tellDaily {
		m.expiry[message] = now
		told = false
	}
	m.mu.Unlock()
	if told {
		return
	}
	slog.Warn(message)
	m.event(ctx, client, m.cfg.NodeName, corev1.EventTypeWarning, reason, message)
}
