package proxy

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

var compare = flag.Bool("compare", false, "measure this proxy next to HAProxy")

// compareEnv tells a second run of this program to be the proxy: "port backend".
const compareEnv = "SKERRY_COMPARE"

// The proxy as a process next to HAProxy as one, with the same backend and the same clients, in turns.
func TestCompare(t *testing.T) {
	if spec := os.Getenv(compareEnv); spec != "" {
		var n uint16
		var where string
		if _, err := fmt.Sscan(spec, &n, &where); err != nil {
			t.Fatal(err)
		}
		s := New(Options{Address: netip.MustParseAddr("127.0.0.1")})
		if err := s.Apply(plain(n, Route{Match: Match{Path: "/"}, Action: to(where)})); err != nil {
			t.Fatal(err)
		}
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		<-ctx.Done()
		return
	}
	if !*compare {
		t.Skip("takes half a minute: add -compare (or run make bench)")
	}
	haproxy, err := exec.LookPath("haproxy")
	if err != nil {
		t.Fatal("haproxy is not installed; run make setup")
	}
	body := strings.Repeat("x", 1024)
	b := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, body) }))
	t.Cleanup(b.Close)
	ours, theirs := free(t), free(t)
	config := filepath.Join(t.TempDir(), "haproxy.cfg")
	err = os.WriteFile(config, fmt.Appendf(nil, `global
  maxconn 4096
defaults
  mode http
  option forwardfor
  timeout connect 5s
  timeout client 60s
  timeout server 60s
frontend f
  bind 127.0.0.1:%d
  default_backend b
backend b
  server s %s
`, theirs, address(b)), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	mine := exec.Command(self, "-test.run", "^TestCompare$")
	mine.Env = append(os.Environ(), compareEnv+"="+fmt.Sprint(ours, " ", address(b)))
	programs := []struct {
		name string
		port uint16
		cmd  *exec.Cmd
		rate []float64
	}{{"skerry", ours, mine, nil}, {"HAProxy", theirs, exec.Command(haproxy, "-db", "-f", config), nil}}
	for i := range programs {
		p := &programs[i]
		if err := p.cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = p.cmd.Process.Signal(syscall.SIGTERM); _ = p.cmd.Wait() })
		listening(t, p.port)
	}
	for range 5 {
		for i := range programs {
			programs[i].rate = append(programs[i].rate, load(t, programs[i].port, 32, 2*time.Second))
		}
	}
	var rates []float64
	for i := range programs {
		slices.Sort(programs[i].rate)
		median := programs[i].rate[len(programs[i].rate)/2]
		rates = append(rates, median)
		t.Logf("%-8s %8.0f requests/s (median of 5, 32 connections, 1 KiB), %s of memory", programs[i].name, median, resident(t, programs[i].cmd.Process.Pid))
	}
	t.Logf("ratio %.2f", rates[0]/rates[1])
	if rates[0] < rates[1]/10 {
		t.Error("a tenth of HAProxy's rate is too little")
	}
}

func listening(t *testing.T, n uint16) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", n)); err == nil {
			_ = c.Close()
			return
		}
	}
	t.Fatalf("nobody listens on %d", n)
}

// load asks without a pause over some connections and gives the answers per second.
func load(t *testing.T, n uint16, connections int, d time.Duration) float64 {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: connections}}
	defer client.CloseIdleConnections()
	var answers atomic.Int64
	var all sync.WaitGroup
	start := time.Now()
	for range connections {
		all.Go(func() {
			for ctx.Err() == nil {
				r, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d/", n))
				if err != nil {
					t.Error(err)
					return
				}
				_, err = io.Copy(io.Discard, r.Body)
				_ = r.Body.Close()
				if err != nil || r.StatusCode != 200 {
					t.Errorf("%v, %v", r.Status, err)
				}
				answers.Add(1)
			}
		})
	}
	all.Wait()
	return float64(answers.Load()) / time.Since(start).Seconds()
}

func resident(t *testing.T, pid int) string {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if v, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			return strings.TrimSpace(v)
		}
	}
	return "?"
}
