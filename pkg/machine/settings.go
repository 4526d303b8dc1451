package machine

import (
	"fmt"
	"net/netip"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"unicode"
)

// DataDir is where everything lives that a node must not lose. On the image /var is the data partition.
const DataDir = "/var/lib/skerry"

// MinToken is the fewest characters a cluster token may have: it guards every secret of the cluster.
const MinToken = 16

// MaxNodeName is as long as a label can be, which Kubernetes makes of a node's name. NodeIDLength is what with-node-id appends,
// behind a dash.
const (
	MaxNodeName  = 63
	NodeIDLength = 8
)

// Components that --disable knows. "traefik" is K3s's word for its ingress and means ours.
var Components = []string{"coredns", "helm-controller", "ingress", "local-storage", "metrics-server", "network-policy", "runtimes", "servicelb", "traefik", "update-controller"}

// Agent holds the engine's settings that every node has. The yaml tag of a field is the key in a file and the name of the
// flag; the help tag is the flag's text; the tag shared marks what a cluster's nodes have in common (see Shared), moved what a node config has elsewhere. Fields are string, int, bool or []string, so that Fields can offer all of them.
type Agent struct {
	DataDir         string   `yaml:"data-dir" help:"folder for everything that must outlive a restart"`
	NodeName        string   `yaml:"node-name" help:"name of this node in the cluster (default: the host name)"`
	WithNodeID      bool     `yaml:"with-node-id" help:"append to the node's name an id that its data folder keeps, so that machines of one name differ"`
	NodeIP          string   `yaml:"node-ip" help:"address of this node; an IPv4 and an IPv6 one with a comma between (default: the one that the default route uses)"`
	NodeExternalIP  string   `yaml:"node-external-ip" help:"address of this node as seen from outside its network; an IPv4 and an IPv6 one with a comma between"`
	FlannelIface    string   `yaml:"flannel-iface" help:"interface towards the other nodes (default: the one that has the node's address)"`
	NodeLabel       []string `yaml:"node-label" help:"label to register the node with, as key=value; repeatable"`
	NodeTaint       []string `yaml:"node-taint" help:"taint to register the node with, as key=value:effect; repeatable"`
	Token           string   `yaml:"token" moved:"cluster.token" help:"secret that lets nodes join, alone or in the form of server/node-token, which also says of which cluster it is (default: a server makes one)"`
	TokenFile       string   `yaml:"token-file" help:"file with the token, instead of token"`
	Server          string   `yaml:"server" moved:"cluster.server" help:"server to join, as https://HOST:6443; any that runs will do, the others are learned; several, joined by commas, are tried one after the other"`
	LBServerPort    int      `yaml:"lb-server-port" help:"port on this machine, of an agent, that leads to a server that works"`
	KubeletArg      []string `yaml:"kubelet-arg" help:"flag for kubelet, as name=value; repeatable"`
	KubeProxyArg    []string `yaml:"kube-proxy-arg" help:"flag for kube-proxy, as name=value; repeatable"`
	PrivateRegistry string   `yaml:"private-registry" help:"file that says how registries are reached: mirrors, rewrites, users, TLS; read again when it changes"`
	HTTPProxy       string   `yaml:"http-proxy" help:"proxy for image pulls, Helm charts and snapshots on S3 over http; the cluster itself never goes through it (default: $CONTAINERD_HTTP_PROXY, $HTTP_PROXY)"`
	HTTPSProxy      string   `yaml:"https-proxy" help:"the same over https"`
	NoProxy         string   `yaml:"no-proxy" help:"names, addresses and networks to reach directly, with commas between; this machine, the cluster and its nodes always are"`
	LocalStorage    string   `yaml:"default-local-storage-path" help:"folder on this node for volumes of the class local-path (default: storage, in the data folder)"`
	Debug           bool     `yaml:"debug" help:"log in detail"`

	Runtime `yaml:",inline"`
}

