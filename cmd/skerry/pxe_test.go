//go:build linux

package main

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	"github.com/insomniacslk/dhcp/iana"
	"github.com/spf13/pflag"

	"github.com/skerry-os/skerry/image/fleet"
	"github.com/skerry-os/skerry/image/releasetest"
	"github.com/skerry-os/skerry/pkg/machine"
)

// The page on network boot, as a person follows it: every command in it, in its order, in a network namespace where two
// machines ask for a boot file. Only the release is not built anew; `make release` does that.
func TestThePageOnNetworkBoot(t *testing.T) {
	const env = "SKERRY_TEST_IN_NAMESPACE"
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes a network namespace")
	}
	if os.Getenv(env) == "" {
		c := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
		c.Env = append(os.Environ(), env+"=1")
		c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
		out, err := c.CombinedOutput()
		if err != nil {
			t.Errorf("in the namespace: %v", err)
		}
		t.Logf("%s", out)
		return
	}
	p := newPageRun(t)
	text, err := os.ReadFile("../../image/netboot/PXE.md")
	if err != nil {
		t.Fatal(err)
	}
	ran := 0
	for _, block := range indented(string(text)) {
		if strings.HasPrefix(block, "apiVersion:") {
			if err := os.WriteFile(filepath.Join(p.dir, "fleet.yaml"), []byte(block), 0o600); err != nil {
				t.Fatal(err)
			}
			continue
		}
		for line := range strings.Lines(block) {
			line = strings.TrimRight(line, "\n")
			if word, _, _ := strings.Cut(line, " "); word != "skerry" && word != "sudo" && word != "mkdir" && word != "cp" {
				continue
			}
			ran++
			p.command(line)
		}
	}
	if ran < 14 {
		t.Errorf("only %d commands were found", ran)
	}
	// What README.md says of it, where the keys are again.
	p.sh("mv elsewhere out/keys")
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	commands := regexp.MustCompile("`((?:sudo )?skerry pxe [^`]+)`").FindAllStringSubmatch(strings.ReplaceAll(string(readme), "\n", " "), -1)
	if len(commands) < 2 {
		t.Errorf("README.md has %q", commands)
	}
	for _, c := range commands {
		p.command(c[1])
	}
}

// The page's YAML is what the programs read, its flags are theirs, and what it says that they say they do say.
func TestWhatThePageOnNetworkBootSays(t *testing.T) {
	text, err := os.ReadFile("../../image/netboot/PXE.md")
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[string]int{}
	for _, block := range indented(string(text)) {
		key, _, _ := strings.Cut(block, ":")
		switch key {
		case "install":
			c, err := machine.Decode("PXE.md", []byte(releasetest.Config+block))
			if err != nil || c.Install.Disk.Empty() == c.Install.State.Empty() {
				t.Errorf("%s: %v", block, err)
			}
		case "apiVersion":
			file := filepath.Join(t.TempDir(), "fleet.yaml")
			if err := os.WriteFile(file, []byte(block), 0o600); err != nil {
				t.Fatal(err)
			}
			if f, err := fleet.Load(file); err != nil || len(f.Nodes) != 2 {
				t.Errorf("%s: %v", block, err)
			}
		default:
			continue
		}
		kinds[key]++
	}
	if kinds["install"] != 2 || kinds["apiVersion"] != 1 {
		t.Errorf("found %v", kinds)
	}
	flags := map[string]bool{"--node": true, "--single-use": true} // of skerryd token create
	for _, cmd := range newPXECmd().Commands() {
		cmd.Flags().VisitAll(func(f *pflag.Flag) { flags["--"+f.Name] = true })
	}
	for _, name := range regexp.MustCompile(`--[a-z][a-z-]*`).FindAllString(string(text), -1) {
		if !flags[name] {
			t.Errorf("%s is no flag of skerry pxe", name)
		}
	}
	var code strings.Builder
	for _, pattern := range []string{"../../image/netboot/*.go", "../../image/netboot/*/*.go", "../../image/install/*.go"} {
		names, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			data, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.HasSuffix(name, "_test.go") {
				code.Write(data)
			}
		}
	}
	_, table, _ := strings.Cut(string(text), "## When it does not work")
	rows := 0
	for line := range strings.Lines(table) {
		cells := strings.Split(line, "|")
		if len(cells) != 4 || strings.Contains(cells[1], "---") || strings.Contains(cells[1], "the console, page or log says") {
			continue
		}
		rows++
		for _, part := range regexp.MustCompile(`…| N\b|arm64`).Split(strings.TrimSpace(cells[1]), -1) {
			if part = strings.TrimSpace(part); !strings.Contains(code.String(), part) {
				t.Errorf("nothing says %q", part)
			}
		}
	}
	if rows < 15 {
		t.Errorf("found %d rows", rows)
	}
}

