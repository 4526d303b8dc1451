package network

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/skerry-os/skerry/pkg/atomicfile"
	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/network/wpa"
	"github.com/skerry-os/skerry/pkg/supervise/process"
)

// Supplicant is the program that joins wireless networks; a release holds it if a board of it has WiFi.
const Supplicant = "/usr/sbin/wpa_supplicant"

const (
	wifiLook    = 5 * time.Second // between two questions to wpa_supplicant, which tells most by itself
	wifiRedial  = 200 * time.Millisecond
	wifiGrace   = 5 * time.Second // a supplicant that is told to stop takes leave of the access point
	wifiLogSize = 1 << 20
	wifiLast    = 4 // lines of wpa_supplicant's that are told when it ends
	wifiAbsent  = 10 * time.Second
)

// radio is what is known of a card that the config gives a wireless network.
type radio struct {
	link      int // 0 while there is none
	connected bool
	text      string
}

// setRadio notes what a card does, and says it if it is new.
func (m *Manager) setRadio(name string, r radio) {
	m.mu.Lock()
	old, known := m.radios[name]
	m.radios[name] = r
	m.mu.Unlock()
	if known && old == r {
		return
	}
	m.Log("%s: WiFi: %s", name, r.text)
	m.wake()
}

// dropRadio forgets a card that is gone; another may have come under its name.
func (m *Manager) dropRadio(name string, link int) {
	m.mu.Lock()
	r, known := m.radios[name]
	if known = known && r.link == link; known {
		delete(m.radios, name)
	}
	m.mu.Unlock()
	if known {
		m.wake()
	}
}

// unconnected gives the links with a radio that is in no network, with the reasons.
func (m *Manager) unconnected() map[int]error {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := map[int]error{}
	for name, r := range m.radios {
		if !r.connected {
			out[r.link] = fmt.Errorf("%s: WiFi: %s", name, r.text)
		}
	}
	return out
}

