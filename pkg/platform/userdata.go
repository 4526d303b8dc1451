package platform

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"
)

// Config is what user data asks for.
type Config struct {
	Node     []byte   // a node config, laid over the image's own
	Files    []File   // to write once
	Warnings []string // what was asked for and is not done
	SSHKeys  []string // who may log in; for debug releases
}

// File is one that user data brings.
type File struct {
	Path string
	Mode fs.FileMode
	Data []byte
}

// Folders are those that user data may write files in: settings of the node, and manifests of a server.
var Folders = []string{"/etc/skerry/", "/var/lib/skerry/server/manifests/"}

// ReadUserData reads user data: a node config, or a subset of cloud-config:
//
//	#cloud-config
//	hostname: north-1                 # or fqdn, of which the first part counts
//	ntp: {servers: [192.0.2.1]}       # or enabled: false
//	write_files:                      # in Folders only; content as text, or with encoding b64, gzip, gz+b64
//	  - {path: /etc/skerry/registries.yaml, permissions: "0600", content: "…"}
//	ssh_authorized_keys: [ssh-ed25519 …]   # on a debug release, which has SSH
//	skerry: {role: agent, …}          # a node config without apiVersion and kind
//
// All else is left out with a warning: a node has no users, no shell (but on a debug release) and no packages. Scripts and multipart data are refused.
// Either may be compressed by gzip.
func ReadUserData(data []byte) (*Config, error) {
	if bytes.HasPrefix(data, []byte{0x1f, 0x8b}) {
		var err error
		if data, err = unzip(data); err != nil {
			return nil, fmt.Errorf("user data: %w", err)
		}
	}
	head := strings.TrimSpace(string(data[:min(len(data), 200)]))
	switch {
	case head == "":
		return &Config{}, nil
	case strings.HasPrefix(head, "#cloud-config"):
		return cloudConfig(data)
	case strings.HasPrefix(head, "#!"), strings.HasPrefix(head, "#cloud-boothook"), strings.HasPrefix(head, "## template"):
		return nil, errors.New("user data: is a script, and a node has no shell to run it; write a node config")
	case strings.HasPrefix(head, "Content-Type:"), strings.HasPrefix(head, "MIME-Version:"), strings.HasPrefix(head, "#include"):
		return nil, errors.New("user data: is of several parts; write one node config")
	}
	return &Config{Node: data}, nil
}

func unzip(data []byte) ([]byte, error) {
	z, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	out, err := io.ReadAll(io.LimitReader(z, maxAnswer+1))
	if err == nil && len(out) > maxAnswer {
		err = errors.New("is more than 1 MiB unpacked")
	}
	return out, err
}

// fromCloudConfig are the keys that mean something here.
type fromCloudConfig struct {
	Hostname string `yaml:"hostname"`
	FQDN     string `yaml:"fqdn"`
	NTP      struct {
		Enabled *bool    `yaml:"enabled"`
		Servers []string `yaml:"servers"`
	} `yaml:"ntp"`
	WriteFiles []struct {
		Path        string `yaml:"path"`
		Permissions string `yaml:"permissions"`
		Encoding    string `yaml:"encoding"`
		Content     string `yaml:"content"`
	} `yaml:"write_files"`
	SSHKeys []string  `yaml:"ssh_authorized_keys"`
	Skerry  yaml.Node `yaml:"skerry"`
}

var known = map[string]bool{
	"hostname": true, "fqdn": true, "ntp": true, "write_files": true, "ssh_authorized_keys": true, "skerry": true,
	"preserve_hostname": true, "manage_etc_hosts": true, "prefer_fqdn_over_hostname": true, // say nothing that is not so anyway
}

func cloudConfig(data []byte) (*Config, error) {
	var in fromCloudConfig
	var all map[string]yaml.Node
	err := yaml.Unmarshal(data, &all)
	if err == nil {
		err = yaml.Unmarshal(data, &in)
	}
	if err != nil {
		return nil, fmt.Errorf("user data: cloud-config: %w", err)
	}
	out := &Config{SSHKeys: in.SSHKeys}
	for key := range all {
		if !known[key] {
			out.Warnings = append(out.Warnings, fmt.Sprintf("user data: cloud-config: %s is not done here", key))
		}
	}
	node := map[string]any{}
	if in.Skerry.Kind != 0 {
		if err := in.Skerry.Decode(&node); err != nil {
			return nil, fmt.Errorf("user data: cloud-config: skerry: %w", err)
		}
	}
	name := in.Hostname
	if name == "" {
		name = in.FQDN
	}
	if name != "" && node["hostname"] == nil {
		node["hostname"] = hostname(name)
	}
	if node["ntp"] == nil {
		if in.NTP.Enabled != nil && !*in.NTP.Enabled {
			node["ntp"] = map[string]any{"servers": []string{}}
		} else if len(in.NTP.Servers) > 0 {
			node["ntp"] = map[string]any{"servers": in.NTP.Servers}
		}
	}
	if len(node) > 0 {
		if out.Node, err = yaml.Marshal(node); err != nil {
			return nil, err
		}
	}
	for _, f := range in.WriteFiles {
		file, err := readFile(f.Path, f.Permissions, f.Encoding, f.Content)
		if err != nil {
			return nil, fmt.Errorf("user data: cloud-config: write_files: %s: %w", f.Path, err)
		}
		out.Files = append(out.Files, file)
	}
	return out, nil
}

func readFile(name, permissions, encoding, content string) (File, error) {
	f := File{Path: path.Clean(name), Mode: 0o600, Data: []byte(content)}
	allowed := false
	for _, dir := range Folders {
		allowed = allowed || strings.HasPrefix(f.Path, dir)
	}
	if !allowed {
		return f, fmt.Errorf("the root cannot be changed; files go below %s", strings.Join(Folders, " or "))
	}
	if permissions != "" {
		mode, err := strconv.ParseUint(permissions, 8, 12)
		if err != nil || mode > 0o777 {
			return f, fmt.Errorf("permissions %q are not octal, as in 0600", permissions)
		}
		f.Mode = fs.FileMode(mode)
	}
	var err error
	switch encoding {
	case "", "text/plain":
		return f, nil
	case "b64", "base64":
		f.Data, err = base64.StdEncoding.DecodeString(strings.TrimSpace(content))
	case "gz", "gzip":
		f.Data, err = unzip(f.Data)
	case "gz+b64", "gzip+b64", "gz+base64", "gzip+base64":
		if f.Data, err = base64.StdEncoding.DecodeString(strings.TrimSpace(content)); err == nil {
			f.Data, err = unzip(f.Data)
		}
	default:
		err = fmt.Errorf("encoding %q is not one of b64, gzip, gz+b64", encoding)
	}
	return f, err
}

// noCloudInstance reads meta-data of a NoCloud volume: YAML, of which two keys count.
func noCloudInstance(data []byte) (*Instance, error) {
	var d struct {
		ID       string `yaml:"instance-id"`
		Hostname string `yaml:"local-hostname"`
	}
	if err := yaml.Unmarshal(data, &d); err != nil {
		return nil, fmt.Errorf("meta-data: %w", err)
	}
	return &Instance{ID: d.ID, Hostname: hostname(d.Hostname)}, nil
}