// Server holds the engine's settings of a node that runs the control plane; it is a node too.
type Server struct {
	Agent                    `yaml:",inline"`
	Datastore                `yaml:",inline"`
	Membership               `yaml:",inline"`
	Listen                   `yaml:",inline"`
	HTTPSListenPort          int      `yaml:"https-listen-port" help:"port of the Kubernetes API"`
	ClusterCIDR              string   `yaml:"cluster-cidr" shared:"" help:"networks that pods get addresses from"`
	ServiceCIDR              string   `yaml:"service-cidr" shared:"" help:"networks that services get addresses from"`
	ClusterDNS               string   `yaml:"cluster-dns" shared:"" help:"addresses of CoreDNS, inside service-cidr (default: the tenth of each network)"`
	ClusterDomain            string   `yaml:"cluster-domain" shared:"" help:"domain of the cluster"`
	FlannelBackend           string   `yaml:"flannel-backend" shared:"" help:"how pods reach those of other nodes: vxlan, wireguard-native, host-gw, or none for a network of your own"`
	FlannelExternalIP        bool     `yaml:"flannel-external-ip" shared:"" help:"reach the other nodes at their node-external-ip"`
	DisableNetworkPolicy     bool     `yaml:"disable-network-policy" shared:"" help:"the same as disable: [network-policy]"`
	DisableKubeProxy         bool     `yaml:"disable-kube-proxy" shared:"" help:"run no kube-proxy on any node, for a network of your own that leads to services itself"`
	DisableHelmController    bool     `yaml:"disable-helm-controller" shared:"" help:"the same as disable: [helm-controller]; HelmChart objects that are there stay, and so does what they installed"`
	Disable                  []string `yaml:"disable" shared:"" help:"component not to run: coredns, ingress, local-storage, metrics-server, network-policy, runtimes, servicelb; repeatable"`
	WriteKubeconfig          string   `yaml:"write-kubeconfig" help:"where to write the administrator's kubeconfig (default: skerry.yaml in /etc/skerry)"`
	WriteKubeconfigMode      string   `yaml:"write-kubeconfig-mode" help:"permissions of that file, in octal"`
	TLSSAN                   []string `yaml:"tls-san" help:"more names or addresses that the API's certificate is valid for; repeatable"`
	KubeAPIServerArg         []string `yaml:"kube-apiserver-arg" help:"flag for kube-apiserver, as name=value; repeatable"`
	KubeControllerManagerArg []string `yaml:"kube-controller-manager-arg" also:"kube-controller-arg" help:"flag for kube-controller-manager, as name=value; repeatable"`
	KubeSchedulerArg         []string `yaml:"kube-scheduler-arg" help:"flag for kube-scheduler, as name=value; repeatable"`
}

// DefaultAgent is an Agent with its defaults.
func DefaultAgent() Agent {
	return Agent{DataDir: DataDir, PrivateRegistry: "/etc/skerry/registries.yaml", LBServerPort: 6444}
}

// DefaultServer is a Server with its defaults.
func DefaultServer() Server {
	return Server{
		Agent:               DefaultAgent(),
		Datastore:           defaultDatastore(),
		Listen:              Listen{ServiceNodePortRange: defaultNodePorts},
		HTTPSListenPort:     6443,
		ClusterCIDR:         "10.42.0.0/16",
		ServiceCIDR:         "10.43.0.0/16",
		FlannelBackend:      "vxlan",
		ClusterDomain:       "cluster.local",
		WriteKubeconfigMode: "0600",
		Membership:          Membership{NodeReplace: "approve", CertificateLifetime: "8760h"},
	}
}

// Backends that --flannel-backend knows; the flag has K3s's name, and so have they.
var Backends = []string{"vxlan", "wireguard-native", "host-gw", "none"}

// DNS lists the addresses of CoreDNS: those given, or the tenth of each service network. The settings have no problems.
func (s *Server) DNS() (out []netip.Addr) {
	var p problems
	if s.ClusterDNS != "" {
		each(s.ClusterDNS, func(text string) {
			if ip, err := netip.ParseAddr(text); err == nil {
				out = append(out, ip)
			}
		})
		return out
	}
	for _, n := range p.prefixes("service-cidr", s.ServiceCIDR) {
		ip := n.Addr()
		for range 10 {
			ip = ip.Next()
		}
		out = append(out, ip)
	}
	return out
}

