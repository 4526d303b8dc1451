package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	_ "modernc.org/sqlite"

	"github.com/skerry-os/skerry/pkg/join"
)

const apiAddress = "127.0.0.1:6443"

// within runs f on a thread in the engine's network. The thread ends with it, since it cannot be used for anything else.
func (e *engine) within(f func() error) error {
	out := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		ns, err := os.Open("/run/netns/" + e.netns)
		if err == nil {
			err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
			_ = ns.Close()
		}
		if err == nil {
			err = f()
		}
		out <- err
	}()
	return <-out
}

// stranger asks the API without any credentials.
func (e *engine) stranger(path string, tlsVersion uint16) (code int, body string, err error) {
	dial := func(context.Context, string, string) (conn net.Conn, err error) {
		err = e.within(func() error { conn, err = net.Dial("tcp", apiAddress); return err })
		return conn, err
	}
	client := &http.Client{Transport: &http.Transport{
		DialContext:     dial,
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true, MaxVersion: tlsVersion}, //nolint:gosec // a stranger cannot verify
	}}
	defer client.CloseIdleConnections()
	r, err := client.Get("https://" + apiAddress + path)
	if err != nil {
		return 0, "", err
	}
	defer r.Body.Close() //nolint:errcheck // read to its end
	b, err := io.ReadAll(r.Body)
	return r.StatusCode, string(b), err
}

func (e *engine) data() string { return filepath.Join(e.dir, "data") }

// database is the datastore's file and what has not been moved into it yet.
func (e *engine) database() []byte {
	e.t.Helper()
	var all []byte
	for _, suffix := range []string{"", "-wal"} {
		b, err := os.ReadFile(filepath.Join(e.data(), "server/db/state.db"+suffix))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			e.t.Fatal(err)
		}
		all = append(all, b...)
	}
	return all
}

const pausePod = `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"holder","namespace":"default"},"spec":{"terminationGracePeriodSeconds":0,
"containers":[{"name":"c","image":"skerry.local/pause:1","imagePullPolicy":"Never"}]}}`

const podIdentity = "jsonpath={.status.containerStatuses[0].containerID} {.status.containerStatuses[0].state.running.startedAt} {.status.containerStatuses[0].restartCount}"

