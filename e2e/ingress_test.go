package e2e

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

const routed = `apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: web, namespace: e2e}
spec:
  rules: [{http: {paths: [
    {path: /health, pathType: Exact, backend: {service: {name: web, port: {number: 80}}}},
    {path: /nobody, pathType: Prefix, backend: {service: {name: nobody, port: {number: 80}}}}]}}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web, namespace: e2e}
spec:
  parentRefs: [{name: default, namespace: ingress}]
  rules:
    - matches: [{path: {type: PathPrefix, value: /route}}]
      filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}}]
      backendRefs: [{name: web, port: 80}]
    - matches: [{path: {type: PathPrefix, value: /lost}}]
      backendRefs: [{name: lost, port: 80}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: own, namespace: e2e}
spec:
  gatewayClassName: skerry
  listeners: [{name: http, port: 80, protocol: HTTP}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: own, namespace: e2e}
spec:
  parentRefs: [{name: own}]
  rules:
    - matches: [{path: {type: Exact, value: /own/health}}]
      filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: /health}}}]
      backendRefs: [{name: web, port: 80}]
`

// routes reaches pods from outside by Ingress and HTTPRoute objects, with nothing set up before, and goes on reaching them while
// the ingress itself is replaced.
func (c cluster) routes(outside string) {
	c.Helper()
	const node = "http://192.0.2.2"
	c.eventually(patience, contains("192.0.2.2"), "-n", "ingress", "get", "gateway", "default", "-o", "jsonpath={.status.addresses[*].value}")
	c.answers(time.Minute, "no route for this host and path", outside, node+"/health")
	c.do(routed, "apply", "-f", "-")
	for path, want := range map[string]string{
		"/health": "OK", "/route/health": "OK", "/own/health": "OK", "/lost": "internal server error", "/nobody": "service unavailable",
		"/elsewhere": "no route for this host and path",
	} {
		c.answers(time.Minute, want, outside, node+path)
	}
	c.eventually(time.Minute, contains("192.0.2.2"), "-n", "e2e", "get", "ingress", "web", "-o", "jsonpath={.status.loadBalancer.ingress[*].ip}")
	c.eventually(time.Minute, contains("BackendNotFound"), "-n", "e2e", "get", "httproute", "web", "-o", "jsonpath={.status.parents[*].conditions[*].reason}")

	ctx, stop := context.WithCancel(c.Context())
	var asked atomic.Int64
	var loop sync.WaitGroup
	for range 4 {
		loop.Go(func() {
			for ctx.Err() == nil {
				if got, err := get(c.Context(), outside, node+"/health"); err != nil || got != "OK" {
					c.Errorf("while the ingress was replaced: %q, %v", got, err)
				}
				asked.Add(1)
			}
		})
	}
	c.do("", "-n", "ingress", "rollout", "restart", "daemonset/ingress")
	c.do("", "-n", "ingress", "rollout", "status", "daemonset/ingress", "--timeout=5m")
	c.eventually(patience, func(out string) bool { return out == "ingress" }, "-n", "ingress", "get", "pods", "-o", "jsonpath={.items[*].metadata.labels.app\\.kubernetes\\.io/name}")
	stop()
	loop.Wait()
	c.Logf("%d requests while the ingress was replaced", asked.Load())
	c.do(routed, "delete", "-f", "-")
}
