package server

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/rest"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/component-helpers/auth/rbac/validation"
)

// writes counts what a client was asked to change.
func writes(client *fake.Clientset) (n int) {
	for _, a := range client.Actions() {
		if a.GetVerb() != "get" && a.GetVerb() != "list" {
			n++
		}
	}
	return n
}

func TestBootstrapMakesWhatUpstreamsTablesHave(t *testing.T) {
	client := fake.NewClientset()
	if err := newDefaults().apply(t.Context(), client); err != nil {
		t.Fatal(err)
	}
	want := newDefaults()
	if len(want.clusterRoles) < 50 || len(want.clusterBindings) < 40 || len(want.roles) == 0 || len(want.bindings) == 0 {
		t.Fatalf("upstream's tables are nearly empty: %d roles, %d bindings", len(want.clusterRoles), len(want.clusterBindings))
	}
	for _, r := range want.clusterRoles {
		got, err := client.RbacV1().ClusterRoles().Get(t.Context(), r.Name, metav1.GetOptions{})
		if err != nil || !reflect.DeepEqual(got.Rules, r.Rules) || !reflect.DeepEqual(got.AggregationRule, r.AggregationRule) || !reflect.DeepEqual(got.Labels, r.Labels) {
			t.Errorf("cluster role %s: %v, %v", r.Name, got, err)
		}
	}
	for _, b := range want.clusterBindings {
		got, err := client.RbacV1().ClusterRoleBindings().Get(t.Context(), b.Name, metav1.GetOptions{})
		if err != nil || got.RoleRef != b.RoleRef || !reflect.DeepEqual(got.Subjects, b.Subjects) {
			t.Errorf("cluster role binding %s: %v, %v", b.Name, got, err)
		}
	}
	for namespace, roles := range want.roles {
		for _, r := range roles {
			if _, err := client.RbacV1().Roles(namespace).Get(t.Context(), r.Name, metav1.GetOptions{}); err != nil {
				t.Error(err)
			}
		}
	}
	for namespace, bindings := range want.bindings {
		for _, b := range bindings {
			if _, err := client.RbacV1().RoleBindings(namespace).Get(t.Context(), b.Name, metav1.GetOptions{}); err != nil {
				t.Error(err)
			}
		}
	}
	classes, err := client.SchedulingV1().PriorityClasses().List(t.Context(), metav1.ListOptions{})
	if err != nil || len(classes.Items) != 2 {
		t.Errorf("priority classes: %v, %v", classes, err)
	}

	before := writes(client)
	if err := newDefaults().apply(t.Context(), client); err != nil || writes(client) != before {
		t.Errorf("a second time wrote %d more objects; %v", writes(client)-before, err)
	}
}

