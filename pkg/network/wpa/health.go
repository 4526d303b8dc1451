package wpa

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/skerry-os/skerry/pkg/machine"
)

// Health is whether a card is in a network, or why not.
type Health struct {
	Connected bool
	Text      string // for a person; names networks, and no key
}

// Tracker makes a card's health of what its wpa_supplicant says.
type Tracker struct {
	networks  []machine.WiFiNetwork // by the numbers that wpa_supplicant has for them
	connected bool
	joined    string    // what it is in, with how it is secured
	why       string    // of the last try in vain; "" for none yet
	failed    time.Time // when an access point last refused: it may then be passed over for a while, and look as if it were not there
}

// NewTracker begins with a card that has not tried anything.
func NewTracker(w *machine.WiFi) *Tracker { return &Tracker{networks: w.All()} }

// Health is the card's now.
func (t *Tracker) Health() Health {
	if t.connected {
		return Health{true, "in network " + t.joined}
	}
	names := make([]string, len(t.networks))
	for i, n := range t.networks {
		names[i] = strconv.Quote(n.SSID)
	}
	text := "waits for network " + strings.Join(names, " or ")
	if t.why != "" {
		text += ": " + t.why
	}
	return Health{false, text}
}

// passedOver is how long wpa_supplicant may leave out an access point that refused.
const passedOver = 3 * time.Minute

// What IEEE 802.11 calls them: status code 15 is "challenge failure", 1 "unspecified failure", 17 "too many stations";
// authentication algorithm 3 is SAE, whose second message proves that both know the passphrase.
const (
	sae          = "3"
	saeConfirm   = "2"
	unspecified  = "1"
	badChallenge = "15"
	tooMany      = "17"
)

// Event takes up what wpa_supplicant said at a time.
func (t *Tracker) Event(e Event, now time.Time) {
	switch e.Name {
	case "CTRL-EVENT-CONNECTED":
		t.connected, t.joined, t.why = true, t.name(e.Fields["id"]), ""
	case "CTRL-EVENT-DISCONNECTED":
		t.connected = false
	case "CTRL-EVENT-SSID-TEMP-DISABLED":
		if e.Fields["reason"] == "WRONG_KEY" {
			t.refused(now, wrongKey(t.name(e.Fields["id"])))
		} else if now.Sub(t.failed) > passedOver { // else there is a better reason
			t.refused(now, fmt.Sprintf("no connection with %s comes about (%s)", t.name(e.Fields["id"]), e.Fields["reason"]))
		}
	case "CTRL-EVENT-AUTH-REJECT":
		code := e.Fields["status_code"]
		if e.Fields["auth_type"] == sae && e.Fields["auth_transaction"] == saeConfirm && (code == badChallenge || code == unspecified) {
			t.refused(now, wrongKey(t.secured()))
		} else {
			t.refused(now, rejects(code))
		}
	case "CTRL-EVENT-ASSOC-REJECT":
		t.refused(now, rejects(e.Fields["status_code"]))
	case "CTRL-EVENT-NETWORK-NOT-FOUND":
		if now.Sub(t.failed) > passedOver {
			t.why = "no such network is in reach"
		}
	}
}

// Status takes up an answer to STATUS, and what blocks the radio, "" for nothing. It finds what events did not tell.
func (t *Tracker) Status(status map[string]string, blocked string) {
	t.connected = status["wpa_state"] == "COMPLETED"
	switch {
	case t.connected:
		t.why, t.failed = "", time.Time{}
		t.joined = t.name(status["id"]) + " (" + strings.Join(details(status), ", ") + ")"
	case blocked != "":
		t.why = blocked
	case status["wpa_state"] == "INTERFACE_DISABLED":
		t.why = "the card is down"
	}
}

func (t *Tracker) refused(now time.Time, why string) { t.why, t.failed = why, now }

func wrongKey(network string) string {
	return "the key of " + network + " is wrong; correct its passphrase in the node config"
}

func rejects(code string) string {
	if code == tooMany {
		return "the access point has no room for another machine"
	}
	return "the access point refuses (IEEE 802.11 status code " + code + ")"
}

// name is that of a network by its number.
func (t *Tracker) name(id string) string {
	i, err := strconv.Atoi(id)
	if err != nil || i < 0 || i >= len(t.networks) {
		return "a network that is not in the node config"
	}
	return strconv.Quote(t.networks[i].SSID)
}

// secured names the networks that a passphrase of WPA3 may be for: the event does not say which.
func (t *Tracker) secured() string {
	var names []string
	for _, n := range t.networks {
		if n.Security == machine.WiFiWPA3 || n.Security == machine.WiFiMixed {
			names = append(names, strconv.Quote(n.SSID))
		}
	}
	return strings.Join(names, " or ")
}

// details are how a connection is secured, and its frequency.
func details(status map[string]string) (out []string) {
	switch key := status["key_mgmt"]; {
	case strings.Contains(key, "SAE"):
		out = append(out, "WPA3")
	case strings.HasPrefix(key, "WPA2"):
		out = append(out, "WPA2")
	case key == "NONE":
		out = append(out, "open")
	default:
		out = append(out, key)
	}
	if f := status["freq"]; f != "" && f != "0" {
		out = append(out, f+" MHz")
	}
	return out
}
