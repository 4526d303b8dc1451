// Package controller keeps the ingress in step with the cluster: it watches the objects, has gateway.Translate work out what
// follows, gives that to the proxy, and, on the one instance that leads, writes statuses and Services.
package controller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/skerry-os/skerry/pkg/gateway"
	"github.com/skerry-os/skerry/pkg/gateway/proxy"
)

// Options are what a controller is made with.
type Options struct {
	Config    *rest.Config
	Namespace string // of the ingress itself
	Identity  string // this instance among the others: the pod's name
	Server    *proxy.Server
	// Synced is called once the first configuration is served.
	Synced func()
}

// Changes are collected for a moment, because they come in flocks, and one pass does for all.
const (
	settle     = 20 * time.Millisecond
	retryAfter = time.Second
)

// Controller is one instance.
type Controller struct {
	Options
	client  kubernetes.Interface
	watch   *watcher
	write   *writer
	leads   atomic.Bool
	changed chan struct{}
	acme    *issuer
}

// New makes a controller that does nothing yet.
func New(o Options) (*Controller, error) {
	client, err := kubernetes.NewForConfig(protobuf(o.Config))
	if err != nil {
		return nil, err
	}
	gateways, err := gatewayClient(o.Config)
	if err != nil {
		return nil, err
	}
	c := &Controller{Options: o, client: client, changed: make(chan struct{}, 1)}
	c.watch = newWatcher(client, gateways, o.Namespace, c.poke)
	c.write = &writer{client: client, gateways: gateways}
	c.acme = newIssuer(client, o.Namespace, c.watch, c.poke)
	return c, nil
}

// poke asks for a pass.
func (c *Controller) poke() {
	select {
	case c.changed <- struct{}{}:
	default:
	}
}

// Challenge returns what an ACME issuer wants to read at a token's path; "" when it is none.
func (c *Controller) Challenge(token string) string { return c.watch.challenge(token) }

// Run works until ctx ends.
func (c *Controller) Run(ctx context.Context) error {
	if err := c.watch.start(ctx); err != nil {
		return nil // ctx has ended
	}
	done := make(chan struct{})
	go func() { defer close(done); c.lead(ctx) }()
	defer func() { <-done }()
	synced := false
	c.poke()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-c.changed:
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(settle):
		}
		err := c.pass(ctx)
		if err != nil && ctx.Err() == nil {
			slog.Warn("not all is in force; trying again", "err", err)
			time.AfterFunc(retryAfter, c.poke)
		}
		if !synced {
			synced = true
			c.Synced()
		}
	}
}

// pass brings everything into force once.
func (c *Controller) pass(ctx context.Context) error {
	s := c.watch.snapshot()
	s.Now = time.Now()
	r := gateway.Translate(s)
	err := c.Server.Apply(r.Config)
	if !c.leads.Load() {
		return err
	}
	c.acme.want(r.ACME)
	return errors.Join(err, c.write.all(ctx, r))
}

func (c *Controller) String() string { return fmt.Sprintf("ingress controller %s", c.Identity) }
