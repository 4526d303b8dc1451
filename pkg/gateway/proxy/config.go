// Package proxy is the data plane of the ingress: it listens, picks a rule for each request, and passes the request on to a
// pod. It knows nothing of Kubernetes: what to serve is a Config, which Server.Apply puts in force at once. A change of routes,
// endpoints or certificates swaps a table in memory and touches no connection; only ports that come or go open or close
// listeners, and one that closes lets its requests finish.
package proxy

import (
	"crypto/tls"
	"crypto/x509"
	"regexp"
	"time"
)

// Config is everything that is served.
type Config struct {
	Ports []Port
}

// Port is one TCP port.
type Port struct {
	Number uint16 // listened on
	Public uint16 // what clients see; redirects name it
	TLS    bool
	Sites  []Site
}

// Site is what one owner serves on a port. Where several have a rule for a request, the one whose listener names the host most
// closely comes first, then the one listed first.
type Site struct {
	Listeners []Listener
}

// Listener is a part of a site. Among those of a site only the one that names the host most closely serves a request.
type Listener struct {
	Name         string // for logs
	Hostname     string // "" is any, "*.x" is all below x
	Certificates []Certificate
	ClientCA     *ClientCA  // clients must show a certificate
	Routes       []Route    // in order of precedence among equal matches
	TLSRoutes    []TLSRoute // connections passed on, before or after TLS ends here
}

// Certificate is one that a listener shows, for Hostname, or for the listener's when that is empty.
type Certificate struct {
	Hostname string
	Pair     *tls.Certificate
}

// ClientCA verifies the certificates of clients.
type ClientCA struct {
	Pool     *x509.CertPool
	Optional bool // let clients in without a good one
}

// Route says what happens to requests that match.
type Route struct {
	Hostnames []string // none: any
	OneLabel  bool     // "*.x" is only one label below x, as Ingress has it
	Match     Match
	Action    *Action
}

// Match is what a request must look like.
type Match struct {
	PathKind PathKind
	Path     string
	Regexp   *regexp.Regexp // of the path, when PathKind is Regexp
	Method   string
	Headers  []Pair
	Query    []Pair
	GRPC     bool
}

// PathKind is how Match.Path is meant.
type PathKind uint8

// A path matches as a prefix of whole elements, as a whole, by expression, or as a prefix of characters.
const (
	Prefix PathKind = iota
	Exact
	Regexp
)

// Pair is a header or query parameter that must be there.
type Pair struct {
	Name   string
	Value  string
	Regexp *regexp.Regexp // instead of Value
}

// Action is what is done with a request.
type Action struct {
	Name           string // for logs and metrics: the route's namespace/name
	Filters        []Filter
	Backends       []Backend // none: 500
	Timeout        time.Duration
	BackendTimeout time.Duration
	Retry          *Retry

	turn turn
}

// Retry says when a request is tried again.
type Retry struct {
	Codes    []int
	Attempts int
	Backoff  time.Duration
}

// Backend is a place requests go to.
type Backend struct {
	Name      string
	Weight    int
	Invalid   bool     // 500
	Addresses []string // IP:port of pods; none: 503
	Protocol  Protocol
	TLS       *BackendTLS
	Filters   []Filter

	turn turn
}

// Protocol is what a backend speaks.
type Protocol uint8

// What backends speak.
const (
	HTTP1 Protocol = iota
	H2C
)

// BackendTLS is how a connection to a backend is secured.
type BackendTLS struct {
	Key         string // the same text, the same settings
	ServerName  string
	Roots       *x509.CertPool // nil: the system's
	SANs        []string       // names, or URIs; when there are any, one of them must be in the certificate instead of ServerName
	Certificate *tls.Certificate
}

// TLSRoute passes a TLS connection on: as it is, or, when Terminate is set, what is inside it.
type TLSRoute struct {
	Hostnames []string
	Terminate bool
	Backends  []Backend

	turn *turn
}

// Filter changes a request or its response, or answers it. Exactly one field is set.
type Filter struct {
	Request  *Headers
	Response *Headers
	Redirect *Redirect
	Rewrite  *Rewrite
	Mirror   *Mirror
	CORS     *CORS
}

// Headers are set, then added, then removed.
type Headers struct {
	Set, Add []Pair
	Remove   []string
}

// Redirect answers with another place.
type Redirect struct {
	Scheme   string
	Hostname string
	Path     *PathChange
	Port     int
	Code     int
}

// Rewrite changes where a request goes.
type Rewrite struct {
	Hostname string
	Path     *PathChange
}

// PathChange replaces a path, or the prefix that matched.
type PathChange struct {
	Prefix bool
	Value  string
}

// Mirror sends a copy of Numerator of Denominator requests to another backend and forgets the answer.
type Mirror struct {
	Backend                *Backend
	Numerator, Denominator int
}

// CORS answers browsers' questions about other origins.
type CORS struct {
	Origins, Methods, Headers, Expose []string
	Credentials                       bool
	MaxAge                            int
}
