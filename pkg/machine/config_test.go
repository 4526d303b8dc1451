package machine_test

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/skerry-os/skerry/pkg/machine"
)

const head = "apiVersion: skerry/v1alpha1\nkind: NodeConfig\n"
const server = head + "role: server\n"
const agent = head + "role: agent\ncluster: {token: abcdefghijklmnop, server: \"https://10.0.0.1:6443\"}\n"

func TestDecodeMinimal(t *testing.T) {
	c, err := machine.Decode("config.yaml", []byte(server))
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(c.Server, machine.DefaultServer()) || !reflect.DeepEqual(c.NTP.Servers, machine.DefaultNTP) {
		t.Errorf("defaults are missing: %+v", c)
	}
}

// The example in the package doc is what people copy.
func TestDecodeEverything(t *testing.T) {
	c, err := machine.Decode("config.yaml", []byte(server+`hostname: north-1
cluster:
  token: "at-least-16-characters"
network:
  interfaces:
    - {name: eth0, dhcp4: true}
    - {mac: "52:54:00:12:34:56", addresses: [192.0.2.5/24, "2001:db8::5/64"], gateway: 192.0.2.1, mtu: 1500}
  nameservers: [192.0.2.1]
ntp: {servers: []}
sysctls: {net.core.somaxconn: "1024"}
server:
  node-label: [zone=north]
  node-taint: [dedicated=gpu:NoSchedule]
  tls-san: [k8s.example.org, "*.example.org", "2001:db8::5"]
  disable: [servicelb, traefik]
  cluster-cidr: 10.44.0.0/16,2001:db8:42::/56
  kube-apiserver-arg: [v=2, profiling]
  debug: true
`))
	if err != nil {
		t.Fatal(err)
	}
	if c.NTP.Servers == nil || len(c.NTP.Servers) != 0 {
		t.Errorf("ntp servers %v; an empty list turns the default off", c.NTP.Servers)
	}
	if !c.Network.Interfaces[0].DHCP4 || c.Network.Interfaces[1].MTU != 1500 || c.Server.ServiceCIDR != "10.43.0.0/16" || !c.Server.Debug {
		t.Errorf("got %+v", c)
	}
}

