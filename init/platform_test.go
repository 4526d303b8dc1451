package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skerry-os/skerry/pkg/linux"
	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/platform"
)

func TestPlatformOf(t *testing.T) {
	for line, want := range map[string][2]string{
		"console=tty0 skerry.board=x86-uefi":                        {},
		"skerry.board=aws skerry.platform=aws":                      {"aws", ""},
		"skerry.platform=aws skerry.config=https://example.org/a=b": {"url", "https://example.org/a=b"},
	} {
		if name, url := platformOf(line); name != want[0] || url != want[1] {
			t.Errorf("%s: %q %q", line, name, url)
		}
	}
}

// The image's config is the ground, user data goes over it, and what the platform knows fills what both leave open.
func TestConfigFromPlatform(t *testing.T) {
	const ground = "apiVersion: skerry/v1alpha1\nkind: NodeConfig\nrole: agent\ncluster: {server: \"https://10.0.0.1:6443\", token: 0123456789abcdef0123}\n"
	i := &platform.Instance{Platform: "aws", ID: "i-1", Hostname: "i-1", Zone: "eu-central-1b", ProviderID: "aws:///eu-central-1b/i-1"}
	s := &system{told: told{data: []byte(ground)}}
	c, _, err := s.configFrom(i)
	if err != nil || c.Hostname != "i-1" || len(c.Agent.NodeLabel) != 1 || len(c.Agent.KubeletArg) != 1 {
		t.Errorf("%+v, %v", c, err)
	}
	i.UserData = []byte("#cloud-config\nhostname: north-1\nusers: []\n")
	c, user, err := s.configFrom(i)
	if err != nil || c.Hostname != "north-1" || c.Cluster.Server != "https://10.0.0.1:6443" || len(user.Warnings) != 1 {
		t.Errorf("%+v, %v", c, err)
	}
	i.UserData = []byte(strings.Replace(ground, "agent", "worker", 1))
	if _, _, err := s.configFrom(i); err == nil || !strings.Contains(err.Error(), `user data:3:7: role: is "worker"`) {
		t.Error(err)
	}
	s.policy.Policy = machine.PolicySigned
	s.id.Release.Debug = true
	for _, data := range []string{
		"#cloud-config\nwrite_files: [{path: /var/lib/skerry/server/manifests/a.yaml, content: x}]\n",
		"#cloud-config\nhostname: north-2\n",
	} {
		if _, _, err := s.configFrom(&platform.Instance{UserData: []byte(data)}); err == nil || !strings.Contains(err.Error(), "signed node configs alone") {
			t.Errorf("%q was taken: %v", data, err)
		}
	}
	if c, _, err := s.configFrom(&platform.Instance{SSHKeys: []string{sshKey}}); err != nil || len(c.SSH.Keys) > 0 {
		t.Errorf("a platform's keys open a machine that takes signed configs alone: %v", err)
	}
	s.id.Release.Debug = false
	if _, _, err := s.configFrom(i); err == nil || !strings.Contains(err.Error(), "signed node configs alone") {
		t.Error(err)
	}
	if _, _, err := new(system).configFrom(&platform.Instance{Platform: "aws", ID: "i-1"}); err == nil || !strings.Contains(err.Error(), "neither the image nor the platform has a node config for this machine (aws i-1)") {
		t.Error(err)
	}
}

func TestFilesOfUserData(t *testing.T) {
	root := t.TempDir()
	if err := writeFiles(root, []platform.File{{Path: "/etc/skerry/registries.yaml", Mode: 0o640, Data: []byte("x")}}); err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(filepath.Join(root, "etc/skerry/registries.yaml")); err != nil || fi.Mode() != 0o640 {
		t.Errorf("%v, %v", fi, err)
	}
}

// wholeConfig is one that an image may bring along and needs nothing more.
const wholeConfig = "apiVersion: skerry/v1alpha1\nkind: NodeConfig\nrole: server\n"

// What is wrong is waited for: a platform that does not answer and a node config with a fault, until it is corrected or an hour is
// over, after which the machine starts anew. Only where a volume may be missing does the image's own config do, after 15 seconds;
// a volume that is there counts, however long it takes somebody to correct what is on it.
func TestWaitingForThePlatform(t *testing.T) {
	whole, err := machine.Decode(configName, []byte(wholeConfig))
	if err != nil {
		t.Fatal(err)
	}
	good := &platform.Instance{ID: "i-1", UserData: []byte("hostname: north-1\n")}
	bad := &platform.Instance{ID: "i-1", UserData: []byte("hostnam: north-1\n")}
	// answers gives one answer after the other; nil is none, until ctx ends.
	answers := func(list ...*platform.Instance) func(context.Context) (*platform.Instance, error) {
		return func(ctx context.Context) (*platform.Instance, error) {
			i := list[0]
			if len(list) > 1 {
				list = list[1:]
			}
			if i == nil {
				<-ctx.Done()
				return nil, errors.New("no answer: " + context.Cause(ctx).Error())
			}
			return i, nil
		}
	}
	for name, c := range map[string]struct {
		platform string
		told     bool
		ask      func(context.Context) (*platform.Instance, error)
		after    time.Duration
		id       string // "" for the image's own config
		said     string
		err      string
	}{
		"at once":                        {"aws", true, answers(good), 0, "i-1", "", ""},
		"corrected":                      {"aws", true, answers(bad, bad, good), 2 * badConfigWait, "i-1", `unknown key "hostnam"; did you mean "hostname"?; correct it there, asking again in 30s`, ""},
		"never corrected":                {"aws", true, answers(bad), time.Hour, "", "asking again in 30s", "unknown key \"hostnam\"; did you mean \"hostname\"? (waited 1h0m0s)"},
		"silent":                         {"aws", true, answers(nil), time.Hour, "", "", "no answer: waited 1h0m0s"},
		"no volume":                      {"proxmox", true, answers(nil), noVolumeWait, "", "the image's own node config will do", ""},
		"no volume, nothing told":        {"proxmox", false, answers(nil), time.Hour, "", "", "no answer: waited 1h0m0s"},
		"a volume":                       {"proxmox", true, answers(good), 0, "i-1", "", ""},
		"a volume with a fault":          {"proxmox", true, answers(bad, good), badConfigWait, "i-1", "correct it there", ""},
		"a volume with a fault for good": {"proxmox", true, answers(bad, nil), time.Hour, "", "correct it there", "no answer: waited 1h0m0s"},
	} {
		console, read := pipeConsole(t)
		synctest.Test(t, func(t *testing.T) {
			s := &system{console: console, platform: c.platform}
			if c.told {
				s.told = told{data: []byte(wholeConfig), config: whole}
			}
			begin := time.Now()
			i, user, err := s.usableInstance(t.Context(), c.ask)
			if d := time.Since(begin); d != c.after {
				t.Errorf("%s: took %v", name, d)
			}
			if c.err != "" && (err == nil || !strings.HasSuffix(err.Error(), c.err)) || c.err == "" && err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if (i != nil) != (c.id != "") || i != nil && (i.ID != c.id || user == nil) {
				t.Errorf("%s: %+v", name, i)
			}
			if !strings.Contains(read(false), c.said) {
				t.Errorf("%s: said %q", name, read(false))
			}
		})
	}
}

