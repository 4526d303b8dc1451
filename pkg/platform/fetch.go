package platform

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"syscall"
	"time"
)

// maxAnswer bounds what is read of an answer. User data is 64 KiB at most on Azure, 256 KiB on Google.
const maxAnswer = 1 << 20

// client talks to metadata services: straight, one hop, no proxy.
var client = &http.Client{
	Transport: &http.Transport{
		DialContext:           (&net.Dialer{Timeout: 3 * time.Second}).DialContext,
		ResponseHeaderTimeout: 5 * time.Second,
		DisableKeepAlives:     true,
	},
	CheckRedirect: func(*http.Request, []*http.Request) error { return errors.New("answers with a redirect") },
}

// errNone is what does not exist there.
var errNone = errors.New("is not there")

// request does one request and gives the body of an answer that is 200. headers are name, value, name, value.
func request(ctx context.Context, method, address, body string, headers ...string) ([]byte, http.Header, error) {
	req, err := http.NewRequestWithContext(ctx, method, address, strings.NewReader(body))
	if err != nil {
		return nil, nil, err
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, nil, plain(err)
	}
	defer func() { _ = resp.Body.Close() }()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	switch {
	case resp.StatusCode == http.StatusNotFound:
		return nil, resp.Header, fmt.Errorf("%s: %w", req.URL.Path, errNone)
	case resp.StatusCode == http.StatusForbidden || resp.StatusCode == http.StatusUnauthorized:
		return nil, resp.Header, fmt.Errorf("%s: %w", address, refused{"answers " + resp.Status})
	case resp.StatusCode != http.StatusOK:
		return nil, resp.Header, fmt.Errorf("%s: answers %s", address, resp.Status)
	case err != nil:
		return nil, resp.Header, fmt.Errorf("%s: %w", address, err)
	case len(data) > maxAnswer:
		return nil, resp.Header, fmt.Errorf("%s: %w", address, refused{"answers with more than 1 MiB"})
	}
	return data, resp.Header, nil
}

// plain takes the verb and the quotes off an error of the client.
func plain(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return fmt.Errorf("%s: %w", u.URL, u.Err)
	}
	return err
}

// optional turns what is not there into nothing.
func optional(data []byte, _ http.Header, err error) ([]byte, error) {
	if errors.Is(err, errNone) {
		return nil, nil
	}
	return data, err
}

func decode(address string, data []byte, v any) error {
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("%s: is not the JSON it is known for: %w", address, err)
	}
	return nil
}

// linkLocal is where metadata services answer.
const linkLocal = "http://169.254.169.254"

// aws asks IMDSv2. The first version of the service, which any program that can be talked into a GET can read, is never used.
// docs.aws.amazon.com/AWSEC2/latest/UserGuide/configuring-instance-metadata-service.html
func aws(ctx context.Context, p *Place) (*Instance, error) {
	base := linkLocal
	token, _, err := request(ctx, http.MethodPut, base+"/latest/api/token", "", "X-aws-ec2-metadata-token-ttl-seconds", "300")
	var unreachable net.Error
	if errors.As(err, &unreachable) || errors.Is(err, syscall.ENETUNREACH) {
		base = "http://[fd00:ec2::254]" // subnets without IPv4
		if again, _, err6 := request(ctx, http.MethodPut, base+"/latest/api/token", "", "X-aws-ec2-metadata-token-ttl-seconds", "300"); err6 == nil {
			token, err = again, nil
		}
	}
	switch {
	case errors.As(err, new(refused)):
		return nil, fmt.Errorf("%w; turn the instance's metadata service on", err)
	case err != nil:
		return nil, err
	}
	get := func(path string) ([]byte, http.Header, error) {
		return request(ctx, http.MethodGet, base+path, "", "X-aws-ec2-metadata-token", string(token))
	}
	const document = "/latest/dynamic/instance-identity/document"
	data, _, err := get(document)
	if err != nil {
		return nil, err
	}
	var d struct{ InstanceID, InstanceType, Region, AvailabilityZone string }
	if err := decode(document, data, &d); err != nil {
		return nil, err
	}
	if d.InstanceID == "" || d.AvailabilityZone == "" {
		return nil, fmt.Errorf("%s: lacks instanceId or availabilityZone", document)
	}
	// Its addresses may be another's tomorrow; its id is its own, and what the console shows.
	i := &Instance{
		ID: d.InstanceID, Hostname: hostname(d.InstanceID), Type: d.InstanceType, Region: d.Region, Zone: d.AvailabilityZone,
		ProviderID: "aws:///" + d.AvailabilityZone + "/" + d.InstanceID,
	}
	if i.UserData, err = optional(get("/latest/user-data")); err != nil || !p.SSHKeys {
		return i, err
	}
	// The list has a number and a name for each; an instance that was started without a key has no list.
	const keys = "/latest/meta-data/public-keys/"
	list, err := optional(get(keys))
	if err != nil {
		return i, err
	}
	for _, line := range keyLines(string(list)) {
		number, _, _ := strings.Cut(line, "=")
		key, err := optional(get(keys + number + "/openssh-key"))
		if err != nil {
			return i, err
		}
		i.SSHKeys = append(i.SSHKeys, keyLines(string(key))...)
	}
	return i, nil
}