func TestFaults(t *testing.T) {
	for _, tt := range []struct{ name, config, want string }{
		{"empty", "", `config.yaml: apiVersion: is ""`},
		{"wrong api", "apiVersion: v1\nkind: NodeConfig\nrole: server\n", `config.yaml:1:13: apiVersion: is "v1"; this release reads skerry/v1alpha1`},
		{"no role", head, `role: is ""; write server or agent`},
		{"unknown key", server + "hostnam: x\n", `config.yaml:4:1: unknown key "hostnam"; did you mean "hostname"?`},
		{"unknown setting", server + "server:\n  cluster-cdir: 10.0.0.0/8\n", `config.yaml:5:3: unknown key "server.cluster-cdir"; did you mean "cluster-cidr"?`},
		{"hostname", server + "hostname: North_1\n", `config.yaml:4:11: hostname: "North_1" is not a host name`},
		{"short token", server + "cluster: {token: short}\n", `config.yaml:4:18: cluster.token: has 5 characters; write at least 16`},
		{"token with a space", server + "cluster: {token: \"at least 16 characters\"}\n", `white space`},
		{"agent alone", head + "role: agent\n", `an agent needs cluster.server`},
		{"http server", agent + "---\n", `more than one document`},
		{"second server by http", head + "role: agent\ncluster: {token: abcdefghijklmnop, server: \"https://a:6443,http://b:6443\"}\n", `cluster.server: "http://b:6443" is not a server; write https://HOST:6443`},
		{"no second server", head + "role: agent\ncluster: {token: abcdefghijklmnop, server: \"https://a:6443,\"}\n", `cluster.server: "" is not a server`},
		{"token in section", server + "server: {token: abcdefghijklmnopq}\n", `config.yaml:4:17: server.token: write it as cluster.token`},
		{"agent section of a server", server + "agent: {node-label: [a=b]}\n", `config.yaml:4:8: agent: belongs to role agent`},
		{"server section of an agent", agent + "server: {tls-san: [a]}\n", `config.yaml:5:9: server: belongs to role server`},
		{"data off the data partition", server + "server: {data-dir: /opt/skerry}\n", `server.data-dir: "/opt/skerry" is not below /var`},
		{"data dir that climbs out", server + "server: {data-dir: /var/../opt}\n", `is not below /var`},
		{"overlap", server + "server: {cluster-cidr: 10.43.0.0/15}\n", `10.43.0.0/15 has bits set behind its length; write 10.42.0.0/15`},
		{"real overlap", server + "server:\n  cluster-cidr: 10.42.0.0/15\n", `service-cidr: 10.43.0.0/16 overlaps cluster-cidr 10.42.0.0/15`},
		{"backend", server + "server: {flannel-backend: ipsec}\n", `config.yaml:4:27: server.flannel-backend: "ipsec" is not a back end; known are vxlan, wireguard-native, host-gw, none`},
		{"services of a family that pods lack", server + "server: {service-cidr: '10.43.0.0/16,fd00:43::/112'}\n", `config.yaml:4:24: server.service-cidr: 10.43.0.0/16,fd00:43::/112 does not go with cluster-cidr 10.42.0.0/16: both begin with the same IP family, and pods need a network of every family that services have`},
		{"name too long for an id", server + "server: {with-node-id: true, node-name: n23456789-123456789-123456789-123456789-123456789-12345}\n", `has 55 characters; with with-node-id it may have 54`},
		{"host name too long for an id", server + "hostname: n23456789-123456789-123456789-123456789-123456789-12345\nserver: {with-node-id: true}\n", `config.yaml:4:11: hostname: "n23456789-123456789-123456789-123456789-123456789-12345" has 55`},
		{"proxy of S3", server + "server: {s3-proxy: proxy.example.org}\n", `server.s3-proxy: "proxy.example.org" is not a proxy; write http://HOST:PORT`},
		{"file of the agents' token", server + "server: {agent-token-file: token}\n", `server.agent-token-file: "token" is not an absolute path`},
		{"runtime", server + "server: {default-runtime: kata}\n", `config.yaml:4:27: server.default-runtime: "kata" is not a runtime; known are runc, crun,`},
		{"dns outside", server + "server: {cluster-dns: 10.96.0.10}\n", `config.yaml:4:23: server.cluster-dns: 10.96.0.10 is not inside service-cidr 10.43.0.0/16`},
		{"port", server + "server: {https-listen-port: 70000}\n", `70000 is not a port`},
		{"component", server + "server: {disable: [corends]}\n", `server.disable[0]: "corends" is not a component`},
		{"mode", server + "server: {write-kubeconfig-mode: rw}\n", `"rw" is not a file mode`},
		{"dashes", server + "server: {kubelet-arg: [--v=2]}\n", `"--v=2" is not a flag; write name=value`},
		{"label", server + "server: {node-label: [zone]}\n", `config.yaml:4:23: server.node-label[0]: "zone" is not a label`},
		{"taint", server + "server: {node-taint: [a=b]}\n", `is not a taint`},
		{"two ways to name", server + "network: {interfaces: [{name: eth0, mac: \"52:54:00:12:34:56\"}]}\n", `config.yaml:4:42: network.interfaces[0].mac: has both name and mac`},
		{"interface twice", server + "network: {interfaces: [{name: eth0}, {name: eth0}]}\n", `network.interfaces[1]: eth0 is here twice`},
		{"address without length", server + "network: {interfaces: [{name: eth0, addresses: [192.0.2.5]}]}\n", `"192.0.2.5" is not an address with its prefix length`},
		{"network as address", server + "network: {interfaces: [{name: eth0, addresses: [192.0.2.0/24]}]}\n", `192.0.2.0/24 is a network`},
		{"far gateway", server + "network: {interfaces: [{name: eth0, addresses: [192.0.2.5/24], gateway: 198.51.100.1}]}\n", `198.51.100.1 cannot be reached from 192.0.2.5/24`},
		{"gateway alone", server + "network: {interfaces: [{name: eth0, gateway: 198.51.100.1}]}\n", `has no addresses`},
		{"mtu", server + "network: {interfaces: [{name: eth0, mtu: 100}]}\n", `100 is not an MTU`},
		{"nothing picks it", server + "network: {interfaces: [{dhcp4: true}]}\n", `config.yaml:4:24: network.interfaces[0]: name it by name, mac, path or driver`},
		{"path out of sysfs", server + "network: {interfaces: [{path: /sys/x}]}\n", `network.interfaces[0].path: "/sys/x" is not part of a device's path`},
		{"driver", server + "network: {interfaces: [{driver: i g b}]}\n", `"i g b" is not the name of a driver`},
		{"address of nobody", server + "network: {interfaces: [{name: eth0, addresses: [\"ff02::1/64\"]}]}\n", `ff02::1/64 is not an address that a machine can have`},
		{"two gateways of a family", server + "network: {interfaces: [{name: eth0, addresses: [192.0.2.5/24], gateway: \"192.0.2.1, 192.0.2.2\"}]}\n", `192.0.2.2 is the second of its family`},
		{"route", server + "network: {interfaces: [{name: eth0, routes: [{to: 10.0.0.1/8}]}]}\n", `network.interfaces[0].routes[0].to: 10.0.0.1/8 has bits set behind its length; write 10.0.0.0/8`},
		{"route to nothing", server + "network: {interfaces: [{name: eth0, routes: [{via: 10.0.0.1}]}]}\n", `routes[0].to: "" is not a network`},
		{"route of two families", server + "network: {interfaces: [{name: eth0, routes: [{to: 10.0.0.0/8, via: \"fe80::1\"}]}]}\n", `fe80::1 leads to 10.0.0.0/8, which is of the other IP family`},
		{"vlan", server + "network: {interfaces: [{name: v, vlan: {id: 5000}}]}\n", `5000 is not a VLAN`},
		{"vlan on nothing", server + "network: {interfaces: [{name: v, vlan: {id: 5}}]}\n", `vlan.on: "" is neither an interface's name nor a hardware address`},
		{"nameless bridge", server + "network: {interfaces: [{mac: \"52:54:00:12:34:56\", bridge: {members: [eth0]}}]}\n", `needs a name: the machine makes this interface`},
		{"bond and bridge", server + "network: {interfaces: [{name: b, bridge: {members: [eth0]}, bond: {members: [eth1]}}]}\n", `more than one of vlan, bond and bridge`},
		{"empty bond", server + "network: {interfaces: [{name: b, bond: {}}]}\n", `has no members`},
		{"bond mode", server + "network: {interfaces: [{name: b, bond: {members: [eth0], mode: lacp}}]}\n", `"lacp" is not a mode; known are active-backup`},
		{"member of two", server + "network: {interfaces: [{name: b, bridge: {members: [eth0]}}, {name: c, bridge: {members: [eth0]}}]}\n", `eth0 is in b already`},
		{"member with an address", server + "network: {interfaces: [{name: b, bridge: {members: [eth0]}}, {name: eth0, dhcp4: true}]}\n", `is in b, which is what has addresses`},
		{"made of itself", server + "network: {interfaces: [{name: b, bridge: {members: [v]}}, {name: v, vlan: {id: 1, on: b}}]}\n", `b is made of itself`},
		{"search", server + "network: {search: [\"a b\"]}\n", `"a b" is not a domain`},
		{"network proxy", server + "network: {proxy: {http: squid}}\n", `network.proxy.http: "squid" is not a proxy`},
		{"nameserver", server + "network: {nameservers: [dns.example]}\n", `"dns.example" is not an IP address`},
		{"sysctl", server + "sysctls: {\"../../etc/passwd\": x}\n", `is not the name of a kernel setting`},
		{"ntp", server + "ntp: {servers: [\"a b\"]}\n", `neither an IP address nor a host name`},
		{"type", server + "network: {interfaces: [{name: eth0, dhcp4: perhaps}]}\n", `config.yaml:4:44: `},
	} {
		_, err := machine.Decode("config.yaml", []byte(tt.config))
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: error %v, want one with %s", tt.name, err, tt.want)
		}
	}
}