// The fabric is told until it hears, the console hears once of what is in the way, and what was reported is not reported again.
func TestReport(t *testing.T) {
	console, read := pipeConsole(t)
	file := filepath.Join(t.TempDir(), "instance.json")
	synctest.Test(t, func(t *testing.T) {
		s := &system{console: console}
		kept := &platform.Kept{Machine: "m", Instance: platform.Instance{Platform: "azure", ID: "v"}}
		tries, begin := 0, time.Now()
		s.report(t.Context(), kept, file, func(_ context.Context, i *platform.Instance) error {
			if tries++; tries < 4 || i.ID != "v" {
				return errors.New("no route to host")
			}
			return nil
		})
		if d := time.Since(begin); d != 3*reportWait || strings.Count(read(false), "reporting that this machine is there: no route to host; trying on") != 1 {
			t.Errorf("after %v: said %q", d, read(false))
		}
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Minute, cancel)
		s.report(ctx, kept, file, func(context.Context, *platform.Instance) error { return errors.New("no route to host") }) // ends with the machine
	})
	if k, err := platform.Load(file, "m"); err != nil || k == nil || !k.Reported {
		t.Errorf("kept is %+v, %v", k, err)
	}
}

// A volume is mounted for reading alone, its files are given, and nothing of it stays.
func TestVolumeIsMounted(t *testing.T) {
	if !apart(t) {
		return
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	src, iso, dev, at := filepath.Join(dir, "src"), filepath.Join(dir, "iso"), filepath.Join(dir, "dev")+"/", filepath.Join(dir, "volume")
	if err := errors.Join(os.Mkdir(src, 0o755), os.Mkdir(dev, 0o755), os.WriteFile(filepath.Join(src, "user-data"), []byte("role: agent\n"), 0o644)); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("genisoimage", "-quiet", "-volid", "CIDATA", "-joliet", "-rock", "-output", iso, src).CombinedOutput(); err != nil {
		t.Skipf("genisoimage: %v: %s", err, out)
	}
	out, err := exec.Command("losetup", "--find", "--show", "--read-only", iso).CombinedOutput()
	loop := strings.TrimSpace(string(out))
	if err != nil {
		t.Skipf("no loop device: %v: %s", err, out)
	}
	t.Cleanup(func() { _ = exec.Command("losetup", "-d", loop).Run() })
	if err := os.Symlink(loop, dev+"sr0"); err != nil {
		t.Fatal(err)
	}
	sys := fstest.MapFS{"class/block/sr0": {}, "class/block/vda": {}}
	if files, found, _, err := mountVolume(sys, dev, at, "config-2"); found || err != nil {
		t.Errorf("another label: %v, %v, %v", files, found, err)
	}
	// A volume whose filesystem is damaged is an error, and not the same as none.
	broken := make([]byte, 64<<10)
	copy(broken[32<<10:], "\x01CD001\x01")
	copy(broken[32<<10+40:], "cidata"+strings.Repeat(" ", 26))
	if err := os.WriteFile(dev+"sr1", broken, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, found, _, err := mountVolume(fstest.MapFS{"class/block/sr1": {}}, dev, at, "cidata"); found || err == nil {
		t.Errorf("a damaged one: %v, %v", found, err)
	}
	files, found, done, err := mountVolume(sys, dev, at, "cidata", "config-2")
	if errors.Is(err, unix.ENODEV) {
		t.Skip("this kernel knows no iso9660")
	}
	if err != nil || !found {
		t.Fatalf("%v, %v", found, err)
	}
	if data, err := fs.ReadFile(files, "user-data"); err != nil || string(data) != "role: agent\n" {
		t.Errorf("%q, %v", data, err)
	}
	var st unix.Statfs_t
	const want = unix.ST_RDONLY | unix.ST_NODEV | unix.ST_NOSUID | unix.ST_NOEXEC
	if err := unix.Statfs(at, &st); err != nil || st.Flags&want != want {
		t.Errorf("mounted with flags %x, %v", st.Flags, err)
	}
	done()
	if there, err := linux.Mounted(at); err != nil || there {
		t.Errorf("it is still mounted: %v, %v", there, err)
	}
}
