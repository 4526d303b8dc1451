package machine

import (
	"reflect"
	"slices"
)

// Verdict is what becomes of a flag that K3s has.
type Verdict string

// The verdicts. A supported flag does the same here; an ignored one is accepted with a warning; a refused one is an error that
// says what to do instead.
const (
	Supported Verdict = "supported"
	Ignored   Verdict = "ignored"
	Refused   Verdict = "refused"
)

// K3sFlag is a flag of `k3s server` or `k3s agent`; in K3s as here, config files have the same names.
type K3sFlag struct {
	Name    string
	Switch  bool // needs no value
	Verdict Verdict
	Note    string // why, and what to do instead
}

// K3sFlags lists K3s's flags of a role, in K3s's order, with what becomes of each here.
func K3sFlags(role Role) []K3sFlag {
	var v any = new(Agent)
	names := slices.Concat(k3sBoth, k3sAgent)
	if role == RoleServer {
		v, names = new(Server), slices.Concat(k3sServer, k3sBoth)
	}
	ours := map[string]Field{}
	for _, f := range Fields(v) {
		ours[f.Name] = f
		if f.Also != "" {
			ours[f.Also] = f
		}
	}
	var out []K3sFlag
	for _, name := range names {
		f := K3sFlag{Name: name, Verdict: Supported}
		if field, ok := ours[name]; ok {
			f.Switch = reflect.TypeOf(field.Ptr).Elem().Kind() == reflect.Bool
			if field.Name != name {
				f.Note = "the same as " + field.Name
			}
		} else if special, ok := k3sSpecial[name]; ok {
			special.Name = name
			f = special
		} else {
			f.Verdict, f.Note = Refused, "this release has nothing like it"
		}
		out = append(out, f)
	}
	return out
}

// Names of K3s's flags, from its public documentation (docs.k3s.io, k3s server and k3s agent --help).
var (
	k3sServer = []string{
		"bind-address", "https-listen-port", "advertise-address", "advertise-port", "tls-san", "tls-san-security", "cluster-cidr", "service-cidr",
		"service-node-port-range", "cluster-dns", "cluster-domain", "flannel-backend", "flannel-ipv6-masq", "flannel-external-ip",
		"egress-selector-mode", "servicelb-namespace", "write-kubeconfig", "write-kubeconfig-mode", "write-kubeconfig-group", "helm-job-image",
		"agent-token", "agent-token-file", "cluster-init", "cluster-reset", "cluster-reset-restore-path", "kube-apiserver-arg", "etcd-arg",
		"kube-controller-manager-arg", "kube-scheduler-arg", "kube-cloud-controller-manager-arg", "kube-controller-arg", "kube-cloud-controller-arg",
		"kine-tls", "datastore-endpoint", "datastore-cafile", "datastore-certfile", "datastore-keyfile", "etcd-expose-metrics",
		"etcd-disable-snapshots", "etcd-snapshot-name", "etcd-snapshot-schedule-cron", "etcd-snapshot-retention", "etcd-snapshot-dir",
		"etcd-snapshot-compress", "etcd-snapshot-reconcile-interval", "etcd-s3", "etcd-s3-endpoint", "etcd-s3-endpoint-ca", "etcd-s3-skip-ssl-verify",
		"etcd-s3-access-key", "etcd-s3-secret-key", "etcd-s3-session-token", "etcd-s3-bucket", "etcd-s3-bucket-lookup-type", "etcd-s3-region",
		"etcd-s3-folder", "etcd-s3-proxy", "etcd-s3-config-secret", "etcd-s3-insecure", "etcd-s3-timeout", "etcd-s3-retention",
		"default-local-storage-path", "disable", "disable-scheduler", "disable-cloud-controller", "disable-kube-proxy", "disable-network-policy",
		"disable-helm-controller", "disable-apiserver", "disable-controller-manager", "disable-etcd", "disable-agent", "embedded-registry",
		"supervisor-metrics", "secrets-encryption", "secrets-encryption-provider", "enable-pprof", "system-default-registry",
	}
	k3sBoth = []string{
		"config", "debug", "v", "vmodule", "log", "alsologtostderr", "data-dir", "token", "token-file", "server", "node-name", "with-node-id",
		"node-label", "node-taint", "node-ip", "node-external-ip", "node-internal-dns", "node-external-dns", "image-credential-provider-bin-dir",
		"image-credential-provider-config", "docker", "container-runtime-endpoint", "default-runtime", "image-service-endpoint",
		"disable-default-registry-endpoint", "nonroot-devices", "pause-image", "snapshotter", "private-registry", "airgap-extra-registry",
		"resolv-conf", "flannel-iface", "flannel-conf", "flannel-cni-conf", "vpn-auth", "vpn-auth-file", "kubelet-arg", "kube-proxy-arg",
		"protect-kernel-defaults", "selinux", "lb-server-port", "rootless", "prefer-bundled-bin",
	}
	k3sAgent = []string{"bind-address", "enable-pprof", "disable-apiserver-lb", "cluster-secret", "no-flannel", "disable-selinux"}
)