// A person who made three mistakes hears of three, in the order of the file.
func TestAllFaultsAtOnce(t *testing.T) {
	_, err := machine.Decode("c", []byte(server+"hostname: A\nnetwork: {nameservers: [x]}\nserver: {https-listen-port: 0}\n"))
	lines := strings.Split(err.Error(), "\n")
	if len(lines) != 3 || !strings.HasPrefix(lines[0], "c:4:") || !strings.HasPrefix(lines[1], "c:5:") || !strings.HasPrefix(lines[2], "c:6:") {
		t.Errorf("got\n%v", err)
	}
}

// What init writes for skerryd, skerryd reads back as the same settings.
func TestEngineYAML(t *testing.T) {
	p, err := machine.Decode("c", []byte(server+"network: {proxy: {http: \"http://192.0.2.9:3128\", no: a.example}}\nserver: {no-proxy: b.example}\n"))
	if err != nil {
		t.Fatal(err)
	}
	if data, err := machine.EngineYAML(p, "north-1"); err != nil || !strings.Contains(string(data), "http-proxy: http://192.0.2.9:3128\nno-proxy: b.example\n") {
		t.Errorf("the network's proxy: %v\n%s", err, data)
	}
	c, err := machine.Decode("c", []byte(server+"cluster: {token: \"0123456789012345\"}\nserver: {debug: true, https-listen-port: 7443, disable: [ingress], write-kubeconfig-mode: \"0644\"}\n"))
	if err != nil {
		t.Fatal(err)
	}
	data, err := machine.EngineYAML(c, "north-1")
	if err != nil {
		t.Fatal(err)
	}
	s, err := machine.DecodeServer("engine.yaml", data)
	if err != nil {
		t.Fatal(err)
	}
	want := c.Server
	want.Token, want.NodeName = "0123456789012345", "north-1"
	if !reflect.DeepEqual(*s, want) {
		t.Errorf("skerryd reads %+v\nwant %+v\nfrom\n%s", *s, want, data)
	}

	c, err = machine.Decode("c", []byte(agent+"agent: {node-name: other, kubelet-arg: [v=2]}\n"))
	if err != nil {
		t.Fatal(err)
	}
	data, err = machine.EngineYAML(c, "north-1")
	if err != nil {
		t.Fatal(err)
	}
	a, err := machine.DecodeAgent("engine.yaml", data)
	if err != nil || a.NodeName != "other" || a.Server != "https://10.0.0.1:6443" || len(a.KubeletArg) != 1 {
		t.Errorf("skerryd reads %+v, %v", a, err)
	}
}