// One server from an empty folder through a clean stop, a second start, a kill and a third start. Starting is what takes
// time, so everything about a running server is asked here.
func TestEngine(t *testing.T) {
	e := newEngine(t)
	t.Logf("Ready %v after the first start", e.start())
	c := e.cluster()

	t.Run("strangers see health and nothing else", func(t *testing.T) {
		for path, want := range map[string]int{"/readyz": 200, "/livez": 200, "/healthz": 200, "/api": 401, "/version": 401, "/metrics": 401, "/": 401} {
			if code, body, err := e.stranger(path, 0); err != nil || code != want {
				t.Errorf("%s: %d %q %v, want %d", path, code, body, err, want)
			}
		}
		if _, _, err := e.stranger("/readyz", tls.VersionTLS12); err == nil {
			t.Error("TLS 1.2 is spoken")
		}
	})
	t.Run("the token opens the kubeconfig", func(t *testing.T) {
		want, err := os.ReadFile(e.kubeconfig())
		if err != nil {
			t.Fatal(err)
		}
		fetch := func(token string) (got []byte, err error) {
			err = e.within(func() error { got, err = join.FetchKubeconfig(t.Context(), apiAddress, token); return err })
			return got, err
		}
		if got, err := fetch(e.token); err != nil || !bytes.Equal(got, want) {
			t.Errorf("with the token: %d bytes, %v", len(got), err)
		}
		if got, err := fetch("not-the-token-of-it"); err == nil || len(got) > 0 {
			t.Errorf("with another token: %d bytes, %v", len(got), err)
		}
	})
	t.Run("secrets are stored encrypted", func(t *testing.T) {
		const value = "plain-to-see-in-a-stolen-disk"
		if _, err := c.try(t.Context(), "", "create", "secret", "generic", "s", "--from-literal=k="+value); err != nil {
			t.Fatal(err)
		}
		if out, err := c.try(t.Context(), "", "get", "secret", "s", "-o", "go-template={{.data.k | base64decode}}"); err != nil || out != value {
			t.Errorf("read back: %q, %v", out, err)
		}
		db := e.database()
		if bytes.Contains(db, []byte(value)) {
			t.Error("the value stands in the database")
		}
		if !bytes.Contains(db, []byte("k8s:enc:secretbox:v1:key1:")) {
			t.Error("nothing in the database is encrypted")
		}
	})
	t.Run("files are private", func(t *testing.T) {
		private(t, filepath.Join(e.data(), "server"), e.kubeconfig())
		top, err := filepath.Glob(filepath.Join(e.data(), "agent/*.*"))
		if err != nil {
			t.Fatal(err)
		}
		private(t, append(top, filepath.Join(e.data(), "lock"))...)
	})

	t.Run("one data folder, one server", func(t *testing.T) {
		if code, out := e.once("server", "--data-dir", e.data()); code != 1 || !strings.Contains(out, "another skerryd uses this folder") {
			t.Errorf("a second server: %d %s", code, out)
		}
	})

	c.eventually(time.Minute, contains("default"), "get", "serviceaccount", "default", "-o", "name") // no pod before it
	if _, err := c.try(t.Context(), pausePod, "apply", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	running := func(out string) bool { return strings.HasSuffix(out, " 0") && strings.Contains(out, "T") }
	first := c.eventually(time.Minute, running, "get", "pod", "holder", "-o", podIdentity)

	begin := time.Now()
	e.stop() // fails the test unless it exits 0
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("stopping took %v", took)
	}
	if info, err := os.Stat(filepath.Join(e.data(), "server/db/state.db-wal")); err == nil && info.Size() > 0 {
		t.Errorf("after a stop %d bytes are in the write-ahead log only", info.Size())
	}
	e.integrity()

	t.Logf("Ready %v after the second start", e.start())
	if now := c.eventually(time.Minute, running, "get", "pod", "holder", "-o", podIdentity); now != first {
		t.Errorf("the pod was %q and is %q after a restart", first, now)
	}

	if err := e.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := <-e.done; err == nil {
		t.Error("a killed server exits with 0")
	}
	e.done = nil
	t.Logf("Ready %v after a kill", e.start())
	if now := c.eventually(time.Minute, running, "get", "pod", "holder", "-o", podIdentity); now != first {
		t.Errorf("the pod was %q and is %q after a kill", first, now)
	}
	if out, err := c.try(t.Context(), "", "get", "secret", "s", "-o", "jsonpath={.metadata.name}"); err != nil || out != "s" {
		t.Errorf("the secret after a kill: %q, %v", out, err)
	}
}

func (e *engine) integrity() {
	e.t.Helper()
	db, err := sql.Open("sqlite", filepath.Join(e.data(), "server/db/state.db"))
	if err != nil {
		e.t.Fatal(err)
	}
	defer db.Close() //nolint:errcheck // only read
	var answer string
	if err := db.QueryRow("PRAGMA integrity_check").Scan(&answer); err != nil || answer != "ok" {
		e.t.Errorf("the database: %q, %v", answer, err)
	}
}