// Networks lists what the cluster has addresses of its own in: the pods' networks and the services'.
func (s *Server) Networks() ([]netip.Prefix, error) {
	var all []netip.Prefix
	for _, list := range []string{s.ClusterCIDR, s.ServiceCIDR} {
		for text := range strings.SplitSeq(list, ",") {
			n, err := netip.ParsePrefix(strings.TrimSpace(text))
			if err != nil {
				return nil, err
			}
			all = append(all, n)
		}
	}
	return all, nil
}

// Field is one setting of an Agent or Server: its name, its text and a *string, *int, *bool or *[]string to its value.
type Field struct {
	Name, Help string
	Also       string // another name that is taken for it, K3s's
	Shared     bool   // all nodes of a cluster have the same
	Ptr        any
}

// Fields lists the settings of v, a *Agent or *Server, in the order they are declared, for binding flags.
func Fields(v any) []Field { return fields(reflect.ValueOf(v).Elem()) }

func fields(v reflect.Value) []Field {
	var out []Field
	for f, fv := range v.Fields() {
		if f.Anonymous {
			out = append(out, fields(fv)...)
			continue
		}
		_, shared := f.Tag.Lookup("shared")
		out = append(out, Field{Name: f.Tag.Get("yaml"), Help: f.Tag.Get("help"), Also: f.Tag.Get("also"), Shared: shared, Ptr: fv.Addr().Interface()})
	}
	return out
}

// Problem is one value that cannot stand, and the keys and list indexes that lead to it.
type Problem struct {
	Path []any
	Msg  string
}

func (p Problem) Error() string {
	var b strings.Builder
	for i, e := range p.Path {
		switch e := e.(type) {
		case int:
			fmt.Fprintf(&b, "[%d]", e)
		case typed:
			fmt.Fprintf(&b, "[%q]", string(e))
		default:
			if i > 0 {
				b.WriteByte('.')
			}
			fmt.Fprint(&b, e)
		}
	}
	return b.String() + ": " + p.Msg
}

// typed is a key that a person made up, unlike those of the format.
type typed string

// problems collects Problems below one place.
type problems struct {
	list []Problem
	base []any
}

func (p *problems) add(msg string, path ...any) {
	p.list = append(p.list, Problem{Path: append(slices.Clone(p.base), path...), Msg: msg})
}

func (p *problems) addf(path []any, format string, a ...any) {
	p.add(fmt.Sprintf(format, a...), path...)
}

// below collects the problems of a section.
func (p *problems) below(key string, f func(*problems)) {
	q := problems{base: append(slices.Clone(p.base), key)}
	f(&q)
	p.list = append(p.list, q.list...)
}

// Problems lists what is wrong with the settings, wherever they came from.
func (a *Agent) Problems() []Problem {
	var p problems
	if !strings.HasPrefix(a.DataDir, "/") {
		p.addf([]any{"data-dir"}, "%q is not an absolute path", a.DataDir)
	}
	if a.NodeName != "" {
		if msg := checkHostname(a.NodeName); msg != "" {
			p.add(msg, "node-name")
		}
		p.withID(a, a.NodeName, "node-name")
	}
	if a.NodeIP != "" {
		each(a.NodeIP, func(s string) {
			if _, err := netip.ParseAddr(s); err != nil {
				p.addf([]any{"node-ip"}, "%q is not an IP address", s)
			}
		})
	}
	if a.NodeExternalIP != "" {
		each(a.NodeExternalIP, func(s string) {
			if _, err := netip.ParseAddr(s); err != nil {
				p.addf([]any{"node-external-ip"}, "%q is not an IP address", s)
			}
		})
	}
	if len(a.FlannelIface) > 15 || strings.ContainsAny(a.FlannelIface, "/ ") {
		p.addf([]any{"flannel-iface"}, "%q is not the name of a network interface", a.FlannelIface)
	}
	if a.Token != "" {
		if msg := checkToken(a.Token); msg != "" {
			p.add(msg, "token")
		}
	}
	p.joining(a)
	if a.Server != "" {
		if msg := checkServer(a.Server); msg != "" {
			p.add(msg, "server")
		}
	}
	for i, l := range a.NodeLabel {
		if k, v, ok := strings.Cut(l, "="); !ok || !labelKey.MatchString(k) || !labelValue.MatchString(v) {
			p.addf([]any{"node-label", i}, "%q is not a label; write key=value", l)
		}
	}
	for i, t := range a.NodeTaint {
		if !taint.MatchString(t) {
			p.addf([]any{"node-taint", i}, "%q is not a taint; write key=value:NoSchedule (or PreferNoSchedule, NoExecute)", t)
		}
	}
	if !strings.HasPrefix(a.PrivateRegistry, "/") {
		p.addf([]any{"private-registry"}, "%q is not an absolute path", a.PrivateRegistry)
	}
	p.proxy("http-proxy", a.HTTPProxy)
	p.proxy("https-proxy", a.HTTPSProxy)
	if a.LocalStorage != "" && !strings.HasPrefix(a.LocalStorage, "/") {
		p.addf([]any{"default-local-storage-path"}, "%q is not an absolute path", a.LocalStorage)
	}
	p.args("kubelet-arg", a.KubeletArg)
	p.args("kube-proxy-arg", a.KubeProxyArg)
	p.runtime(&a.Runtime)
	return p.list
}

