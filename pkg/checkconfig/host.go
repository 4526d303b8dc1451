package checkconfig

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// cgroups looks for the controllers that kubelet insists on.
func (h *host) cgroups() {
	const area = "cgroups"
	needed := []string{"cpu", "cpuset", "memory", "pids"}
	if text := h.text("sys/fs/cgroup/cgroup.controllers"); text != "" {
		h.add(area, "version", OK, "v2", "", "")
		have := strings.Fields(text)
		for _, c := range needed {
			h.controller(area, c, slices.Contains(have, c))
		}
		if !slices.Contains(have, "io") {
			h.add(area, "io", Warn, "off", "limits on disk use", "boot a kernel with CONFIG_BLK_CGROUP")
		}
		return
	}
	var have []string
	for line := range strings.Lines(h.text("proc/cgroups")) {
		if f := strings.Fields(line); len(f) == 4 && !strings.HasPrefix(f[0], "#") && f[3] == "1" {
			have = append(have, f[0])
		}
	}
	if len(have) == 0 {
		h.add(area, "version", Missing, "none", "containers", "boot a kernel with CONFIG_CGROUPS and mount cgroup2 at /sys/fs/cgroup")
		return
	}
	h.add(area, "version", Warn, "v1 or mixed", "what newer Kubernetes releases ask for",
		"boot with cgroup v2 alone (systemd.unified_cgroup_hierarchy=1); v1 works for now")
	for _, c := range needed {
		info, err := os.Stat(h.path("sys/fs/cgroup", c))
		h.controller(area, c, slices.Contains(have, c) && err == nil && info.IsDir())
	}
}

func (h *host) controller(area, name string, there bool) {
	if there {
		h.add(area, name, OK, "on", "limits of pods", "")
		return
	}
	do := "boot a kernel that has it, and mount the hierarchy"
	if name == "memory" {
		do = "add cgroup_enable=memory to the kernel's command line (on a Raspberry Pi in cmdline.txt), or use a kernel that has it"
	}
	h.add(area, name, Missing, "off", "limits of pods", do)
}

// programs looks for what the engine starts.
func (h *host) programs() {
	for _, p := range []struct {
		name, need, do string
		level          Level
	}{
		{"runc", "containers", "install Skerry's helper programs, or Debian's package runc", Missing},
		{"containerd-shim-runc-v2", "containers", "install Skerry's helper programs", Missing},
		{"cni/ptp", "the pod network", "install Skerry's helper programs", Missing},
		{"nft", "Services and the pod network", "install Debian's package nftables", Missing},
		{"mount", "volumes", "install Debian's package mount", Missing},
		{"umount", "volumes", "install Debian's package mount", Missing},
		{"mkfs.ext4", "volumes on block devices", "install Debian's package e2fsprogs", Warn},
		{"modprobe", "modules that the kernel asks for", "install Debian's package kmod, unless all modules are built in", Warn},
	} {
		if found := h.program(p.name); found != "" {
			h.add("programs", p.name, OK, found, p.need, "")
		} else {
			h.add("programs", p.name, p.level, "not found", p.need, p.do)
		}
	}
}

func (h *host) program(name string) string {
	dirs := []string{"/usr/libexec/skerry", "/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"}
	if h.Libexec != "" {
		dirs = append([]string{h.Libexec}, dirs...)
	}
	for _, dir := range dirs {
		file := filepath.Join(dir, name)
		if info, err := os.Stat(h.path(file)); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return file
		}
	}
	return ""
}

// capabilities looks at what this very process may do; the engine started from the same place may do the same.
func (h *host) capabilities() {
	const area = "privileges"
	var mask uint64
	for line := range strings.Lines(h.text("proc/self/status")) {
		if value, ok := strings.CutPrefix(line, "CapEff:"); ok {
			mask, _ = strconv.ParseUint(strings.TrimSpace(value), 16, 64)
		}
	}
	if mask&(1<<unix.CAP_SYS_ADMIN) == 0 || mask&(1<<unix.CAP_NET_ADMIN) == 0 {
		h.add(area, "root", Missing, "not root, or root without its capabilities", "everything", "run as root; in a container, as a privileged one")
		return
	}
	h.add(area, "root", OK, "yes", "", "")
	if mask&(1<<unix.CAP_SYS_RESOURCE) == 0 {
		h.add(area, "CAP_SYS_RESOURCE", Warn, "no", "protecting important pods when memory runs out",
			"give it the capability; without it all pods have the engine's own score")
	}
}

