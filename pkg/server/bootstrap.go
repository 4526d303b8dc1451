package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/sets"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/retry"
	"k8s.io/component-helpers/auth/rbac/reconciliation"
	schedulingv1 "k8s.io/kubernetes/pkg/apis/scheduling/v1"
	rbacrest "k8s.io/kubernetes/pkg/registry/rbac/rest"
	schedulingrest "k8s.io/kubernetes/pkg/registry/scheduling/rest"
	"k8s.io/kubernetes/plugin/pkg/auth/authorizer/rbac/bootstrappolicy"
)

// bootstrapHook is the name of ours in /readyz.
const bootstrapHook = "skerry-bootstrap"

// upstreamsHooks are what bootstrap stands for. They begin by sleeping for a second and then write some two hundred objects, one
// after the other; and on a machine so slow that it takes them more than half a minute they end the process.
func upstreamsHooks() sets.String { //nolint:staticcheck // the type of the API server's field
	return sets.NewString(rbacrest.PostStartHookName, schedulingrest.PostStartHookName)
}

// bootstrapWriters is how many objects are written at once: enough for several to share one sync of the datastore.
const bootstrapWriters = 8

// bootstrapAgain is the pause before another try.
const bootstrapAgain = time.Second

// bootstrap sees to it that the roles, bindings and priority classes exist that Kubernetes itself needs, and have all that this
// version gives them; what a person added or protected stays. It tries until it is done or ctx ends.
func bootstrap(hook genericapiserver.PostStartHookContext) error {
	client, err := kubernetes.NewForConfig(hook.LoopbackClientConfig)
	if err != nil {
		return err
	}
	for {
		err := newDefaults().apply(hook, client)
		if err == nil {
			return nil
		}
		slog.Warn("the roles that Kubernetes needs are not all there; trying again", "err", err)
		select {
		case <-time.After(bootstrapAgain):
		case <-hook.Done():
			return nil
		}
	}
}

// defaults are the objects. Upstream's tables are made anew for each try: what is in them becomes part of what is written.
type defaults struct {
	clusterRoles    []rbacv1.ClusterRole
	clusterBindings []rbacv1.ClusterRoleBinding
	roles           map[string][]rbacv1.Role
	bindings        map[string][]rbacv1.RoleBinding
}

func newDefaults() defaults {
	return defaults{
		clusterRoles:    append(bootstrappolicy.ClusterRoles(), bootstrappolicy.ControllerRoles()...),
		clusterBindings: append(bootstrappolicy.ClusterRoleBindings(), bootstrappolicy.ControllerRoleBindings()...),
		roles:           bootstrappolicy.NamespaceRoles(),
		bindings:        bootstrappolicy.NamespaceRoleBindings(),
	}
}