// gcp asks the metadata server. cloud.google.com/compute/docs/metadata/querying-metadata
func gcp(ctx context.Context, p *Place) (*Instance, error) {
	const path = "/computeMetadata/v1/"
	get := func(what string) ([]byte, error) {
		data, header, err := request(ctx, http.MethodGet, linkLocal+path+what, "", "Metadata-Flavor", "Google")
		if err == nil && header.Get("Metadata-Flavor") != "Google" {
			err = fmt.Errorf("%s: does not answer as Google's metadata server", linkLocal)
		}
		return data, err
	}
	data, err := get("instance/?recursive=true")
	if err != nil {
		return nil, err
	}
	var d struct {
		ID                      json.Number
		Name, MachineType, Zone string // the last two behind projects/NUMBER/…/
		Attributes              map[string]string
	}
	if err := decode(path+"instance/", data, &d); err != nil {
		return nil, err
	}
	project, err := get("project/project-id")
	if err != nil {
		return nil, err
	}
	zone := last(d.Zone)
	if d.Name == "" || zone == "" {
		return nil, errors.New("metadata of the instance lacks its name or zone")
	}
	region := zone
	if n := strings.LastIndexByte(zone, '-'); n > 0 {
		region = zone[:n]
	}
	keys := d.Attributes["ssh-keys"]
	if p.SSHKeys && !strings.EqualFold(d.Attributes["block-project-ssh-keys"], "true") {
		shared, err := get("project/attributes/ssh-keys")
		if err != nil && !errors.Is(err, errNone) {
			return nil, err
		}
		keys += "\n" + string(shared)
	}
	return &Instance{
		SSHKeys: gcpKeys(keys),
		ID:      d.ID.String(), Hostname: hostname(d.Name), Type: last(d.MachineType), Region: region, Zone: zone,
		ProviderID: "gce://" + string(project) + "/" + zone + "/" + d.Name, UserData: []byte(d.Attributes["user-data"]),
	}, nil
}

// gcpKeys reads lines of USER:KEY. Keys that Google's tools made for a few minutes are left out: their end is not watched here.
// cloud.google.com/compute/docs/connect/add-ssh-keys
func gcpKeys(text string) (out []string) {
	for _, line := range keyLines(text) {
		if _, key, ok := strings.Cut(line, ":"); ok && !strings.Contains(key, "google-ssh") {
			out = append(out, key)
		}
	}
	return out
}

func last(path string) string { return path[strings.LastIndexByte(path, '/')+1:] }

