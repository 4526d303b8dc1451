package images

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/skerry-os/skerry/image/oci"
)

// What the images hold of Debian; what these depend on comes along.
var (
	basePackages = []string{"bind9-dnsutils", "curl", "netcat-openbsd", "iproute2", "iperf", "bash", "libc-bin", "socat"}
	webPackages  = []string{"nginx"}
)

// unwanted packages are installers and what only they need.
var unwanted = regexp.MustCompile(`^(c?debconf|gawk|mawk|original-awk|dpkg|tar|install-info|perl.*|debianutils|libdebian-installer4|libtextwrap1|libnewt.*|libslang2|readline-common|gcc-.*-base|base-files|init-system-helpers|lsb-base|.*-doc)$`)

// Debian gives the files of packages and of those they need, as an image has them: one usr, BusyBox with links for every applet that
// no package brings, and the few accounts tests ask for.
func (b *Builder) Debian(ctx context.Context, names ...string) (map[string]oci.File, error) {
	var all []string
	if len(names) > 0 {
		var err error
		if all, err = closure(ctx, names); err != nil {
			return nil, err
		}
	}
	files := accounts()
	for _, link := range []string{"bin", "sbin", "lib", "lib64"} {
		files[link] = oci.File{Link: "usr/" + link}
	}
	for _, name := range all {
		dir, err := b.unpack(ctx, name)
		if err != nil {
			return nil, err
		}
		if err := addTree(files, dir); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	if slices.Contains(all, "netcat-openbsd") { // what its alternatives do
		files["usr/bin/nc"] = oci.File{Link: "nc.openbsd"}
	}
	busybox, applets, err := b.busybox(ctx)
	if err != nil {
		return nil, err
	}
	files["usr/bin/busybox"] = oci.File{Data: busybox, Mode: 0o755}
	for _, applet := range applets {
		_, bin := files["usr/bin/"+applet]
		_, sbin := files["usr/sbin/"+applet]
		if !bin && !sbin && applet != "busybox" {
			files["usr/bin/"+applet] = oci.File{Link: "busybox"}
		}
	}
	files["usr/bin/sh"] = oci.File{Link: "busybox"}
	return files, nil
}

func accounts() map[string]oci.File {
	text := func(lines ...string) oci.File {
		return oci.File{Data: []byte(strings.Join(lines, "\n") + "\n"), Mode: 0o644}
	}
	return map[string]oci.File{
		"etc/passwd": text("root:x:0:0:root:/root:/bin/sh", "daemon:x:1:1:daemon:/usr/sbin:/bin/false", "nobody:x:65534:65534:nobody:/home:/bin/false",
			"user-defined-in-image:x:1000:1000:Linux User,,,:/home:/bin/sh"),
		"etc/group": text("root:x:0:", "daemon:x:1:", "tty:x:5:", "nogroup:x:65534:", "user-defined-in-image:x:1000:",
			"group-defined-in-image:x:50000:user-defined-in-image"),
		"etc/nsswitch.conf": text("passwd: files", "group: files", "hosts: files dns"),
		"etc/shadow":        {Data: []byte("root:*:19000:0:99999:7:::\n"), Mode: 0o640},
		"root":              {Dir: true, Mode: 0o700},
		"home":              {Dir: true, Mode: 0o755},
		"tmp":               {Dir: true, Mode: 0o1777},
		"var/tmp":           {Dir: true, Mode: 0o1777},
		"run":               {Dir: true, Mode: 0o755},
		"dev":               {Dir: true, Mode: 0o755},
		"proc":              {Dir: true, Mode: 0o555},
		"sys":               {Dir: true, Mode: 0o555},
	}
}

// nginxFiles make Debian's nginx look like the image of the same name.
func nginxFiles() map[string]oci.File {
	const conf = `worker_processes 1;
pid /tmp/nginx.pid;
error_log /dev/stderr notice;
daemon off;
events { worker_connections 512; }
http {
  types { text/html html; }
  access_log /dev/stdout;
  client_body_temp_path /tmp/client; proxy_temp_path /tmp/proxy; fastcgi_temp_path /tmp/fastcgi; uwsgi_temp_path /tmp/uwsgi; scgi_temp_path /tmp/scgi;
  server { listen 80; listen [::]:80; root /usr/share/nginx/html; index index.html; }
}
`
	return map[string]oci.File{
		"etc/nginx/nginx.conf": {Data: []byte(conf), Mode: 0o644},
		"var/log/nginx":        {Dir: true, Mode: 0o777},
		"usr/share/nginx/html/index.html": {Mode: 0o644, Data: []byte("<!DOCTYPE html>\n<html>\n<head><title>Welcome to nginx!</title></head>\n" +
			"<body><h1>Welcome to nginx!</h1></body>\n</html>\n")},
	}
}

// addTree takes a package's files but for its documentation, below one usr.
func addTree(files map[string]oci.File, dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil || rel == "." {
			return err
		}
		top, _, below := strings.Cut(rel, "/")
		if slices.Contains([]string{"bin", "sbin", "lib", "lib64"}, top) {
			if !below {
				return nil
			}
			rel = "usr/" + rel
		}
		for _, skip := range []string{"usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/lintian", "usr/share/info", "usr/share/bash-completion", "usr/lib/systemd", "etc/init.d"} {
			if rel == skip {
				return fs.SkipDir
			}
		}
		switch {
		case d.IsDir():
			return nil // made as they are needed; packages agree on 0755
		case d.Type()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			files[rel] = oci.File{Link: target}
			return err
		case d.Type() != 0:
			return nil
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		files[rel] = oci.File{Data: data, Mode: int64(info.Mode().Perm())}
		return nil
	})
}

