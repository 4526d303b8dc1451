package netboot

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/skerry-os/skerry/image/imagetest"
	"github.com/skerry-os/skerry/image/netboot/protocol"
)

// onPage runs a server and gives the page's address.
func onPage(t *testing.T) (*Server, string) {
	t.Helper()
	newLAN(t)
	o := options(t, bench(t))
	o.DHCP = addresses(t)
	s := run(t, o)
	s.mu.Lock()
	defer s.mu.Unlock()
	return s, "http://" + s.page
}

func TestThePageIsForThisHostAndReadsWithoutScript(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	s, url := onPage(t)
	_, err := s.note(machineMAC, func(m *Machine) error {
		m.Stage, m.Done, m.Total, m.Node, m.Error = protocol.StageWrite, 1<<20, 4<<20, "<b>north</b>", "the cable & so on"
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	get := func(host, path string) (*http.Response, string) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if host != "" {
			req.Host = host
		}
		r, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close() //nolint:errcheck // a test's
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Fatal(err)
		}
		return r, string(body)
	}
	r, body := get("", "/")
	for _, want := range []string{machineMAC, "&lt;b&gt;north&lt;/b&gt;", "writing", "25 % of 4.0MiB", "the cable &amp; so on", "<noscript>"} {
		if !strings.Contains(body, want) {
			t.Errorf("%q is not in %s", want, body)
		}
	}
	if p := r.Header.Get("Content-Security-Policy"); !strings.Contains(p, "default-src 'none'") {
		t.Errorf("policy %q", p)
	}
	if r, _ := get("evil.example:80", "/"); r.StatusCode != http.StatusForbidden {
		t.Errorf("by another name: %s", r.Status)
	}
	if r, _ := get("localhost:1234", "/"); r.StatusCode != http.StatusOK {
		t.Errorf("as localhost: %s", r.Status)
	}
	if r, err := http.Post(url+"/", "text/plain", nil); err != nil || r.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("a page that can be written to: %v", err)
	}
}

// inBrowser shows a page in a browser of its own.
func inBrowser(t *testing.T, browser, url string, more ...chromedp.ExecAllocatorOption) context.Context {
	t.Helper()
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(browser), chromedp.NoSandbox, chromedp.DisableGPU, chromedp.Flag("disable-quic", true), chromedp.NoFirstRun,
		chromedp.Flag("disable-background-networking", true), chromedp.Flag("disable-component-update", true), chromedp.Flag("disable-sync", true),
		chromedp.UserDataDir(t.TempDir()), chromedp.WSURLReadTimeout(2*time.Minute))
	ctx, cancel := chromedp.NewExecAllocator(t.Context(), append(options, more...)...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx, chromedp.WithErrorf(t.Logf))
	t.Cleanup(cancel)
	if err := chromedp.Do(ctx, chromedp.Navigate(url), chromedp.WaitReady("#machines table")); err != nil {
		t.Fatal(err)
	}
	ctx, cancel = context.WithTimeout(ctx, 4*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// In a real browser whose scripts are off: the page can be read, and is read again by itself.
func TestThePageInABrowserWithoutScript(t *testing.T) {
	browser := imagetest.Tool(t, "chromium", "chromium")
	if !inNamespace(t) {
		return
	}
	s, url := onPage(t)
	ctx := inBrowser(t, browser, url, chromedp.Flag("blink-settings", "scriptEnabled=false"))
	shows := func(words ...string) {
		t.Helper()
		var text string
		for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
			html, err := chromedp.Run(ctx, chromedp.OuterHTML("html"))
			if err != nil {
				continue // the page is being read again
			}
			if text = html; !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(html, w) }) {
				return
			}
		}
		t.Fatalf("does not show %q: %s", words, text)
	}
	shows("No machine has asked yet.", `<noscript><meta http-equiv="refresh"`)
	for _, m := range []struct {
		stage, err string
		done       int64
	}{{protocol.StageWrite, "", 1}, {protocol.StageFailed, "no disk matches install.disk", 2}, {protocol.StageInstalled, "", 4}} {
		if _, err := s.note(machineMAC, func(r *Machine) error {
			r.Node, r.Stage, r.Error, r.Done, r.Total = "north-1", m.stage, m.err, m.done, 4
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		shows(machineMAC, "north-1", m.stage, m.err, fmt.Sprintf("%d %%", 25*m.done))
	}
	if _, err := chromedp.Run(ctx, chromedp.Nodes("noscript meta")); err != nil {
		t.Errorf("scripts were on: what is for browsers without is no element here: %v", err)
	}
}

// In a real browser: rows come and change without the page being loaded again, and what a machine calls itself runs nowhere.
func TestThePageInABrowser(t *testing.T) {
	browser := imagetest.Tool(t, "chromium", "chromium")
	if !inNamespace(t) {
		return
	}
	s, url := onPage(t)
	ctx := inBrowser(t, browser, url)
	text, err := chromedp.Run(ctx, chromedp.Text("#machines"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := chromedp.Run(ctx, chromedp.Evaluate[bool](`window.here = true`)); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(text, "No machine has asked yet.") {
		t.Errorf("at first: %s", text)
	}
	row := "#m-" + strings.ReplaceAll(machineMAC, ":", "-")
	for _, m := range []struct {
		stage, err string
		done       int64
	}{{protocol.StageWrite, "", 1}, {protocol.StageFailed, "no disk matches install.disk", 2}, {protocol.StageInstalled, "", 4}} {
		if _, err := s.note(machineMAC, func(r *Machine) error {
			r.Node, r.Stage, r.Error, r.Done, r.Total = "<img src=x onerror='window.hacked=true'>", m.stage, m.err, m.done, 4
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		words := []string{m.stage, m.err, fmt.Sprintf("%d %%", 25*m.done)}
		if _, err := chromedp.Run(ctx, chromedp.Poll[bool](fmt.Sprintf(`(() => { const r = document.querySelector(%q); return r && %s.every(w => r.innerText.includes(w)) })()`, row, jsList(words)),
			chromedp.WithPollingTimeout(time.Minute))); err != nil {
			text, _ = chromedp.Run(ctx, chromedp.Text("#machines"))
			t.Fatalf("%s does not show: %v: %s", m.stage, err, text)
		}
	}
	here, err := chromedp.Run(ctx, chromedp.Evaluate[bool](`window.here === true`))
	if err != nil {
		t.Fatal(err)
	}
	hacked, err := chromedp.Run(ctx, chromedp.Evaluate[bool](`window.hacked === true`))
	if err != nil {
		t.Fatal(err)
	}
	if !here || hacked {
		t.Errorf("loaded again: %v; a machine's name was run: %v", !here, hacked)
	}
}

func jsList(words []string) string {
	quoted := make([]string, len(words))
	for i, w := range words {
		quoted[i] = fmt.Sprintf("%q", w)
	}
	return "[" + strings.Join(quoted, ",") + "]"
}
