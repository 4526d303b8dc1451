// Package helm installs, upgrades and uninstalls charts as HelmChart and HelmChartConfig objects say: helm.cattle.io/v1, with K3s's
// fields. Helm's own library does it in this process: no pod, no image, no shell, and a chart may be what brings the network
// up. Releases are Helm's own, in Secrets: `helm list` shows them and an installation taken over from K3s goes on as it was.
//
// A release carries a digest of what it was made of. What fits is left alone, so that a restart upgrades nothing; what somebody
// uninstalled comes back.
//
// Of K3s's fields these have no meaning here and are let pass: bootstrap, jobImage, helmVersion, podSecurityContext,
// securityContext and driver (there is no pod to configure). A chart is a URL, an oci:// reference, a name in repo, or
// chartContent.
package helm

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Group is K3s's API group.
const Group = "helm.cattle.io"

var (
	charts  = schema.GroupVersionResource{Group: Group, Version: "v1", Resource: "helmcharts"}
	configs = schema.GroupVersionResource{Group: Group, Version: "v1", Resource: "helmchartconfigs"}
)

// chart is a HelmChart, as much of it as is used.
type chart struct {
	metav1.ObjectMeta `json:"metadata"`
	Spec              chartSpec `json:"spec"`
}

type chartSpec struct {
	TargetNamespace       string                        `json:"targetNamespace"`
	CreateNamespace       bool                          `json:"createNamespace"`
	Chart                 string                        `json:"chart"`
	Version               string                        `json:"version"`
	Repo                  string                        `json:"repo"`
	RepoCA                string                        `json:"repoCA"`
	RepoCAConfigMap       *reference                    `json:"repoCAConfigMap"`
	Set                   map[string]intstr.IntOrString `json:"set"`
	ValuesContent         string                        `json:"valuesContent"`
	ValuesSecrets         []secretValues                `json:"valuesSecrets"`
	ChartContent          string                        `json:"chartContent"`
	BackOffLimit          *int                          `json:"backOffLimit"`
	Timeout               *metav1.Duration              `json:"timeout"`
	FailurePolicy         string                        `json:"failurePolicy"`
	AuthSecret            *reference                    `json:"authSecret"`
	AuthPassCredentials   bool                          `json:"authPassCredentials"`
	InsecureSkipTLSVerify bool                          `json:"insecureSkipTLSVerify"`
	PlainHTTP             bool                          `json:"plainHTTP"`
	DockerRegistrySecret  *reference                    `json:"dockerRegistrySecret"`
	TakeOwnership         bool                          `json:"takeOwnership"`
}

// chartConfig is a HelmChartConfig: what a person adds to a chart of the same name that is not theirs to change.
type chartConfig struct {
	Spec struct {
		ValuesContent string         `json:"valuesContent"`
		ValuesSecrets []secretValues `json:"valuesSecrets"`
		FailurePolicy string         `json:"failurePolicy"`
	} `json:"spec"`
}

type reference struct {
	Name string `json:"name"`
}

type secretValues struct {
	Name          string   `json:"name"`
	Keys          []string `json:"keys"`
	IgnoreUpdates bool     `json:"ignoreUpdates"`
}

const (
	reinstall = "reinstall" // the default: what cannot be upgraded is uninstalled and installed again
	abort     = "abort"     // leave it as it is, for a person

	defaultTimeout = 5 * time.Minute
)

// decode reads an object into one of the types above.
func decode(u *unstructured.Unstructured, into any) error {
	data, err := u.MarshalJSON()
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, into); err != nil {
		return fmt.Errorf("%s %s/%s: %w", u.GetKind(), u.GetNamespace(), u.GetName(), err)
	}
	return nil
}

func (c *chart) namespace() string {
	if c.Spec.TargetNamespace != "" {
		return c.Spec.TargetNamespace
	}
	return c.Namespace
}

func (c *chart) timeout() time.Duration {
	if c.Spec.Timeout != nil && c.Spec.Timeout.Duration > 0 {
		return c.Spec.Timeout.Duration
	}
	return defaultTimeout
}

// policy is the chart's, unless its HelmChartConfig has another.
func (c *chart) policy(config *chartConfig) string {
	for _, p := range []string{config.Spec.FailurePolicy, c.Spec.FailurePolicy} {
		if p != "" {
			return strings.ToLower(p)
		}
	}
	return reinstall
}
