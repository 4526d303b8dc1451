package e2e

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/skerry-os/skerry/e2e/vm"
	"github.com/skerry-os/skerry/pkg/release"
)

var inUpdate = flag.Bool("update-vm", false, "update the image in QEMU")

// long is for a start of the machine to Ready, or the verdict about one, on an emulated processor that others use too.
const long = 3 * patience

// run runs a program of ours and gives what it printed.
func run(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func versionOf(t *testing.T, dir string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, release.ManifestName))
	if err != nil {
		t.Fatal(err)
	}
	var m release.Manifest
	if err := json.Unmarshal(data, &m); err != nil {
		t.Fatal(err)
	}
	return m.Version
}

// updates is a repository on a web server, and a machine that looks at it.
type updates struct {
	t          *testing.T
	keys, repo string
	server     *httptest.Server
	newer      string       // folder; see next
	drop       atomic.Int32 // so many downloads of a root end after 32 KiB
	dropped    atomic.Int32
	o          vm.Options
}

// newUpdates makes both. update is that part of the node config, beside the source; flags are for the image.
func newUpdates(t *testing.T, update string, web bool, flags ...string) *updates {
	t.Helper()
	if !*inUpdate {
		t.Skip("updates the image in QEMU: run make vm-update")
	}
	*inVM = true
	u := &updates{t: t, keys: built(t, "keys"), repo: filepath.Join(t.TempDir(), "repo")}
	files := http.FileServer(http.Dir(u.repo))
	u.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "root.img") && u.dropped.Load() < u.drop.Load() {
			w = &short{w, 32 << 10, &u.dropped}
		}
		files.ServeHTTP(w, r)
	}))
	t.Cleanup(u.server.Close)
	text, err := os.ReadFile(built(t, "run/node.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if web {
		at := u.server.Listener.Addr().String()
		update += fmt.Sprintf(`, source: "http://10.0.2.2%s"`, at[strings.LastIndex(at, ":"):])
	}
	config := filepath.Join(t.TempDir(), "node.yaml")
	// An emulated processor starts them anew for each release; what this is about does not need them.
	text = fmt.Appendf(text, "update: {%s}\nserver: {disable: [ingress, local-storage, metrics-server, network-policy, servicelb]}\n", update)
	if err := os.WriteFile(config, text, 0o600); err != nil {
		t.Fatal(err)
	}
	u.o = machineOf(t)
	u.o.Image, u.o.Restrict, u.o.TPM = filepath.Join(t.TempDir(), "update.img"), !web, true
	u.o.Forwards = []vm.Forward{{Guest: 6443}}
	run(t, append([]string{built(t, "bin/skerry"), "image", "build", "--board", "x86-uefi", "--release", built(t, "release"), "--keys", u.keys, "--config", config, "-o", u.o.Image}, flags...)...)
	return u
}

// next is the folder of a good release that is newer: one that was built, or else the same one packed again.
func (u *updates) next() string {
	u.t.Helper()
	if u.newer == "" {
		u.newer = filepath.Join(*outDir, "next")
		if _, err := os.Stat(u.newer); err != nil {
			u.newer = altered(u.t, built(u.t, "release"), u.keys, change{version: "99.0.0"})
		}
	}
	return u.newer
}

// short is an answer whose connection breaks.
type short struct {
	http.ResponseWriter
	left   int
	breaks *atomic.Int32
}

func (s *short) Write(p []byte) (int, error) {
	if s.left -= len(p); s.left < 0 {
		s.breaks.Add(1)
		panic(http.ErrAbortHandler)
	}
	return s.ResponseWriter.Write(p)
}

func (u *updates) publish(dir string) {
	u.t.Helper()
	u.t.Log(run(u.t, built(u.t, "bin/skerry"), "update", "publish", "--keys", u.keys, "--release", dir, "--repo", u.repo))
}

// power turns the machine on; what it wrote is kept if the test fails.
func (u *updates) power() *node {
	u.t.Helper()
	n := power(u.t, u.o)
	u.t.Cleanup(func() {
		if u.t.Failed() {
			u.keepLogs(n)
		}
	})
	return n
}

