package agent

import (
	"bufio"
	"net/netip"
	"os"
	"strconv"
	"strings"
)

// capSysResource is the capability that lowering a process's OOM score takes.
const capSysResource = 24

// mayLowerOOMScore says whether this process may give containers a lower OOM score than its own. Inside many containers and
// virtual machines' sandboxes it may not, and runc would refuse every pod.
func mayLowerOOMScore(statusFile string) bool {
	data, err := os.ReadFile(statusFile)
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(data)) {
		if value, ok := strings.CutPrefix(line, "CapEff:"); ok {
			mask, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
			return err == nil && mask&(1<<capSysResource) != 0
		}
	}
	return false
}

// pureCgroup2 says whether the unified hierarchy is the only one. Everywhere else kubelet must be told to go on.
func pureCgroup2(root string) bool {
	_, err := os.Stat(root + "/cgroup.controllers")
	return err == nil
}

// resolvConf picks the file whose nameservers pods that ask for the node's DNS can reach: systemd-resolved's real list, when
// /etc/resolv.conf only names an address of this machine. With no usable file, pods get an empty one.
func resolvConf(candidates ...string) string {
	for _, name := range candidates {
		if usableResolvConf(name) {
			return name
		}
	}
	return ""
}

func usableResolvConf(name string) bool {
	f, err := os.Open(name)
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }()
	found := false
	for s := bufio.NewScanner(f); s.Scan(); {
		fields := strings.Fields(s.Text())
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		address, err := netip.ParseAddr(fields[1])
		if err != nil {
			continue
		}
		if address.IsLoopback() {
			return false
		}
		found = true
	}
	return found
}
