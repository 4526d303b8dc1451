package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// outside is a network of its own at the other end of the engine's wire: who asks from there comes from outside.
func (e *engine) outside() string {
	e.t.Helper()
	name := e.netns + "-out"
	e.must("ip", "netns", "add", name)
	e.t.Cleanup(func() {
		e.stop() // first: the wire goes with the network, and with it the server's address
		_ = exec.Command("ip", "netns", "delete", name).Run()
	})
	e.must("ip", "-n", e.netns, "link", "set", "far", "netns", name)
	e.must("ip", "-n", name, "address", "add", "192.0.2.1/24", "dev", "far")
	e.must("ip", "-n", name, "link", "set", "far", "up")
	return name
}

// get asks over HTTP from a network, over a connection of its own.
func get(ctx context.Context, netns, url string) (string, error) {
	dial := func(ctx context.Context, network, address string) (net.Conn, error) {
		type answer struct {
			net.Conn
			error
		}
		out := make(chan answer, 1)
		go func() {
			runtime.LockOSThread() // and never unlocked: the thread ends
			ns, err := os.Open("/run/netns/" + netns)
			if err != nil {
				out <- answer{nil, err}
				return
			}
			defer func() { _ = ns.Close() }()
			if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
				out <- answer{nil, err}
				return
			}
			c, err := (&net.Dialer{Timeout: 2 * time.Second}).DialContext(ctx, network, address)
			out <- answer{c, err}
		}()
		a := <-out
		return a.Conn, a.error
	}
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	response, err := client.Do(request)
	if err != nil {
		return "", err
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	return strings.TrimSpace(string(body)), err
}

