package pki

import (
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/skerry-os/skerry/pkg/atomicfile"
)

// kubeconfig is as much of Kubernetes' type as is written here.
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
		CAData string `yaml:"certificate-authority-data"`
	} `yaml:"cluster"`
}

type namedUser struct {
	Name string `yaml:"name"`
	User struct {
		CertData string `yaml:"client-certificate-data"`
		KeyData  string `yaml:"client-key-data"`
	} `yaml:"user"`
}

type namedContext struct {
	Name    string `yaml:"name"`
	Context struct {
		Cluster string `yaml:"cluster"`
		User    string `yaml:"user"`
	} `yaml:"context"`
}

// ensureKubeconfig writes a kubeconfig for l unless the one that is there still fits. The certificate lives nowhere else.
func ensureKubeconfig(c Config, name string, serverCA, clientCA *authority, l leaf) error {
	server := fmt.Sprintf("https://127.0.0.1:%d", c.Port)
	caData := base64.StdEncoding.EncodeToString(serverCA.certPEM())
	old, err := readKubeconfig(name)
	if err == nil && old.server == server && old.caData == caData && l.fits(c.Now, old.pair, clientCA) {
		return os.Chmod(name, 0o600)
	}
	p, err := newPair(l.template(c.Now), clientCA)
	if err != nil {
		return err
	}
	var k kubeconfig
	k.APIVersion, k.Kind = "v1", "Config"
	k.Clusters = make([]namedCluster, 1)
	k.Clusters[0].Name = "default"
	k.Clusters[0].Cluster.Server = server
	k.Clusters[0].Cluster.CAData = caData
	k.Users = make([]namedUser, 1)
	k.Users[0].Name = "default"
	k.Users[0].User.CertData = base64.StdEncoding.EncodeToString(p.certPEM())
	k.Users[0].User.KeyData = base64.StdEncoding.EncodeToString(p.keyPEM())
	k.Contexts = make([]namedContext, 1)
	k.Contexts[0].Name = "default"
	k.Contexts[0].Context.Cluster, k.Contexts[0].Context.User = "default", "default"
	k.CurrentContext = "default"
	var out strings.Builder
	enc := yaml.NewEncoder(&out)
	enc.SetIndent(2)
	if err := enc.Encode(k); err != nil {
		return err
	}
	return atomicfile.Write(name, []byte(out.String()), 0o600)
}

type readBack struct {
	server, caData string
	pair           *pair
}

func readKubeconfig(name string) (*readBack, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	var k kubeconfig
	if err := yaml.Unmarshal(data, &k); err != nil {
		return nil, err
	}
	if len(k.Clusters) != 1 || len(k.Users) != 1 {
		return nil, errors.New("is not ours")
	}
	cert, err := base64.StdEncoding.DecodeString(k.Users[0].User.CertData)
	if err != nil {
		return nil, err
	}
	key, err := base64.StdEncoding.DecodeString(k.Users[0].User.KeyData)
	if err != nil {
		return nil, err
	}
	p, err := parsePair(cert, key)
	if err != nil {
		return nil, err
	}
	return &readBack{server: k.Clusters[0].Cluster.Server, caData: k.Clusters[0].Cluster.CAData, pair: p}, nil
}
