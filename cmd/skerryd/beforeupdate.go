package main

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/skerry-os/skerry/cmd/skerryd/internal/updates"
	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/server"
	"github.com/skerry-os/skerry/pkg/update"
	updatehost "github.com/skerry-os/skerry/pkg/update/host"
	"github.com/skerry-os/skerry/pkg/update/record"
)

// beforeUpdate is what a server does with its datastore when another release is about to be tried.
type beforeUpdate struct {
	settings machine.Server
	node     string
	ip       netip.Addr
}

func (b beforeUpdate) open() (*server.Stored, error) {
	return server.OpenStored(server.StoredConfig{Settings: b.settings, NodeName: b.node, NodeIP: b.ip})
}

func (b beforeUpdate) save(ctx context.Context) (*record.Saved, error) {
	at, err := b.open()
	if err != nil {
		return nil, err
	}
	return updates.Save(ctx, slog.Default(), at.Snapshots, at.Store)
}

func (b beforeUpdate) needs(ctx context.Context) ([]update.Need, error) {
	at, err := b.open()
	if err != nil {
		return nil, err
	}
	return updates.Needs(ctx, at.Snapshots, at.Store)
}

// undo takes the datastore back to before an update that failed, if need be. The server must not serve when it could not be
// settled what becomes of that.
func (b beforeUpdate) undo(ctx context.Context) error {
	id, err := updatehost.Identity()
	if errors.Is(err, updatehost.ErrNoSlots) {
		return nil // there was never an update here
	}
	if err != nil {
		return err
	}
	at, err := b.open()
	if err != nil {
		return err
	}
	return updates.Undo(ctx, slog.Default(), record.File(updatehost.RecordFile), id.Release.Version, updates.Datastore{
		Schema: func(ctx context.Context) (string, error) { return updates.Schema(ctx, at.Store) },
		Restore: func(ctx context.Context, name string) (string, error) {
			_, aside, err := at.Snapshots.Restore(ctx, at.Store, name)
			return aside, err
		},
	})
}

// otherNodes says whether the cluster has more nodes than this one.
func otherNodes(ctx context.Context, kubeconfig string) (bool, error) {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return false, err
	}
	c, err := kubernetes.NewForConfig(config)
	if err != nil {
		return false, err
	}
	list, err := c.CoreV1().Nodes().List(ctx, metav1.ListOptions{Limit: 2})
	return err == nil && len(list.Items) > 1, err
}
