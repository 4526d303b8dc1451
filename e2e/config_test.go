package e2e

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skerry-os/skerry/e2e/vm"
)

// editConfig changes the node config on an image, as a PC does with the card in it. The machine's own disk, a layer above the
// image, stays.
func editConfig(t *testing.T, image string, edit func(string) string) {
	t.Helper()
	st, err := os.Stat(image)
	if err != nil {
		t.Fatal(err)
	}
	start, _ := partition(t, image, "config")
	volume := fmt.Sprintf("%s@@%d", image, start)
	file := filepath.Join(t.TempDir(), "config.yaml")
	mtools(t, "mcopy", "-n", "-i", volume, "::/config.yaml", file)
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(edit(string(data))), 0o600); err != nil {
		t.Fatal(err)
	}
	mtools(t, "mcopy", "-o", "-i", volume, file, "::/config.yaml")
	if err := os.Chtimes(image, st.ModTime(), st.ModTime()); err != nil {
		t.Fatal(err)
	}
}

// A broken config leaves a machine that says so, on the console and over the network; the same machine starts when the config is
// good; and once it was good, a broken one does not keep it from starting.
func TestABrokenConfig(t *testing.T) {
	o := machineOf(t)
	o.Forwards = []vm.Forward{{Guest: 80}, {Guest: 6443}}
	broken := func(text string) string { return strings.Replace(text, "hostname:", "hostnam:", 1) }
	mended := func(text string) string { return strings.Replace(text, "hostnam:", "hostname:", 1) }

	editConfig(t, o.Image, broken)
	n := power(t, o)
	t.Log(n.expect(2*patience, `skerry: waiting: (a node config: config\.yaml:[0-9]+:1: unknown key "hostnam"; did you mean "hostname"\?.*SKERRYCFG)`)[1])
	n.expect(patience, `skerry\| address +[0-9]`)
	page := n.page()
	t.Log(page)
	if !strings.Contains(page, "This machine waits for a node config.") || !strings.Contains(page, "unknown key") || strings.Contains(page, "hostnam:") || strings.Contains(page, `"hostnam"`) {
		t.Errorf("the page says\n%s", page)
	}
	n.PowerCut()

	editConfig(t, o.Image, mended)
	n = power(t, o)
	t.Log("with a good config: ", n.expect(3*patience, `skerry: (node: Ready.*)`)[1])
	n.PowerCut()

	editConfig(t, o.Image, broken)
	n = power(t, o)
	t.Log(n.expect(2*patience, `skerry: config: (config\.yaml:.*the last good config goes on.*)`)[1])
	t.Log("with the last good config: ", n.expect(3*patience, `skerry: (node: Ready.*)`)[1])
	if !strings.Contains(n.Text(), "skerry| note      config.yaml:") {
		t.Error("the display does not tell")
	}
}

// page is what the machine says at its port 80.
func (n *node) page() string {
	n.t.Helper()
	addr, err := n.Addr(80)
	if err != nil {
		n.t.Fatal(err)
	}
	for end := time.Now().Add(patience); ; time.Sleep(time.Second) {
		r, err := http.Get("http://" + addr + "/")
		if err == nil {
			body, rerr := io.ReadAll(io.LimitReader(r.Body, 64<<10))
			_ = r.Body.Close()
			if rerr == nil && r.StatusCode == http.StatusServiceUnavailable {
				return string(body)
			}
			err = errors.Join(errors.New(r.Status), rerr)
		}
		if time.Now().After(end) {
			n.t.Fatal(err)
		}
	}
}