// answers asks until the answer is want, or, with want "", until there is none.
func (c cluster) answers(limit time.Duration, want, netns, url string) {
	c.Helper()
	ctx, cancel := context.WithTimeout(c.Context(), limit)
	defer cancel()
	for {
		got, err := get(ctx, netns, url)
		if err == nil && got == want && want != "" || err != nil && want == "" && ctx.Err() == nil {
			return
		}
		select {
		case <-ctx.Done():
			c.Fatalf("%s says %q, %v; want %q\n%s", url, got, err, want, c.everything())
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// do is try that must work.
func (c cluster) do(stdin string, args ...string) string {
	c.Helper()
	out, err := c.try(c.Context(), stdin, args...)
	if err != nil {
		c.Fatal(err)
	}
	return out
}

// The components of the release at work on one server: starting is what takes time, so they share it.
func TestNativeComponents(t *testing.T) {
	e := newEngine(t)
	outside := e.outside()
	e.start()
	c := e.cluster()
	c.ready()
	c.start()
	on := func(t *testing.T) cluster { c := c; c.T = t; return c }

	t.Run("ingress", func(t *testing.T) { on(t).routes(outside) })
	t.Run("servicelb", func(t *testing.T) { on(t).balances(outside) })
	t.Run("local-storage", func(t *testing.T) { on(t).stores(filepath.Join(e.data(), "storage")) })

	t.Run("metrics-server", func(t *testing.T) { on(t).measures() })

	// The same data, the components disabled: what they left in others' way is gone.
	e.stop()
	e.flags = []string{"--disable", "ingress", "--disable", "servicelb", "--disable", "local-storage", "--disable", "metrics-server"}
	e.start()
	t.Run("local-storage over a restart", func(t *testing.T) { on(t).stored(filepath.Join(e.data(), "storage")) })
	t.Run("servicelb disabled", func(t *testing.T) {
		c := on(t)
		c.eventually(time.Minute, func(out string) bool { return out == "{}" }, "-n", "e2e", "get", "service", "lb", "-o", "jsonpath={.status.loadBalancer}")
		c.answers(time.Minute, "", outside, "http://192.0.2.2:82/health")
	})
	t.Run("metrics-server disabled", func(t *testing.T) {
		if out, err := c.try(t.Context(), "", "get", "--raw", "/apis/metrics.k8s.io/v1beta1/nodes"); err == nil {
			t.Errorf("still answered: %s", out)
		}
	})
}

const autoscaler = `
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: web, namespace: e2e}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: web}
  maxReplicas: 3
  metrics:
    - {type: Resource, resource: {name: cpu, target: {type: AverageValue, averageValue: 500m}}}
    - {type: Resource, resource: {name: memory, target: {type: AverageValue, averageValue: 1Mi}}} # less than any process has
`

// measures asks for what nodes and pods use, as a person, as a person with few rights, and as the autoscaler.
func (c cluster) measures() {
	c.do("", "wait", "--for=condition=Available", "--timeout=1m", "apiservice", "v1beta1.metrics.k8s.io")
	row := func(name string) func(string) bool { // NAME CPU(cores) ... MEMORY
		return func(out string) bool {
			for line := range strings.Lines(out) {
				if f := strings.Fields(line); len(f) >= 3 && strings.HasPrefix(f[0], name) && strings.HasSuffix(f[1], "m") {
					return true
				}
			}
			return false
		}
	}
	c.eventually(2*time.Minute, row("e2e"), "top", "nodes", "--no-headers")
	c.eventually(2*time.Minute, row("web-"), "-n", "e2e", "top", "pods", "--no-headers")
	c.eventually(time.Minute, row("client"), "-n", "e2e", "top", "pods", "--no-headers", "--containers=false", "client")
	if out := c.do("", "api-resources", "--api-group=metrics.k8s.io", "--no-headers", "-o", "name"); out != "nodes.metrics.k8s.io\npods.metrics.k8s.io" {
		c.Errorf("discovered: %q", out)
	}
	c.do("", "-n", "e2e", "create", "rolebinding", "viewer", "--clusterrole=view", "--user=eve")
	c.eventually(time.Minute, row("web-"), "-n", "e2e", "--as=eve", "top", "pods", "--no-headers")
	if out, err := c.try(c.Context(), "", "--as=nobody", "top", "pods", "-n", "e2e"); err == nil {
		c.Errorf("a user without rights: %s", out)
	}
	c.do(autoscaler, "apply", "-f", "-")
	c.eventually(2*time.Minute, func(out string) bool { return out == "3" }, "-n", "e2e", "get", "deployment", "web", "-o", "jsonpath={.spec.replicas}")
	c.eventually(time.Minute, contains("m"), "-n", "e2e", "get", "hpa", "web", "-o", `jsonpath={.status.currentMetrics[?(@.resource.name=="cpu")].resource.current.averageValue}`)
	c.do("", "-n", "e2e", "delete", "hpa", "web")
}

const balancer = `{"apiVersion":"v1","kind":"Service","metadata":{"name":"%s","namespace":"e2e"},"spec":{"type":"LoadBalancer",
"allocateLoadBalancerNodePorts":false,"externalTrafficPolicy":"%s","selector":{"app":"%s"},"ports":[{"port":%d,"targetPort":8080}]}}`

// balances reaches pods from outside through a Service of type LoadBalancer.
func (c cluster) balances(outside string) {
	const address = `jsonpath={.status.loadBalancer.ingress[*].ip}`
	is := func(want string) func(string) bool { return func(out string) bool { return out == want } }
	c.do(fmt.Sprintf(balancer, "lb", "Cluster", "web", 82), "apply", "-f", "-")
	c.eventually(time.Minute, is("192.0.2.2"), "-n", "e2e", "get", "service", "lb", "-o", address)
	c.answers(time.Minute, "OK", outside, "http://192.0.2.2:82/health")

	// Local, without endpoints, then with some.
	c.do(fmt.Sprintf(balancer, "local", "Local", "nobody", 81), "apply", "-f", "-")
	c.do(fmt.Sprintf(balancer, "second", "Cluster", "web", 82), "apply", "-f", "-")
	c.do(fmt.Sprintf(balancer, "kubelet", "Cluster", "web", 10250), "apply", "-f", "-")
	c.eventually(time.Minute, contains("is taken by Service e2e/lb"), "-n", "e2e", "get", "events", "--field-selector", "involvedObject.name=second,reason=LoadBalancerPortTaken", "-o", "jsonpath={.items[*].message}")
	c.eventually(time.Minute, contains("used by the nodes"), "-n", "e2e", "get", "service", "kubelet", "-o", "jsonpath={.status.conditions[*].message}")
	if got := c.do("", "-n", "e2e", "get", "service", "local", "second", "kubelet", "-o", "jsonpath={.items[*].status.loadBalancer.ingress}"); got != "" {
		c.Errorf("without endpoints, and with ports that are taken: %s", got)
	}
	c.do("", "-n", "e2e", "patch", "service", "local", "-p", `{"spec":{"selector":{"app":"web"}}}`)
	c.eventually(time.Minute, is("192.0.2.2"), "-n", "e2e", "get", "service", "local", "-o", address)
	c.answers(time.Minute, "OK", outside, "http://192.0.2.2:81/health")

	// The port goes to who waits for it, and a Service that is no balancer any more keeps no address.
	c.do("", "-n", "e2e", "patch", "service", "lb", "-p", `{"spec":{"type":"ClusterIP","externalTrafficPolicy":null,"allocateLoadBalancerNodePorts":null}}`)
	c.eventually(time.Minute, is("192.0.2.2"), "-n", "e2e", "get", "service", "second", "-o", address)
	c.eventually(time.Minute, is(""), "-n", "e2e", "get", "service", "second", "-o", "jsonpath={.status.conditions}")
	c.eventually(time.Minute, is(""), "-n", "e2e", "get", "service", "lb", "-o", address)
	c.answers(time.Minute, "OK", outside, "http://192.0.2.2:82/health")
	c.do("", "-n", "e2e", "delete", "service", "second")
	c.answers(time.Minute, "", outside, "http://192.0.2.2:82/health")
	c.do("", "-n", "e2e", "patch", "service", "lb", "-p", `{"spec":{"type":"LoadBalancer","allocateLoadBalancerNodePorts":false}}`)
	c.answers(time.Minute, "OK", outside, "http://192.0.2.2:82/health")

	c.do("", "label", "node", "e2e", "svccontroller.k3s.cattle.io/enablelb=false")
	c.eventually(time.Minute, is(""), "-n", "e2e", "get", "service", "lb", "-o", address)
	c.do("", "label", "node", "e2e", "svccontroller.k3s.cattle.io/enablelb-")
	c.eventually(time.Minute, is("192.0.2.2"), "-n", "e2e", "get", "service", "lb", "-o", address)
}

const claims = `
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: keep}
provisioner: rancher.io/local-path
volumeBindingMode: WaitForFirstConsumer
reclaimPolicy: Retain
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: fleeting, namespace: e2e}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 64Mi}}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: kept, namespace: e2e}
spec: {storageClassName: keep, accessModes: [ReadWriteOncePod], resources: {requests: {storage: 1Gi}}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: everywhere, namespace: e2e}
spec: {accessModes: [ReadWriteMany], resources: {requests: {storage: 1Gi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: writer, namespace: e2e}
spec:
  terminationGracePeriodSeconds: 1
  securityContext: {runAsUser: 1234, runAsGroup: 1234}
  containers:
    - name: writer
      image: skerry.local/addons:1
      imagePullPolicy: Never
      args: [coredns, -conf, /etc/coredns/Corefile]
      volumeMounts:
        - {name: config, mountPath: /etc/coredns}
        - {name: node, mountPath: /node, readOnly: true}
        - {name: fleeting, mountPath: /fleeting}
        - {name: kept, mountPath: /kept}
  volumes:
    - {name: config, configMap: {name: web}}
    - {name: node, hostPath: {path: NODE_PROGRAMS, type: Directory}}
    - {name: fleeting, persistentVolumeClaim: {claimName: fleeting}}
    - {name: kept, persistentVolumeClaim: {claimName: kept}}
---
apiVersion: v1
kind: Pod
metadata: {name: nowhere, namespace: e2e}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: c, image: "skerry.local/pause:1", imagePullPolicy: Never}]
  volumes: [{name: v, persistentVolumeClaim: {claimName: everywhere}}]
`

// stores writes into volumes as a user who owns nothing, and deletes one.
func (c cluster) stores(root string) {
	is := func(want string) func(string) bool { return func(out string) bool { return out == want } }
	c.do(strings.ReplaceAll(claims, "NODE_PROGRAMS", c.programs), "apply", "-f", "-")
	c.eventually(time.Minute, contains("True"), "-n", "e2e", "get", "pod", "writer", "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].status}`)
	for _, name := range []string{"fleeting", "kept"} {
		c.do("", "-n", "e2e", "exec", "writer", "--", "/node/kubectl", "config", "set-cluster", "written", "--kubeconfig=/"+name+"/file")
	}
	folder := func(claim string) string {
		found, err := filepath.Glob(filepath.Join(root, "pvc-*_e2e_"+claim))
		if err != nil || len(found) != 1 {
			c.Fatalf("folders of %s: %v, %v", claim, found, err)
		}
		return found[0]
	}
	fleeting, kept := folder("fleeting"), folder("kept")
	if b, err := os.ReadFile(filepath.Join(fleeting, "file")); err != nil || !strings.Contains(string(b), "written") {
		c.Errorf("what the pod wrote: %q, %v", b, err)
	}
	if got := c.do("", "-n", "e2e", "get", "pvc", "fleeting", "kept", "-o", "jsonpath={.items[*].status.capacity.storage}"); got != "64Mi 1Gi" {
		c.Errorf("sizes: %s", got)
	}
	c.eventually(time.Minute, contains("local-path volumes are on one node"), "-n", "e2e", "get", "events", "--field-selector", "involvedObject.name=everywhere,reason=ProvisioningFailed", "-o", "jsonpath={.items[*].message}")
	// A volume that is deleted by hand goes with its folder too, and only after its claim.
	volume := c.do("", "-n", "e2e", "get", "pvc", "fleeting", "-o", "jsonpath={.spec.volumeName}")
	c.do("", "delete", "pv", volume, "--wait=false")
	c.do("", "-n", "e2e", "delete", "pod", "writer", "nowhere", "--wait")
	c.do("", "-n", "e2e", "delete", "pvc", "fleeting", "everywhere", "--wait")
	c.eventually(time.Minute, is(""), "get", "pv", volume, "--ignore-not-found", "-o", "name")
	if _, err := os.Stat(fleeting); !os.IsNotExist(err) {
		c.Errorf("%s is still there: %v", fleeting, err)
	}
	c.do("", "-n", "e2e", "delete", "pvc", "kept", "--wait")
	c.eventually(time.Minute, contains("Released"), "get", "pv", "-o", "jsonpath={.items[*].status.phase}")
	if _, err := os.Stat(filepath.Join(kept, "file")); err != nil {
		c.Errorf("a volume to be retained: %v", err)
	}
	c.eventually(time.Minute, is(""), "get", "node", "e2e", "-o", `jsonpath={.metadata.annotations.local-storage\.skerry\.io/request}{.metadata.annotations.local-storage\.skerry\.io/report}`)
}

// stored finds after a restart what was retained, and nothing that waits for a component that is disabled.
func (c cluster) stored(root string) {
	if found, err := filepath.Glob(filepath.Join(root, "*", "file")); err != nil || len(found) != 1 {
		c.Errorf("files in volumes: %v, %v", found, err)
	}
	c.do("", "delete", "pv", "--all", "--wait", "--timeout=30s")
	if found, err := filepath.Glob(filepath.Join(root, "*", "file")); err != nil || len(found) != 1 {
		c.Errorf("files of deleted volumes that were to be retained: %v, %v", found, err)
	}
}