// Flags are made from these, so each needs a name, a text and a kind that flags have.
func TestFields(t *testing.T) {
	var s machine.Server
	seen := map[string]bool{}
	for _, f := range machine.Fields(&s) {
		if f.Name == "" || f.Help == "" || seen[f.Name] {
			t.Errorf("%q: has no name or text, or is there twice", f.Name)
		}
		seen[f.Name] = true
		switch p := f.Ptr.(type) {
		case *string:
			*p = "x"
		case *int, *bool, *[]string:
		default:
			t.Errorf("%s: is a %T", f.Name, p)
		}
	}
	if s.DataDir != "x" || !seen["node-ip"] || !seen["kube-scheduler-arg"] {
		t.Error("fields do not lead to the settings")
	}
}

func TestReadIdentity(t *testing.T) {
	root := fstest.MapFS{
		machine.ReleaseFile: {Data: []byte(`{"version":"1.2.3","commit":"c0ffee","buildTime":"2026-01-02T03:04:05Z","arch":"amd64","kubernetes":"v1.37.2"}`)},
		machine.BootFile:    {Data: []byte(`{"board":"x86-uefi","slot":"b","trial":true,"version":"1.2.3","disk":"/dev/vda"}`)},
	}
	id, err := machine.ReadIdentity(root)
	if err != nil || id.Boot.Slot != "b" || !id.Boot.Trial || id.Release.BuildTime.Year() != 2026 {
		t.Errorf("got %+v, %v", id, err)
	}
	root[machine.BootFile].Data = []byte(`{"slot":"a","version":"1.2.2"}`)
	if _, err := machine.ReadIdentity(root); err == nil {
		t.Error("a root of another version than the one verified was accepted")
	}
}

// CoreDNS is where people look for it, whatever the services' networks are.
func TestDNS(t *testing.T) {
	for services, want := range map[string]string{
		"10.43.0.0/16":                "[10.43.0.10]",
		"10.96.0.0/12,fd00:43::/112":  "[10.96.0.10 fd00:43::a]",
		"fd00:43::/112, 10.43.0.0/16": "[fd00:43::a 10.43.0.10]",
	} {
		s := machine.DefaultServer()
		s.ServiceCIDR = services
		if got := fmt.Sprint(s.DNS()); got != want {
			t.Errorf("%s: DNS is at %s; want %s", services, got, want)
		}
	}
	s := machine.DefaultServer()
	s.ClusterDNS = "10.43.0.53, fd00:43::53"
	if got := fmt.Sprint(s.DNS()); got != "[10.43.0.53 fd00:43::53]" {
		t.Errorf("DNS is at %s", got)
	}
}
