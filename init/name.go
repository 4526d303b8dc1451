package main

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skerry-os/skerry/pkg/atomicfile"
	"github.com/skerry-os/skerry/pkg/linux"
	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/network"
)

const (
	runDir   = "/run/skerry"
	noSerial = "hostname-from: this machine tells no serial number of its own; a network card's address names it"
)

// nameMachine gives the machine its host name and id.
func nameMachine(_ context.Context, s *system) error {
	serial := ""
	if s.config.NameFrom == machine.NameFromSerial {
		if serial = serialName(machine.HardwareIDs(os.DirFS("/"))); serial == "" {
			s.note("hostname", noSerial)
			s.console.say("config: " + noSerial)
		}
	}
	name, err := hostname(s.config.Hostname, serial, filepath.Join(dataDir, "hostname"), hardwareAddresses())
	if err != nil {
		return err
	}
	s.hostname = name
	id, err := machineID(filepath.Join(dataDir, "machine-id"), hardwareName(os.DirFS("/")))
	if err != nil {
		return err
	}
	var errs []error
	for file, text := range map[string]string{"hostname": name + "\n", "hosts": network.Hosts(name), "machine-id": id + "\n"} {
		errs = append(errs, os.WriteFile(filepath.Join(runDir, file), []byte(text), 0o644))
	}
	if err := unix.Sethostname([]byte(name)); err != nil {
		errs = append(errs, fmt.Errorf("host name %s: %w", name, err))
	}
	return errors.Join(errs...)
}

// serialName is a name by the first serial number that looks like one of this machine's alone, by the names it has for itself;
// "" for none. Makers leave texts such as "Default string" and 123456789 in place of one.
func serialName(ids []string) string {
	for _, id := range ids {
		serial, is := strings.CutPrefix(id, "serial ")
		name := strings.Trim(notInNames.ReplaceAllString(serial, "-"), "-")
		if !is || len(name) < 4 || !strings.ContainsAny(name, "0123456789") || strings.Contains("01234567890", name) || strings.Trim(name, "-"+name[:1]) == "" {
			continue
		}
		const prefix = "skerry-"
		return prefix + strings.TrimLeft(name[max(0, len(name)-63+len(prefix)):], "-")
	}
	return ""
}

var notInNames = regexp.MustCompile(`[^a-z0-9]+`)

// hostname is the configured one, or that of the serial number; else the one this machine got at its first start, from a network
// card's address, which is kept: the node must not change its name because a card was added.
func hostname(configured, serial, kept string, cards []string) (string, error) {
	if name := cmp.Or(configured, serial); name != "" {
		return name, nil
	}
	data, err := os.ReadFile(kept)
	if name := strings.TrimSpace(string(data)); err == nil && name != "" {
		return name, nil
	}
	var end string
	if len(cards) > 0 {
		end = strings.ReplaceAll(slices.Min(cards), ":", "")[6:]
	} else {
		b := make([]byte, 3)
		_, _ = rand.Read(b)
		end = hex.EncodeToString(b)
	}
	name := "skerry-" + end
	return name, atomicfile.Write(kept, []byte(name+"\n"), 0o644)
}

// hardwareAddresses lists those of the cards that have one of their own.
func hardwareAddresses() []string {
	list, err := net.Interfaces()
	if err != nil {
		return nil
	}
	var out []string
	for _, i := range list {
		if len(i.HardwareAddr) == 6 && i.Flags&net.FlagLoopback == 0 && exists("/sys/class/net/"+i.Name+"/device") {
			out = append(out, i.HardwareAddr.String())
		}
	}
	return out
}

var machineIDs = regexp.MustCompile(`^[0-9a-f]{32}$`)

