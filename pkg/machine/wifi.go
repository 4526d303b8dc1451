package machine

import (
	"cmp"
	"regexp"
	"slices"
	"strings"
)

// WiFi says which wireless networks a card joins: one, or the best of several that are in reach.
type WiFi struct {
	WiFiNetwork `yaml:",inline"`
	Country     string        `yaml:"country" pattern:"^[A-Z]{2}$" default:"what access points say, and until then what is allowed everywhere" help:"country whose rules for radios hold, by the two letters of ISO 3166, as in DE"`
	Networks    []WiFiNetwork `yaml:"networks" help:"more networks to join, each with the keys of a single one"`
}

// WiFiNetwork is one wireless network. Its lengths are those of IEEE 802.11.
type WiFiNetwork struct {
	SSID       string `yaml:"ssid" help:"name of the network, 1 to 32 bytes"`
	Passphrase string `yaml:"passphrase" help:"passphrase of the network, 8 to 63 ASCII characters"`
	PSK        string `yaml:"psk" pattern:"^[0-9A-Fa-f]{64}$" help:"the key that WPA2 makes of name and passphrase, 64 hex digits, instead of the passphrase; WPA3 takes none"`
	Security   string `yaml:"security" enum:"wpa2-wpa3,wpa2,wpa3,open" default:"wpa2-wpa3, the best of both; wpa2 with a psk" help:"how the network is secured"`
	Hidden     bool   `yaml:"hidden" help:"the network does not tell its name, and has to be asked for by it"`
	Priority   int    `yaml:"priority" min:"1" max:"999" default:"0" help:"of several networks in reach the one with the highest is joined, and of equal ones the best received"`
}

// How a network may be secured.
const (
	WiFiOpen  = "open"
	WiFiWPA2  = "wpa2"
	WiFiWPA3  = "wpa3"
	WiFiMixed = "wpa2-wpa3"
)

// WiFiSecurities are what WiFiNetwork.Security may be; the first is the default.
var WiFiSecurities = []string{WiFiMixed, WiFiWPA2, WiFiWPA3, WiFiOpen}

// All lists the networks, each with its security. WiFi has no problems.
func (w *WiFi) All() []WiFiNetwork {
	var out []WiFiNetwork
	if w.SSID != "" {
		out = append(out, w.WiFiNetwork)
	}
	out = append(out, w.Networks...)
	for i, n := range out {
		out[i].Security = n.secured()
	}
	return out
}

// Secrets lists the keys of all networks.
func (w *WiFi) Secrets() (out []string) {
	for _, n := range w.All() {
		for _, s := range []string{n.Passphrase, n.PSK} {
			if s != "" {
				out = append(out, s)
			}
		}
	}
	return out
}

func (n *WiFiNetwork) secured() string {
	if n.PSK != "" {
		return cmp.Or(n.Security, WiFiWPA2)
	}
	return cmp.Or(n.Security, WiFiMixed)
}

var (
	countryCode = regexp.MustCompile(`^[A-Z]{2}$`)
	rawPSK      = regexp.MustCompile(`^[0-9A-Fa-f]{64}$`)
	ascii       = regexp.MustCompile(`^[ -~]*$`)
)

// wifiProblems names no key in what it says, right or wrong.
func (f *Interface) wifiProblems(p *problems, at func(...any) []any) {
	w := f.WiFi
	if w == nil {
		return
	}
	if f.Made() {
		p.add("is for a card; a VLAN, bond or bridge has no radio", at("wifi")...)
	}
	if w.Country != "" && !countryCode.MatchString(w.Country) {
		p.addf(at("wifi", "country"), "%q is not a country; write the two capital letters of ISO 3166, as in DE", w.Country)
	}
	switch {
	case w.SSID != "":
		w.problems(p, func(path ...any) []any { return at(append([]any{"wifi"}, path...)...) })
	case w.WiFiNetwork != (WiFiNetwork{}):
		p.add("has no ssid, the name of the network", at("wifi")...)
	case len(w.Networks) == 0:
		p.add("names no network; write its ssid", at("wifi")...)
	}
	seen := map[string]bool{w.SSID: w.SSID != ""}
	for i := range w.Networks {
		n := &w.Networks[i]
		place := func(path ...any) []any { return at(append([]any{"wifi", "networks", i}, path...)...) }
		if n.SSID == "" {
			p.add("has no ssid, the name of the network", place()...)
			continue
		}
		if seen[n.SSID] {
			p.addf(place("ssid"), "%q is here twice", n.SSID)
		}
		seen[n.SSID] = true
		n.problems(p, place)
	}
}

// problems looks at a network that has a name.
func (n *WiFiNetwork) problems(p *problems, at func(...any) []any) {
	if len(n.SSID) > 32 {
		p.addf(at("ssid"), "%q has %d bytes; a network's name has at most 32", n.SSID, len(n.SSID))
	}
	if strings.ContainsRune(n.SSID, 0) {
		p.add("holds a zero byte", at("ssid")...)
	}
	if n.Security != "" && !slices.Contains(WiFiSecurities, n.Security) {
		p.addf(at("security"), "%q is not a kind of security; known are %s", n.Security, strings.Join(WiFiSecurities, ", "))
		return
	}
	if n.Priority < 0 || n.Priority > 999 {
		p.addf(at("priority"), "%d is not a priority; write 1 to 999", n.Priority)
	}
	key := "passphrase"
	if n.PSK != "" {
		key = "psk"
	}
	switch {
	case n.Passphrase != "" && n.PSK != "":
		p.add("has both passphrase and psk; one of them is the key", at("psk")...)
	case n.Passphrase == "" && n.PSK == "":
		if n.secured() != WiFiOpen {
			p.add("has no passphrase; a network without one is security: open", at()...)
		}
	case n.Security == WiFiOpen:
		p.add("is the key of a network that is open; leave it out, or name another security", at(key)...)
	case n.PSK != "" && !rawPSK.MatchString(n.PSK):
		p.add("is not 64 hex digits; write a passphrase as passphrase", at(key)...)
	case n.PSK != "" && n.secured() != WiFiWPA2:
		p.add("is for wpa2 alone; WPA3 needs the passphrase", at(key)...)
	case rawPSK.MatchString(n.Passphrase):
		p.add("is 64 hex digits; write such a key as psk", at(key)...)
	case !ascii.MatchString(n.Passphrase):
		p.add("holds characters that are not ASCII; IEEE 802.11 allows none", at(key)...)
	case n.PSK == "" && (len(n.Passphrase) < 8 || len(n.Passphrase) > 63):
		p.addf(at(key), "has %d characters; write 8 to 63", len(n.Passphrase))
	}
}
