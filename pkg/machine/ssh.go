package machine

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
)

// SSHFile is where init puts the SSH of the config for the server of a debug release, below the root.
const SSHFile = "run/skerry/ssh.json"

// SSH says who may log in as root over SSH. Only a debug release has it.
type SSH struct {
	Keys []string `yaml:"keys" json:"keys,omitempty" pattern:"^(ssh-|ecdsa-|sk-)\\S+ \\S+( .*)?$" help:"public keys that may log in as root, one line each, as in the .pub file; without any nothing listens"`
	Port int      `yaml:"port" json:"port,omitempty" min:"1" max:"65535" default:"22" help:"port to listen at"`
}

// DefaultSSHPort is the port of a config that names none.
const DefaultSSHPort = 22

// ListenPort is the port to listen at.
func (s *SSH) ListenPort() int {
	if s.Port == 0 {
		return DefaultSSHPort
	}
	return s.Port
}

// sshKeyTypes are those that a key may have. Certificates and DSA are none of them.
var sshKeyTypes = []string{
	"ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521", "ssh-rsa", "sk-ssh-ed25519@openssh.com", "sk-ecdsa-sha2-nistp256@openssh.com",
}

func (s *SSH) problems(p *problems) {
	if s.Port < 0 || s.Port > 65535 {
		p.addf([]any{"port"}, "%d is not a port; write 1 to 65535", s.Port)
	}
	seen := map[string]int{}
	for i, key := range s.Keys {
		if msg := CheckSSHKey(key); msg != "" {
			p.add(msg, "keys", i)
			continue
		}
		blob := strings.Fields(key)[1]
		if n, twice := seen[blob]; twice {
			p.addf([]any{"keys", i}, "is the same key as number %d", n+1)
		}
		seen[blob] = i
	}
}

// CheckSSHKey says what is wrong with a line of a public key; "" for nothing. It never tells what the line holds, which may be
// another key than was meant.
func CheckSSHKey(line string) string {
	if strings.Contains(line, "PRIVATE KEY") {
		return "is a private key; the line of the file that ends in .pub belongs here, and that private key should be made anew"
	}
	if strings.ContainsAny(line, "\r\n\x00") {
		return "has more than one line; write a list of keys, one line each"
	}
	f := strings.Fields(line)
	if len(f) < 2 || !slices.Contains(sshKeyTypes, f[0]) {
		return fmt.Sprintf("is not a public key, as in ssh-ed25519 AAAA… name; types are %s", strings.Join(sshKeyTypes, ", "))
	}
	blob, err := base64.StdEncoding.DecodeString(f[1])
	if err != nil || len(blob) < 4 {
		return "is cut or was changed: its second word is not base64"
	}
	// Each part is its length and then its bytes; the first is the type again. An RSA key has an exponent and a modulus.
	var parts [][]byte
	for rest := blob; len(rest) > 0; {
		if len(rest) < 4 || uint64(binary.BigEndian.Uint32(rest)) > uint64(len(rest)-4) {
			return "is cut: its end is missing"
		}
		n := int(binary.BigEndian.Uint32(rest))
		parts, rest = append(parts, rest[4:4+n]), rest[4+n:]
	}
	switch {
	case string(parts[0]) != f[0]:
		return "was changed: it is of another type than its first word says"
	case len(parts) < 2 || f[0] == "ssh-ed25519" && (len(parts) != 2 || len(parts[1]) != 32):
		return "is cut: its end is missing"
	case f[0] == "ssh-rsa" && (len(parts) != 3 || len(parts[2]) < 2048/8):
		return "is an RSA key of less than 2048 bits; use ssh-ed25519"
	}
	return ""
}
