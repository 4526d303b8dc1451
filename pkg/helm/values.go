package helm

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/strvals"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/yaml"
)

// values merges what a chart is given, from the weakest: the HelmChart's values, its Secrets', the HelmChartConfig's, its
// Secrets', and set. Maps are merged; anything else replaces what was there. counted leaves out the Secrets whose updates are
// ignored: a change of theirs makes no new release.
func values(ctx context.Context, client kubernetes.Interface, c *chart, config *chartConfig, counted bool) (map[string]any, error) {
	all := map[string]any{}
	add := func(where, text string) error {
		var v map[string]any
		if err := yaml.Unmarshal([]byte(text), &v); err != nil {
			return fmt.Errorf("%s: %w", where, err)
		}
		all = loader.MergeMaps(all, v)
		return nil
	}
	secrets := func(list []secretValues) error {
		for _, s := range list {
			if counted && s.IgnoreUpdates {
				continue
			}
			secret, err := client.CoreV1().Secrets(c.Namespace).Get(ctx, s.Name, metav1.GetOptions{})
			if err != nil {
				return fmt.Errorf("spec.valuesSecrets: %w", err)
			}
			keys := s.Keys
			if len(keys) == 0 {
				keys = slices.Sorted(maps.Keys(secret.Data))
			}
			for _, k := range keys {
				if err := add("secret "+s.Name+": "+k, string(secret.Data[k])); err != nil {
					return err
				}
			}
		}
		return nil
	}
	for _, from := range []func() error{
		func() error { return add("spec.valuesContent", c.Spec.ValuesContent) },
		func() error { return secrets(c.Spec.ValuesSecrets) },
		func() error { return add("HelmChartConfig: spec.valuesContent", config.Spec.ValuesContent) },
		func() error { return secrets(config.Spec.ValuesSecrets) },
	} {
		if err := from(); err != nil {
			return nil, err
		}
	}
	for _, key := range slices.Sorted(maps.Keys(c.Spec.Set)) {
		v := c.Spec.Set[key]
		parse := strvals.ParseIntoString
		if v.Type == intstr.Int || v.StrVal == "true" || v.StrVal == "false" || v.StrVal == "null" {
			parse = strvals.ParseInto // with its type, as K3s has it
		}
		if err := parse(key+"="+v.String(), all); err != nil {
			return nil, fmt.Errorf("spec.set: %s: %w", key, err)
		}
	}
	return all, nil
}

// follows says whether a Secret's change makes a new release.
func follows(c *chart, config *chartConfig) bool {
	return slices.ContainsFunc(slices.Concat(c.Spec.ValuesSecrets, config.Spec.ValuesSecrets), func(s secretValues) bool { return !s.IgnoreUpdates })
}

// inputs digests all that decides what a release is; a label's value has room for half of it.
func inputs(s chartSpec, values map[string]any) (string, error) {
	s.ValuesSecrets, s.ValuesContent, s.Set = nil, "", nil // they are in values
	s.Timeout, s.FailurePolicy, s.BackOffLimit = nil, "", nil
	s.AuthSecret, s.DockerRegistrySecret = nil, nil // who may fetch it does not change it
	data, err := json.Marshal([]any{s, values})
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:16]), nil
}
