package controller

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/skerry-os/skerry/pkg/gateway"
)

const fieldManager = "skerry-ingress"

// writer writes what follows from the objects back to the API.
type writer struct {
	client   kubernetes.Interface
	gateways rest.Interface
}

// all writes everything. A conflict is no error: the newer object is on its way here and will be looked at.
func (w *writer) all(ctx context.Context, r gateway.Result) error {
	var faults []error
	note := func(what string, err error) {
		if err != nil && !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) {
			faults = append(faults, fmt.Errorf("%s: %w", what, err))
		}
	}
	for _, s := range r.Services {
		note(fmt.Sprintf("Service %s/%s", s.Namespace, s.Name), w.service(ctx, s))
	}
	for _, name := range r.Unused {
		note("Service "+name.String(), w.client.CoreV1().Services(name.Namespace).Delete(ctx, name.Name, metav1.DeleteOptions{}))
	}
	for _, o := range r.Statuses {
		note(fmt.Sprintf("status of %T %s/%s", o, o.GetNamespace(), o.GetName()), w.status(ctx, o))
	}
	return errors.Join(faults...)
}

func (w *writer) service(ctx context.Context, s *corev1.Service) error {
	data, err := json.Marshal(s)
	if err != nil {
		return err
	}
	force := true
	_, err = w.client.CoreV1().Services(s.Namespace).Patch(ctx, s.Name, types.ApplyPatchType, data, metav1.PatchOptions{FieldManager: fieldManager, Force: &force})
	return err
}

func (w *writer) status(ctx context.Context, o metav1.Object) error {
	resource := ""
	switch x := o.(type) {
	case *networkingv1.Ingress:
		_, err := w.client.NetworkingV1().Ingresses(x.Namespace).UpdateStatus(ctx, x, metav1.UpdateOptions{FieldManager: fieldManager})
		return err
	case *gatewayv1.GatewayClass:
		resource = "gatewayclasses"
	case *gatewayv1.Gateway:
		resource = "gateways"
	case *gatewayv1.ListenerSet:
		resource = "listenersets"
	case *gatewayv1.HTTPRoute:
		resource = "httproutes"
	case *gatewayv1.GRPCRoute:
		resource = "grpcroutes"
	case *gatewayv1.TLSRoute:
		resource = "tlsroutes"
	case *gatewayv1.BackendTLSPolicy:
		resource = "backendtlspolicies"
	default:
		return fmt.Errorf("%T has no status of ours", o)
	}
	object, ok := o.(runtime.Object)
	if !ok {
		return fmt.Errorf("%T is no API object", o)
	}
	return w.gateways.Put().NamespaceIfScoped(o.GetNamespace(), o.GetNamespace() != "").Resource(resource).Name(o.GetName()).
		SubResource("status").Body(object).Do(ctx).Error()
}