// machineID is what tells this machine from others, for as long as its hardware is the same: its first start makes it, and keeps it.
// One that keeps nothing, since it runs from memory, or nothing any more, since it was installed anew, finds the same again, and
// its cluster takes it for the machine that it is (pkg/server/membership). Only hardware without a name gets a random one.
func machineID(kept, hardware string) (string, error) {
	data, err := os.ReadFile(kept)
	if id := strings.TrimSpace(string(data)); err == nil && machineIDs.MatchString(id) {
		return id, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	b := make([]byte, 16)
	if hardware == "" {
		_, _ = rand.Read(b)
	} else {
		b = derivedID(hardware)
	}
	id := hex.EncodeToString(b)
	return id, atomicfile.Write(kept, []byte(id+"\n"), 0o444)
}

// idPurpose is what a machine-id is derived for; another purpose has another number, and neither leads to the hardware's.
const idPurpose = "skerry machine-id 1"

// derivedID is a UUID (version 4) in the way of sd_id128_get_machine_app_specific: a keyed hash, so that whoever reads the
// machine-id does not learn the serial number from it.
func derivedID(hardware string) []byte {
	h := hmac.New(sha256.New, []byte(hardware))
	_, _ = io.WriteString(h, idPurpose) // never fails
	b := h.Sum(nil)[:16]
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return b
}

// hardwareName is what makers call this machine and no other: its UUID and serial number, else the least address of its network
// cards; "" if it has none.
func hardwareName(root fs.FS) string {
	read := func(name string) string {
		data, err := fs.ReadFile(root, name)
		if err != nil {
			return ""
		}
		return strings.ToLower(strings.Trim(string(data), "\x00 \n\t"))
	}
	var out []string
	for _, id := range []string{
		"uuid " + machine.RealUUID(read("sys/class/dmi/id/product_uuid")),
		"serial " + machine.RealSerial(read("sys/class/dmi/id/product_serial")),
		"board " + machine.RealSerial(read("proc/device-tree/serial-number")),
	} {
		if !strings.HasSuffix(id, " ") {
			out = append(out, id)
		}
	}
	if len(out) > 0 {
		return strings.Join(out, "\n")
	}
	cards, _ := fs.Glob(root, "sys/class/net/*/address")
	for _, name := range cards {
		dir := path.Dir(name)
		const random = "1" // NET_ADDR_RANDOM: another one at the next start
		if _, err := fs.Stat(root, dir+"/device"); err != nil || read(dir+"/addr_assign_type") == random {
			continue
		}
		if mac := read(name); len(mac) == 17 && mac != "00:00:00:00:00:00" {
			out = append(out, "mac "+mac)
		}
	}
	if len(out) == 0 {
		return ""
	}
	return slices.Min(out)
}

// sysctls are what every node needs. What a kernel does not have is not missed.
var sysctls = map[string]string{
	"fs.inotify.max_user_instances":       "8192", // pods with file watchers share root's
	"fs.inotify.max_user_watches":         "524288",
	"kernel.panic":                        "5",
	"kernel.panic_on_oops":                "1",
	"kernel.keys.root_maxbytes":           "25000000", // containers take a key each
	"kernel.keys.root_maxkeys":            "1000000",
	"net.bridge.bridge-nf-call-iptables":  "1", // or services are not reached from the same node
	"net.bridge.bridge-nf-call-ip6tables": "1",
	"net.ipv4.ip_forward":                 "1",
	"net.ipv6.conf.all.forwarding":        "1",
	"net.ipv6.conf.default.accept_ra":     "2",        // hear routers although we forward
	"vm.dirty_background_bytes":           "16777216", // what waits in memory for a slow card is bounded, or a sync of the
	"vm.dirty_bytes":                      "67108864", // datastore's stands in line behind a tenth of the memory
	"vm.max_map_count":                    "262144",   // Elasticsearch and friends
	"vm.overcommit_memory":                "1",
}

func applySysctls(_ context.Context, s *system) error {
	var errs []error
	for k, v := range sysctls {
		if err := linux.SetSysctl("/proc/sys", k, v); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, setSysctls(s.config.Sysctls))...)
}

func setSysctls(settings map[string]string) error {
	var errs []error
	for k, v := range settings {
		errs = append(errs, linux.SetSysctl("/proc/sys", k, v))
	}
	return errors.Join(errs...)
}

// startNetwork brings links up, and waits a little for the first address: skerryd would only start to wait for it.
func startNetwork(ctx context.Context, s *system) error {
	if s.network != nil { // the machine waited for its config
		s.network.Apply(s.config.Network)
	} else {
		s.keepNetwork(s.config.Network)
	}
	s.askTime(s.config.NTP.Servers)
	if err := s.network.WaitAddress(ctx); err != nil {
		return fmt.Errorf("no address yet: %w", err)
	}
	return nil
}

// keepNetwork brings the network up and keeps it so until the machine stops.
func (s *system) keepNetwork(cfg machine.Network) {
	s.network = &network.Manager{
		Config: cfg, Hostname: s.hostname, ResolvConf: filepath.Join(runDir, "resolv.conf"), StateDir: dataDir + "/network",
		Patience: network.Patience, Log: s.console.sayf, Reaper: s.reaper, RunDir: runDir + "/wifi", Logs: s.logs,
	}
	if s.policy.Policy == machine.PolicySigned {
		s.network.Good = signedNetwork{s, dataDir + "/network/signed.yaml"}
	}
	s.behind(func(ctx context.Context) {
		for ctx.Err() == nil {
			if err := s.network.Run(ctx); err != nil {
				s.console.sayf("network: %s; again in %v", oneLine(err), restartWait)
				select {
				case <-ctx.Done():
				case <-time.After(restartWait):
				}
			}
		}
	})
}
