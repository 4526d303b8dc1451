package pki

import (
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"strings"

	"gopkg.in/yaml.v3"
)

// kubeconfig is as much of Kubernetes' type as is written here. A component's names files, which it reads again when they
// change; a person's holds everything.
type kubeconfig struct {
	APIVersion     string         `yaml:"apiVersion"`
	Kind           string         `yaml:"kind"`
	Clusters       []namedCluster `yaml:"clusters"`
	Users          []namedUser    `yaml:"users"`
	Contexts       []namedContext `yaml:"contexts"`
	CurrentContext string         `yaml:"current-context"`
}

type namedCluster struct {
	Name    string `yaml:"name"`
	Cluster struct {
		Server string `yaml:"server"`
		CAFile string `yaml:"certificate-authority,omitempty"`
		CAData string `yaml:"certificate-authority-data,omitempty"`
	} `yaml:"cluster"`
}

type namedUser struct {
	Name string `yaml:"name"`
	User struct {
		CertFile string `yaml:"client-certificate,omitempty"`
		KeyFile  string `yaml:"client-key,omitempty"`
		CertData string `yaml:"client-certificate-data,omitempty"`
		KeyData  string `yaml:"client-key-data,omitempty"`
	} `yaml:"user"`
}

type namedContext struct {
	Name    string `yaml:"name"`
	Context struct {
		Cluster string `yaml:"cluster"`
		User    string `yaml:"user"`
	} `yaml:"context"`
}

// pairOf is where the certificate and key of a component's kubeconfig are.
func pairOf(kubeconfig string) string {
	return strings.TrimSuffix(kubeconfig, ".kubeconfig") + "-client.pem"
}

func newKubeconfig() *kubeconfig {
	k := &kubeconfig{
		APIVersion: "v1", Kind: "Config", CurrentContext: "default",
		Clusters: make([]namedCluster, 1), Users: make([]namedUser, 1), Contexts: make([]namedContext, 1),
	}
	k.Clusters[0].Name, k.Users[0].Name, k.Contexts[0].Name = "default", "default", "default"
	k.Contexts[0].Context.Cluster, k.Contexts[0].Context.User = "default", "default"
	return k
}

func (k *kubeconfig) text() ([]byte, error) {
	var out strings.Builder
	enc := yaml.NewEncoder(&out)
	enc.SetIndent(2)
	err := enc.Encode(k)
	return []byte(out.String()), err
}

// writeKubeconfig writes a component's kubeconfig unless it is there.
func writeKubeconfig(name, server, caFile string) error {
	k := newKubeconfig()
	k.Clusters[0].Cluster.Server, k.Clusters[0].Cluster.CAFile = server, caFile
	k.Users[0].User.CertFile, k.Users[0].User.KeyFile = pairOf(name), pairOf(name)
	text, err := k.text()
	if err != nil {
		return err
	}
	return writeIfChanged(name, text)
}

// Embed turns a component's kubeconfig into one that needs no other files, for a person to carry away. It holds the certificate
// of this moment.
func Embed(name string) ([]byte, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	var k kubeconfig
	if err := yaml.Unmarshal(data, &k); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if len(k.Clusters) != 1 || len(k.Users) != 1 {
		return nil, fmt.Errorf("%s: is not ours", name)
	}
	cluster, user := &k.Clusters[0].Cluster, &k.Users[0].User
	ca, err := os.ReadFile(cluster.CAFile)
	if err != nil {
		return nil, err
	}
	p, err := readPair(user.CertFile)
	if err != nil {
		return nil, err
	}
	cluster.CAFile, user.CertFile, user.KeyFile = "", "", ""
	cluster.CAData = base64.StdEncoding.EncodeToString(ca)
	user.CertData = base64.StdEncoding.EncodeToString(append(p.certPEM(), p.chain...))
	user.KeyData = base64.StdEncoding.EncodeToString(p.keyPEM())
	return k.text()
}

// ReadServer tells which server a component's kubeconfig leads to.
func ReadServer(name string) (string, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return "", err
	}
	var k kubeconfig
	if err := yaml.Unmarshal(data, &k); err != nil {
		return "", fmt.Errorf("%s: %w", name, err)
	}
	if len(k.Clusters) == 0 {
		return "", fmt.Errorf("%s: %w", name, errors.New("names no server"))
	}
	return k.Clusters[0].Cluster.Server, nil
}
