package e2e

import (
	"strings"
	"testing"
	"time"

	"github.com/skerry-os/skerry/e2e/nodes"
)

// The disk of a server fills: it stays up, says why, can be read, and takes writes again when there is room. One that starts on a
// full disk waits for room.
func TestNodesDiskFull(t *testing.T) {
	for kind, flags := range map[string][]string{"SQLite": nil, "etcd": {"--cluster-init"}} {
		t.Run(kind, func(t *testing.T) {
			w := newWire(t)
			s := w.Node("s1")
			sh := func(script string) {
				t.Helper()
				if out, err := s.Command(t.Context(), "sh", "-c", script).CombinedOutput(); err != nil {
					t.Fatalf("%s: %v: %s", script, err, out)
				}
			}
			data := s.DataDir()
			sh("mkdir -p " + data + " && mount -t tmpfs -o size=640m,mode=755 tmpfs " + data)
			fill := func() {
				t.Helper()
				// What writes meanwhile may take the last of it first; there is nothing left in either case.
				_ = s.Command(t.Context(), "dd", "if=/dev/zero", "of="+data+"/filler", "bs=1M", "conv=notrunc", "oflag=append").Run()
				_ = s.Command(t.Context(), "dd", "if=/dev/zero", "of="+data+"/filler", "bs=4k", "conv=notrunc", "oflag=append").Run()
			}
			s.Start("server", flags...)
			s.Ready()
			s.Kubectl("create", "configmap", "before", "--from-literal=k=v")

			fill()
			says(s, "reason=DatastoreDiskFull")
			fill() // what was kept back is gone, too
			refused := func(limit time.Duration) {
				t.Helper()
				for end := time.Now().Add(limit); time.Now().Before(end); {
					_, _ = s.Try("", "create", "configmap", "big", "--from-file="+big(t, s), "--request-timeout=10s")
					if !s.Running() {
						t.Fatalf("it has ended\n%s", s.Tail(4000))
					}
				}
			}
			refused(40 * time.Second)
			if kind == "SQLite" { // etcd has started anew, and waits: the last byte was taken before it could refuse
				s.Becomes("before", "get", "configmap", "before", "-o", "jsonpath={.metadata.name}")
			}
			sh("rm " + data + "/filler")
			s.Eventually("a write when there is room", func() (bool, string) {
				out, err := s.Try("", "create", "configmap", "after", "--from-literal=k=v")
				return err == nil || strings.Contains(err.Error(), "already exists"), out
			})
			s.Eventually("an event", func() (bool, string) {
				out, err := s.Try("", "get", "events", "-A", "--field-selector", "reason=DatastoreDiskFull", "-o", "name")
				return err == nil && out != "", out
			})
			s.Stop()

			fill()
			before := strings.Count(s.Log(), "reason=DatastoreDiskFull")
			s.Start("server", flags...)
			s.Eventually("it says why it waits", func() (bool, string) {
				return strings.Count(s.Log(), "reason=DatastoreDiskFull") > before || !s.Running(), ""
			})
			time.Sleep(20 * time.Second)
			if !s.Running() {
				t.Fatalf("a start on a full disk ends\n%s", s.Tail(4000))
			}
			sh("rm " + data + "/filler")
			t.Logf("Ready %v after a start on a full disk", s.Ready())
			s.Becomes("after", "get", "configmap", "after", "-o", "jsonpath={.metadata.name}")
		})
	}
}

// big is a file that makes a large object.
func big(t *testing.T, n *nodes.Node) string {
	t.Helper()
	name := "/run/big"
	if out, err := n.Command(t.Context(), "sh", "-c", "test -e "+name+" || head -c 700000 /dev/urandom >"+name).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return name
}
