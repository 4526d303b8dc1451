package membership

import (
	"context"
	"log/slog"
	"net/http"
	"path/filepath"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/skerry-os/skerry/pkg/join"
	"github.com/skerry-os/skerry/pkg/seed"
)

// pending are the tokens of this server's seed that the datastore does not have yet. Who asks with one of them is known, and
// waits: the other machines of a fleet may be up before their server is.
func (m *Members) pending(known []join.Secret) (out []join.Secret) {
	tokens, err := seed.Pending(m.cfg.DataDir)
	if err != nil {
		slog.Warn("the fleet's tokens cannot be read", "err", err)
	}
	for _, t := range tokens {
		s := join.Secret{ID: t.Secret[:6], Text: t.Secret, Node: t.Node, Server: t.Server}
		if !slices.ContainsFunc(known, func(k join.Secret) bool { return k.ID == s.ID }) {
			out = append(out, s)
		}
	}
	return out
}

// stored refuses a token for now that is nowhere but in the seed: its use could not be recorded.
func (m *Members) stored(ctx context.Context, client kubernetes.Interface, id string) error {
	tokens, err := seed.Pending(m.cfg.DataDir)
	if err != nil || !slices.ContainsFunc(tokens, func(t seed.Token) bool { return t.Secret[:6] == id }) {
		return err
	}
	_, err = client.CoreV1().Secrets(kubeSystem).Get(ctx, madePrefix+id, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return refuse(http.StatusServiceUnavailable, true, "the server has not stored the fleet's tokens yet")
	}
	return err
}

// storePending brings the seed's tokens into the datastore, and says whether none is left.
func (m *Members) storePending(ctx context.Context, client kubernetes.Interface) bool {
	tokens, err := seed.Pending(m.cfg.DataDir)
	if err != nil {
		slog.Error("the fleet's tokens are lost; make others with skerryd token create --node", "err", err)
		return true
	}
	for _, t := range tokens {
		_, err := CreateToken(ctx, client, Token{Secret: t.Secret, Node: t.Node, Server: t.Server, Description: "of the fleet"}, 0)
		if err != nil && !apierrors.IsAlreadyExists(err) { // it was stored, and power failed before the file was gone
			slog.Debug("a token of the fleet", "err", err)
			return false
		}
	}
	if len(tokens) > 0 {
		if err := seed.Erase(filepath.Join(m.cfg.DataDir, seed.PendingName)); err != nil {
			slog.Warn("the fleet's tokens are stored, and their file stays", "err", err)
			return false
		}
		slog.Info("the fleet's tokens are stored", "tokens", len(tokens))
	}
	return true
}

// deleteTokensOf takes back what lets a node join.
func deleteTokensOf(ctx context.Context, client kubernetes.Interface, node string) error {
	list, err := client.CoreV1().Secrets(kubeSystem).List(ctx, metav1.ListOptions{FieldSelector: "type=" + string(madeType)})
	if err != nil {
		return err
	}
	for _, s := range list.Items {
		if string(s.Data[keyNode]) != node {
			continue
		}
		if err := client.CoreV1().Secrets(kubeSystem).Delete(ctx, s.Name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			return err
		}
	}
	return nil
}