// keepLogs brings console and logs of the machine to out/.
func (u *updates) keepLogs(n *node) {
	n.PowerCut()
	to := filepath.Join(*outDir, "logs", strings.ReplaceAll(u.t.Name(), "/", "-"))
	if err := os.MkdirAll(to, 0o755); err != nil {
		u.t.Error(err)
	}
	for _, name := range []string{"log/skerry/skerryd.log", "log/skerry/init.log", "lib/skerry/update/record.json"} {
		if err := os.WriteFile(filepath.Join(to, filepath.Base(name)), []byte(u.log(name)), 0o600); err != nil {
			u.t.Log(name, err)
		}
	}
	if err := exec.Command("cp", n.Console.Path(), to).Run(); err != nil {
		u.t.Log(err)
	}
	u.t.Logf("the machine's logs are in %s", to)
}

// log reads a file of the data partition of the machine, which is off.
func (u *updates) log(name string) string {
	u.t.Helper()
	raw := filepath.Join(u.t.TempDir(), "disk.raw")
	u.raw(raw)
	defer os.Remove(raw) //nolint:errcheck // it goes with the folder
	start, _ := partition(u.t, raw, "data")
	out, err := exec.Command("debugfs", "-R", "cat /"+name, fmt.Sprintf("%s?offset=%d", raw, start)).Output()
	if err != nil {
		u.t.Log(name, err)
	}
	return string(out)
}

// raw makes one file of the machine's disk, which is off.
func (u *updates) raw(name string) {
	u.t.Helper()
	// Also when the test has ended: it is then that logs are wanted.
	out, err := exec.Command("qemu-img", "convert", "-O", "raw", filepath.Join(u.o.Dir, "disk.qcow2"), name).CombinedOutput()
	if err != nil {
		u.t.Fatalf("qemu-img: %v: %s", err, out)
	}
}

// operate changes the disk of the machine, which is off; its firmware keeps its variables, and its TPM its memory.
func (u *updates) operate(change func(disk string)) {
	u.t.Helper()
	disk := filepath.Join(u.t.TempDir(), "disk.raw")
	u.raw(disk)
	change(disk)
	before := u.o.Dir
	u.o.Dir, u.o.Image = u.t.TempDir(), disk
	u.o.Vars, u.o.TPMState = filepath.Join(before, "vars.fd"), filepath.Join(before, "tpm")
}

// leaves publishes a release and waits until the machine has tried it and is Ready again without it. It gives the reason.
func (u *updates) leaves(n *node, dir string) string {
	u.t.Helper()
	v := versionOf(u.t, dir)
	u.publish(dir)
	n.expect(long, `skerry: restart: a restart was asked for`)
	began := time.Now()
	// The verdict tells it at once, what did not come so far the slot of before.
	why := n.expect(long, `skerry: (?:update|judge slot: the trial failed): (.*`+regexp.QuoteMeta(v)+`.*?)(?:; restart in 10s)?$`)[1]
	u.t.Logf("left after %v: %s", time.Since(began).Round(time.Second), why)
	n.expect(long, `skerry: node: Ready`)
	u.t.Logf("Ready again %v after the restart", time.Since(began).Round(time.Second))
	return why
}

