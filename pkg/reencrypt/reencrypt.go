// Package reencrypt changes how a running cluster stores its secrets: it changes the file that says how, waits until the API
// servers have read it, and writes every secret again. Whatever step is cut short, the file tells the next run where to go on,
// and every secret stays readable.
package reencrypt

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/skerry-os/skerry/pkg/server/secrets"
)

// Patience is how long an API server may take to read the file: it looks every few seconds.
const Patience = 2 * time.Minute

// Cluster is the one whose file it is.
type Cluster struct {
	Client kubernetes.Interface // of the API server of this machine
	File   string
	Say    func(format string, a ...any) // what is done, for a person
}

// ErrOthers means that servers of the cluster have files of their own.
var ErrOthers = errors.New("this cluster has several servers, and each has the file")

// Servers counts the servers of the cluster, those that are off among them: each has the file, and reads secrets by it when it is
// back. A server has a Node; one that has not registered yet has the lease of its API, which it renews well within its duration.
func (c *Cluster) Servers(ctx context.Context) (int, error) {
	nodes, err := c.Client.CoreV1().Nodes().List(ctx, metav1.ListOptions{LabelSelector: "node-role.kubernetes.io/control-plane"})
	if err != nil {
		return 0, err
	}
	leases, err := c.Client.CoordinationV1().Leases(metav1.NamespaceSystem).List(ctx, metav1.ListOptions{LabelSelector: "apiserver.kubernetes.io/identity=kube-apiserver"})
	if err != nil {
		return 0, err
	}
	alive := 0
	for _, l := range leases.Items {
		if r, d := l.Spec.RenewTime, l.Spec.LeaseDurationSeconds; r != nil && d != nil && time.Since(r.Time) < time.Duration(*d)*time.Second {
			alive++
		}
	}
	return max(len(nodes.Items), alive), nil
}

// Loaded gives the digest of the file that the API server works by.
func (c *Cluster) Loaded(ctx context.Context) (string, error) {
	text, err := c.Client.CoreV1().RESTClient().Get().AbsPath("/metrics").DoRaw(ctx)
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "apiserver_encryption_config_controller_last_config_info{") {
			_, rest, _ := strings.Cut(line, `,hash="`)
			digest, _, _ := strings.Cut(rest, `"`)
			return digest, nil
		}
	}
	return "", errors.New("the API server does not say how it encrypts secrets")
}

// use writes the file and waits until the API server works by it.
func (c *Cluster) use(ctx context.Context, e *secrets.Encryption) error {
	digest, err := e.Write(c.File)
	if err != nil {
		return err
	}
	return c.await(ctx, digest)
}

func (c *Cluster) await(ctx context.Context, digest string) error {
	ctx, cancel := context.WithTimeout(ctx, Patience)
	defer cancel()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		loaded, err := c.Loaded(ctx)
		if err == nil && loaded == digest {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%s: the API server has not read it within %v (it works by %.15s…): %w; run this again", c.File, Patience, loaded, errors.Join(err, ctx.Err()))
		}
	}
}

// Prepare adds a key that is only read.
func (c *Cluster) Prepare(ctx context.Context) error {
	e, err := secrets.ReadEncryption(c.File)
	if err != nil {
		return err
	}
	if err := e.Prepare(); err != nil {
		return err
	}
	c.Say("a new key, %s, can be read", e.Keys[1].Name)
	return c.use(ctx, e)
}

// Rotate makes the new key the one for writing.
func (c *Cluster) Rotate(ctx context.Context) error {
	e, err := secrets.ReadEncryption(c.File)
	if err != nil {
		return err
	}
	digest, err := secrets.Digest(c.File)
	if err != nil {
		return err
	}
	if err := c.await(ctx, digest); err != nil { // it must be able to read what it will write
		return err
	}
	if err := e.Rotate(); err != nil {
		return err
	}
	c.Say("%s is the key for writing", e.Keys[0].Name)
	return c.use(ctx, e)
}

