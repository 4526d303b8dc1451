package gcp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/skerry-os/skerry/image/cloud/publish"
)

// Options say what is published, where and for whom. Share are members as IAM writes them: user:, group:, serviceAccount:,
// domain:.
type Options struct {
	publish.Options
	Bucket string
	Family string
}

// labelDisk is publish.Disk.ID.
const labelDisk = "skerry-disk"

// architectures are Compute Engine's words for ours.
var architectures = map[string]string{"amd64": "X86_64", "arm64": "ARM64"}

var (
	nameForm  = regexp.MustCompile(`^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$`)
	labelForm = regexp.MustCompile(`^[a-z][-_a-z0-9]{0,62}$`)
	notInName = regexp.MustCompile(`[^-a-z0-9]+`)
)

// Name makes a name that Compute Engine takes of one with other signs: skerry-1-2-3-amd64.
func Name(s string) string {
	s = notInName.ReplaceAllString(strings.ToLower(s), "-")
	return strings.Trim(s[:min(63, len(s))], "-")
}

type gceImage struct {
	Name        string            `json:"name"`
	Description string            `json:"description,omitempty"`
	Family      string            `json:"family,omitempty"`
	Arch        string            `json:"architecture,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
	Features    []typed           `json:"guestOsFeatures,omitempty"`
	RawDisk     *rawDisk          `json:"rawDisk,omitempty"`
	Shielded    *initialState     `json:"shieldedInstanceInitialState,omitempty"`
	Status      string            `json:"status,omitempty"` // PENDING, READY, FAILED
	SelfLink    string            `json:"selfLink,omitempty"`
}

type typed struct {
	Type string `json:"type"`
}

type rawDisk struct {
	Source string `json:"source"`
}

type initialState struct {
	PK  *keyFile  `json:"pk,omitempty"`
	KEK []keyFile `json:"keks,omitempty"`
	DB  []keyFile `json:"dbs,omitempty"`
}

type keyFile struct {
	Content  []byte `json:"content"`
	FileType string `json:"fileType"`
}

// features are what the kernel and its boot need and can do. (SEV and TDX are not among them: nobody has started one there.)
var features = []typed{{"UEFI_COMPATIBLE"}, {"GVNIC"}, {"VIRTIO_SCSI_MULTIQUEUE"}}

// Publish makes an image of the archive, whose disk is d. An image of this name that holds the same disk is there already and is
// used; one that holds another is an error. What was made before an error is in the report.
func (p *Publisher) Publish(ctx context.Context, d publish.Disk, a Archive, o Options) (*publish.Report, error) {
	begin := time.Now()
	o.Labels = maps.Clone(o.Labels)
	if o.Labels == nil {
		o.Labels = map[string]string{}
	}
	o.Labels[labelDisk], o.Labels["skerry-version"] = strings.ToLower(d.ID), Name("v"+o.Version)
	if err := o.check(); err != nil {
		return nil, err
	}
	state, err := shielded(o.Keys)
	if err != nil {
		return nil, err
	}
	r := &publish.Report{
		Name: o.Name, Account: p.project, DryRun: o.DryRun, DiskSize: d.Size, BlockSize: chunk, Blocks: int((a.Size + chunk - 1) / chunk), Public: o.Public,
		Accounts: o.Share, Images: []publish.Image{},
	}
	defer func() { r.Seconds = time.Since(begin).Seconds() }()
	if err := p.preflight(ctx, &o); err != nil {
		return r, err
	}
	there, err := p.find(ctx, o.Name)
	if err != nil {
		return r, err
	}
	if there != nil && there.Labels[labelDisk] != o.Labels[labelDisk] {
		return r, fmt.Errorf("gcp: project %s has an image named %s that holds another disk; choose another name, or delete it: skerry publish gcp delete --project %s --bucket %s %s",
			p.project, o.Name, p.project, o.Bucket, o.Name)
	}
	if o.DryRun {
		return r, nil
	}
	name := o.Name + ".tar.gz"
	if there != nil {
		p.log("image %s is there already", o.Name)
	} else {
		sum, err := checksum(ctx, a)
		if err != nil {
			return r, err
		}
		if err := p.store(ctx, a, name, sum, &o, r); err != nil {
			return r, err
		}
		source := gceImage{
			Name: o.Name, Description: o.Description, Family: o.Family, Arch: architectures[o.Arch], Labels: o.Labels, Features: features, Shielded: state,
			RawDisk: &rawDisk{"https://storage.googleapis.com/" + o.Bucket + "/" + url.PathEscape(name)},
		}
		if err := p.insert(ctx, source); err != nil {
			return r, err
		}
	}
	if there, err = p.ready(ctx, o.Name); err != nil {
		return r, err
	}
	r.Images = append(r.Images, publish.Image{Region: "global", Image: cmp.Or(there.SelfLink, o.Name), Source: "gs://" + o.Bucket + "/" + name})
	if err := p.share(ctx, &o); err != nil {
		return r, err
	}
	if !o.Deprecate.IsZero() {
		return r, p.deprecate(ctx, o.Name, o.Deprecate)
	}
	return r, nil
}

func (o *Options) check() error {
	var errs []error
	bad := func(format string, a ...any) { errs = append(errs, fmt.Errorf("gcp: "+format, a...)) }
	if architectures[o.Arch] == "" {
		bad("Compute Engine has no machines of architecture %s", o.Arch)
	}
	for what, name := range map[string]string{"image name": o.Name, "family": cmp.Or(o.Family, "x")} {
		if !nameForm.MatchString(name) {
			bad("%s %q: is not up to 63 lower-case letters, digits and dashes that begin with a letter", what, name)
		}
	}
	if o.Bucket == "" {
		bad("no bucket is named; the image goes there first: --bucket")
	}
	for k, v := range o.Labels {
		if !labelForm.MatchString(k) || v != "" && !labelForm.MatchString("x"+v[:min(62, len(v))]) || len(v) > 63 {
			bad("label %s=%s: is not up to 63 lower-case letters, digits, dashes and underscores each", k, v)
		}
	}
	for _, m := range o.Share {
		kind, who, _ := strings.Cut(m, ":")
		if who == "" || !slices.Contains([]string{"user", "group", "serviceAccount", "domain"}, kind) {
			bad("share with %q: is not user:, group:, serviceAccount: or domain: and a name", m)
		}
	}
	return errors.Join(errs...)
}

// shielded is what the firmware's variables hold when an instance first starts.
func shielded(keys []publish.Variable) (*initialState, error) {
	if len(keys) == 0 {
		return nil, nil
	}
	s := &initialState{}
	for _, v := range keys {
		certs, err := v.Certificates()
		if err != nil {
			return nil, err
		}
		for _, c := range certs {
			k := keyFile{c, "X509"}
			switch v.Name {
			case "PK":
				s.PK = &k
			case "KEK":
				s.KEK = append(s.KEK, k)
			case "db":
				s.DB = append(s.DB, k)
			}
		}
	}
	return s, nil
}

func (p *Publisher) find(ctx context.Context, name string) (*gceImage, error) {
	var i gceImage
	err := p.call(ctx, http.MethodGet, p.images(name), nil, &i)
	if status(err) == http.StatusNotFound {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("gcp: looking for image %s: %w", name, err)
	}
	return &i, nil
}

// insert makes the image. A request whose answer was lost is not done twice: its ID is the same.
func (p *Publisher) insert(ctx context.Context, i gceImage) error {
	id, err := uuid.NewRandom()
	if err != nil {
		return err
	}
	err = p.operate(ctx, http.MethodPost, p.images()+"?requestId="+id.String(), i, "making image "+i.Name)
	if status(err) == http.StatusConflict {
		if there, ferr := p.find(ctx, i.Name); ferr == nil && there != nil && there.Labels[labelDisk] == i.Labels[labelDisk] {
			return nil
		}
	}
	return err
}

// ready waits for an image, which somebody else may be making.
func (p *Publisher) ready(ctx context.Context, name string) (*gceImage, error) {
	var image *gceImage
	err := publish.Wait(ctx, func() (bool, error) {
		i, err := p.find(ctx, name)
		switch {
		case err != nil:
			return false, err
		case i == nil || i.Status == "FAILED" || i.Status == "DELETING":
			return false, fmt.Errorf("gcp: image %s was not made, or is gone again", name)
		}
		image = i
		return i.Status != "PENDING", nil
	})
	return image, err
}

type operation struct {
	Name     string `json:"name"`
	Status   string `json:"status"`
	Progress int    `json:"progress"`
	HTTP     int    `json:"httpErrorStatusCode"`
	Error    struct {
		Errors []struct {
			Code    string `json:"code"`
			Message string `json:"message"`
		} `json:"errors"`
	} `json:"error"`
}

// operate begins something and waits for its end.
func (p *Publisher) operate(ctx context.Context, method, to string, in any, what string) error {
	var op operation
	if err := p.call(ctx, method, to, in, &op); err != nil {
		return fmt.Errorf("gcp: %s: %w", what, explain(err, p.project))
	}
	said := 0
	return publish.Wait(ctx, func() (bool, error) {
		if op.Status != "DONE" {
			if err := p.call(ctx, http.MethodGet, address("compute", "projects", p.project, "global", "operations", op.Name), nil, &op); err != nil {
				return false, fmt.Errorf("gcp: waiting: %s: %w", what, explain(err, p.project))
			}
		}
		if op.Progress > said && op.Progress < 100 {
			said = op.Progress
			p.log("%s: %d %%", what, said)
		}
		for _, e := range op.Error.Errors {
			return false, fmt.Errorf("gcp: %s: %w", what, explain(&Fault{op.HTTP, e.Code, e.Message}, p.project))
		}
		return op.Status == "DONE", nil
	})
}

// explain adds what to do.
func explain(err error, project string) error {
	var f *Fault
	if !errors.As(err, &f) {
		return err
	}
	switch {
	case strings.Contains(strings.ToLower(f.Reason), "quota") || strings.Contains(f.Reason, "EXCEEDED"):
		return fmt.Errorf("%w; ask for more at https://console.cloud.google.com/iam-admin/quotas?project=%s, or delete images that nobody needs", err, project)
	case f.Reason == "SERVICE_DISABLED" || f.Reason == "accessNotConfigured":
		return fmt.Errorf("%w; switch it on: gcloud services enable compute.googleapis.com storage.googleapis.com --project %s", err, project)
	}
	return err
}

type policy struct {
	Version  int       `json:"version,omitempty"`
	ETag     string    `json:"etag,omitempty"`
	Bindings []binding `json:"bindings"`
}

type binding struct {
	Role      string   `json:"role"`
	Members   []string `json:"members"`
	Condition any      `json:"condition,omitempty"`
}

// userRole lets its members make disks of an image.
const userRole = "roles/compute.imageUser"

// share lets others use the image, beside those who may already.
func (p *Publisher) share(ctx context.Context, o *Options) error {
	members := slices.Clone(o.Share)
	if o.Public {
		members = append(members, "allAuthenticatedUsers")
	}
	if len(members) == 0 {
		return nil
	}
	var now policy
	if err := p.call(ctx, http.MethodGet, p.images(o.Name, "getIamPolicy")+"?optionsRequestedPolicyVersion=3", nil, &now); err != nil {
		return fmt.Errorf("gcp: sharing image %s: %w", o.Name, err)
	}
	at := slices.IndexFunc(now.Bindings, func(b binding) bool { return b.Role == userRole && b.Condition == nil })
	if at < 0 {
		now.Bindings = append(now.Bindings, binding{Role: userRole})
		at = len(now.Bindings) - 1
	}
	has := len(now.Bindings[at].Members)
	for _, m := range members {
		if !slices.Contains(now.Bindings[at].Members, m) {
			now.Bindings[at].Members = append(now.Bindings[at].Members, m)
		}
	}
	if len(now.Bindings[at].Members) == has {
		return nil
	}
	if err := p.call(ctx, http.MethodPost, p.images(o.Name, "setIamPolicy"), map[string]any{"policy": now}, nil); err != nil {
		return fmt.Errorf("gcp: sharing image %s with %s: %w", o.Name, strings.Join(members, ", "), err)
	}
	return nil
}

// deprecate says from when on an image is out of date. Google keeps a day to come as a note and does nothing on it.
func (p *Publisher) deprecate(ctx context.Context, name string, at time.Time) error {
	state := map[string]string{"state": "DEPRECATED", "deprecated": at.UTC().Format(time.RFC3339)}
	if at.After(time.Now()) {
		state["state"] = "ACTIVE"
	}
	if err := p.operate(ctx, http.MethodPost, p.images(name, "deprecate"), state, "deprecating image "+name); err != nil {
		return err
	}
	if state["state"] == "ACTIVE" {
		p.log("image %s says that it is deprecated from %s on; give the same command again on that day, and its family no longer leads to it", name, at.UTC().Format(time.DateOnly))
		return nil
	}
	p.log("image %s is deprecated since %s", name, at.UTC().Format(time.DateOnly))
	return nil
}

// Published is what was published from a bucket.
type Published struct {
	*Publisher
	Bucket string
}

// Deprecate says from which day on the image is out of date.
func (p Published) Deprecate(ctx context.Context, name string, at time.Time, dryRun bool) ([]publish.Image, error) {
	if err := p.may(ctx, []string{"compute.images.get", "compute.images.deprecate", "compute.globalOperations.get"}, "", nil); err != nil {
		return nil, err
	}
	i, err := p.find(ctx, name)
	if err != nil {
		return nil, err
	}
	if i == nil {
		return nil, fmt.Errorf("gcp: project %s has no image named %s", p.project, name)
	}
	there := []publish.Image{{Region: "global", Image: cmp.Or(i.SelfLink, name)}}
	if dryRun {
		return there, nil
	}
	return there, p.deprecate(ctx, name, at)
}

// Delete removes the image and the object it was made from.
func (p Published) Delete(ctx context.Context, name string, dryRun bool) ([]publish.Image, error) {
	if p.Bucket == "" {
		return nil, errors.New("gcp: no bucket is named; the archive that the image was made from is there: --bucket")
	}
	err := p.may(ctx, []string{"compute.images.get", "compute.images.delete", "compute.globalOperations.get"}, p.Bucket, []string{"storage.objects.get", "storage.objects.delete"})
	if err != nil {
		return nil, err
	}
	i, err := p.find(ctx, name)
	if err != nil {
		return nil, err
	}
	o, err := p.findObject(ctx, p.Bucket, name+".tar.gz")
	if err != nil {
		return nil, err
	}
	where := "gs://" + p.Bucket + "/" + name + ".tar.gz"
	if i == nil && o == nil {
		return nil, fmt.Errorf("gcp: project %s has no image named %s, and there is no %s", p.project, name, where)
	}
	done := publish.Image{Region: "global"}
	if i != nil {
		done.Image = cmp.Or(i.SelfLink, name)
	}
	if o != nil && dryRun {
		done.Source = where
	}
	if dryRun {
		return []publish.Image{done}, nil
	}
	if i != nil {
		if err := p.operate(ctx, http.MethodDelete, p.images(name), nil, "deleting image "+name); err != nil && status(err) != http.StatusNotFound {
			return nil, err
		}
		p.log("image %s is deleted", name)
	}
	if o != nil {
		err := p.call(ctx, http.MethodDelete, address("storage", "b", p.Bucket, "o", name+".tar.gz")+"?ifGenerationMatch="+url.QueryEscape(o.Generation), nil, nil)
		if err != nil && status(err) != http.StatusNotFound {
			return []publish.Image{done}, fmt.Errorf("gcp: image %s is gone; deleting %s: %w; the same command tries again", name, where, err)
		}
		done.Source = where
		p.log("%s is deleted", where)
	}
	return []publish.Image{done}, nil
}
