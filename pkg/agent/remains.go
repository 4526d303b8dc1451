package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/skerry-os/skerry/pkg/linux"
	"github.com/skerry-os/skerry/pkg/machine"
)

// Remains is what a node leaves behind when it stops: pods run on, and with them their mounts, cgroups, links and rules.
type Remains struct{ l *layout }

// RemainsOf is that of the node with this data folder.
func RemainsOf(dataDir string) Remains {
	return Remains{newLayout(Config{Settings: machine.Agent{DataDir: dataDir}})}
}

// Clear ends the pods and takes away all that is on the host because of them, and only that. skerryd must not run. say hears
// what was done.
func (r Remains) Clear(ctx context.Context, say func(format string, a ...any)) error {
	shims := r.shims()
	for _, pid := range shims {
		killTree(pid)
	}
	if err := gone(ctx, shims); err != nil {
		return err
	}
	say("%d pods ended", len(shims))
	var errs []error
	// Not the folders themselves, which may be disks of their own; but kubelet mounts its folder upon itself.
	dirs := []string{r.l.run, filepath.Join(r.l.pods, "pods"), filepath.Join(r.l.pods, "plugins"), filepath.Join(r.l.data, "containerd")}
	if sameDisk(r.l.pods, filepath.Dir(r.l.pods)) {
		dirs = append(dirs, r.l.pods)
	}
	for _, dir := range dirs {
		if err := linux.UnmountBelow(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	r.removeCgroups()
	errs = append(errs, r.removeRules(ctx), removeLinks("skerry-vx", "skerry-vx6", "skerry-wg"), os.RemoveAll(r.l.run))
	if err := errors.Join(errs...); err != nil {
		return err
	}
	say("mounts, cgroups, rules and links removed, and %s", r.l.run)
	return nil
}

func sameDisk(a, b string) bool {
	var sa, sb syscall.Stat_t
	return syscall.Stat(a, &sa) == nil && syscall.Stat(b, &sb) == nil && sa.Dev == sb.Dev
}

// Folders lists what Clear leaves and a node does not need to exist any more: everything kubelet and containerd keep.
func (r Remains) Folders() []string { return []string{r.l.pods, r.l.logs, r.l.data} }

// shims are the processes that hold this node's pods: they name its socket.
func (r Remains) shims() (pids []int) {
	all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, name := range all {
		b, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		args := strings.Split(string(b), "\x00")
		if !strings.HasPrefix(filepath.Base(args[0]), "containerd-shim-") || !slices.ContainsFunc(args, func(a string) bool { return strings.HasPrefix(a, r.l.run+"/") }) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name))); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// killTree ends a process and its children, the children first: whose parent is gone has another.
func killTree(pid int) {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, name := range tasks {
		b, _ := os.ReadFile(name)
		for field := range strings.FieldsSeq(string(b)) {
			if child, err := strconv.Atoi(field); err == nil {
				killTree(child)
			}
		}
	}
	_ = syscall.Kill(pid, syscall.SIGKILL)
}

func gone(ctx context.Context, pids []int) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		alive := slices.ContainsFunc(pids, func(pid int) bool {
			stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
			_, state, _ := bytes.Cut(stat, []byte(") "))
			return err == nil && !bytes.HasPrefix(state, []byte("Z"))
		})
		if !alive {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("processes %v do not end: %w", pids, ctx.Err())
		}
	}
}

// removeCgroups takes away those of this node's pods, and their parents when nobody else's are in them.
func (r Remains) removeCgroups() {
	pods, _ := os.ReadDir(filepath.Join(r.l.pods, "pods"))
	tops, _ := filepath.Glob("/sys/fs/cgroup/kubepods")
	v1, _ := filepath.Glob("/sys/fs/cgroup/*/kubepods")
	for _, top := range append(tops, v1...) {
		for _, pod := range pods {
			for _, class := range []string{"", "burstable", "besteffort"} {
				removeCgroup(filepath.Join(top, class, "pod"+pod.Name()))
			}
		}
		for _, dir := range []string{"burstable", "besteffort", ""} {
			_ = os.Remove(filepath.Join(top, dir)) // fails when it is in use, as it should
		}
	}
}

func removeCgroup(top string) {
	var dirs []string
	_ = filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return nil
	})
	for _, dir := range slices.Backward(dirs) {
		_ = os.Remove(dir)
	}
}

// removeRules takes away the tables of nftables that a node makes. kube-proxy's are named as every kube-proxy's.
func (r Remains) removeRules(ctx context.Context) error {
	if err := r.l.extendPath(); err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, "nft", "list", "tables").Output()
	if err != nil {
		return fmt.Errorf("nft list tables: %w", err)
	}
	var errs []error
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line) // table inet skerry
		if len(f) != 3 || f[2] != "kube-proxy" && f[2] != masqTable && !strings.HasPrefix(f[2], masqTable+"_") {
			continue
		}
		if out, err := exec.CommandContext(ctx, "nft", "delete", "table", f[1], f[2]).CombinedOutput(); err != nil {
			errs = append(errs, fmt.Errorf("nft delete table %s %s: %w: %s", f[1], f[2], err, bytes.TrimSpace(out)))
		}
	}
	return errors.Join(errs...)
}

func removeLinks(names ...string) error {
	var errs []error
	for _, name := range names {
		link, err := netlink.LinkByName(name)
		if err != nil {
			continue // not there
		}
		if err := netlink.LinkDel(link); err != nil {
			errs = append(errs, fmt.Errorf("link %s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}
