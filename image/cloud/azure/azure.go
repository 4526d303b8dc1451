// Package azure brings disk images to Microsoft Azure: the parts of a VHD that are not zeros straight into a page blob, then a
// version in a Compute Gallery that starts by UEFI with the release's Secure Boot keys, or a managed image.
//
// Credentials are those of the Azure tools, in the SDK's order: environment, workload and managed identity, az login.
package azure

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/arm"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/cloud"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"

	"github.com/skerry-os/skerry/image/cloud/publish"
)

// Options say what is published, where and for whom. Share are subscriptions.
type Options struct {
	publish.Options
	Place
	Location   string   // "" is the storage account's
	Copies     []string // more regions; a gallery only
	Definition string   // of the gallery's image; "" is skerry-ARCH
	Number     string   // of the gallery's version; "" is that of the release
}

// Place is where an image and its blob are.
type Place struct {
	Group     string
	Account   string // for storage
	Container string // in it; "" is images
	Gallery   string // "": a managed image
}

// Publisher speaks to one subscription.
type Publisher struct {
	subscription string
	cred         azcore.TokenCredential
	options      arm.ClientOptions
	arm          *arm.Client
	log          func(format string, a ...any)
}

// clouds by the names that AZURE_ENVIRONMENT gives them.
var clouds = map[string]cloud.Configuration{
	"": cloud.AzurePublic, "azurepubliccloud": cloud.AzurePublic, "azurechinacloud": cloud.AzureChina, "azureusgovernment": cloud.AzureGovernment,
	"azureusgovernmentcloud": cloud.AzureGovernment,
}

// settings reads which cloud is meant: AZURE_ENVIRONMENT, or for one of another kind ARM_ENDPOINT, the address of its resource
// manager. Only one on this machine may be spoken to without TLS.
func settings() (arm.ClientOptions, error) {
	o := arm.ClientOptions{DisableRPRegistration: true}
	o.Retry = policy.RetryOptions{MaxRetries: 8, RetryDelay: 300 * time.Millisecond, MaxRetryDelay: 10 * time.Second}
	name := os.Getenv("AZURE_ENVIRONMENT")
	conf, known := clouds[strings.ToLower(name)]
	if !known {
		return o, fmt.Errorf("azure: AZURE_ENVIRONMENT %q: is not one of AzurePublicCloud, AzureUSGovernment, AzureChinaCloud", name)
	}
	o.Cloud = conf
	if at := os.Getenv("ARM_ENDPOINT"); at != "" {
		u, err := url.Parse(at)
		if err != nil || u.Host == "" {
			return o, fmt.Errorf("azure: ARM_ENDPOINT %q: is no address", at)
		}
		o.Cloud = cloud.Configuration{
			ActiveDirectoryAuthorityHost: conf.ActiveDirectoryAuthorityHost,
			Services: map[cloud.ServiceName]cloud.ServiceConfiguration{
				cloud.ResourceManager: {Endpoint: strings.TrimSuffix(at, "/"), Audience: conf.Services[cloud.ResourceManager].Audience},
			},
		}
		o.InsecureAllowCredentialWithHTTP = u.Hostname() == "127.0.0.1" || u.Hostname() == "localhost"
	}
	return o, nil
}

// Open finds credentials. Without a subscription it is AZURE_SUBSCRIPTION_ID, or the only one that they may see.
func Open(ctx context.Context, subscription string, log func(string, ...any)) (*Publisher, error) {
	o, err := settings()
	if err != nil {
		return nil, err
	}
	cred, err := azidentity.NewDefaultAzureCredential(&azidentity.DefaultAzureCredentialOptions{ClientOptions: o.ClientOptions})
	if err != nil {
		return nil, fmt.Errorf("azure: %w; log in by: az login", err)
	}
	return open(ctx, subscription, cred, o, log)
}

func open(ctx context.Context, subscription string, cred azcore.TokenCredential, o arm.ClientOptions, log func(string, ...any)) (*Publisher, error) {
	p := &Publisher{subscription: subscription, cred: cred, options: o, log: log}
	var err error
	if p.arm, err = arm.NewClient("skerry", "v1.0.0", cred, &o); err != nil {
		return nil, fmt.Errorf("azure: %w", err)
	}
	if p.subscription == "" {
		p.subscription = os.Getenv("AZURE_SUBSCRIPTION_ID")
	}
	if p.subscription != "" {
		return p, nil
	}
	var in struct {
		Value []struct {
			ID   string `json:"subscriptionId"`
			Name string `json:"displayName"`
		} `json:"value"`
	}
	if err := p.get(ctx, "/subscriptions", "2022-12-01", &in); err != nil {
		return nil, fmt.Errorf("azure: asking which subscriptions there are: %w", short(err))
	}
	if len(in.Value) != 1 {
		names := ""
		for _, s := range in.Value {
			names += "\n" + s.ID + "  " + s.Name
		}
		return nil, fmt.Errorf("azure: the credentials see %d subscriptions; name one by --subscription or AZURE_SUBSCRIPTION_ID%s", len(in.Value), names)
	}
	p.subscription = in.Value[0].ID
	return p, nil
}