// Notes says what is not as the config says: of the whole network, and of each wireless card.
func (m *Manager) Notes() (out []string) {
	if n := m.Note(); n != "" {
		out = append(out, n)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var radios []string
	for name, r := range m.radios {
		if !r.connected && r.text != "" {
			radios = append(radios, fmt.Sprintf("%s: WiFi: %s", name, r.text))
		}
	}
	slices.Sort(radios)
	return append(out, radios...)
}

// joinWiFi keeps a card in its wireless networks until ctx ends: wpa_supplicant runs for it, and what it says is heard. joined
// is called each time the card comes into a network.
func (m *Manager) joinWiFi(ctx context.Context, l netlink.Link, cfg machine.Interface, joined func()) {
	name := l.Attrs().Name
	say := func(format string, a ...any) {
		m.setRadio(name, radio{l.Attrs().Index, false, fmt.Sprintf(format, a...)})
	}
	defer m.dropRadio(name, l.Attrs().Index)
	program := cmp.Or(m.supplicant.path, Supplicant)
	switch _, err := os.Stat(program); {
	case !linkOf(l).WiFi && m.supplicant.driver == "":
		say("the card has no radio; take wifi out of its part of the node config")
		<-ctx.Done()
		return
	case errors.Is(err, fs.ErrNotExist):
		say("this release holds no wpa_supplicant; build one with: skerry release build --wifi")
		<-ctx.Done()
		return
	case m.Reaper == nil:
		say("nobody is there to start wpa_supplicant")
		<-ctx.Done()
		return
	}
	dir := filepath.Join(m.RunDir, fmt.Sprintf("%s.%d", name, l.Attrs().Index)) // its own, for the one before it may just be ending
	ctrl, conf := filepath.Join(dir, "ctrl"), filepath.Join(dir, "conf")
	defer func() { _ = os.RemoveAll(dir) }()
	text := wpa.Conf
	if m.supplicant.conf != nil {
		text = m.supplicant.conf
	}
	err := os.MkdirAll(dir, 0o700)
	if err == nil {
		err = atomicfile.Write(conf, text(cfg.WiFi, ctrl), 0o600)
	}
	if err != nil {
		say("%v", err)
		<-ctx.Done()
		return
	}
	log := m.wifiLog(name, cfg.WiFi)
	defer log.close()
	tracker := wpa.NewTracker(cfg.WiFi)
	say("%s", tracker.Health().Text)
	service := &process.Service{
		Spec: process.Spec{ // -W: it begins when somebody hears it, so that no reason is missed
			Path: program, Args: []string{"-W", "-i", name, "-D", cmp.Or(m.supplicant.driver, "nl80211"), "-c", conf}, Dir: "/",
			Env: []string{"PATH=/usr/sbin:/usr/bin"},
		},
		Log:     log,
		Backoff: process.Backoff{First: time.Second, Most: time.Minute, Reset: 10 * time.Minute},
		Grace:   wifiGrace,
		Ended: func(how string, again time.Duration) {
			say("wpa_supplicant ended: %s; again in %v; its last words: %s", how, again, strings.Join(log.lastLines(), " | "))
		},
	}
	var supplicant sync.WaitGroup
	supplicant.Go(func() {
		allow("/sys", name)
		service.Run(ctx, m.Reaper)
	})
	for ctx.Err() == nil {
		c, err := wpa.Dial(ctrl, name)
		if err != nil {
			wait(ctx, wifiRedial)
			continue
		}
		m.follow(ctx, l, c, tracker, joined)
		_ = c.Close()
	}
	supplicant.Wait()
}

// follow hears what one wpa_supplicant says until that ends or ctx does.
func (m *Manager) follow(ctx context.Context, l netlink.Link, c *wpa.Client, t *wpa.Tracker, joined func()) {
	name, was := l.Attrs().Name, false
	for {
		status, err := c.Status()
		if err != nil {
			t.Status(nil, "")
			return // whoever started it says how it ended
		}
		blocked := ""
		if status["wpa_state"] == "INTERFACE_DISABLED" {
			blocked = allow("/sys", name)
		}
		t.Status(status, blocked)
		h := t.Health()
		m.setRadio(name, radio{l.Attrs().Index, h.Connected, h.Text})
		if h.Connected && !was {
			joined()
		}
		was = h.Connected
		e, ok, err := c.Next(ctx, wifiLook)
		if err != nil || ctx.Err() != nil {
			return
		}
		if ok {
			t.Event(e, time.Now())
			was = was && e.Name != "CTRL-EVENT-DISCONNECTED" // it may be back before the next question
		}
	}
}

func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// allow lifts what blocks a card's radio, and says what it cannot lift; "" when nothing is left.
func allow(sys, name string) string {
	switches, _ := filepath.Glob(filepath.Join(sys, "class/net", name, "phy80211/rfkill*"))
	for _, dir := range switches {
		if text, err := os.ReadFile(filepath.Join(dir, "soft")); err == nil && strings.TrimSpace(string(text)) == "1" {
			if err := os.WriteFile(filepath.Join(dir, "soft"), []byte("0"), 0); err != nil {
				return fmt.Sprintf("the radio is blocked (rfkill), and that cannot be lifted: %v", err)
			}
		}
		if text, err := os.ReadFile(filepath.Join(dir, "hard")); err == nil && strings.TrimSpace(string(text)) == "1" {
			return "the radio is switched off at the machine (rfkill): a switch, a key or the firmware's setup"
		}
	}
	return ""
}

// supplicantLog writes wpa_supplicant's lines to a file, each with its time and without keys.
type supplicantLog struct {
	mu      sync.Mutex
	file    *process.LogFile // nil for none
	secrets []string
	rest    []byte // of a line
	last    []string
}

// wifiLog opens a card's log. A log that cannot be opened is none.
func (m *Manager) wifiLog(name string, w *machine.WiFi) *supplicantLog {
	out := &supplicantLog{secrets: w.Secrets()}
	if m.Logs != nil {
		f, err := m.Logs.Open("wifi-"+name+".log", wifiLogSize)
		if err != nil {
			m.Log("%s: WiFi: its log: %v", name, err)
		} else {
			out.file = f
		}
	}
	return out
}

// maxLine is more than wpa_supplicant writes on one.
const maxLine = 4 << 10

func (l *supplicantLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rest = append(l.rest, p...)
	for {
		line, rest, whole := bytes.Cut(l.rest, []byte("\n"))
		if !whole && len(l.rest) < maxLine {
			return len(p), nil
		}
		l.rest = slices.Clone(rest)
		text := string(line)
		for _, s := range l.secrets {
			text = strings.ReplaceAll(text, s, "…")
		}
		l.last = append(l.last, text)
		l.last = l.last[max(0, len(l.last)-wifiLast):]
		if l.file != nil {
			_, _ = fmt.Fprintf(l.file, "%s %s\n", time.Now().UTC().Format(time.RFC3339), text)
		}
	}
}

// Sync is called when wpa_supplicant ended.
func (l *supplicantLog) Sync() error {
	if l.file == nil {
		return nil
	}
	return l.file.Sync()
}

func (l *supplicantLog) lastLines() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.last)
}

func (l *supplicantLog) close() {
	if l.file != nil {
		_ = l.file.Close()
	}
}

// missRadios says of the wireless cards that the config names and that are not there what keeps them away. It looks from time
// to time until ctx ends: a driver asks for its firmware when it finds the card, and finds it when it pleases.
func (m *Manager) missRadios(ctx context.Context) {
	for wait(ctx, wifiAbsent); ctx.Err() == nil; wait(ctx, wifiAbsent) {
		list, err := netlink.LinkList()
		if err != nil {
			continue
		}
		for _, i := range m.current().Interfaces {
			if i.WiFi == nil {
				continue
			}
			name := "interface " + i.Called()
			if slices.ContainsFunc(list, func(l netlink.Link) bool { return picks(i, linkOf(l)) }) {
				m.dropRadio(name, 0)
				continue
			}
			text := "is not there: no driver has found the card"
			if files := missingFirmware(kernelLog()); len(files) > 0 {
				text = "is not there: drivers asked in vain for firmware " + strings.Join(files, ", ")
			}
			m.setRadio(name, radio{text: text})
		}
	}
	for _, i := range m.current().Interfaces {
		m.dropRadio("interface "+i.Called(), 0)
	}
}