// What a person changed: more stays, less is filled up, and what is protected is left alone.
func TestBootstrapRespectsWhatIsThere(t *testing.T) {
	d := newDefaults()
	find := func(name string) rbacv1.ClusterRole {
		i := slices.IndexFunc(d.clusterRoles, func(r rbacv1.ClusterRole) bool { return r.Name == name })
		return *d.clusterRoles[i].DeepCopy()
	}
	scheduler := find("system:kube-scheduler")
	full := scheduler.Rules
	extra := rbacv1.PolicyRule{APIGroups: []string{"example.org"}, Resources: []string{"things"}, Verbs: []string{"get"}}
	scheduler.Rules = append([]rbacv1.PolicyRule{extra}, full[1:]...)
	protected := find("system:node-proxier")
	protected.Annotations[rbacv1.AutoUpdateAnnotationKey] = "false"
	protected.Rules = nil
	binding := *d.clusterBindings[0].DeepCopy()
	binding.Subjects = []rbacv1.Subject{{Kind: "User", APIGroup: rbacv1.GroupName, Name: "me"}}
	client := fake.NewClientset(&scheduler, &protected, &binding)
	if err := newDefaults().apply(t.Context(), client); err != nil {
		t.Fatal(err)
	}
	got, err := client.RbacV1().ClusterRoles().Get(t.Context(), scheduler.Name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	has := func(rule rbacv1.PolicyRule) bool {
		return slices.ContainsFunc(got.Rules, func(r rbacv1.PolicyRule) bool { return reflect.DeepEqual(r, rule) })
	}
	if !has(extra) || len(got.Rules) <= len(scheduler.Rules) {
		t.Errorf("%s has the rules %v", got.Name, got.Rules)
	}
	if got, err := client.RbacV1().ClusterRoles().Get(t.Context(), protected.Name, metav1.GetOptions{}); err != nil || len(got.Rules) != 0 {
		t.Errorf("the protected %s: %v, %v", protected.Name, got, err)
	}
	if got, err := client.RbacV1().ClusterRoleBindings().Get(t.Context(), binding.Name, metav1.GetOptions{}); err != nil || len(got.Subjects) < 2 {
		t.Errorf("%s binds %v, %v", binding.Name, got, err)
	}
}

// Two servers that start at the same time write the same objects: who comes second sees the first one's.
func TestBootstrapMeetsAnotherServer(t *testing.T) {
	client := fake.NewClientset()
	var once sync.Once
	met := ""
	client.PrependReactor("create", "clusterroles", func(a clienttesting.Action) (handled bool, _ runtime.Object, err error) {
		role := a.(clienttesting.CreateAction).GetObject().(*rbacv1.ClusterRole)
		once.Do(func() {
			met = role.Name
			other := role.DeepCopy()
			other.Rules = nil // of an older version
			if err := client.Tracker().Add(other); err != nil {
				t.Error(err)
			}
			handled, err = true, apierrors.NewAlreadyExists(rbacv1.Resource("clusterroles"), role.Name)
		})
		return handled, nil, err
	})
	if err := newDefaults().apply(t.Context(), client); err != nil {
		t.Fatal(err)
	}
	d := newDefaults()
	i := slices.IndexFunc(d.clusterRoles, func(r rbacv1.ClusterRole) bool { return r.Name == met })
	got, err := client.RbacV1().ClusterRoles().Get(t.Context(), met, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if ok, missing := validation.Covers(got.Rules, d.clusterRoles[i].Rules); !ok { // one rule may become one for each URL
		t.Errorf("%s, which another server made without rules, lacks %v", met, missing)
	}
}

func TestBootstrapWritesAllItCan(t *testing.T) {
	client := fake.NewClientset()
	client.PrependReactor("create", "*", func(a clienttesting.Action) (bool, runtime.Object, error) {
		o, ok := a.(clienttesting.CreateAction).GetObject().(metav1.Object)
		if ok && o.GetName() == "cluster-admin" || a.GetResource().Resource == "priorityclasses" {
			return true, nil, errors.New("the disk is full")
		}
		return false, nil, nil
	})
	err := newDefaults().apply(t.Context(), client)
	for _, want := range []string{"cluster-admin", "system-node-critical", "the disk is full"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not say %q: %v", want, err)
		}
	}
	roles, err := client.RbacV1().ClusterRoles().List(t.Context(), metav1.ListOptions{})
	if want := len(newDefaults().clusterRoles) - 1; err != nil || len(roles.Items) != want {
		t.Errorf("%d cluster roles were written, want %d; %v", len(roles.Items), want, err)
	}
}

// The names of upstream's hooks are upstream's; were they other ones, both theirs and ours would run.
func TestUpstreamsHooksAreTheOnesWeStandFor(t *testing.T) {
	if got := upstreamsHooks().List(); !slices.Equal(got, []string{"rbac/bootstrap-roles", "scheduling/bootstrap-system-priority-classes"}) {
		t.Errorf("the hooks are %v: look at what they do now", got)
	}
}

// What passes is tried again, what another server wrote first is there, and all else is told.
func TestBootstrapMeetsFaults(t *testing.T) {
	roles, classes := rbacv1.Resource("clusterroles"), schema.GroupResource{Resource: "priorityclasses"}
	for name, tt := range map[string]struct {
		verb, resource string
		once           bool
		err            error
		passes         bool
	}{
		"conflict":          {"create", "clusterroles", true, apierrors.NewConflict(roles, "x", errors.New("changed")), true},
		"busy":              {"create", "clusterroles", true, apierrors.NewServiceUnavailable("the datastore is busy"), true},
		"class is there":    {"create", "priorityclasses", false, apierrors.NewAlreadyExists(classes, "x"), true},
		"class unreadable":  {"get", "priorityclasses", false, apierrors.NewForbidden(classes, "x", errors.New("no")), false},
		"roles unlisted":    {"list", "clusterroles", false, apierrors.NewForbidden(roles, "", errors.New("no")), false},
		"bindings unlisted": {"list", "clusterrolebindings", false, apierrors.NewForbidden(roles, "", errors.New("no")), false},
	} {
		client := fake.NewClientset()
		var mu sync.Mutex
		met := 0
		client.PrependReactor(tt.verb, tt.resource, func(clienttesting.Action) (bool, runtime.Object, error) {
			mu.Lock()
			defer mu.Unlock()
			met++
			return met == 1 || !tt.once, nil, tt.err
		})
		if err := newDefaults().apply(t.Context(), client); (err == nil) != tt.passes {
			t.Errorf("%s: %v", name, err)
		}
		written := 0
		for _, a := range client.Actions() {
			if a.GetVerb() == "create" && a.GetResource().Resource == tt.resource {
				written++
			}
		}
		if tt.verb == "list" && writes(client) > 0 || tt.verb == "get" && written > 0 {
			t.Errorf("%s: was written without a look at what is there", name)
		}
	}
}

// It tries until it is done, or the server ends.
func TestBootstrapTriesAgain(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var tries atomic.Int32
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if tries.Add(1) == 2 {
			cancel()
		}
		http.Error(w, "not yet", http.StatusInternalServerError)
	}))
	defer s.Close()
	done := make(chan error)
	go func() {
		done <- bootstrap(genericapiserver.PostStartHookContext{LoopbackClientConfig: &rest.Config{Host: s.URL}, Context: ctx})
	}()
	select {
	case err := <-done:
		if err != nil || tries.Load() < 2 {
			t.Errorf("%v after %d tries", err, tries.Load())
		}
	case <-time.After(30 * time.Second):
		t.Error("it does not end")
	}
}