// get reads something of the resource manager for which there is no client here.
func (p *Publisher) get(ctx context.Context, path, version string, out any) error {
	r, err := runtime.NewRequest(ctx, http.MethodGet, p.arm.Endpoint()+path+"?api-version="+version)
	if err != nil {
		return err
	}
	resp, err := p.arm.Pipeline().Do(r)
	if err != nil {
		return err
	}
	if !runtime.HasStatusCode(resp, http.StatusOK) {
		return runtime.NewResponseError(resp)
	}
	return runtime.UnmarshalAsJSON(resp, out)
}

// id is the path of a resource in a resource group.
func (p *Publisher) id(group string, more ...string) string {
	path := "/subscriptions/" + url.PathEscape(p.subscription) + "/resourceGroups/" + url.PathEscape(group)
	if len(more) > 0 {
		path += "/providers/" + more[0]
		for _, m := range more[1:] {
			path += "/" + url.PathEscape(m)
		}
	}
	return path
}

// storageAccount is what is asked of one.
type storageAccount struct {
	ID         string `json:"id"`
	Location   string `json:"location"`
	Properties struct {
		Endpoints struct {
			Blob string `json:"blob"`
		} `json:"primaryEndpoints"`
	} `json:"properties"`
}

func (p *Publisher) storage(ctx context.Context, at Place) (*storageAccount, error) {
	var s storageAccount
	err := p.get(ctx, p.id(at.Group, "Microsoft.Storage/storageAccounts", at.Account), "2023-05-01", &s)
	switch {
	case status(err) == http.StatusNotFound:
		return nil, fmt.Errorf("azure: resource group %s has no storage account %s; make one: az storage account create --resource-group %s --name %s", at.Group, at.Account, at.Group, at.Account)
	case err != nil:
		return nil, fmt.Errorf("azure: storage account %s: %w", at.Account, short(err))
	case s.Properties.Endpoints.Blob == "":
		return nil, fmt.Errorf("azure: storage account %s keeps no blobs", at.Account)
	}
	return &s, nil
}

func status(err error) int {
	var r *azcore.ResponseError
	if errors.As(err, &r) {
		return r.StatusCode
	}
	return 0
}

// forbidden is how the resource manager names the right that is missing.
var forbidden = regexp.MustCompile(`perform action '([^']+)'`)

// short takes the SDK's wrapping off, which is the whole answer, and says what to do.
func short(err error) error {
	var auth *azidentity.AuthenticationFailedError
	if errors.As(err, &auth) || status(err) == http.StatusUnauthorized {
		return fmt.Errorf("the credentials are not accepted, or have expired; log in by: az login%w", silent{err})
	}
	var r *azcore.ResponseError
	if !errors.As(err, &r) {
		if strings.HasPrefix(err.Error(), "DefaultAzureCredential: ") { // has no type of its own
			return fmt.Errorf("%w\nlog in by: az login", err)
		}
		return err
	}
	message := ""
	if r.RawResponse != nil {
		if body, berr := runtime.Payload(r.RawResponse); berr == nil {
			var in struct {
				Error struct {
					Message string `json:"message"`
				} `json:"error"`
			}
			if json.Unmarshal(body, &in) == nil {
				message = in.Error.Message
			}
			if _, after, ok := strings.Cut(string(body), "<Message>"); ok { // blobs answer in XML
				message, _, _ = strings.Cut(after, "\n")
				message, _, _ = strings.Cut(message, "</Message>")
			}
		}
	}
	text := fmt.Sprintf("%d %s: %s", r.StatusCode, r.ErrorCode, message)
	if m := forbidden.FindStringSubmatch(message); m != nil {
		text += "; " + roleFor(m[1])
	} else if strings.HasPrefix(r.ErrorCode, "AuthorizationPermission") {
		text += "; " + roleFor(blobs+"write")
	}
	if strings.Contains(strings.ToLower(r.ErrorCode), "quota") {
		text += "; ask for more at https://portal.azure.com under Quotas, or delete images that nobody needs"
	}
	return fmt.Errorf("%s%w", text, silent{err})
}

// silent keeps an error for errors.As without printing it again.
type silent struct{ err error }

func (silent) Error() string   { return "" }
func (s silent) Unwrap() error { return s.err }