// openstack looks for the config drive, which some clouds have instead of the service.
// docs.openstack.org/nova/latest/user/metadata.html
func openstack(ctx context.Context, p *Place) (*Instance, error) {
	i, found, err := fromVolume(ctx, p, "config-2")
	if found || err != nil {
		return i, err
	}
	get := func(path string) ([]byte, http.Header, error) {
		return request(ctx, http.MethodGet, linkLocal+path, "")
	}
	data, _, err := get("/openstack/latest/meta_data.json")
	if err != nil {
		return nil, fmt.Errorf("no volume config-2, and %w", err)
	}
	if i, err = novaInstance(data); err != nil {
		return nil, err
	}
	kind, err := optional(get("/latest/meta-data/instance-type"))
	if err != nil {
		return nil, err
	}
	i.Type = strings.TrimSpace(string(kind))
	i.UserData, err = optional(get("/openstack/latest/user_data"))
	return i, err
}

func novaInstance(data []byte) (*Instance, error) {
	var d struct {
		UUID     string            `json:"uuid"`
		Name     string            `json:"name"`
		Hostname string            `json:"hostname"`
		Zone     string            `json:"availability_zone"`
		Keys     map[string]string `json:"public_keys"`
	}
	if err := decode("meta_data.json", data, &d); err != nil {
		return nil, err
	}
	if d.UUID == "" {
		return nil, errors.New("meta_data.json: lacks uuid")
	}
	name := hostname(d.Hostname)
	if name == "" {
		name = hostname(d.Name)
	}
	i := &Instance{ID: d.UUID, Hostname: name, Zone: d.Zone, ProviderID: "openstack:///" + d.UUID}
	for _, name := range slices.Sorted(maps.Keys(d.Keys)) {
		i.SSHKeys = append(i.SSHKeys, keyLines(d.Keys[name])...)
	}
	return i, nil
}

// fromURL fetches a node config from the address that the kernel was told. Only TLS with a certificate that the machine
// trusts will do: a node config holds the cluster's token.
func fromURL(ctx context.Context, p *Place) (*Instance, error) {
	u, err := url.Parse(p.URL)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil {
		return nil, refused{fmt.Sprintf("skerry.config=%s is not an address to take secrets from; write https://HOST/PATH", p.URL)}
	}
	data, _, err := request(ctx, http.MethodGet, u.String(), "")
	if err == nil && len(data) == 0 {
		err = fmt.Errorf("%s: answers with nothing", u)
	}
	return &Instance{ID: u.String(), UserData: data}, err
}

// volumes waits for a volume of either kind.
func volumes(ctx context.Context, p *Place) (*Instance, error) {
	i, found, err := fromVolume(ctx, p, "cidata", "config-2")
	if err == nil && !found {
		return nil, errors.New("no volume labelled cidata or config-2 is attached")
	}
	return i, err
}

// fromVolume reads a NoCloud volume (cidata) or an OpenStack one (config-2), as it has the files of either.
// cloudinit.readthedocs.io/en/latest/reference/datasources/nocloud.html
func fromVolume(ctx context.Context, p *Place, labels ...string) (*Instance, bool, error) {
	if p.Volume == nil {
		return nil, false, nil
	}
	files, found, done, err := p.Volume(ctx, labels...)
	if err != nil || !found {
		return nil, false, err
	}
	defer done()
	// A file that cannot be read is not one that is not there: what is answered now is kept for good.
	nova, err := optionalFile(files, "openstack/latest/meta_data.json")
	if err != nil {
		return nil, true, err
	}
	if nova != nil {
		i, err := novaInstance(nova)
		if err != nil {
			return nil, true, err
		}
		i.UserData, err = optionalFile(files, "openstack/latest/user_data")
		return i, true, err
	}
	meta, err := optionalFile(files, "meta-data")
	if err != nil {
		return nil, true, err
	}
	i, err := noCloudInstance(meta)
	if err != nil {
		return nil, true, err
	}
	i.UserData, err = optionalFile(files, "user-data")
	return i, true, err
}

func optionalFile(files fs.FS, name string) ([]byte, error) {
	f, err := files.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, maxAnswer+1))
	if err == nil && len(data) > maxAnswer {
		err = refused{name + ": is more than 1 MiB"}
	}
	return data, err
}
