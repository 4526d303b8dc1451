package checkconfig_test

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/skerry-os/skerry/pkg/checkconfig"
)

// goodHost is a machine that lacks nothing.
func goodHost(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	write := func(name, text string, perm os.FileMode) {
		t.Helper()
		p := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), perm); err != nil {
			t.Fatal(err)
		}
	}
	var options strings.Builder
	for _, s := range strings.Fields(`NAMESPACES NET_NS PID_NS IPC_NS UTS_NS USER_NS CGROUPS MEMCG CGROUP_PIDS CGROUP_DEVICE CGROUP_SCHED CFS_BANDWIDTH
		CPUSETS CGROUP_BPF CGROUP_HUGETLB BLK_CGROUP SECCOMP_FILTER KEYS POSIX_MQUEUE VETH NF_TABLES_INET NF_TABLES_IPV4 NF_TABLES_IPV6 NF_CONNTRACK
		NF_NAT NFT_CT NFT_NAT NFT_MASQ NFT_REJECT NFT_FIB NFT_FIB_INET NFT_NUMGEN NFT_HASH NFT_LIMIT INET IPV6 EXT4_FS WIREGUARD`) {
		options.WriteString("CONFIG_" + s + "=y\n")
	}
	options.WriteString("CONFIG_HUGETLB_PAGE=y\n# CONFIG_SOMETHING is not set\nCONFIG_OVERLAY_FS=m\nCONFIG_NF_TABLES=m\nCONFIG_VXLAN=m\n")
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	if _, err := w.Write([]byte(options.String())); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	write("proc/config.gz", z.String(), 0o444)
	write("proc/sys/kernel/osrelease", "6.12.1\n", 0o444)
	write("lib/modules/6.12.1/modules.dep", "kernel/fs/overlayfs/overlay.ko.xz:\n", 0o644)
	write("usr/lib/modules/6.12.1/skerry.modules.json", `{"modules":{"vxlan":{"file":"kernel/drivers/net/vxlan.ko.xz"}},"builtin":["ext4"]}`, 0o644)
	write("proc/modules", "nf_tables 1 2 x, Live 0x0\n", 0o444)
	write("sys/fs/cgroup/cgroup.controllers", "cpuset cpu io memory pids\n", 0o444)
	for _, p := range []string{"usr/libexec/skerry/runc", "usr/libexec/skerry/containerd-shim-runc-v2", "usr/libexec/skerry/cni/ptp", "usr/sbin/nft", "usr/bin/mount", "usr/bin/umount", "usr/sbin/mkfs.ext4", "sbin/modprobe"} {
		write(p, "x", 0o755)
	}
	write("proc/self/status", "CapEff:\t000001ffffffffff\n", 0o444)
	write("proc/net/tcp", "  sl  local_address rem_address   st\n   0: 00000000:0016 00000000:0000 0A 0\n   1: 0100007F:192B 0100007F:9999 01 0\n", 0o444)
	write("proc/sys/fs/inotify/max_user_instances", "8192\n", 0o444)
	write("proc/sys/fs/inotify/max_user_watches", "524288\n", 0o444)
	write("proc/sys/kernel/pid_max", "4194304\n", 0o444)
	write("proc/meminfo", "MemTotal:        2000000 kB\n", 0o444)
	write("proc/cmdline", "console=tty0 quiet\n", 0o444)
	write("sys/class/tty/console/active", "tty0 ttyS0\n", 0o444)
	write("proc/swaps", "Filename Type Size Used Priority\n", 0o444)
	return root
}

func options(root string) checkconfig.Options {
	return checkconfig.Options{Root: root, Now: time.Date(2026, 5, 1, 0, 0, 0, 0, time.UTC), Built: time.Date(2026, 4, 1, 0, 0, 0, 0, time.UTC)}
}

