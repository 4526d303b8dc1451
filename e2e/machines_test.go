package e2e

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/skerry-os/skerry/boards"
	"github.com/skerry-os/skerry/e2e/lan"
	"github.com/skerry-os/skerry/e2e/vm"
)

var inFleet = flag.Bool("fleet-vm", false, "start a fleet of machines in QEMU; needs root, releases for amd64 and arm64")

// machines is a fleet, built before any of its machines was switched on, and the cable between them.
type machines struct {
	t       *testing.T
	lan     *lan.LAN
	dir     string // of fleet.yaml
	repo    string // of updates, which a web server at the bridge shows
	running map[string]*node
}

// A fleet of a server and three agents on two architectures is built offline, as README's second page says, and switched on in any order.
// It becomes one cluster with nobody at the machines. Then update plans bring releases to it: a bad one stops at the canary, which comes back
// by itself; a good one reaches every machine, one at a time, and a service of the cluster answers everyone all the while.
func TestFleetOfMachines(t *testing.T) {
	if !*inFleet {
		t.Skip("starts four machines: run make test-fleet")
	}
	out, err := filepath.Abs(*outDir)
	if err != nil {
		t.Fatal(err)
	}
	l := lan.New(t, "-fleet-vm", "-out", out)
	if l == nil {
		return
	}
	m := &machines{t: t, lan: l, dir: t.TempDir(), repo: t.TempDir(), running: map[string]*node{}}
	m.build()
	l.DHCP(map[string]string{cardOf("agent-1"): addressOf["agent-1"], cardOf("agent-3"): addressOf["agent-3"]})
	order := []string{"server-1", "agent-1", "agent-2", "agent-3"}
	rand.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
	t.Log("switched on in this order: ", order)
	began := time.Now()
	for _, name := range order {
		m.power(name)
	}
	kubectl := []string{built(t, "amd64/usr/bin/kubectl"), "--kubeconfig", filepath.Join(m.dir, "kubeconfig"), "--request-timeout=3m"}
	c := cluster{T: t, kubectl: kubectl}
	c.eventually(long, is(strings.Join(slices.Repeat([]string{"True"}, len(order)), " ")), "get", "nodes", "-o", `jsonpath={.items[*].status.conditions[?(@.type=="Ready")].status}`)
	t.Logf("one cluster after %v", time.Since(began).Round(time.Second))
	c.eventually(patience, is("amd64 amd64 amd64 arm64"), "get", "nodes", "--sort-by", "{.metadata.labels.kubernetes\\.io/arch}", "-o", `jsonpath={.items[*].status.nodeInfo.architecture}`)
	// The descriptions of the API, which validation asks for, take such a machine minutes.
	c.eventually(patience, is("north"), "get", "node", "agent-1", "-o", "jsonpath={.metadata.labels.zone}")

	c.do(answering, "apply", "--validate=false", "-f", "-")
	c.eventually(long, is("3"), "get", "deployment", "web", "-o", "jsonpath={.status.readyReplicas}")
	asking := m.ask(c, order)

	bad := altered(t, filepath.Join(*outDir, "next"), built(t, "keys"), change{version: "98.0.0", root: replaced("usr/bin/skerryd", program(t, "os fmt", `fmt.Println("the table is gone"); os.Exit(3)`))})
	m.publish(bad)
	plan := func(version string) {
		c.do(`{apiVersion: skerry.io/v1alpha1, kind: UpdatePlan, metadata: {name: pcs}, spec: {version: "`+version+`", canary: {count: 1, soak: 10s},
  drain: {deadline: 2m}, nodeSelector: {matchLabels: {kubernetes.io/arch: amd64}}}}`, "apply", "--validate=false", "-f", "-")
	}
	plan("98.0.0")
	c.eventually(long, contains("Failed 0/3"), "get", "updateplan", "pcs", "-o", "jsonpath={.status.phase} {.status.progress} {.status.message}")
	t.Log(c.do("", "get", "updateplans"))
	if why := c.do("", "get", "updateplan", "pcs", "-o", "jsonpath={.status.failed[*]}"); !strings.Contains(why, "the table is gone") {
		t.Errorf("the plan does not say why it stopped: %s", why)
	}
	// Servers go first: no agent may be newer than they are.
	if tried := m.tried("98.0.0"); !slices.Equal(tried, []string{"server-1"}) {
		t.Errorf("the bad release was tried by %v", tried)
	}
	c.eventually(patience, is(""), "get", "nodes", "-o", "jsonpath={.items[*].spec.unschedulable}")
	asking.report("while a bad release was left")

	m.publish(filepath.Join(*outDir, "next"))
	plan("99.0.0")
	began = time.Now()
	c.eventually(4*long, contains("Complete 3/3"), "get", "updateplan", "pcs", "-o", "jsonpath={.status.phase} {.status.progress} {.status.message}")
	t.Logf("three machines updated in %v\n%s", time.Since(began).Round(time.Second), c.do("", "get", "updateplans"))
	if tried := m.tried("99.0.0"); len(tried) != 3 {
		t.Errorf("the good release was tried by %v", tried)
	}
	asking.report("while a good release came to all")
	asking.stop()
}

