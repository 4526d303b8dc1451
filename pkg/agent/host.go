package agent

import (
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