// A machine with Secure Boot and a TPM looks at a web server. It gets a release over a link that breaks, tries it and keeps it.
// Then it gets one whose kernel dies: it comes back by itself, its pods too, says why, and does not try it again.
func TestUpdateOverTheWire(t *testing.T) {
	u := newUpdates(t, "interval: 30s, deadline: 30m", true)
	old, next := versionOf(t, built(t, "release")), versionOf(t, u.next())
	came := map[string]bool{next: true, "99.0.1": true}
	dying := altered(t, u.next(), u.keys, change{version: "99.0.1", cmdline: [2]string{" loglevel=4 ", " rdinit=/no "}})
	n := u.power()
	n.expect(long, `skerry: check floor: nothing older than `+regexp.QuoteMeta(old)+` starts, says the TPM`)
	n.expect(long, `skerry\| slot +a, Secure Boot on`)
	n.expect(long, `skerry: node: Ready`)
	c := n.cluster()
	c.start()
	c.running()
	before := c.pods()

	u.drop.Store(3)
	u.publish(built(t, "release")) // so that there is a patch
	u.publish(u.next())
	n.expect(long, `skerry: restart: a restart was asked for`)
	began := time.Now()
	if u.dropped.Load() != 3 {
		t.Errorf("the link broke %d times", u.dropped.Load())
	}
	n.expect(long, `skerry: switch root: slot b, release `+next)
	n.expect(long, `skerry: judge slot: slot b is on trial`)
	n.expect(long, `skerry: update: slot b, release `+next+`, is kept`)
	t.Logf("from the restart to Keep: %v", time.Since(began).Round(time.Second))
	c.running()
	c.same(before, c.pods())
	if out := c.typed([]string{"--arguments-only", "--"}, "update", "status"); !strings.Contains(out, next) {
		t.Errorf("skerryd update status, in a pod: %s", out)
	}

	from := len(n.Text())
	why := u.leaves(n, dying)
	if !strings.Contains(why, "before it reached the data partition") || !strings.Contains(why, "went back to slot b") {
		t.Errorf("the reason is %q", why)
	}
	tries, after, back := strings.Cut(n.Text()[from:], "switch root: slot b, release "+next)
	if strings.Count(tries, "] Kernel panic - not syncing") < 3 || !back || strings.Contains(after, "(on trial)") {
		t.Errorf("it was not tried three times, or slot b does not run %s as a kept slot does", next)
	}
	c.same(before, c.works())
	c.eventually(patience, contains(why), "get", "events", "--field-selector", "reason=UpdateFailed", "-o", "jsonpath={.items[*].message}")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := n.Stop(ctx); err != nil { // in order: the last lines of the log are still in memory
		t.Fatal("power button: ", err)
	}
	log := u.log("log/skerry/skerryd.log")
	for _, m := range regexp.MustCompile(`holds release (\S+): ([0-9.]+) of ([0-9.]+) MB travelled`).FindAllStringSubmatch(log, -1) {
		t.Log(m[0])
		delete(came, m[1])
		// The other was packed anew, by other options.
		if travelled, whole := number(t, m[2]), number(t, m[3]); m[1] == next && travelled > whole/10 {
			t.Errorf("release %s: the patches are %.1f of %.1f MB", m[1], travelled, whole)
		}
	}
	if len(came) > 0 {
		t.Errorf("how much travelled is not told of %v, in %d bytes of the log", came, len(log))
	}
}

func number(t *testing.T, text string) float64 {
	t.Helper()
	f, err := strconv.ParseFloat(text, 64)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// A machine without a network gets its release from a stick. The kernel image of the new slot is damaged after the firmware
// was told to try it, so that it does not even load: the machine comes to the old one without a hand on it.
func TestAStickAndAKernelThatDoesNotLoad(t *testing.T) {
	u := newUpdates(t, "stick: true", false)
	next := versionOf(t, u.next())
	u.publish(u.next())
	u.o.Stick = filepath.Join(t.TempDir(), "stick.img")
	run(t, "truncate", "-s", "512M", u.o.Stick)
	run(t, "mkfs.vfat", "-F", "32", u.o.Stick)
	run(t, "mcopy", "-s", "-i", u.o.Stick, u.repo, "::/skerry")
	n := u.power()
	n.expect(long, `skerry\| slot +a, Secure Boot on`)
	n.expect(long, `skerry: node: Ready`)
	n.expect(long, `skerry: restart: now`)
	n.PowerCut()
	u.operate(func(disk string) { damage(t, disk) })
	u.o.Stick = ""
	n = u.power()
	why := n.expect(long, `skerry: update: (.*`+regexp.QuoteMeta(next)+`.*)`)[1]
	n.expect(long, `skerry\| slot +a, Secure Boot on`)
	t.Log(why)
	if !strings.Contains(why, "was refused") {
		t.Errorf("the reason is %q", why)
	}
	n.expect(long, `skerry: node: Ready`)
	if tries := regexp.MustCompile(`(?i)access denied|security violation`).FindAllString(n.Text(), -1); len(tries) == 0 {
		t.Error("the damaged image was not tried")
	}
}