func private(t *testing.T, roots ...string) {
	t.Helper()
	for _, root := range roots {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			if info.Mode().Perm()&0o077 != 0 {
				t.Errorf("%s has mode %04o", path, info.Mode().Perm())
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
}

// once runs skerryd until it ends by itself.
func (e *engine) once(args ...string) (code int, output string) {
	e.t.Helper()
	ctx, cancel := context.WithTimeout(e.t.Context(), time.Minute)
	defer cancel()
	all := e.inside(append([]string{e.program}, args...)...)
	cmd := exec.CommandContext(ctx, all[0], all[1:]...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		e.t.Errorf("skerryd %s did not end\n%s", strings.Join(args, " "), out)
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		e.t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), string(out)
}

// What a person gets wrong ends at once, with a code that says whose fault it was and a line that says what to do.
func TestEngineRefuses(t *testing.T) {
	e := newEngine(t)
	file := filepath.Join(e.dir, "config.yaml")
	if err := os.WriteFile(file, []byte("node-name: a\nnode-address: b\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	open := filepath.Join(e.dir, "open")
	if err := errors.Join(os.Mkdir(open, 0o700), os.Chmod(open, 0o777)); err != nil {
		t.Fatal(err)
	}
	var taken net.Listener
	if err := e.within(func() (err error) { taken, err = net.Listen("tcp", "127.0.0.1:7443"); return err }); err != nil {
		t.Fatal(err)
	}
	defer taken.Close() //nolint:errcheck // nothing was sent
	fresh := []string{"--data-dir", e.data(), "--write-kubeconfig", e.kubeconfig(), "--node-name", "e2e"}

	for name, c := range map[string]struct {
		args []string
		code int
		want []string
	}{
		"unknown flag":      {[]string{"server", "--nonsense"}, 2, []string{"--nonsense", "skerryd server --help"}},
		"unknown command":   {[]string{"serve"}, 2, []string{`"serve"`, "skerryd --help"}},
		"unknown key":       {[]string{"server", "--config", file}, 2, []string{file + ":2:1: ", "node-address"}},
		"unknown component": {append([]string{"server", "--kube-scheduler-arg", "nonsense=1"}, fresh...), 2, []string{"kube-scheduler-arg: nonsense", "no such flag"}},
		"bad value":         {append([]string{"server", "--kube-apiserver-arg", "secure-port=x"}, fresh...), 2, []string{"kube-apiserver-arg: secure-port=x"}},
		"port taken":        {append([]string{"server", "--https-listen-port", "7443"}, fresh...), 1, []string{"kube-apiserver", "port 7443 is taken", "--https-listen-port"}},
		"others may write":  {[]string{"server", "--data-dir", open}, 1, []string{open, "chmod go-w"}},
		"a file as folder":  {[]string{"server", "--data-dir", file}, 1, []string{file}},
		"address elsewhere": {append([]string{"server", "--node-ip", "198.51.100.1"}, fresh...), 2, []string{"--node-ip: 198.51.100.1"}},
		"agent to nowhere":  {[]string{"agent"}, 2, []string{"--server"}},
		"agent, no token":   {[]string{"agent", "--server", "https://192.0.2.1:6443", "--data-dir", e.data(), "--node-name", "e2e"}, 1, []string{"the token is empty", "skerryd token create"}},
		"agent, cut token":  {[]string{"agent", "--server", "https://192.0.2.1:6443", "--token", "K10" + strings.Repeat("0", 64) + "::server"}, 2, []string{"--token: ", "cut or mistyped"}},
	} {
		t.Run(name, func(t *testing.T) {
			code, out := e.once(c.args...)
			if code != c.code {
				t.Errorf("exit code %d, want %d", code, c.code)
			}
			for _, w := range c.want {
				if !strings.Contains(out, w) {
					t.Errorf("says %q, which lacks %q", out, w)
				}
			}
		})
	}
	if code, out := e.once("version"); code != 0 || !strings.Contains(out, "kubernetes v1.") {
		t.Errorf("version: %d %q", code, out)
	}
	if code, out := e.once("ctr", "--version"); code != 0 || !strings.Contains(out, "ctr") {
		t.Errorf("ctr: %d %q", code, out)
	}
	if code, out := e.once("kubectl", "version", "--client"); code != 0 || !strings.Contains(out, "Client Version: v1.") {
		t.Errorf("kubectl: %d %q", code, fmt.Sprint(out))
	}
}
