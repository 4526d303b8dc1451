package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// TestMain lets the test program stand in for skerry-addons.
func TestMain(m *testing.M) {
	if os.Getenv("SKERRY_ADDONS_TEST") != "" {
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, args...)
	cmd.Env = append(os.Environ(), "SKERRY_ADDONS_TEST=1")
	return cmd
}

// The plugins that the component's Corefile names are linked in, except the API's, which needs a cluster.
func TestServes(t *testing.T) {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := pc.LocalAddr().(*net.UDPAddr).Port
	_ = pc.Close()
	corefile := filepath.Join(t.TempDir(), "Corefile")
	err = os.WriteFile(corefile, fmt.Appendf(nil, `.:%d {
	bind 127.0.0.1
	errors
	hosts {
		192.0.2.7 seven.test
	}
	rewrite name exact seven.alias seven.test
	cache 30
	loop
	reload
	loadbalance
	forward . 127.0.0.1:1
}
`, port), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	cmd := command(t, "coredns", "-conf", corefile)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	ask := new(dns.Msg)
	ask.SetQuestion("seven.alias.", dns.TypeA)
	var answer *dns.Msg
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline) && answer == nil; {
		select {
		case err := <-exited:
			t.Fatalf("ended early: %v", err)
		case <-time.After(20 * time.Millisecond):
			answer, _ = dns.Exchange(ask, fmt.Sprintf("127.0.0.1:%d", port))
		}
	}
	if answer == nil || len(answer.Answer) != 1 || answer.Answer[0].(*dns.A).A.String() != "192.0.2.7" {
		t.Errorf("answer is %v", answer)
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-exited:
		if err != nil {
			t.Errorf("after an interrupt: %v", err)
		}
	case <-time.After(15 * time.Second):
		_ = cmd.Process.Kill()
		t.Error("still running 15 s after an interrupt")
	}
}

func TestRefuses(t *testing.T) {
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad")
	if err := os.WriteFile(bad, []byte(".:0 {\n\tgeoip\n}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"coredns", "-conf", filepath.Join(dir, "none")}, {"coredns", "-conf", bad}, {"coredns", "extra"}, {"none"}, {}} {
		if out, err := command(t, args...).CombinedOutput(); err == nil {
			t.Errorf("%v: ran\n%s", args, out)
		}
	}
}
