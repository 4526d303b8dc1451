package e2e

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/skerry-os/skerry/boards"
	"github.com/skerry-os/skerry/e2e/vm"
	"github.com/skerry-os/skerry/pkg/machine"
)

// loginKey makes a person's key, and its line in a node config.
func loginKey(t *testing.T) (ssh.Signer, string) {
	t.Helper()
	_, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return key, strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key.PublicKey()))) + " admin@desk"
}

// debugMachine is an image of the debug release that make test-debug built, for whom the key belongs to.
func debugMachine(t *testing.T, keyLine string) vm.Options {
	t.Helper()
	if !*inVM {
		t.Skip("boots a debug release in QEMU: run make test-debug")
	}
	b, err := boards.Load("x86-uefi")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(built(t, "run/node.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	config, image := filepath.Join(t.TempDir(), "node.yaml"), filepath.Join(t.TempDir(), "debug.img")
	text = fmt.Appendf(text, "ssh: {keys: [%q]}\nserver: {disable: [ingress, local-storage, metrics-server, network-policy, servicelb]}\n", keyLine)
	if err := os.WriteFile(config, text, 0o600); err != nil {
		t.Fatal(err)
	}
	skerry, keys := built(t, "bin/skerry"), built(t, "keys")
	run(t, skerry, "image", "build", "--board", "x86-uefi", "--release", built(t, "release-debug"), "--keys", keys, "--config", config, "-o", image)
	if out := run(t, skerry, "image", "inspect", "--keys", keys, image); !strings.Contains(out, machine.DebugNotice) {
		t.Errorf("skerry image inspect does not say %q:\n%s", machine.DebugNotice, out)
	}
	return vm.Options{Dir: t.TempDir(), Image: image, Board: *b.QEMU, Restrict: true, Forwards: []vm.Forward{{Guest: 6443}, {Guest: 22}}}
}

// types types a line until its answer comes: whoever types before the shell is there types for nobody.
func (n *node) types(line, answer string) {
	n.t.Helper()
	keyboard, err := n.Keyboard(n.t.Context())
	if err != nil {
		n.t.Fatal(err)
	}
	defer func() { _ = keyboard.Close() }()
	re := regexp.MustCompile("(?m)" + answer)
	from := len(n.Text())
	for end := time.Now().Add(patience); ; {
		if err := keyboard.Type("\r" + line + "\r"); err != nil {
			n.t.Fatal(err)
		}
		for again := time.Now().Add(20 * time.Second); time.Now().Before(again); time.Sleep(200 * time.Millisecond) {
			if text := n.Text(); re.MatchString(text[min(from, len(text)):]) {
				return
			}
		}
		if text := n.Text(); time.Now().After(end) {
			n.t.Fatalf("typed %q on the console for %v; no line matches %q; it shows\n%s", line, patience, answer, text[min(from, len(text)):])
		}
	}
}

// login goes in over SSH. The machine's own key is the one that its console names.
func (n *node) login(key ssh.Signer) (*ssh.Client, error) {
	n.t.Helper()
	addr, err := n.Addr(22)
	if err != nil {
		n.t.Fatal(err)
	}
	said := regexp.MustCompile(`skerry: ssh: port 22 is open to 1 keys; this machine's own is (SHA256:\S+)`).FindStringSubmatch(n.Text())
	if said == nil {
		n.t.Fatal("the console does not say that SSH is open")
	}
	return ssh.Dial("tcp", addr, &ssh.ClientConfig{
		User: "root", Auth: []ssh.AuthMethod{ssh.PublicKeys(key)}, Timeout: patience,
		HostKeyCallback: func(_ string, _ net.Addr, own ssh.PublicKey) error {
			if got := ssh.FingerprintSHA256(own); got != said[1] {
				return fmt.Errorf("the machine's key is %s; its console says %s", got, said[1])
			}
			return nil
		},
	})
}

// over runs a command and gives what it printed and its exit status.
func over(t *testing.T, c *ssh.Client, command string) (string, int) {
	t.Helper()
	s, err := c.NewSession()
	if err != nil {
		t.Fatalf("over SSH: %v", err)
	}
	defer func() { _ = s.Close() }()
	out, err := s.CombinedOutput(command) // both streams into one buffer of ours would overwrite each other
	var exit *ssh.ExitError
	switch {
	case errors.As(err, &exit):
		return string(out), exit.ExitStatus()
	case err != nil:
		t.Fatalf("over SSH: %s: %v: %s", command, err, out)
	}
	return string(out), 0
}

// A debug release has a shell on its serial console and over SSH, from which kubectl works; it says what it is; the lines that init
// says keep their form beside a shell that is in use; and neither shell keeps the machine from going down.
func TestDebugRelease(t *testing.T) {
	key, line := loginKey(t)
	other, _ := loginKey(t)
	n := power(t, debugMachine(t, line))
	n.expect(patience, `^skerry: `+machine.DebugNotice+`$`)
	n.expect(patience, `^skerry: start shells: ok`)
	n.types(`echo "on $(tty): $((40+2)), $USER at $PWD"`, `^on /dev/ttyS0: 42, root at /run/skerry/root$`)
	n.expect(2*patience, `^skerry\| note +`+machine.DebugNotice)
	t.Log(n.expect(2*patience, `^skerry: (node: Ready.*)`)[1]) // though somebody is in the middle of a line
	n.types(`kubectl get nodes -o jsonpath='{.items[0].metadata.name} runs {.items[0].status.nodeInfo.osImage}{"\n"}'`, `^skerry runs Skerry .* \(debug\)$`)

	if c, err := n.login(other); err == nil {
		_ = c.Close()
		t.Error("another key opens, too")
	}
	c, err := n.login(key)
	if err != nil {
		t.Fatalf("over SSH: %v", err)
	}
	defer func() { _ = c.Close() }()
	n.expect(patience, `^skerry: ssh: root came in from .*, key SHA256:\S+ \(admin@desk\)$`)
	for command, want := range map[string]struct {
		out  string
		code int
	}{
		"kubectl get nodes --no-headers; exit 7": {`^skerry +Ready .*\n$`, 7},
		"skerryd version":                        {machine.DebugNotice, 0},
		"skerryd update status":                  {machine.DebugNotice, 0},
		"crictl ps >/dev/null && echo fine":      {`^fine\n$`, 0},
		"tty; ls -l /usr/sbin/init /bin/sh":      {`^not a tty\n(?s:.*)/bin/sh -> busybox`, 0},
		"touch /usr/x":                           {`Read-only file system`, 1},
		"stat -c %a /var/lib/skerry/debug/*":     {`^600\n$`, 0},
		"cat /proc/1/comm":                       {`^init\n$`, 0},
	} {
		if out, code := over(t, c, command); !regexp.MustCompile(want.out).MatchString(out) || code != want.code {
			t.Errorf("over SSH: %s: exit status %d, want %d; want %q in\n%s", command, code, want.code, want.out, out)
		}
	}

	began := time.Now()
	n.types("echo asleep; sleep 1000", `^asleep$`)
	stop, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := n.Stop(stop); err != nil {
		t.Fatal("power button: ", err)
	}
	t.Logf("the power button, with both shells in use: %v", time.Since(began).Round(time.Second))
	if text := n.Text(); !strings.Contains(text, "skerry: power off: unmounting") {
		t.Error("the machine went off without unmounting")
	}
}
