// Package gatewayapi runs upstream's conformance suite of the Gateway API against the ingress of a server on this host.
package gatewayapi
