package checkconfig

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
)

// option is a kernel option, and the module that brings it where it is built as one.
type option struct {
	symbol string
	module string
	level  Level // when it is not there
	need   string
}

// kernelOptions is what containers, the pod network and kube-proxy ask of a kernel.
func kernelOptions() []option {
	return []option{
		{"NAMESPACES", "", Missing, "containers"},
		{"NET_NS", "", Missing, "containers"},
		{"PID_NS", "", Missing, "containers"},
		{"IPC_NS", "", Missing, "containers"},
		{"UTS_NS", "", Missing, "containers"},
		{"USER_NS", "", Warn, "pods with hostUsers: false"},
		{"CGROUPS", "", Missing, "containers"},
		{"MEMCG", "", Missing, "memory limits"},
		{"CGROUP_PIDS", "", Missing, "limits on processes"},
		{"CGROUP_DEVICE", "", Missing, "containers"},
		{"CGROUP_SCHED", "", Missing, "CPU shares"},
		{"CFS_BANDWIDTH", "", Missing, "CPU limits"},
		{"CPUSETS", "", Missing, "CPU pinning"},
		{"CGROUP_BPF", "", Missing, "device rules of containers on cgroup v2"},
		{"CGROUP_HUGETLB", "", Warn, "limits on huge pages"},
		{"BLK_CGROUP", "", Warn, "limits on disk use"},
		{"SECCOMP_FILTER", "", Missing, "the default seccomp profile"},
		{"KEYS", "", Missing, "containers"},
		{"POSIX_MQUEUE", "", Missing, "containers"},
		{"OVERLAY_FS", "overlay", Warn, "images without a copy of every layer"},
		{"VETH", "veth", Missing, "the pod network"},
		{"NF_TABLES", "nf_tables", Missing, "Services and the pod network"},
		{"NF_TABLES_INET", "", Missing, "the pod network"},
		{"NF_TABLES_IPV4", "", Missing, "Services"},
		{"NF_TABLES_IPV6", "", Warn, "Services with IPv6"},
		{"NF_CONNTRACK", "nf_conntrack", Missing, "Services"},
		{"NF_NAT", "nf_nat", Missing, "Services"},
		{"NFT_CT", "nft_ct", Missing, "Services"},
		{"NFT_NAT", "nft_nat", Missing, "Services"},
		{"NFT_MASQ", "nft_masq", Missing, "pods that talk to the world"},
		{"NFT_REJECT", "nft_reject", Missing, "Services without endpoints"},
		{"NFT_FIB", "nft_fib", Missing, "node ports"},
		{"NFT_FIB_INET", "nft_fib_inet", Missing, "host ports"},
		{"NFT_NUMGEN", "nft_numgen", Missing, "Services with several endpoints"},
		{"NFT_HASH", "nft_hash", Warn, "Services with client affinity"},
		{"NFT_LIMIT", "nft_limit", Warn, "network policies"},
		{"VXLAN", "vxlan", Warn, "clusters of several nodes"},
		{"WIREGUARD", "wireguard", Warn, "encryption between nodes, with flannel-backend: wireguard-native"},
		{"INET", "", Missing, "networking"},
		{"IPV6", "ipv6", Warn, "IPv6"},
		{"EXT4_FS", "ext4", Warn, "the usual filesystem of the data folder"},
	}
}

// how an option is there
const (
	builtIn  = "built in"
	loaded   = "loaded"
	loadable = "module, loaded when needed"
)

func (h *host) kernel() {
	const area = "kernel"
	release := strings.TrimSpace(h.text("proc/sys/kernel/osrelease"))
	h.report.Kernel = release
	config, from := h.kernelConfig(release)
	modules := h.modules(release)
	if config == nil {
		h.add(area, "configuration", Warn, "not readable",
			"telling options apart", "look for CONFIG_ options by hand; a kernel with CONFIG_IKCONFIG_PROC shows them in /proc/config.gz")
	} else {
		h.add(area, "configuration", OK, from, "", "")
	}
	for _, o := range kernelOptions() {
		if o.symbol == "CGROUP_HUGETLB" && config != nil && config["HUGETLB_PAGE"] == "" {
			continue // a kernel without huge pages, as for 32-bit ARM, has none to limit
		}
		found := ""
		switch state := modules[o.module]; {
		case config[o.symbol] == "y":
			found = builtIn
		case o.module != "" && state != "":
			found = state
		case config == nil && o.module == "":
			continue // nothing to tell it by
		case config[o.symbol] == "m":
			h.add(area, "CONFIG_"+o.symbol, o.level, "a module that is not installed", o.need,
				fmt.Sprintf("install the kernel's modules (%s.ko below /lib/modules/%s)", o.module, release))
			continue
		}
		if found != "" {
			h.add(area, "CONFIG_"+o.symbol, OK, found, o.need, "")
			continue
		}
		h.add(area, "CONFIG_"+o.symbol, o.level, "not in this kernel", o.need, "use a kernel that is built with CONFIG_"+o.symbol)
	}
}

// kernelConfig reads the running kernel's options from the first place that has them.
func (h *host) kernelConfig(release string) (map[string]string, string) {
	for _, name := range []string{"proc/config.gz", "boot/config-" + release, "lib/modules/" + release + "/config", "usr/lib/modules/" + release + "/config"} {
		data, err := os.ReadFile(h.path(name))
		if err != nil {
			continue
		}
		if strings.HasSuffix(name, ".gz") {
			z, err := gzip.NewReader(bytes.NewReader(data))
			if err != nil {
				continue
			}
			if data, err = io.ReadAll(z); err != nil {
				continue
			}
		}
		options := map[string]string{}
		for line := range bytes.Lines(data) {
			key, value, ok := bytes.Cut(bytes.TrimSpace(line), []byte("="))
			if symbol, is := bytes.CutPrefix(key, []byte("CONFIG_")); ok && is && len(value) == 1 { // y or m; there are thousands of others
				options[string(symbol)] = string(value)
			}
		}
		return options, "/" + name
	}
	return nil, ""
}

// modules says of every module how it is there. Names have underscores, however the file is spelled.
func (h *host) modules(release string) map[string]string {
	found := map[string]string{}
	mark := func(file, state string) {
		base, _, _ := strings.Cut(path.Base(file), ".ko")
		found[strings.ReplaceAll(base, "-", "_")] = state
	}
	for _, dir := range []string{"lib/modules/", "usr/lib/modules/"} {
		for line := range strings.Lines(h.text(dir + release + "/modules.dep")) {
			file, _, _ := strings.Cut(line, ":")
			mark(file, loadable)
		}
		var index struct { // a release's own index (pkg/kmod)
			Modules map[string]json.RawMessage `json:"modules"`
			Builtin []string                   `json:"builtin"`
		}
		if json.Unmarshal([]byte(h.text(dir+release+"/skerry.modules.json")), &index) == nil {
			for name := range index.Modules {
				mark(name, loadable)
			}
			for _, name := range index.Builtin {
				mark(name, builtIn)
			}
		}
		for line := range strings.Lines(h.text(dir + release + "/modules.builtin")) {
			mark(strings.TrimSpace(line), builtIn)
		}
	}
	for line := range strings.Lines(h.text("proc/modules")) {
		if fields := strings.Fields(line); len(fields) > 0 {
			mark(fields[0], loaded)
		}
	}
	return found
}

// text is a file's content, or nothing.
func (h *host) text(name string) string {
	data, err := os.ReadFile(h.path(name))
	if err != nil {
		return ""
	}
	return string(data)
}
