package gcp

import (
	"context"
	"fmt"
	"hash/crc32"
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
	fmt.Fprintf(&b, "gcp: the credentials may not %s; these commands give them that and no more:", strings.Join(slices.Concat(m.OnProject, m.OnBucket), ", "))
	give := func(rights []string, on string) {
		if len(rights) == 0 {
			return
		}
		list := strings.Join(rights, ",")
		role := fmt.Sprintf("skerry_%08x", crc32.ChecksumIEEE([]byte(list))) // a role's ID is taken for good, so other rights are another
		fmt.Fprintf(&b, "\ngcloud iam roles create %s --project %s --permissions %s\n%s --role projects/%s/roles/%s --member user:WHO", role, m.Project, list, on, m.Project, role)
	}
	give(m.OnProject, "gcloud projects add-iam-policy-binding "+m.Project)
	give(m.OnBucket, "gcloud storage buckets add-iam-policy-binding gs://"+m.Bucket)
	b.WriteString("\n(of the roles that Google has made, roles/compute.storageAdmin and roles/storage.objectAdmin hold them)")
	return b.String()
}

// preflight asks for every right that publishing will need, before anything is made.
func (p *Publisher) preflight(ctx context.Context, o *Options) error {
	want := []string{"compute.images.create", "compute.images.get", "compute.images.setLabels", "compute.globalOperations.get"}
	if o.Public || len(o.Share) > 0 {
		want = append(want, "compute.images.getIamPolicy", "compute.images.setIamPolicy")
	}
	if !o.Deprecate.IsZero() {
		want = append(want, "compute.images.deprecate")
	}
	return p.may(ctx, want, o.Bucket, []string{"storage.objects.create", "storage.objects.get"})
}

// may asks whether the credentials have rights on the project and on a bucket, which may be "".
func (p *Publisher) may(ctx context.Context, onProject []string, bucket string, onBucket []string) error {
	m := MissingRights{Project: p.project, Bucket: bucket}
	var have struct {
		Permissions []string `json:"permissions"`
	}
	without := func(want []string) []string {
		return slices.DeleteFunc(slices.Clone(want), func(r string) bool { return slices.Contains(have.Permissions, r) })
	}
	err := p.call(ctx, http.MethodPost, address("resources", "v3", "projects")+"/"+url.PathEscape(p.project)+":testIamPermissions", map[string]any{"permissions": onProject}, &have)
	switch code := status(err); {
	case err == nil:
		m.OnProject = without(onProject)
	case code == http.StatusForbidden && strings.Contains(err.Error(), "SERVICE_DISABLED"):
		p.log("the Cloud Resource Manager API is off, so rights in project %s are not looked at beforehand", p.project)
	case code == http.StatusForbidden || code == http.StatusNotFound:
		return fmt.Errorf("gcp: project %s: %w; is its name right?", p.project, err)
	default:
		return fmt.Errorf("gcp: looking for missing rights: %w", err)
	}
	if bucket != "" {
		have.Permissions = nil
		query := url.Values{"permissions": onBucket}
		if err := p.call(ctx, http.MethodGet, address("storage", "b", bucket, "iam", "testPermissions")+"?"+query.Encode(), nil, &have); err != nil {
			if status(err) == http.StatusNotFound {
				return fmt.Errorf("gcp: there is no bucket %s; make one: gcloud storage buckets create gs://%s --project %s", bucket, bucket, p.project)
			}
			return fmt.Errorf("gcp: looking for missing rights on bucket %s: %w", bucket, err)
		}
		m.OnBucket = without(onBucket)
	}
	if len(m.OnProject)+len(m.OnBucket) > 0 {
		return m
	}
	return nil
}
