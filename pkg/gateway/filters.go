package gateway

import (
	"fmt"
	"net/http"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/skerry-os/skerry/pkg/gateway/proxy"
)

func canonical(name string) string { return http.CanonicalHeaderKey(name) }

// filters reads a route's filters. One that is not known refuses the whole route: a filter left out could let through what it
// was to keep out.
func (w *world) filters(r *routeState, list []gatewayv1.HTTPRouteFilter) (out []proxy.Filter) {
	redirect, rewrite := false, false
	for i := range list {
		f := &list[i]
		switch {
		case f.Type == gatewayv1.HTTPRouteFilterRequestHeaderModifier && f.RequestHeaderModifier != nil:
			out = append(out, proxy.Filter{Request: headers(f.RequestHeaderModifier)})
		case f.Type == gatewayv1.HTTPRouteFilterResponseHeaderModifier && f.ResponseHeaderModifier != nil:
			out = append(out, proxy.Filter{Response: headers(f.ResponseHeaderModifier)})
		case f.Type == gatewayv1.HTTPRouteFilterRequestRedirect && f.RequestRedirect != nil:
			x := f.RequestRedirect
			redirect = true
			out = append(out, proxy.Filter{Redirect: &proxy.Redirect{
				Scheme: deref(x.Scheme, ""), Hostname: string(deref(x.Hostname, "")), Path: pathChange(x.Path), Port: int(deref(x.Port, 0)), Code: deref(x.StatusCode, http.StatusFound),
			}})
		case f.Type == gatewayv1.HTTPRouteFilterURLRewrite && f.URLRewrite != nil:
			rewrite = true
			out = append(out, proxy.Filter{Rewrite: &proxy.Rewrite{Hostname: string(deref(f.URLRewrite.Hostname, "")), Path: pathChange(f.URLRewrite.Path)}})
		case f.Type == gatewayv1.HTTPRouteFilterRequestMirror && f.RequestMirror != nil:
			out = append(out, proxy.Filter{Mirror: w.mirror(r, f.RequestMirror)})
		case f.Type == gatewayv1.HTTPRouteFilterCORS && f.CORS != nil:
			out = append(out, proxy.Filter{CORS: cors(f.CORS)})
		default:
			r.refuse("filter %s is not supported", f.Type)
		}
	}
	if redirect && rewrite {
		r.refuse("a rule cannot both redirect and rewrite")
	}
	return out
}

func headers(h *gatewayv1.HTTPHeaderFilter) *proxy.Headers {
	out := &proxy.Headers{}
	for _, x := range h.Set {
		out.Set = append(out.Set, proxy.Pair{Name: string(x.Name), Value: x.Value})
	}
	for _, x := range h.Add {
		out.Add = append(out.Add, proxy.Pair{Name: string(x.Name), Value: x.Value})
	}
	out.Remove = h.Remove
	return out
}

func pathChange(p *gatewayv1.HTTPPathModifier) *proxy.PathChange {
	switch {
	case p == nil:
		return nil
	case p.Type == gatewayv1.PrefixMatchHTTPPathModifier:
		return &proxy.PathChange{Prefix: true, Value: deref(p.ReplacePrefixMatch, "/")}
	}
	return &proxy.PathChange{Value: deref(p.ReplaceFullPath, "/")}
}

func (w *world) mirror(r *routeState, m *gatewayv1.HTTPRequestMirrorFilter) *proxy.Mirror {
	b, problem := w.backend(r, m.BackendRef)
	r.unresolvedBy(problem)
	out := &proxy.Mirror{Backend: &b, Numerator: 1, Denominator: 1}
	if m.Percent != nil {
		out.Numerator, out.Denominator = int(*m.Percent), 100
	}
	if f := m.Fraction; f != nil {
		out.Numerator, out.Denominator = int(f.Numerator), int(deref(f.Denominator, 100))
	}
	if out.Denominator <= 0 || out.Numerator < 0 {
		r.refuse("requestMirror: %s is no fraction", fmt.Sprint(out.Numerator, "/", out.Denominator))
		out.Numerator, out.Denominator = 0, 1
	}
	return out
}

func cors(c *gatewayv1.HTTPCORSFilter) *proxy.CORS {
	out := &proxy.CORS{Credentials: deref(c.AllowCredentials, false), MaxAge: int(c.MaxAge)}
	for _, x := range c.AllowOrigins {
		out.Origins = append(out.Origins, string(x))
	}
	for _, x := range c.AllowMethods {
		out.Methods = append(out.Methods, string(x))
	}
	for _, x := range c.AllowHeaders {
		out.Headers = append(out.Headers, string(x))
	}
	for _, x := range c.ExposeHeaders {
		out.Expose = append(out.Expose, string(x))
	}
	return out
}