func TestGoodHostIsFine(t *testing.T) {
	report := checkconfig.Run(options(goodHost(t)))
	if len(report.Findings) < 60 {
		t.Errorf("only %d things were looked at", len(report.Findings))
	}
	for _, f := range report.Findings {
		if f.Level != checkconfig.OK || f.Do != "" {
			t.Errorf("%+v", f)
		}
	}
}

// Whatever is taken from a good host is found, and the report says what to do.
func TestEveryFaultIsFound(t *testing.T) {
	for name, c := range map[string]struct {
		file, text  string // an empty text removes the file
		find        string
		level       checkconfig.Level
		found, hint string
	}{
		"module not installed":  {"lib/modules/6.12.1/modules.dep", "", "CONFIG_OVERLAY_FS", checkconfig.Warn, "not installed", "overlay.ko"},
		"option not in kernel":  {"proc/config.gz", "", "configuration", checkconfig.Warn, "not readable", "/proc/config.gz"},
		"memory controller off": {"sys/fs/cgroup/cgroup.controllers", "cpuset cpu io pids\n", "memory", checkconfig.Missing, "off", "cgroup_enable=memory"},
		"no cgroups":            {"sys/fs/cgroup/cgroup.controllers", "", "version", checkconfig.Missing, "none", "CONFIG_CGROUPS"},
		"no nft":                {"usr/sbin/nft", "", "nft", checkconfig.Missing, "not found", "nftables"},
		"no runc":               {"usr/libexec/skerry/runc", "", "runc", checkconfig.Missing, "not found", "runc"},
		"not root":              {"proc/self/status", "CapEff:\t0000000000000000\n", "root", checkconfig.Missing, "not root", "run as root"},
		"less than root":        {"proc/self/status", "CapEff:\t000001fffeffffff\n", "CAP_SYS_RESOURCE", checkconfig.Warn, "no", "capability"},
		"port taken":            {"proc/net/tcp6", "x\n 0: 00000000000000000000000000000000:192B 00000000000000000000000000000000:0000 0A 0\n", "tcp 6443", checkconfig.Missing, "taken", "ss -ltnp"},
		"few inotify instances": {"proc/sys/fs/inotify/max_user_instances", "128\n", "fs.inotify.max_user_instances", checkconfig.Warn, "128", "sysctl -w fs.inotify.max_user_instances=512"},
		"small machine":         {"proc/meminfo", "MemTotal: 400000 kB\n", "RAM", checkconfig.Missing, "390 MiB", "1 GiB"},
		"middling machine":      {"proc/meminfo", "MemTotal: 800000 kB\n", "RAM", checkconfig.Warn, "781 MiB", "1 GiB"},
		"no console":            {"sys/class/tty/console/active", "", "kernel", checkconfig.Warn, "none of the command line's", "console=ttyS0"},
		"swap":                  {"proc/swaps", "Filename Type\n/dev/sda2 partition 1 0 -2\n", "swap", checkconfig.Warn, "1 in use", "swapoff"},
	} {
		t.Run(name, func(t *testing.T) {
			root := goodHost(t)
			p := filepath.Join(root, c.file)
			if c.text == "" {
				if err := os.Remove(p); err != nil {
					t.Fatal(err)
				}
			} else if err := os.WriteFile(p, []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
			report := checkconfig.Run(options(root))
			for _, f := range report.Findings {
				if f.Name == c.find {
					if f.Level != c.level || !strings.Contains(f.Found, c.found) || !strings.Contains(f.Do, c.hint) {
						t.Errorf("%+v", f)
					}
					return
				}
			}
			t.Errorf("%s is not in the report", c.find)
		})
	}
}

func TestCgroupV1(t *testing.T) {
	root := goodHost(t)
	if err := os.Remove(filepath.Join(root, "sys/fs/cgroup/cgroup.controllers")); err != nil {
		t.Fatal(err)
	}
	list := "#subsys_name hierarchy num_cgroups enabled\ncpu 1 1 1\ncpuset 2 1 1\nmemory 3 1 0\npids 4 1 1\n"
	if err := os.WriteFile(filepath.Join(root, "proc/cgroups"), []byte(list), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []string{"cpu", "cpuset", "memory"} { // pids is not mounted, memory is not enabled
		if err := os.MkdirAll(filepath.Join(root, "sys/fs/cgroup", c), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	got := map[string]checkconfig.Level{}
	for _, f := range checkconfig.Run(options(root)).Findings {
		if f.Area == "cgroups" {
			got[f.Name] = f.Level
		}
	}
	want := map[string]checkconfig.Level{"version": checkconfig.Warn, "cpu": checkconfig.OK, "cpuset": checkconfig.OK, "memory": checkconfig.Missing, "pids": checkconfig.Missing}
	for name, level := range want {
		if got[name] != level {
			t.Errorf("%s is %s; want %s", name, got[name], level)
		}
	}
}

func TestClockDiskAndOutput(t *testing.T) {
	o := options(goodHost(t))
	o.Now = time.Unix(0, 0)
	o.DataDir = "/var/lib/none/yet"
	report := checkconfig.Run(o)
	var text, data bytes.Buffer
	if err := report.WriteText(&text); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"kernel 6.12.1", "missing  time", "set the clock; this release was built on 2026-04-01", "MiB free", "1 missing,"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("%q is not in\n%s", want, text.String())
		}
	}
	if err := report.WriteJSON(&data); err != nil {
		t.Fatal(err)
	}
	var back checkconfig.Report
	if err := json.Unmarshal(data.Bytes(), &back); err != nil || len(back.Findings) != len(report.Findings) {
		t.Errorf("%d findings came back, %v", len(back.Findings), err)
	}
}

// A start says in one line that all is well, or what is missing and what to do about it; what is only to be looked at stops nobody.
func TestSummary(t *testing.T) {
	root := goodHost(t)
	if got, err := checkconfig.Run(options(root)).Summary(); err != nil || !regexp.MustCompile(`^\d\d checks passed$`).MatchString(got) {
		t.Errorf("%q, %v", got, err)
	}
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("proc/swaps", "Filename Type\n/dev/sda2 partition 1 0 -2\n")
	if got, err := checkconfig.Run(options(root)).Summary(); err != nil || !strings.Contains(got, "checks passed, 1 to look at: memory swap: 1 in use; nothing has to be done") {
		t.Errorf("%q, %v", got, err)
	}
	write("sys/fs/cgroup/cgroup.controllers", "cpuset cpu io pids\n")
	if got, err := checkconfig.Run(options(root)).Summary(); err == nil || !regexp.MustCompile(`^1 of \d\d checks failed: cgroups memory: off; add cgroup_enable=memory`).MatchString(err.Error()) {
		t.Errorf("%q, %v", got, err)
	}
}

// An agent gets along with what a server does not, and a kernel without huge pages needs no limit of them.
func TestWhatIsNotNeeded(t *testing.T) {
	root := goodHost(t)
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	_, err := w.Write([]byte("CONFIG_NAMESPACES=y\n"))
	if err := errors.Join(err, w.Close(), os.WriteFile(filepath.Join(root, "proc/config.gz"), z.Bytes(), 0o600),
		os.WriteFile(filepath.Join(root, "proc/meminfo"), []byte("MemTotal: 400000 kB\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	o := options(root)
	o.Agent = true
	for _, f := range checkconfig.Run(o).Findings {
		if f.Name == "RAM" && f.Level != checkconfig.OK || f.Name == "CONFIG_CGROUP_HUGETLB" {
			t.Errorf("%+v", f)
		}
	}
}

// This very machine can be looked at without a fault of ours.
func TestThisMachine(t *testing.T) {
	report := checkconfig.Run(checkconfig.Options{DataDir: "/var/lib/skerry"})
	if report.Kernel == "" || len(report.Findings) < 30 {
		t.Errorf("kernel %q, %d findings", report.Kernel, len(report.Findings))
	}
}
