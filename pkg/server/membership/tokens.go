package membership

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/skerry-os/skerry/pkg/join"
	"github.com/skerry-os/skerry/pkg/pki"
	"github.com/skerry-os/skerry/pkg/token"
)

const (
	serverToken  = "server"       // the ID of the cluster's own token
	rotated      = "skerry-token" // the Secret with it, once it was rotated
	madePrefix   = "bootstrap-token-"
	madeType     = corev1.SecretType("bootstrap.kubernetes.io/token") // as kubeadm and K3s have it
	kept         = 7 * 24 * time.Hour                                 // an expired token is remembered, for a better answer than "unknown"
	onceKey      = "skerry-single-use"
	keySpent     = "skerry-spent"    // when one for a single use was used
	keySpentBy   = "skerry-spent-by" // digest of the public key of the node that used it
	lostAnswer   = 10 * time.Minute  // for so long that node may ask again
	previousID   = "previous server"
	timeLayout   = time.RFC3339
	kubeSystem   = metav1.NamespaceSystem
	keyToken     = "token"
	keyPrevious  = "previous"
	keyUntil     = "previous-until"
	keyID        = "token-id"
	keySecret    = "token-secret"
	keyExpires   = "expiration"
	keyDescribed = "description"
	keyNode      = "skerry-node"    // the only node that may join with it
	keyServer    = "skerry-server"  // "true": as a server
	keyMachine   = "skerry-machine" // which machine that is
)

// Token is one that `skerryd token create` made.
type Token struct {
	ID          string     `json:"id"`
	Secret      string     `json:"-"` // with the ID in front
	Description string     `json:"description,omitempty"`
	Expires     *time.Time `json:"expires,omitempty"`
	SingleUse   bool       `json:"singleUse,omitempty"`
	Spent       *time.Time `json:"spent,omitempty"`   // when it was used, if it is for a single use
	Node        string     `json:"node,omitempty"`    // the only one that may join with it
	Server      bool       `json:"server,omitempty"`  // that node may be a server
	Machine     string     `json:"machine,omitempty"` // the one that has joined with it, if it is for a node
}

// Expired says whether it no longer opens anything.
func (t Token) Expired(now time.Time) bool { return t.Expires != nil && now.After(*t.Expires) }

// ListTokens reads the made tokens. Those that expired or were used up long ago are removed.
func ListTokens(ctx context.Context, client kubernetes.Interface, now time.Time) ([]Token, error) {
	list, err := client.CoreV1().Secrets(kubeSystem).List(ctx, metav1.ListOptions{FieldSelector: "type=" + string(madeType)})
	if err != nil {
		return nil, err
	}
	var out []Token
	for _, s := range list.Items {
		t := Token{
			ID: string(s.Data[keyID]), Secret: string(s.Data[keyID]) + "." + string(s.Data[keySecret]),
			Description: string(s.Data[keyDescribed]), SingleUse: string(s.Data[onceKey]) == "true",
			Node: string(s.Data[keyNode]), Machine: string(s.Data[keyMachine]),
		}
		t.Server = t.Node != "" && string(s.Data[keyServer]) == "true"
		if token.ID(t.Secret) == "" {
			continue // not made by a program
		}
		if text := string(s.Data[keyExpires]); text != "" {
			until, err := time.Parse(timeLayout, text)
			if err != nil {
				continue // one whose end cannot be read is no token
			}
			t.Expires = &until
		}
		if at, err := time.Parse(timeLayout, string(s.Data[keySpent])); err == nil {
			t.Spent = &at
		}
		if t.Expired(now.Add(-kept)) || t.Spent != nil && now.Sub(*t.Spent) > kept {
			err := client.CoreV1().Secrets(kubeSystem).Delete(ctx, s.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &s.UID}})
			if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
				return nil, err
			}
			continue
		}
		out = append(out, t)
	}
	slices.SortFunc(out, func(a, b Token) int { return strings.Compare(a.ID, b.ID) })
	return out, nil
}

// CreateToken makes a token of t's Secret, Description, SingleUse, Node and Server, and completes it. Without a Secret one is
// made; ttl is 0 for one that does not expire.
func CreateToken(ctx context.Context, client kubernetes.Interface, t Token, ttl time.Duration) (*Token, error) {
	if t.Secret == "" {
		t.Secret = token.New()
	}
	secret, description := t.Secret, t.Description
	id := token.ID(secret)
	if id == "" {
		return nil, fmt.Errorf("%q is not a token: write six small letters or digits, a dot and sixteen more, or leave it out", secret)
	}
	t.ID = id
	s := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: madePrefix + id, Namespace: kubeSystem},
		Type:       madeType,
		Data:       map[string][]byte{keyID: []byte(id), keySecret: []byte(secret[len(id)+1:])},
	}
	if description != "" {
		s.Data[keyDescribed] = []byte(description)
	}
	if ttl > 0 {
		until := time.Now().Add(ttl).UTC().Truncate(time.Second)
		t.Expires = &until
		s.Data[keyExpires] = []byte(until.Format(timeLayout))
	}
	if t.SingleUse {
		s.Data[onceKey] = []byte("true")
	}
	if t.Node != "" {
		s.Data[keyNode] = []byte(t.Node)
		if t.Server {
			s.Data[keyServer] = []byte("true")
		}
	}
	_, err := client.CoreV1().Secrets(kubeSystem).Create(ctx, s, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		return nil, fmt.Errorf("there is a token %s already; delete it first, or leave the token out to get a new one: %w", id, err)
	}
	return &t, err
}