// Reencrypt writes every secret again and forgets what is no longer needed to read them.
func (c *Cluster) Reencrypt(ctx context.Context) error {
	e, err := secrets.ReadEncryption(c.File)
	if err != nil {
		return err
	}
	if e.Stage() == secrets.StagePrepare {
		return errors.New("the new key is not the one for writing yet: rotate comes first")
	}
	digest, err := secrets.Digest(c.File)
	if err != nil {
		return err
	}
	if err := c.await(ctx, digest); err != nil {
		return err
	}
	n, err := c.rewrite(ctx)
	if err != nil {
		return err
	}
	c.Say("%d secrets are written with the key that is first", n)
	before := *e
	before.Keys = append([]secrets.Key(nil), e.Keys...)
	e.Finish()
	if e.Plain == secrets.PlainRead {
		e.Plain = secrets.PlainNever
	}
	if err := c.use(ctx, e); err != nil {
		return err
	}
	if _, err := c.each(ctx, func(string, string) error { return nil }); err != nil {
		_, werr := before.Write(c.File)
		return errors.Join(fmt.Errorf("a secret cannot be read with the new key alone, so the old one stays: %w", err), werr)
	}
	c.Say("the key is %s", e.Keys[0].Name)
	return nil
}

// RotateKeys does all of it, from whatever stage an earlier run reached.
func (c *Cluster) RotateKeys(ctx context.Context) error {
	e, err := secrets.ReadEncryption(c.File)
	if err != nil {
		return err
	}
	steps := []func(context.Context) error{c.Prepare, c.Rotate, c.Reencrypt}
	switch e.Stage() {
	case secrets.StagePrepare:
		steps = steps[1:]
	case secrets.StageRotate:
		steps = steps[2:]
	}
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// SetPlain turns encryption on or off, and writes every secret accordingly.
func (c *Cluster) SetPlain(ctx context.Context, off bool) error {
	e, err := secrets.ReadEncryption(c.File)
	if err != nil {
		return err
	}
	if e.Stage() != secrets.StageStart {
		return fmt.Errorf("a rotation is at stage %s; finish it first: secrets-encrypt rotate-keys", e.Stage())
	}
	switch {
	case off:
		e.Plain = secrets.PlainWritten
	case e.Plain != secrets.PlainNever:
		e.Plain = secrets.PlainRead
	}
	if err := c.use(ctx, e); err != nil {
		return err
	}
	if off {
		n, err := c.rewrite(ctx)
		if err == nil {
			c.Say("%d secrets are stored as they are", n)
		}
		return err
	}
	return c.Reencrypt(ctx)
}

// rewrite has every secret written again: the API server does write one that has not changed when its first way of storing
// it is not the one it was read by.
func (c *Cluster) rewrite(ctx context.Context) (int, error) {
	return c.each(ctx, func(namespace, name string) error {
		api := c.Client.CoreV1().Secrets(namespace)
		for {
			s, err := api.Get(ctx, name, metav1.GetOptions{})
			if err == nil {
				_, err = api.Update(ctx, s, metav1.UpdateOptions{})
			}
			switch {
			case err == nil, apierrors.IsNotFound(err): // gone, or going
				return nil
			case !apierrors.IsConflict(err):
				return fmt.Errorf("secret %s/%s: %w", namespace, name, err)
			}
		}
	})
}

// each goes over all secrets, page by page, from the datastore and not from a cache.
func (c *Cluster) each(ctx context.Context, f func(namespace, name string) error) (n int, err error) {
	options := metav1.ListOptions{Limit: 200}
	for {
		list, err := c.Client.CoreV1().Secrets("").List(ctx, options)
		if err != nil {
			return n, err
		}
		for _, s := range list.Items {
			if err := f(s.Namespace, s.Name); err != nil {
				return n, err
			}
			n++
		}
		if list.Continue == "" {
			return n, nil
		}
		options.Continue = list.Continue
	}
}