// Problems lists what is wrong with the settings, wherever they came from.
func (s *Server) Problems() []Problem {
	p := problems{list: s.Agent.Problems()}
	if s.HTTPSListenPort < 1 || s.HTTPSListenPort > 65535 {
		p.addf([]any{"https-listen-port"}, "%d is not a port; write 1 to 65535", s.HTTPSListenPort)
	}
	pods := p.prefixes("cluster-cidr", s.ClusterCIDR)
	services := p.prefixes("service-cidr", s.ServiceCIDR)
	for _, a := range pods {
		for _, b := range services {
			if a.Overlaps(b) {
				p.addf([]any{"service-cidr"}, "%s overlaps cluster-cidr %s; pods and services need networks of their own", b, a)
			}
		}
	}
	if !slices.Contains(Backends, s.FlannelBackend) {
		p.addf([]any{"flannel-backend"}, "%q is not a back end; known are %s", s.FlannelBackend, strings.Join(Backends, ", "))
	}
	if len(pods) > 0 && len(services) > 0 && (!subset(services, pods) || pods[0].Addr().Is6() != services[0].Addr().Is6()) {
		p.addf([]any{"service-cidr"}, "%s does not go with cluster-cidr %s: both begin with the same IP family, and pods need a network of every family that services have", s.ServiceCIDR, s.ClusterCIDR)
	}
	each(s.ClusterDNS, func(text string) {
		if text == "" {
			return // DNS finds one
		}
		ip, err := netip.ParseAddr(text)
		switch {
		case err != nil:
			p.addf([]any{"cluster-dns"}, "%q is not an IP address", text)
		case len(services) > 0 && !slices.ContainsFunc(services, func(n netip.Prefix) bool { return n.Contains(ip) }):
			p.addf([]any{"cluster-dns"}, "%s is not inside service-cidr %s", text, s.ServiceCIDR)
		}
	})
	if !domain.MatchString(s.ClusterDomain) || len(s.ClusterDomain) > 253 {
		p.addf([]any{"cluster-domain"}, "%q is not a domain, as in cluster.local", s.ClusterDomain)
	}
	for i, d := range s.Disable {
		if !slices.Contains(Components, d) {
			p.addf([]any{"disable", i}, "%q is not a component; known are %s", d, strings.Join(Components, ", "))
		}
	}
	p.membership(s)
	if s.WriteKubeconfig != "" && !strings.HasPrefix(s.WriteKubeconfig, "/") {
		p.addf([]any{"write-kubeconfig"}, "%q is not an absolute path", s.WriteKubeconfig)
	}
	if !fileMode.MatchString(s.WriteKubeconfigMode) {
		p.addf([]any{"write-kubeconfig-mode"}, "%q is not a file mode, as in 0600", s.WriteKubeconfigMode)
	}
	for i, n := range s.TLSSAN {
		if _, err := netip.ParseAddr(n); err != nil && !domain.MatchString(strings.TrimPrefix(n, "*.")) {
			p.addf([]any{"tls-san", i}, "%q is neither an IP address nor a host name", n)
		}
	}
	s.problems(&p)
	p.args("kube-apiserver-arg", s.KubeAPIServerArg)
	p.args("kube-controller-manager-arg", s.KubeControllerManagerArg)
	p.args("kube-scheduler-arg", s.KubeSchedulerArg)
	p.listen(&s.Listen)
	return p.list
}