// DeleteToken takes a made token, or its ID.
func DeleteToken(ctx context.Context, client kubernetes.Interface, id string) error {
	if t, err := token.Parse(id); err == nil && token.ID(t.Secret) != "" {
		id = token.ID(t.Secret)
	}
	err := client.CoreV1().Secrets(kubeSystem).Delete(ctx, madePrefix+id, metav1.DeleteOptions{})
	if apierrors.IsNotFound(err) {
		return fmt.Errorf("there is no token %s; skerryd token list shows those there are (the cluster's own is changed with skerryd token rotate)", id)
	}
	return err
}

// Rotate replaces the cluster's own token; the one before goes on opening for as long as overlap says.
func Rotate(ctx context.Context, client kubernetes.Interface, old, new string, overlap time.Duration) error {
	api := client.CoreV1().Secrets(kubeSystem)
	s, err := api.Get(ctx, rotated, metav1.GetOptions{})
	fresh := apierrors.IsNotFound(err)
	if err != nil && !fresh {
		return err
	}
	if fresh {
		s = &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: rotated, Namespace: kubeSystem}}
	} else {
		old = string(s.Data[keyToken])
	}
	if old == new {
		return fmt.Errorf("the new token is the old one")
	}
	s.Data = map[string][]byte{keyToken: []byte(new)}
	if overlap > 0 {
		s.Data[keyPrevious], s.Data[keyUntil] = []byte(old), []byte(time.Now().Add(overlap).UTC().Format(timeLayout))
	}
	if fresh {
		_, err = api.Create(ctx, s, metav1.CreateOptions{})
	} else {
		_, err = api.Update(ctx, s, metav1.UpdateOptions{}) // another's rotation at the same time is a conflict
	}
	return err
}

// ServerToken is the cluster's own token if it was rotated, and "" if it is still the one of the first server's settings.
func ServerToken(ctx context.Context, client kubernetes.Interface) (string, error) {
	s, err := client.CoreV1().Secrets(kubeSystem).Get(ctx, rotated, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	return string(s.Data[keyToken]), nil
}

// readSecrets lists what opens the cluster, and what did a while ago.
func readSecrets(ctx context.Context, client kubernetes.Interface, now time.Time) ([]join.Secret, error) {
	var out []join.Secret
	s, err := client.CoreV1().Secrets(kubeSystem).Get(ctx, rotated, metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return nil, err
	}
	if err == nil {
		out = append(out, join.Secret{ID: serverToken, Text: string(s.Data[keyToken]), Server: true})
		if previous := string(s.Data[keyPrevious]); previous != "" {
			until, err := time.Parse(timeLayout, string(s.Data[keyUntil]))
			p := join.Secret{ID: previousID, Text: previous, Server: true}
			if err != nil || now.After(until) {
				p.Expired = until
				if p.Expired.IsZero() {
					p.Expired = now
				}
			}
			out = append(out, p)
		}
	}
	made, err := ListTokens(ctx, client, now)
	for _, t := range made {
		secret := join.Secret{ID: t.ID, Text: t.Secret, Node: t.Node, Server: t.Server}
		if t.Expired(now) {
			secret.Expired = *t.Expires
		}
		out = append(out, secret)
	}
	return out, err
}

// spend uses a token up. One for a single use is good for the key that it was used for, for some minutes more: the answer may get
// lost on its way. One for a node stays: the name is a machine's as soon as that has joined (see claim), so the token opens nothing
// for any other, and the machine may come again, or another that a person approves for the name, with the same card.
func spend(ctx context.Context, client kubernetes.Interface, id string, r join.Request) error {
	api := client.CoreV1().Secrets(kubeSystem)
	for {
		s, err := api.Get(ctx, madePrefix+id, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err) && (id == serverToken || id == previousID || id == "agent"):
			return nil
		case apierrors.IsNotFound(err):
			return errSpent(id)
		case err != nil:
			return err
		case len(s.Data[keyNode]) > 0:
			s.Data[keyMachine] = []byte(r.Machine.ID)
		case string(s.Data[onceKey]) != "true":
			return nil
		case len(s.Data[keySpent]) > 0:
			return again(s, r)
		default:
			s.Data[keySpent], s.Data[keySpentBy] = []byte(time.Now().UTC().Format(timeLayout)), []byte(keyOf(r))
		}
		if _, err = api.Update(ctx, s, metav1.UpdateOptions{}); !apierrors.IsConflict(err) {
			return err
		}
	}
}

// unspent refuses a token that another has used up, before anything is done for who shows it.
func unspent(ctx context.Context, client kubernetes.Interface, id string, r join.Request) error {
	s, err := client.CoreV1().Secrets(kubeSystem).Get(ctx, madePrefix+id, metav1.GetOptions{})
	if apierrors.IsNotFound(err) || err == nil && len(s.Data[keySpent]) == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	return again(s, r)
}

func again(s *corev1.Secret, r join.Request) error {
	at, err := time.Parse(timeLayout, string(s.Data[keySpent]))
	if err == nil && time.Since(at) < lostAnswer && string(s.Data[keySpentBy]) == keyOf(r) {
		return nil
	}
	return errSpent(string(s.Data[keyID]))
}

func errSpent(id string) error {
	return refuse(http.StatusUnauthorized, false, "the token %s was for one node and another has used it; make another with skerryd token create", id)
}

// keyOf names the key that a node asks a certificate for: who does not have it gains nothing by asking again.
func keyOf(r join.Request) string {
	sum := sha256.Sum256(r.Keys[pki.KubeletClient])
	return hex.EncodeToString(sum[:])
}
