// Package wpa speaks with wpa_supplicant: it writes its configuration, asks it over its control socket, and makes of what it
// says the one thing a person wants to know: in which wireless network a card is, or why in none.
//
// The form of the configuration is that of wpa_supplicant.conf(5), the control socket's that of wpa_supplicant's
// ctrl_iface: one datagram a command, one its answer.
package wpa

import (
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/skerry-os/skerry/pkg/machine"
)

// Conf is the configuration of wpa_supplicant for one card, with its control socket in the folder ctrl. It holds keys. The
// networks have the numbers of their places in w.All, from 0.
func Conf(w *machine.WiFi, ctrl string) []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "# written by Skerry: network.interfaces[].wifi of the node config\nctrl_interface=%s\np2p_disabled=1\n", ctrl)
	b.WriteString("sae_pwe=2\n") // both ways from a passphrase to an element; access points at 6 GHz know only the newer one
	if w.Country != "" {
		fmt.Fprintf(&b, "country=%s\n", w.Country)
	}
	for _, n := range w.All() {
		b.WriteString("network={\n")
		// A name is bytes; hex needs no quotes.
		fmt.Fprintf(&b, "\tssid=%s\n", hex.EncodeToString([]byte(n.SSID)))
		if n.Hidden {
			b.WriteString("\tscan_ssid=1\n")
		}
		if n.Priority != 0 {
			fmt.Fprintf(&b, "\tpriority=%d\n", n.Priority)
		}
		b.WriteString(security(n))
		b.WriteString("}\n")
	}
	return []byte(b.String())
}

// security gives the lines of a network that say how it is secured. Management frames are protected where WPA3 demands it, and
// elsewhere if the access point can.
func security(n machine.WiFiNetwork) string {
	// What stands between the first and the last quote is the text, quotes in it too.
	key := `psk="` + n.Passphrase + `"`
	if n.PSK != "" {
		key = "psk=" + n.PSK
	}
	const ciphers = "\tproto=RSN\n\tpairwise=CCMP\n"
	switch n.Security {
	case machine.WiFiOpen:
		return "\tkey_mgmt=NONE\n"
	case machine.WiFiWPA2:
		return "\tkey_mgmt=WPA-PSK WPA-PSK-SHA256\n" + ciphers + "\tieee80211w=1\n\t" + key + "\n"
	case machine.WiFiWPA3:
		return "\tkey_mgmt=SAE\n" + ciphers + "\tieee80211w=2\n\tsae_password=\"" + n.Passphrase + "\"\n"
	}
	// Cards that know no SAE take the others.
	return "\tkey_mgmt=SAE WPA-PSK WPA-PSK-SHA256\n" + ciphers + "\tieee80211w=1\n\t" + key + "\n"
}