// apply writes what is missing. All that can be written is, before it returns an error.
func (d defaults) apply(ctx context.Context, client kubernetes.Interface) error {
	rbac := client.RbacV1()
	clusterRoles, err := rbac.ClusterRoles().List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	clusterBindings, err := rbac.ClusterRoleBindings().List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	haveRoles := newKnown[reconciliation.RuleOwner](rbacv1.Resource("clusterroles"))
	for i := range clusterRoles.Items {
		haveRoles.add(reconciliation.ClusterRoleRuleOwner{ClusterRole: &clusterRoles.Items[i]})
	}
	haveBindings := newKnown[reconciliation.RoleBinding](rbacv1.Resource("clusterrolebindings"))
	for i := range clusterBindings.Items {
		haveBindings.add(reconciliation.ClusterRoleBindingAdapter{ClusterRoleBinding: &clusterBindings.Items[i]})
	}

	var work []func() error
	role := func(r reconciliation.RuleOwner, m reconciliation.RuleOwnerModifier) {
		work = append(work, func() error {
			_, err := (&reconciliation.ReconcileRoleOptions{Role: r, Client: m, Confirm: true}).Run()
			return named("role", r, err)
		})
	}
	binding := func(b reconciliation.RoleBinding, m reconciliation.RoleBindingModifier) {
		work = append(work, func() error {
			_, err := (&reconciliation.ReconcileRoleBindingOptions{RoleBinding: b, Client: m, Confirm: true}).Run()
			return named("role binding", b, err)
		})
	}
	for i := range d.clusterRoles {
		role(reconciliation.ClusterRoleRuleOwner{ClusterRole: &d.clusterRoles[i]},
			knownRoles{reconciliation.ClusterRoleModifier{Client: rbac.ClusterRoles()}, haveRoles})
	}
	for i := range d.clusterBindings {
		binding(reconciliation.ClusterRoleBindingAdapter{ClusterRoleBinding: &d.clusterBindings[i]},
			knownBindings{reconciliation.ClusterRoleBindingClientAdapter{Client: rbac.ClusterRoleBindings()}, haveBindings})
	}
	for _, roles := range d.roles {
		for i := range roles {
			role(reconciliation.RoleRuleOwner{Role: &roles[i]}, reconciliation.RoleModifier{Client: rbac, NamespaceClient: client.CoreV1().Namespaces()})
		}
	}
	for _, bindings := range d.bindings {
		for i := range bindings {
			binding(reconciliation.RoleBindingAdapter{RoleBinding: &bindings[i]},
				reconciliation.RoleBindingClientAdapter{Client: rbac, NamespaceClient: client.CoreV1().Namespaces()})
		}
	}
	for _, class := range schedulingv1.SystemPriorityClasses() {
		work = append(work, func() error {
			_, err := client.SchedulingV1().PriorityClasses().Get(ctx, class.Name, metav1.GetOptions{})
			if apierrors.IsNotFound(err) {
				_, err = client.SchedulingV1().PriorityClasses().Create(ctx, class, metav1.CreateOptions{})
			}
			return named("priority class", class, err)
		})
	}
	return together(work)
}

// named says in an error what it was about. That somebody else was faster is none: other servers of the cluster do the same work.
func named(kind string, o interface {
	GetNamespace() string
	GetName() string
}, err error,
) error {
	if err == nil || apierrors.IsAlreadyExists(err) {
		return nil
	}
	return fmt.Errorf("%s %s: %w", kind, schema.GroupResource{Group: o.GetNamespace(), Resource: o.GetName()}, err)
}

// together does the work with a few hands, each piece again when it met somebody else's write.
func together(work []func() error) error {
	pieces := make(chan func() error, len(work))
	for _, w := range work {
		pieces <- w
	}
	close(pieces)
	var hands sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	for range bootstrapWriters {
		hands.Go(func() {
			for w := range pieces {
				err := retry.OnError(retry.DefaultBackoff, func(err error) bool { return apierrors.IsConflict(err) || apierrors.IsServiceUnavailable(err) }, w)
				if err != nil {
					mu.Lock()
					errs = append(errs, err)
					mu.Unlock()
				}
			}
		})
	}
	hands.Wait()
	return errors.Join(errs...)
}

// known answers from one list what would be a hundred questions. It answers each name once: whoever asks again has met a change
// and needs to see it.
type known[T interface{ GetName() string }] struct {
	resource schema.GroupResource
	mu       sync.Mutex
	have     map[string]T
	asked    map[string]bool
}

func newKnown[T interface{ GetName() string }](resource schema.GroupResource) *known[T] {
	return &known[T]{resource: resource, have: map[string]T{}, asked: map[string]bool{}}
}

func (k *known[T]) add(o T) { k.have[o.GetName()] = o }

func (k *known[T]) get(name string, ask func() (T, error)) (T, error) {
	k.mu.Lock()
	again := k.asked[name]
	k.asked[name] = true
	k.mu.Unlock()
	if again {
		return ask()
	}
	o, ok := k.have[name]
	if !ok {
		return o, apierrors.NewNotFound(k.resource, name)
	}
	return o, nil
}

type knownRoles struct {
	reconciliation.RuleOwnerModifier
	*known[reconciliation.RuleOwner]
}

func (k knownRoles) Get(namespace, name string) (reconciliation.RuleOwner, error) {
	return k.get(name, func() (reconciliation.RuleOwner, error) { return k.RuleOwnerModifier.Get(namespace, name) })
}

type knownBindings struct {
	reconciliation.RoleBindingModifier
	*known[reconciliation.RoleBinding]
}

func (k knownBindings) Get(namespace, name string) (reconciliation.RoleBinding, error) {
	return k.get(name, func() (reconciliation.RoleBinding, error) { return k.RoleBindingModifier.Get(namespace, name) })
}
