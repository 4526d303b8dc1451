package fleet

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"
)

// secretKeys are the keys, of a fleet's file and of node configs, whose values nobody else may read.
var secretKeys = []string{
	"passphrase", "psk", "password", "auth", "identity_token", "token", "agent-token", "datastore-endpoint",
	"s3-access-key", "s3-secret-key", "s3-session-token", "etcd-s3-access-key", "etcd-s3-secret-key", "etcd-s3-session-token",
}

// private refuses a file with secrets in it that others on this computer may read. On Windows the modes of files say nothing.
func (c *checker) private() {
	info, err := os.Stat(c.f.file)
	if err != nil || info.Mode().Perm()&0o077 == 0 || runtime.GOOS == "windows" {
		return
	}
	secret := secretIn(c.f.doc.Node(), "")
	if secret == nil {
		return
	}
	c.faults = append(c.faults, at(c.f.file, secret, "%s: is a secret, and others on this computer may read this file (its mode is %04o); run: chmod 600 %s", secret.Value, info.Mode().Perm(), c.f.file))
}

// secretIn gives the key of the first secret.
func secretIn(n *yaml.Node, key string) (found *yaml.Node) {
	if n == nil {
		return nil
	}
	if n.Kind == yaml.ScalarNode && strings.Contains(n.Value, "PRIVATE KEY-----") {
		return &yaml.Node{Value: fmt.Sprintf("%s: a private key", key), Line: n.Line, Column: n.Column}
	}
	if n.Kind != yaml.MappingNode {
		for _, child := range n.Content {
			if found = secretIn(child, key); found != nil {
				return found
			}
		}
		return nil
	}
	pairs(n, func(k, v *yaml.Node) {
		switch {
		case found != nil:
		case v.Kind == yaml.ScalarNode && v.Tag != "!!bool" && v.Value != "" && slices.Contains(secretKeys, k.Value):
			found = k
		default:
			found = secretIn(v, k.Value)
		}
	})
	return found
}