// pageRun is where the commands run.
type pageRun struct {
	t    *testing.T
	b    *releasetest.Bench
	dir  string
	env  []string
	stop func()
}

func newPageRun(t *testing.T) *pageRun {
	t.Helper()
	p := &pageRun{t: t, b: releasetest.New(t, 1<<20).Netboot(t), dir: t.TempDir(), stop: func() {}}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	bin := t.TempDir()
	for _, err := range []error{
		os.Symlink(exe, filepath.Join(bin, "skerry")),
		os.WriteFile(filepath.Join(bin, "sudo"), []byte("#!/bin/sh\nexec \"$@\"\n"), 0o755),
		os.WriteFile(filepath.Join(p.dir, "node.yaml"), []byte(releasetest.Config), 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	p.env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
	for _, c := range []string{"ip link set lo up", "ip link add eth1 type veth peer name far", "ip address add 10.11.12.2/24 dev eth1", "ip link set eth1 up", "ip link set far up"} {
		p.sh(c)
	}
	t.Cleanup(func() { p.stop() })
	return p
}

func (p *pageRun) sh(line string) string {
	p.t.Helper()
	c := exec.Command("sh", "-c", line)
	c.Dir, c.Env = p.dir, p.env
	out, err := c.CombinedOutput()
	if err != nil {
		p.t.Fatalf("%s: %v: %s", line, err, out)
	}
	p.t.Logf("$ %s\n%s", line, out)
	return string(out)
}

func (p *pageRun) command(line string) {
	p.t.Helper()
	switch {
	case strings.HasPrefix(line, "skerry release build"):
		p.sh("rm -r out/keys && cp -r " + p.b.Keys + " out/keys && cp -r " + p.b.Release + " out/release && cp out/keys/release.pub .")
	case strings.Contains(line, "pxe serve"):
		p.serve(line)
		p.asks(net.HardwareAddr{0x52, 0x54, 0, 0x12, 0x34, 0x56}, p.t)
		p.asks(net.HardwareAddr{0x52, 0x54, 0, 0x12, 0x34, 0x57}, p.t)
	case strings.HasPrefix(line, "skerry pxe prepare"):
		p.sh(line)
		p.sh("mv out/keys elsewhere") // the keys are kept elsewhere, says the page
	case strings.HasPrefix(line, "skerry pxe list"):
		if out := p.sh(line); !strings.Contains(out, "52:54:00:12:34:56") || !strings.Contains(out, "north-1") || !strings.Contains(out, "52:54:00:12:34:57") {
			p.t.Errorf("the list: %s", out)
		}
	default:
		p.sh(line)
	}
}

// serve starts a server, in the place of the one before.
func (p *pageRun) serve(line string) {
	p.t.Helper()
	p.stop()
	c := exec.Command("sh", "-c", "exec "+line)
	c.Dir, c.Env = p.dir, p.env
	var out lockedBuffer
	c.Stdout, c.Stderr = &out, &out
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := c.Start(); err != nil {
		p.t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- c.Wait() }()
	p.stop = func() { _, _ = c.Process.Signal(syscall.SIGTERM), <-done; p.stop = func() {} }
	for end := time.Now().Add(time.Minute); !strings.Contains(out.String(), "status page: http://127.0.0.1:6482/"); time.Sleep(20 * time.Millisecond) {
		select {
		case err := <-done:
			p.stop = func() {}
			p.t.Fatalf("%s: %v: %s", line, err, out.String())
		default:
		}
		if time.Now().After(end) {
			p.t.Fatalf("%s does not start: %s", line, out.String())
		}
	}
	if strings.Contains(out.String(), "NOT signed") {
		p.t.Errorf("%s: %s", line, out.String())
	}
	p.t.Logf("$ %s\n%s", line, out.String())
}

// asks is a machine's firmware.
func (p *pageRun) asks(hw net.HardwareAddr, t *testing.T) {
	t.Helper()
	c, err := nclient4.New("far", nclient4.WithHWAddr(hw), nclient4.WithTimeout(2*time.Second), nclient4.WithRetry(3))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close() //nolint:errcheck // a test's
	m, err := dhcpv4.NewDiscovery(hw, dhcpv4.WithOption(dhcpv4.OptClassIdentifier("PXEClient:Arch:00007:UNDI:003016")), dhcpv4.WithOption(dhcpv4.OptClientArch(iana.EFI_X86_64)))
	if err != nil {
		t.Fatal(err)
	}
	r, err := c.SendAndRead(t.Context(), nclient4.DefaultServers, m, nclient4.IsMessageType(dhcpv4.MessageTypeOffer))
	if err != nil || r.BootFileNameOption() != "x86-uefi.efi" {
		t.Fatal(fmt.Errorf("%s gets %v: %w", hw, r, err))
	}
}

type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