// addressOf are the machines' addresses. agent-1 and agent-3 get theirs by DHCP, as the page has it; the others are told.
var addressOf = map[string]string{"server-1": "10.11.12.11", "agent-1": "10.11.12.21", "agent-2": "10.11.12.22", "agent-3": "10.11.12.23"}

// cardOf is the hardware address of a machine's network card.
func cardOf(name string) string {
	return "52:54:00:0b:0d:" + addressOf[name][len("10.11.12."):]
}

func is(want string) func(string) bool { return func(out string) bool { return out == want } }

// build makes the fleet with the commands of README's second page.
func (m *machines) build() {
	t := m.t
	t.Helper()
	skerry := built(t, "bin/skerry")
	web, err := net.Listen("tcp", lan.Address+":0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.FileServer(http.Dir(m.repo)), ReadHeaderTimeout: time.Minute}
	go server.Serve(web) //nolint:errcheck // until it is closed
	t.Cleanup(func() { _ = server.Close() })
	name := filepath.Join(m.dir, "fleet.yaml")
	run(t, skerry, "fleet", "new", "--servers", "1", "--agents", "3", "--address", "10.11.12.11/24", name)
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	// What a person would change.
	edit := strings.NewReplacer(
		"keys: out/keys", "keys: "+built(t, "keys"),
		"amd64: out/release", "amd64: "+built(t, "release")+"\n  arm64: "+built(t, "release-arm64"),
		"nameservers: [10.11.12.1]", "nameservers: [10.11.12.1]\n  ntp: {servers: []}\n  update: {source: http://"+web.Addr().String()+", policy: check, deadline: 30m}\n  server: {disable: [ingress, local-storage, metrics-server, servicelb]}",
		"{name: agent-1, board: x86-uefi, role: agent}", "{name: agent-1, board: x86-uefi, role: agent, labels: [zone=north]}",
		"{name: agent-2, board: x86-uefi, role: agent}", "{name: agent-2, board: x86-uefi, role: agent, address: 10.11.12.22/24}",
		"{name: agent-3, board: x86-uefi, role: agent}", "{name: agent-3, board: arm64-uefi, role: agent}")
	if err := os.WriteFile(name, []byte(edit.Replace(string(text))), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Log(run(t, skerry, "fleet", "check", name))
	t.Log(run(t, skerry, "fleet", "build", "-q", "-o", filepath.Join(m.dir, "cards"), name))
	run(t, skerry, "fleet", "kubeconfig", "-o", filepath.Join(m.dir, "kubeconfig"), name)
}

// power writes a machine's card, puts it in and switches the machine on.
func (m *machines) power(name string) {
	m.t.Helper()
	board := "x86-uefi"
	if name == "agent-3" {
		board = "arm64-uefi"
	}
	b, err := boards.Load(board)
	if err != nil {
		m.t.Fatal(err)
	}
	card := filepath.Join(m.t.TempDir(), name+".img")
	run(m.t, "truncate", "-s", "2G", card)
	run(m.t, built(m.t, "bin/skerry"), "flash", "-q", "--yes", "--node", name, filepath.Join(m.dir, "cards"), card)
	n := power(m.t, vm.Options{Dir: m.t.TempDir(), Image: card, Board: *b.QEMU, Tap: m.lan.Tap(), CPUs: 1, MAC: cardOf(name)})
	m.running[name] = n
}

func (m *machines) publish(release string) {
	m.t.Helper()
	m.t.Log(run(m.t, built(m.t, "bin/skerry"), "update", "publish", "--keys", built(m.t, "keys"), "--release", release, "--repo", m.repo))
}

// tried names the machines that started a release.
func (m *machines) tried(version string) (names []string) {
	for name, n := range m.running {
		if strings.Contains(n.Text(), ", release "+version) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// answering is a service of three pods that end as they should: they answer on for ten seconds after they were asked to end.
const answering = `{apiVersion: v1, kind: List, items: [
{apiVersion: v1, kind: ConfigMap, metadata: {name: web, namespace: default}, data: {Corefile: ".:5353 {\n health :8080 {\n lameduck 10s\n }\n}\n"}},
{apiVersion: v1, kind: Service, metadata: {name: web, namespace: default}, spec: {type: NodePort, selector: {app: web}, ports: [{port: 80, targetPort: 8080, nodePort: 30080}]}},
{apiVersion: policy/v1, kind: PodDisruptionBudget, metadata: {name: web, namespace: default}, spec: {minAvailable: 2, selector: {matchLabels: {app: web}}}},
{apiVersion: apps/v1, kind: Deployment, metadata: {name: web, namespace: default}, spec: {replicas: 3, selector: {matchLabels: {app: web}}, template: {metadata: {labels: {app: web}}, spec: {
  affinity: {podAntiAffinity: {preferredDuringSchedulingIgnoredDuringExecution: [{weight: 100, podAffinityTerm: {topologyKey: kubernetes.io/hostname, labelSelector: {matchLabels: {app: web}}}}]}},
  containers: [{name: c, image: "skerry.local/addons:1", imagePullPolicy: Never, args: [coredns, -conf, /etc/coredns/Corefile], volumeMounts: [{name: conf, mountPath: /etc/coredns}],
    readinessProbe: {httpGet: {path: /health, port: 8080}, periodSeconds: 2}}],
  volumes: [{name: conf, configMap: {name: web}}]}}}}]}`

// asking is a client for each node, as a load balancer before the cluster has: it asks the service through that node all the time but
// when the node is cordoned or not Ready.
type asking struct {
	t     *testing.T
	stop  func()
	mu    sync.Mutex
	off   map[string]bool
	count map[string]int
	fault []string
}

func (m *machines) ask(c cluster, nodes []string) *asking {
	ctx, cancel := context.WithCancel(m.t.Context())
	var running sync.WaitGroup
	a := &asking{t: m.t, stop: func() { cancel(); running.Wait() }, off: map[string]bool{}, count: map[string]int{}}
	m.t.Cleanup(a.stop)
	running.Go(func() {
		for ctx.Err() == nil {
			a.look(ctx, c)
			time.Sleep(time.Second)
		}
	})
	for _, name := range nodes {
		client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
		running.Go(func() {
			for ctx.Err() == nil {
				time.Sleep(200 * time.Millisecond)
				a.mu.Lock()
				off := a.off[name]
				a.mu.Unlock()
				if off {
					continue
				}
				r, err := client.Get("http://" + addressOf[name] + ":30080/health") //nolint:noctx // ends soon
				if err == nil {
					_ = r.Body.Close()
					if r.StatusCode != http.StatusOK {
						err = fmt.Errorf("status %s", r.Status)
					}
				}
				a.mu.Lock()
				a.count[name]++
				if err != nil && ctx.Err() == nil {
					a.fault = append(a.fault, fmt.Sprintf("%s %s: %v", time.Now().Format(time.TimeOnly), name, err))
				}
				a.mu.Unlock()
			}
		})
	}
	return a
}

// look asks the API which nodes take requests; while it does not answer, nothing changes.
func (a *asking) look(ctx context.Context, c cluster) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, c.kubectl[0], append(slices.Clone(c.kubectl[1:]), "get", "nodes", "-o", "json")...).Output()
	var list corev1.NodeList
	if err != nil || json.Unmarshal(out, &list) != nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, n := range list.Items {
		ready := slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
			return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
		})
		a.off[n.Name] = n.Spec.Unschedulable || !ready
	}
}

// report fails the test if a request did.
func (a *asking) report(when string) {
	a.t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	all := 0
	for _, n := range a.count {
		all += n
	}
	a.t.Logf("%d requests %s, %d failed: %v", all, when, len(a.fault), a.count)
	if len(a.fault) > 0 || all < 100 {
		a.t.Errorf("failed requests:\n%s", strings.Join(a.fault, "\n"))
	}
	a.fault, a.count = nil, map[string]int{}
}