// ports looks at who listens; a file of the kernel tells it without being root.
func (h *host) ports() {
	taken := map[int]bool{}
	for _, name := range []string{"proc/net/tcp", "proc/net/tcp6"} {
		for line := range strings.Lines(h.text(name)) {
			f := strings.Fields(line)
			if len(f) < 4 || f[3] != "0A" { // listening
				continue
			}
			_, port, ok := strings.Cut(f[1], ":")
			if n, err := strconv.ParseUint(port, 16, 16); ok && err == nil {
				taken[int(n)] = true
			}
		}
	}
	for _, p := range h.Ports {
		name := fmt.Sprintf("tcp %d", p.Number)
		if taken[p.Number] {
			h.add("ports", name, Missing, "taken", p.For, fmt.Sprintf("stop the program that listens there (ss -ltnp 'sport = :%d'); if that is skerryd, all is well", p.Number))
		} else {
			h.add("ports", name, OK, "free", p.For, "")
		}
	}
}

// limits are the kernel settings that bite many pods on one node.
func (h *host) limits() {
	for _, s := range []struct {
		name  string
		least int
		need  string
	}{
		{"fs.inotify.max_user_instances", 512, "pods that watch files; kubectl logs -f"},
		{"fs.inotify.max_user_watches", 65536, "pods that watch files"},
		{"kernel.pid_max", 32768, "many processes"},
	} {
		text := strings.TrimSpace(h.text("proc/sys/" + strings.ReplaceAll(s.name, ".", "/")))
		value, err := strconv.Atoi(text)
		switch {
		case err != nil:
			h.add("settings", s.name, Warn, "not readable", s.need, "set it to "+strconv.Itoa(s.least)+" or more")
		case value < s.least:
			h.add("settings", s.name, Warn, text, s.need, fmt.Sprintf("sysctl -w %s=%d, and keep it in /etc/sysctl.d", s.name, s.least))
		default:
			h.add("settings", s.name, OK, text, s.need, "")
		}
	}
}

const mib = 1 << 20

func (h *host) memory() {
	total := 0
	for line := range strings.Lines(h.text("proc/meminfo")) {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == "MemTotal:" {
			total, _ = strconv.Atoi(f[1])
		}
	}
	found := fmt.Sprintf("%d MiB", total>>10)
	switch {
	case total == 0:
		h.add("memory", "RAM", Warn, "not readable", "", "look by hand: a server needs 1 GiB, an agent 512 MiB")
	case h.Agent && total < 240<<10:
		h.add("memory", "RAM", Missing, found, "an agent (the engine alone takes 150 MiB)", "use a machine with 512 MiB or more")
	case h.Agent:
		h.add("memory", "RAM", OK, found, "", "")
	case total < 480<<10:
		h.add("memory", "RAM", Missing, found, "a server (the engine alone takes 350 MiB)", "use a machine with 1 GiB or more")
	case total < 900<<10:
		h.add("memory", "RAM", Warn, found, "a server with pods", "use a machine with 1 GiB or more, or keep pods few")
	default:
		h.add("memory", "RAM", OK, found, "", "")
	}
	swaps := 0
	for line := range strings.Lines(h.text("proc/swaps")) {
		if !strings.HasPrefix(line, "Filename") && strings.TrimSpace(line) != "" {
			swaps++
		}
	}
	if swaps > 0 {
		h.add("memory", "swap", Warn, fmt.Sprintf("%d in use", swaps), "pods to keep their pace",
			"nothing has to be done, since pods do not use it; swapoff -a makes the node's own speed even")
	} else {
		h.add("memory", "swap", OK, "off", "", "")
	}
}

// disk looks at the filesystem that the data folder is or will be on.
func (h *host) disk() {
	if h.DataDir == "" {
		return
	}
	dir := h.path(h.DataDir)
	for {
		if _, err := os.Stat(dir); err == nil || dir == filepath.Dir(dir) {
			break
		}
		dir = filepath.Dir(dir)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		h.add("disk", h.DataDir, Warn, err.Error(), "", "look by hand: it needs 2 GiB")
		return
	}
	free := fs.Bavail * uint64(fs.Bsize) / mib
	level := OK
	switch {
	case free < 300:
		level = Missing
	case free < 2048:
		level = Warn
	}
	h.add("disk", h.DataDir, level, fmt.Sprintf("%d MiB free", free), "images, containers and the datastore", "free some space, or use another --data-dir")
}

// console looks for a place where the kernel can say what is wrong; a machine without a screen and a serial port may have none.
func (h *host) console() {
	if active := strings.Fields(h.text("sys/class/tty/console/active")); len(active) > 0 {
		h.add("console", "kernel", OK, strings.Join(active, " "), "", "")
	} else if cmdline := h.text("proc/cmdline"); strings.Contains(cmdline, "console=") {
		h.add("console", "kernel", Warn, "none of the command line's", "messages before the network is up",
			"name a port that this machine has, as in console=ttyS0,115200 or console=tty0")
	}
}

func (h *host) clock() {
	found := h.Now.UTC().Format("2006-01-02 15:04 UTC")
	if h.Now.Before(h.Built) {
		h.add("clock", "time", Missing, found, "certificates", "set the clock; this release was built on "+h.Built.UTC().Format("2006-01-02"))
		return
	}
	h.add("clock", "time", OK, found, "", "")
}
