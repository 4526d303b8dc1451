// Package protocol is what a machine that was started over the network and the server it was started by say to each other:
// JSON over TLS. The machine knows its server by the SHA-256 of a certificate authority's certificate, which stands on the
// command line of the kernel image it was started with; the server knows the machine by the hardware address that its packets
// come from.
package protocol

import (
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"time"
)

// PinArg is the kernel argument that names the CA: 64 hexadecimal digits.
const PinArg = "skerry.netboot"

// ServerName is the name in the server's certificate, whatever its address.
const ServerName = "netboot.skerry"

// Class is the DHCP vendor class (option 60) with which a machine looks for its server, and by which the server answers: its
// boot file name (option 67) is then the server's URL.
const Class = "SkerryNetboot"

// The requests, all POST with a JSON body.
const (
	HelloPath  = "/v1/hello"  // Hello in, Answer out
	ConfigPath = "/v1/config" // Hello in, Config out, once
	ReportPath = "/v1/report" // Report in
)

// Hello is what a machine says of itself.
type Hello struct {
	MACs     []string `json:"macs"` // of all cards, small letters
	Serial   string   `json:"serial,omitempty"`
	UUID     string   `json:"uuid,omitempty"`
	Model    string   `json:"model,omitempty"`
	Arch     string   `json:"arch"`
	Board    string   `json:"board"` // of the kernel image it runs
	Firmware string   `json:"firmware"`
	Session  string   `json:"session"`          // made up at this start; who has it may ask again after a lost link
	Holds    string   `json:"holds,omitempty"`  // the installation whose marker is on one of its disks
	Memory   int64    `json:"memory,omitempty"` // bytes
}

// Firmwares.
const (
	UEFI = "uefi"
	BIOS = "bios"
)

// What an Answer tells a machine to do.
const (
	Wait    = "wait"    // and ask again
	Install = "install" // ask for the config and follow it
	Leave   = "leave"   // it is installed: restart, from its disk
)

// Answer is the reply to a Hello.
type Answer struct {
	Do      string `json:"do"`
	Why     string `json:"why"` // for the console
	Name    string `json:"name,omitempty"`
	Release string `json:"release,omitempty"` // URL of the release's folder, with a slash at its end
	ID      string `json:"id,omitempty"`      // of this installation: what the marker on the disk will hold
	// Again allows writing over a disk that holds an earlier installation of this machine.
	Again bool `json:"again,omitempty"`
	// Warnings are about the network or the server, for the console.
	Warnings []string `json:"warnings,omitempty"`
}

// Config is what stands on the machine's config partition.
type Config struct {
	Node   []byte            `json:"node"`             // the node config
	Beside map[string][]byte `json:"beside,omitempty"` // other files, by name
}

// Stages that a machine reports.
const (
	StageFetch     = "fetching"
	StageWrite     = "writing"
	StageVerify    = "reading back"
	StageInstalled = "installed"
	StageRunning   = "running from memory"
	StageFailed    = "failed"
)

// Report is how far a machine is.
type Report struct {
	Session string `json:"session"`
	Stage   string `json:"stage"`
	Done    int64  `json:"done,omitempty"` // bytes
	Total   int64  `json:"total,omitempty"`
	Disk    string `json:"disk,omitempty"`
	Error   string `json:"error,omitempty"`
}

// Fault is the body of an answer that is none.
type Fault struct {
	Error string `json:"error"`
}

// Pin names a certificate as the command line does.
func Pin(cert []byte) string {
	sum := sha256.Sum256(cert)
	return hex.EncodeToString(sum[:])
}

// ErrOther means that whoever answered is not the server this machine was started by.
var ErrOther = errors.New("is not the server this machine was started by; is there a second one on this network?")

// ClientTLS believes only servers whose certificate is by the pinned CA. It asks no clock: a machine may wake up in 1970.
func ClientTLS(pin string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, ServerName: ServerName,
		InsecureSkipVerify: true, // VerifyConnection does it
		VerifyConnection: func(s tls.ConnectionState) error {
			return verify(s.PeerCertificates, pin)
		},
	}
}

func verify(chain []*x509.Certificate, pin string) error {
	if len(chain) < 2 {
		return fmt.Errorf("%w (it sent %d certificates)", ErrOther, len(chain))
	}
	ca := chain[len(chain)-1]
	if subtle.ConstantTimeCompare([]byte(Pin(ca.Raw)), []byte(pin)) != 1 {
		return ErrOther
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	_, err := chain[0].Verify(x509.VerifyOptions{
		DNSName: ServerName, Roots: roots, CurrentTime: chain[0].NotBefore.Add(time.Second), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	if err != nil {
		return fmt.Errorf("%w (%w)", ErrOther, err)
	}
	return nil
}