var (
	domain     = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*$`)
	labelKey   = regexp.MustCompile(`^([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$`)
	labelValue = regexp.MustCompile(`^([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?$`)
	taint      = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9./_-]*(=[A-Za-z0-9._-]*)?:(NoSchedule|PreferNoSchedule|NoExecute)$`)
	fileMode   = regexp.MustCompile(`^0?[0-7]{3}$`)
	argument   = regexp.MustCompile(`^[a-z][a-z0-9-]*(=|$)`)
)

// each calls f for the parts of a comma-separated text.
func each(text string, f func(string)) {
	for s := range strings.SplitSeq(text, ",") {
		f(strings.TrimSpace(s))
	}
}

func (p *problems) args(key string, list []string) {
	for i, a := range list {
		if !argument.MatchString(a) {
			p.addf([]any{key, i}, "%q is not a flag; write name=value, without dashes in front", a)
		}
	}
}

func (p *problems) proxy(key, text string) {
	if text == "" {
		return
	}
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || !slices.Contains([]string{"http", "https", "socks5"}, u.Scheme) {
		p.addf([]any{key}, "%q is not a proxy; write http://HOST:PORT", text)
	}
}

func (p *problems) prefixes(key, text string) (out []netip.Prefix) {
	each(text, func(s string) {
		n, err := netip.ParsePrefix(s)
		switch {
		case err != nil:
			p.addf([]any{key}, "%q is not a network, as in 10.42.0.0/16", s)
		case n != n.Masked():
			p.addf([]any{key}, "%s has bits set behind its length; write %s", s, n.Masked())
		default:
			out = append(out, n)
		}
	})
	return out
}

// subset says whether every IP family of a is one of b's.
func subset(a, b []netip.Prefix) bool {
	return !slices.ContainsFunc(a, func(n netip.Prefix) bool {
		return !slices.ContainsFunc(b, func(m netip.Prefix) bool { return m.Addr().Is6() == n.Addr().Is6() })
	})
}

func checkHostname(name string) string {
	if !domain.MatchString(name) || len(name) > MaxNodeName {
		return fmt.Sprintf("%q is not a host name: small letters, digits and dashes, at most %d characters", name, MaxNodeName)
	}
	return ""
}

// withID checks that with-node-id leaves the name a possible one.
func (p *problems) withID(a *Agent, name string, path ...any) {
	if most := MaxNodeName - 1 - NodeIDLength; a.WithNodeID && len(name) > most && len(name) <= MaxNodeName {
		p.addf(path, "%q has %d characters; with with-node-id it may have %d", name, len(name), most)
	}
}

func checkToken(token string) string {
	if len(token) < MinToken {
		return fmt.Sprintf("has %d characters; write at least %d", len(token), MinToken)
	}
	if msg := checkTokenForm(token); msg != "" {
		return msg
	}
	if strings.ContainsFunc(token, func(r rune) bool { return unicode.IsSpace(r) || !unicode.IsPrint(r) }) {
		return "holds white space or a character that cannot be printed"
	}
	return ""
}

func checkServer(server string) string {
	for _, s := range ServerURLs(server) {
		u, err := url.Parse(s)
		if err != nil || u.Scheme != "https" || u.Hostname() == "" || (u.Path != "" && u.Path != "/") || u.RawQuery != "" || u.User != nil {
			return fmt.Sprintf("%q is not a server; write https://HOST:6443", s)
		}
	}
	return ""
}

// ServerURLs takes the setting server apart, which may name several.
func ServerURLs(server string) []string {
	if server == "" {
		return nil
	}
	return strings.Split(server, ",")
}
