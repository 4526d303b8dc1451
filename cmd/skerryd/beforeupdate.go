package main

import (
	"context"
	"log/slog"
	"net/netip"
	"os"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/skerry-os/skerry/cmd/skerryd/internal/updates"
	"github.com/skerry-os/skerry/pkg/datastore"
	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/server"
	"github.com/skerry-os/skerry/pkg/update/host"
	"github.com/skerry-os/skerry/pkg/update/record"
)

// saveBeforeUpdate saves the datastore of a server that is about to try another release.
func saveBeforeUpdate(ctx context.Context, s machine.Server, node string, ip netip.Addr) (*record.Saved, error) {
	at, err := server.OpenStored(server.StoredConfig{Settings: s, NodeName: node, NodeIP: ip})
	if err != nil {
		return nil, err
	}
	e, err := at.Snapshots.Save(ctx, at.Store, "before-update")
	if err != nil {
		return nil, err
	}
	saved := &record.Saved{Snapshot: e.Name}
	saved.Schema, err = schemaOf(ctx, at.Store)
	return saved, err
}

// schemaOf is "" for a datastore that is not this machine's alone.
func schemaOf(ctx context.Context, store datastore.Store) (string, error) {
	if own, ok := store.(datastore.Schemer); ok {
		return own.Schema(ctx)
	}
	return "", nil
}

// undoUpdate takes the datastore back to before an update that failed, if need be.
func undoUpdate(ctx context.Context, s machine.Server, node string, ip netip.Addr) error {
	if _, err := os.Stat(host.RecordFile); err != nil {
		return nil //nolint:nilerr // there was never an update here
	}
	at, err := server.OpenStored(server.StoredConfig{Settings: s, NodeName: node, NodeIP: ip})
	if err != nil {
		return err
	}
	updates.Undo(ctx, slog.Default(), record.File(host.RecordFile), updates.Datastore{
		Schema: func(ctx context.Context) (string, error) { return schemaOf(ctx, at.Store) },
		Restore: func(ctx context.Context, name string) (string, error) {
			_, aside, err := at.Snapshots.Restore(ctx, at.Store, name)
			return aside, err
		},
	})
	return nil
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