// closure lists the packages and what they depend on.
func closure(ctx context.Context, names []string) ([]string, error) {
	out, err := output(ctx, "", nil, "apt-cache", append([]string{"depends", "--recurse", "--no-recommends", "--no-suggests", "--no-conflicts",
		"--no-breaks", "--no-replaces", "--no-enhances"}, names...)...)
	if err != nil {
		return nil, fmt.Errorf("%w (test images are made of Debian packages; apt-get update, perhaps?)", err)
	}
	found := map[string]bool{}
	for line := range strings.Lines(out) {
		name, _, _ := strings.Cut(strings.TrimSpace(line), ":")
		if name != "" && !strings.ContainsAny(line[:1], " |<") && !unwanted.MatchString(name) {
			found[name] = true
		}
	}
	return slices.Sorted(maps.Keys(found)), nil
}

// unpack fetches a package with the host's apt and gives the folder of its files.
func (b *Builder) unpack(ctx context.Context, name string) (string, error) {
	dir := filepath.Join(b.Work, "debian", name)
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	b.Log("package %s", name)
	tmp := dir + ".new"
	if err := os.RemoveAll(tmp); err != nil {
		return "", err
	}
	if err := os.MkdirAll(tmp, 0o755); err != nil {
		return "", err
	}
	if _, err := output(ctx, tmp, nil, "apt-get", "-qq", "-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=3", "download", name); err != nil {
		return "", err
	}
	debs, err := filepath.Glob(filepath.Join(tmp, "*.deb"))
	if err != nil || len(debs) != 1 {
		return "", fmt.Errorf("apt-get download %s brought %d files", name, len(debs))
	}
	if _, err := output(ctx, tmp, nil, "dpkg-deb", "-x", debs[0], "root"); err != nil {
		return "", err
	}
	if err := os.Rename(filepath.Join(tmp, "root"), dir); err != nil {
		return "", err
	}
	return dir, os.RemoveAll(tmp)
}

// output gives what a command prints; its error carries what it complained of.
func output(ctx context.Context, dir string, env []string, name string, args ...string) (string, error) {
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Env, cmd.Stderr = dir, append(os.Environ(), env...), &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return string(out), nil
}
