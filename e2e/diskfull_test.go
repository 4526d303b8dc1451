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
			fill, free := smallDisk(t, s)
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
			free()
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
			free()
			t.Logf("Ready %v after a start on a full disk", s.Ready())
			s.Becomes("after", "get", "configmap", "after", "-o", "jsonpath={.metadata.name}")
		})
	}
}

// smallDisk puts the data of a node on a disk of its own, which fill leaves no byte of.
func smallDisk(t *testing.T, n *nodes.Node) (fill, free func()) {
	t.Helper()
	sh := func(script string) {
		t.Helper()
		if out, err := n.Command(t.Context(), "sh", "-c", script).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", script, err, out)
		}
	}
	data := n.DataDir()
	sh("mkdir -p " + data + " && mount -t tmpfs -o size=640m,mode=755 tmpfs " + data)
	return func() {
			t.Helper()
			// What writes meanwhile may take the last of it first; there is nothing left in either case.
			for _, block := range []string{"1M", "4k"} {
				_ = n.Command(t.Context(), "dd", "if=/dev/zero", "of="+data+"/filler", "bs="+block, "conv=notrunc", "oflag=append").Run()
			}
		}, func() {
			t.Helper()
			sh("rm " + data + "/filler")
		}
}

// The disk of one of three servers fills: the cluster goes on, through each of them, also if that server starts so. With room again it
// counts as before.
func TestNodesDiskFullOfOne(t *testing.T) {
	w := newWire(t)
	s1, s2, s3 := w.Node("s1"), w.Node("s2"), w.Node("s3")
	fill, free := smallDisk(t, s1)
	s1.Start("server", "--cluster-init", "--token", "a-token-of-my-own")
	s1.Ready()
	for _, s := range []*nodes.Node{s2, s3} {
		s.Start("server", "--server", s1.URL(), "--token", "a-token-of-my-own")
		s.Ready()
	}
	s1.ReadyInAPI(s1, s2, s3)
	put := func(name string) {
		t.Helper()
		for _, at := range []*nodes.Node{s1, s2, s3} {
			if !at.Running() {
				continue
			}
			at.Eventually("a write at "+at.Name, func() (bool, string) {
				out, err := at.Try("", "create", "configmap", name+"-"+at.Name, "--from-literal=k=v")
				return err == nil || strings.Contains(out+err.Error(), "already exists"), out
			})
		}
	}
	put("before")
	began := time.Now()
	fill()
	says(s1, "reason=EtcdAside")
	fill()
	put("full")
	t.Logf("written at all three %v after the disk was full", time.Since(began).Round(time.Second))
	s1.Becomes("full-s2", "get", "configmap", "full-s2", "-o", "jsonpath={.metadata.name}")
	s2.Eventually("an event", func() (bool, string) {
		out, err := s2.Try("", "get", "events", "-A", "--field-selector", "reason=EtcdAside", "-o", "name")
		return err == nil && out != "", out
	})

	s1.Stop()
	said := strings.Count(s1.Log(), "reason=EtcdAside")
	s1.Start("server", "--cluster-init", "--token", "a-token-of-my-own")
	s1.Eventually("it starts beside its datastore", func() (bool, string) { return strings.Count(s1.Log(), "reason=EtcdAside") > said, "" })
	put("started")
	for _, s := range []*nodes.Node{s1, s2, s3} {
		if !s.Running() {
			t.Errorf("%s has ended\n%s", s.Name, s.Tail(3000))
		}
	}

	free()
	says(s1, "reason=EtcdBack")
	s1.Ready()
	s1.ReadyInAPI(s1, s2, s3)
	s2.PullThePlug() // now the first is one of the two that are needed
	put("after")
	s3.Becomes("after-s1", "get", "configmap", "after-s1", "-o", "jsonpath={.metadata.name}")
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
