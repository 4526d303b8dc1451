package gcp

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// MissingRights is what the credentials lack.
type MissingRights struct {
	Project, Bucket string
	OnProject       []string // such as compute.images.create
	OnBucket        []string
}

func (m MissingRights) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "gcp: the credentials may not %s", strings.Join(slices.Concat(m.OnProject, m.OnBucket), ", "))
	if len(m.OnProject) > 0 {
		fmt.Fprintf(&b, "; roles/compute.storageAdmin holds %s:\ngcloud projects add-iam-policy-binding %s --role roles/compute.storageAdmin --member user:WHO", strings.Join(m.OnProject, ", "), m.Project)
	}
	if len(m.OnBucket) > 0 {
		fmt.Fprintf(&b, "; roles/storage.objectAdmin holds %s:\ngcloud storage buckets add-iam-policy-binding gs://%s --role roles/storage.objectAdmin --member user:WHO", strings.Join(m.OnBucket, ", "), m.Bucket)
	}
	return b.String()
}

// preflight asks for every right that will be needed, before anything is made.
func (p *Publisher) preflight(ctx context.Context, o *Options) error {
	m := MissingRights{Project: p.project, Bucket: o.Bucket}
	want := []string{"compute.images.create", "compute.images.get", "compute.images.setLabels", "compute.globalOperations.get"}
	if o.Public || len(o.Share) > 0 {
		want = append(want, "compute.images.getIamPolicy", "compute.images.setIamPolicy")
	}
	if !o.Deprecate.IsZero() {
		want = append(want, "compute.images.deprecate")
	}
	var have struct {
		Permissions []string `json:"permissions"`
	}
	without := func(want []string) []string {
		return slices.DeleteFunc(slices.Clone(want), func(r string) bool { return slices.Contains(have.Permissions, r) })
	}
	err := p.call(ctx, http.MethodPost, address("resources", "v3", "projects")+"/"+url.PathEscape(p.project)+":testIamPermissions", map[string]any{"permissions": want}, &have)
	switch code := status(err); {
	case err == nil:
		m.OnProject = without(want)
	case code == http.StatusForbidden && strings.Contains(err.Error(), "SERVICE_DISABLED"):
		p.log("the Cloud Resource Manager API is off, so rights in project %s are not looked at beforehand", p.project)
	case code == http.StatusForbidden || code == http.StatusNotFound:
		return fmt.Errorf("gcp: project %s: %w; is its name right?", p.project, err)
	default:
		return fmt.Errorf("gcp: looking for missing rights: %w", err)
	}
	want = []string{"storage.objects.create", "storage.objects.get"}
	have.Permissions = nil
	query := url.Values{"permissions": want}
	if err := p.call(ctx, http.MethodGet, address("storage", "b", o.Bucket, "iam", "testPermissions")+"?"+query.Encode(), nil, &have); err != nil {
		if status(err) == http.StatusNotFound {
			return fmt.Errorf("gcp: there is no bucket %s; make one: gcloud storage buckets create gs://%s --project %s", o.Bucket, o.Bucket, p.project)
		}
		return fmt.Errorf("gcp: looking for missing rights on bucket %s: %w", o.Bucket, err)
	}
	if m.OnBucket = without(want); len(m.OnProject)+len(m.OnBucket) > 0 {
		return m
	}
	return nil
}
