package membership

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/skerry-os/skerry/pkg/join"
)

const (
	tellAgain = 10 * time.Minute // after the same refusal
	tellMost  = 64               // refusals in that time: who asks needs no more than the port
)

// refused makes an event of a refusal, so that who waits for a node sees why it does not come. A node that waits asks again and
// again, so each is told once in a while.
func (m *Members) refused(ctx context.Context, from netip.Addr, node string, why *join.Refusal) {
	if !m.isNews(fmt.Sprintf("%s %s %d %.30s", from, node, why.Status, why.Message)) { // what follows may be the time
		return
	}
	slog.Warn("refused", "node", node, "from", from, "err", why)
	client, err := m.api()
	if err != nil {
		return
	}
	about, reason, who := m.cfg.NodeName, "JoinRefused", "a machine"
	if node != "" && len(validation.IsDNS1123Subdomain(node)) == 0 {
		about, reason, who = node, "NodeRefused", "node "+node
	}
	if why.Status == http.StatusConflict && node != "" {
		reason = "DuplicateNode"
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	m.event(ctx, client, about, corev1.EventTypeWarning, reason, fmt.Sprintf("%s at %s was refused: %s", who, from, why.Message))
}

func (m *Members) isNews(what string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	for old, at := range m.told {
		if now.Sub(at) > tellAgain {
			delete(m.told, old)
		}
	}
	if _, known := m.told[what]; known || len(m.told) >= tellMost {
		return false
	}
	if m.told == nil {
		m.told = map[string]time.Time{}
	}
	m.told[what] = now
	return true
}
