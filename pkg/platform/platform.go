// Package platform asks the cloud or hypervisor that a machine runs on who the machine is and what it is to do.
//
// An image for a cloud serves any number of machines. Each asks once, at its first boot, by the way of its platform:
//
//	aws        the instance metadata service, version 2 only: a session token first, then the rest
//	gcp        the metadata server
//	azure      the instance metadata service; the fabric at 168.63.129.16 is told when the machine has its node config
//	openstack  a volume labelled config-2, else the metadata service
//	proxmox    a volume labelled cidata (NoCloud) or config-2 (ConfigDrive)
//	url        whatever answers at the address in the kernel argument skerry.config
//
// The answer is kept on the data partition, readable by root alone, and never asked for again by the same machine: what it
// holds is secret, and a node must not change because a metadata service does. A disk that was cloned into another machine
// asks anew.
//
// Nothing here goes through a proxy, follows a redirect or leaves the machine's own link: metadata services answer on
// link-local addresses, and an instance's hop limit of 1 is enough.
package platform

import (
	"context"
	"fmt"
	"io/fs"
	"strings"
	"time"
)

// Instance is what a platform says of a machine. What it does not know is empty.
type Instance struct {
	Platform   string `json:"platform"`
	ID         string `json:"id"`
	Hostname   string `json:"hostname,omitempty"` // what the node is called unless its config says otherwise
	Type       string `json:"type,omitempty"`     // such as m7i.large
	Region     string `json:"region,omitempty"`
	Zone       string `json:"zone,omitempty"`
	ProviderID string `json:"providerID,omitempty"` // as the cloud's controllers for Kubernetes write it
	UserData   []byte `json:"userData,omitempty"`
	// SSHKeys are the public keys that the platform would give its machine's user; only debug releases use them.
	SSHKeys []string `json:"sshKeys,omitempty"`
}

// keyLines are the lines of a text that are public keys, or may be.
func keyLines(text string) (out []string) {
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			out = append(out, line)
		}
	}
	return out
}

// Labels are those that the instance gives its node.
func (i *Instance) Labels() map[string]string {
	out := map[string]string{}
	for k, v := range map[string]string{
		"topology.kubernetes.io/region":    i.Region,
		"topology.kubernetes.io/zone":      i.Zone,
		"node.kubernetes.io/instance-type": i.Type,
	} {
		if v = labelValue(v); v != "" {
			out[k] = v
		}
	}
	return out
}

// Place is where a machine looks.
type Place struct {
	// Volume gives the files of the first volume that has one of these labels. found is false when there is none.
	Volume func(ctx context.Context, labels ...string) (files fs.FS, found bool, done func(), err error)

	URL string // of a node config, from the kernel command line

	// SSHKeys asks for public keys too, where that takes questions of its own. Who has no use for them must not fail for them.
	SSHKeys bool

	// Log takes one line for the operator.
	Log func(format string, a ...any)
}

// source asks one platform once.
type source func(context.Context, *Place) (*Instance, error)

// sources are the platforms; boards name them.
var sources = map[string]source{
	"aws":       aws,
	"azure":     azure,
	"gcp":       gcp,
	"openstack": openstack,
	"proxmox":   volumes,
	"url":       fromURL,
}

// Waits between two tries.
const (
	firstWait = time.Second
	mostWait  = 30 * time.Second
	oneTry    = 20 * time.Second
	sayAgain  = time.Minute
)

// Ask asks the platform until it answers or ctx ends: a network that is not there yet, a service that is busy and a volume
// that is still to be attached are waited for. It says so at once and then every minute.
func Ask(ctx context.Context, platform string, p *Place) (*Instance, error) {
	ask, known := sources[platform]
	if !known {
		return nil, fmt.Errorf("platform %q: is not one this release knows", platform)
	}
	wait, said := firstWait, time.Time{}
	for {
		once, cancel := context.WithTimeout(ctx, oneTry)
		i, err := ask(once, p)
		cancel()
		if err == nil {
			i.Platform = platform
			return i, nil
		}
		switch {
		case ctx.Err() != nil:
			return nil, fmt.Errorf("platform %s: %w (%w)", platform, err, context.Cause(ctx))
		case time.Since(said) > sayAgain:
			p.Log("platform %s: %v; asking again", platform, err)
			said = time.Now()
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
		wait = min(2*wait, mostWait)
	}
}

// refused is an answer that will stay the same until somebody changes something.
type refused struct{ why string }

func (r refused) Error() string { return r.why }

// hostname makes a host name of what a platform calls a machine: the first part, small letters, digits and dashes.
func hostname(name string) string {
	name, _, _ = strings.Cut(strings.ToLower(name), ".")
	name = strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, name)
	return strings.Trim(name[:min(len(name), 63)], "-")
}

// labelValue makes a label's value of a word that may have other characters in it.
func labelValue(s string) string {
	s = strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_' || r == '.' {
			return r
		}
		return '-'
	}, s)
	return strings.Trim(s[:min(len(s), 63)], "-_.")
}