// k3sSpecial says what becomes of the flags that are no settings of ours. A name that becomes a setting leaves this list by
// itself.
var k3sSpecial = map[string]K3sFlag{
	"config": {Verdict: Supported, Note: "K3s reads /etc/rancher/k3s/config.yaml by default; here it is /etc/skerry/config.yaml, and config.yaml.d/*.yaml beside it"},

	"v":                                 {Verdict: Ignored, Note: "--debug logs in detail"},
	"vmodule":                           {Verdict: Ignored, Note: "--debug logs in detail"},
	"log":                               {Verdict: Ignored, Note: "the log goes to standard error, for the service manager to keep"},
	"alsologtostderr":                   {Switch: true, Verdict: Ignored, Note: "the log goes to standard error anyhow"},
	"tls-san-security":                  {Switch: true, Verdict: Ignored, Note: "the certificate never takes on a name that is not configured"},
	"flannel-ipv6-masq":                 {Switch: true, Verdict: Ignored, Note: "pods of an IPv6 cluster are always masqueraded towards the outside"},
	"egress-selector-mode":              {Verdict: Ignored, Note: "the API server reaches kubelets at their addresses"},
	"servicelb-namespace":               {Verdict: Ignored, Note: "the service load balancer needs no pods"},
	"helm-job-image":                    {Verdict: Ignored, Note: "HelmChart objects are installed without a job"},
	"etcd-snapshot-compress":            {Switch: true, Verdict: Ignored, Note: "snapshots are always compressed"},
	"etcd-snapshot-name":                {Verdict: Ignored, Note: "skerryd snapshot save --name names one; those of the schedule are named by node and time"},
	"etcd-snapshot-reconcile-interval":  {Verdict: Ignored, Note: "snapshots are listed when somebody asks"},
	"supervisor-metrics":                {Switch: true, Verdict: Ignored, Note: "the engine's metrics are on the API server's and kubelet's /metrics"},
	"secrets-encryption":                {Switch: true, Verdict: Ignored, Note: "secrets are always encrypted; see skerryd secrets-encrypt"},
	"secrets-encryption-provider":       {Verdict: Ignored, Note: "the provider is secretbox (XSalsa20 and Poly1305)"},
	"disable-cloud-controller":          {Switch: true, Verdict: Ignored, Note: "there is no cloud controller manager to disable"},
	"kube-cloud-controller-manager-arg": {Verdict: Ignored, Note: "there is no cloud controller manager"},
	"kube-cloud-controller-arg":         {Verdict: Ignored, Note: "there is no cloud controller manager"},
	"kine-tls":                          {Switch: true, Verdict: Ignored, Note: "the datastore's socket is not on the network"},
	"prefer-bundled-bin":                {Switch: true, Verdict: Ignored, Note: "the release's own programs are always preferred"},
	"airgap-extra-registry":             {Verdict: Ignored, Note: "images of the release have names of their own"},
	"system-default-registry":           {Verdict: Ignored, Note: "the components' images come with the release and are never pulled"},
	"disable-selinux":                   {Switch: true, Verdict: Ignored, Note: "SELinux labels are not used"},
	"cluster-secret":                    {Verdict: Refused, Note: "use --token"},
	"no-flannel":                        {Switch: true, Verdict: Refused, Note: "use --flannel-backend=none on the server"},
	"disable-apiserver-lb":              {Switch: true, Verdict: Refused, Note: "an agent always balances over the servers; leave it out"},
	"advertise-port":                    {Verdict: Refused, Note: "the API is advertised at the port it listens on; set https-listen-port"},
	"lb-server-port":                    {Verdict: Refused, Note: "the agent's load balancer takes a free port; leave it out"},

	"docker":                     {Switch: true, Verdict: Refused, Note: "containerd is built in; leave it out"},
	"container-runtime-endpoint": {Verdict: Refused, Note: "containerd is built in; leave it out"},
	"image-service-endpoint":     {Verdict: Refused, Note: "containerd is built in; leave it out"},
	"rootless":                   {Switch: true, Verdict: Refused, Note: "the node needs root"},
	"selinux":                    {Switch: true, Verdict: Refused, Note: "SELinux labels are not supported; AppArmor and seccomp are"},
	"node-internal-dns":          {Verdict: Refused, Note: "label the node instead"},
	"node-external-dns":          {Verdict: Refused, Note: "label the node instead"},
	"flannel-conf":               {Verdict: Refused, Note: "use --flannel-backend and --flannel-iface, or --flannel-backend=none and a network of your own"},
	"flannel-cni-conf":           {Verdict: Refused, Note: "use --flannel-backend=none and a network of your own"},
	"vpn-auth":                   {Verdict: Refused, Note: "use --flannel-backend=wireguard-native"},
	"vpn-auth-file":              {Verdict: Refused, Note: "use --flannel-backend=wireguard-native"},

	"disable-scheduler":          {Switch: true, Verdict: Refused, Note: "a server runs all of the control plane"},
	"disable-apiserver":          {Switch: true, Verdict: Refused, Note: "a server runs all of the control plane"},
	"disable-controller-manager": {Switch: true, Verdict: Refused, Note: "a server runs all of the control plane"},
	"disable-etcd":               {Switch: true, Verdict: Refused, Note: "without --cluster-init there is none"},
	"disable-agent":              {Switch: true, Verdict: Refused, Note: "a server is a node, too; keep pods away with --node-taint node-role.kubernetes.io/control-plane=:NoSchedule"},
	"embedded-registry":          {Switch: true, Verdict: Refused, Note: "list a mirror in registries.yaml"},
	"etcd-arg":                   {Verdict: Refused, Note: "the embedded etcd is tuned for the node; --datastore-endpoint takes PostgreSQL and MariaDB"},
	"etcd-expose-metrics":        {Switch: true, Verdict: Refused, Note: "etcd's metrics are not on the network; the engine's are on the API server's /metrics"},
	"etcd-s3-config-secret":      {Verdict: Refused, Note: "write the settings into the config file, or SKERRY_S3_ACCESS_KEY and SKERRY_S3_SECRET_KEY into the environment"},
	"disable-network-policy":     {Switch: true, Verdict: Refused, Note: "use --disable network-policy"},
	"default-local-storage-path": {Verdict: Refused, Note: "this release has no local storage"},
	"token-file":                 {Verdict: Refused, Note: "write the token into the config file, or into SKERRY_TOKEN"},
	"agent-token":                {Verdict: Refused, Note: "make one with skerryd token create"},
}
