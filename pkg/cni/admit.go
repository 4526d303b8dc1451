package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	current "github.com/containernetworking/cni/pkg/types/100"
)

// AdmitTime is how long a pod's start waits for its network policies before it is tried again.
const AdmitTime = 10 * time.Second

// AdmitRequest is what the plugin tells the engine of a new pod, as one JSON object on a Unix socket.
type AdmitRequest struct {
	Namespace string       `json:"namespace"`
	Name      string       `json:"name"`
	Addresses []netip.Addr `json:"addresses"`
}

// AdmitAnswer comes back when the pod may start; Error says why not.
type AdmitAnswer struct {
	Error string `json:"error,omitempty"`
}

// admit waits until the engine has the pod's network policies in force. A sandbox that is no pod has none.
func admit(socket, args string, result *current.Result) error {
	if socket == "" {
		return nil
	}
	var ask AdmitRequest
	for pair := range strings.SplitSeq(args, ";") {
		switch key, value, _ := strings.Cut(pair, "="); key {
		case "K8S_POD_NAMESPACE":
			ask.Namespace = value
		case "K8S_POD_NAME":
			ask.Name = value
		}
	}
	if ask.Name == "" {
		return nil
	}
	for _, a := range result.IPs {
		if ip, ok := netip.AddrFromSlice(a.Address.IP); ok {
			ask.Addresses = append(ask.Addresses, ip.Unmap())
		}
	}
	conn, err := net.DialTimeout("unix", socket, AdmitTime)
	if err != nil {
		return fmt.Errorf("network policies: %w; skerryd has to run while a pod starts", err)
	}
	defer conn.Close() //nolint:errcheck // everything has been said
	if err := conn.SetDeadline(time.Now().Add(AdmitTime + 2*time.Second)); err != nil {
		return err
	}
	if err := json.NewEncoder(conn).Encode(ask); err != nil {
		return fmt.Errorf("network policies: %w", err)
	}
	var answer AdmitAnswer
	if err := json.NewDecoder(conn).Decode(&answer); err != nil {
		return fmt.Errorf("network policies: %w", err)
	}
	if answer.Error != "" {
		return errors.New(answer.Error)
	}
	return nil
}
