package agent

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/fsnotify/fsnotify"

	"github.com/skerry-os/skerry/pkg/atomicfile"
)

// noNameserver is what pods get while the machine knows no nameserver that they could reach. The address is the IPv6 discard
// prefix (RFC 6666): asking it fails at once. With none at all, kubelet would name 127.0.0.1, which in CoreDNS's pod is CoreDNS
// itself, and it ends when it finds that loop.
const noNameserver = "# The machine knows no nameserver outside itself.\nnameserver 100::1\n"

// resolvConf keeps the file that pods with the node's DNS get, equal to the machine's. The first candidate with a nameserver
// that pods can reach counts: /etc/resolv.conf may name only a resolver on this machine's own loopback.
type resolvConf struct {
	file       string
	candidates []string
}

func (l *layout) resolvConf() resolvConf {
	return resolvConf{
		file:       filepath.Join(l.run, "pods-resolv.conf"),
		candidates: []string{"/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"},
	}
}

// update writes the file if it would change, and says whether there was another before.
func (r resolvConf) update() (changed bool, err error) {
	want := []byte(noNameserver)
	for _, name := range r.candidates {
		if data, err := os.ReadFile(name); err == nil && reachable(data) {
			want = data
			break
		}
	}
	have, err := os.ReadFile(r.file)
	if err == nil && bytes.Equal(have, want) {
		return false, nil
	}
	existed := err == nil
	if err := os.MkdirAll(filepath.Dir(r.file), 0o755); err != nil {
		return false, err
	}
	return existed, atomicfile.Write(r.file, want, 0o644)
}

// reachable says whether the list names a server, and none that a pod would look for in itself.
func reachable(data []byte) bool {
	found := false
	for s := bufio.NewScanner(bytes.NewReader(data)); s.Scan(); {
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

// follow updates the file until ctx ends, and calls changed after each change. It watches folders, because files like these are replaced, and those that links
// lead to.
func (r resolvConf) follow(ctx context.Context, changed func()) error {
	watch, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("%s: watching: %w", r.candidates[0], err)
	}
	defer func() { _ = watch.Close() }()
	for _, name := range r.candidates {
		for _, n := range []string{name, realPath(name)} {
			if dir := filepath.Dir(n); isDir(dir) {
				if err := watch.Add(dir); err != nil {
					return fmt.Errorf("%s: watching: %w", dir, err)
				}
			}
		}
	}
	for {
		switch is, err := r.update(); {
		case err != nil:
			slog.Warn("pods keep the nameservers from before", "err", err)
		case is:
			changed()
		}
		select {
		case <-watch.Events:
		case err := <-watch.Errors:
			slog.Warn("a change of nameservers may have been missed", "err", err)
		case <-ctx.Done():
			return nil
		}
	}
}

func realPath(name string) string {
	if p, err := filepath.EvalSymlinks(name); err == nil {
		return p
	}
	if target, err := os.Readlink(name); err == nil && filepath.IsAbs(target) {
		return target // it does not exist yet
	}
	return name
}
