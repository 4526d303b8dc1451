package compose

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/skerry-os/skerry/boards"
	"github.com/skerry-os/skerry/image/rootfs"
	"github.com/skerry-os/skerry/pkg/keys"
	"github.com/skerry-os/skerry/pkg/release"
	"github.com/skerry-os/skerry/pkg/slot"
)

// The lock file has what the list and the boards name: a board that was added without `make lock` fails here.
func TestLockIsWhole(t *testing.T) {
	lock, err := Lock()
	if err != nil {
		t.Fatal(err)
	}
	want, err := Wanted()
	if err != nil {
		t.Fatal(err)
	}
	for _, arch := range want.Arches {
		for _, item := range want.Packages {
			if len(item.Arches) > 0 && !slices.Contains(item.Arches, arch) {
				continue
			}
			var err error
			if item.Follow != nil {
				_, err = lock.Followed(arch, item.Name, item.Suite)
			} else {
				_, err = lock.Find(arch, item.Name)
			}
			if err != nil {
				t.Error(err)
			}
		}
	}
	all, err := boards.All()
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range all {
		if _, err := lock.Followed(b.Arch, b.Kernel.Package, b.Kernel.Suite); err != nil {
			t.Errorf("board %s: %v", b.ID, err)
		}
	}
	for name := range debianPrograms {
		for _, arch := range want.Arches {
			if _, err := lock.Find(arch, name); err != nil {
				t.Error(err)
			}
		}
	}
}

// Boards of clouds are in a release that is asked for them, each in that of its architecture.
func TestBoardsOfARelease(t *testing.T) {
	for _, c := range []struct {
		arch   string
		clouds bool
		with   string
		none   string
	}{
		{"amd64", false, "x86-uefi", "aws"},
		{"amd64", true, "x86-uefi aws azure gcp openstack proxmox", "aws-arm64"},
		{"arm64", false, "arm64-uefi rpi4", "aws-arm64"},
		{"arm64", true, "arm64-uefi rpi4 aws-arm64", "aws"},
	} {
		all, err := (&Options{Arch: c.arch, Clouds: c.clouds}).boards()
		if err != nil {
			t.Fatal(err)
		}
		var ids []string
		for _, b := range all {
			ids = append(ids, b.ID)
		}
		for id := range strings.FieldsSeq(c.with) {
			if !slices.Contains(ids, id) {
				t.Errorf("%s, clouds %v: %v without %s", c.arch, c.clouds, ids, id)
			}
		}
		if slices.Contains(ids, c.none) {
			t.Errorf("%s, clouds %v: %v with %s", c.arch, c.clouds, ids, c.none)
		}
	}
	if _, err := (&Options{Arch: "mips"}).boards(); err == nil {
		t.Error("mips was taken")
	}
}

// A release folder is there whole or not at all, replaces only a release, and leaves nothing beside it.
func TestFolder(t *testing.T) {
	top := t.TempDir()
	dir := filepath.Join(top, "release")
	fill := func(text string) *folder {
		f, err := newFolder(dir)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.write(release.ManifestName, []byte(text)); err != nil {
			t.Fatal(err)
		}
		if _, err := f.write("boot/x.efi", []byte(text)); err != nil {
			t.Fatal(err)
		}
		return f
	}
	content := func() string {
		a, _ := os.ReadFile(filepath.Join(dir, release.ManifestName))
		b, _ := os.ReadFile(filepath.Join(dir, "boot/x.efi"))
		return string(a) + " " + string(b)
	}
	fill("never finished")
	if content() != " " {
		t.Error("an unfinished folder has its final name")
	}
	f := fill("one")
	if err := f.commit(); err != nil || content() != "one one" {
		t.Errorf("%q, %v", content(), err)
	}
	fill("aborted").abort()
	if err := fill("two").commit(); err != nil || content() != "two two" {
		t.Errorf("%q, %v", content(), err)
	}
	if left, err := os.ReadDir(top); err != nil || len(left) != 1 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if err := checkReplaceable(dir); err != nil {
		t.Errorf("a release may be replaced: %v", err)
	}
	if err := os.Remove(filepath.Join(dir, release.ManifestName)); err != nil {
		t.Fatal(err)
	}
	if err := checkReplaceable(dir); err == nil || !strings.Contains(err.Error(), "no release") {
		t.Errorf("a folder of other files: %v", err)
	}
	for _, free := range []string{filepath.Join(top, "new"), t.TempDir()} {
		if err := checkReplaceable(free); err != nil {
			t.Errorf("%s: %v", free, err)
		}
	}
}

func TestTwoBuildsDoNotShareStaging(t *testing.T) {
	dir := t.TempDir()
	unlock, err := lockFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lockFolder(dir); err == nil || !strings.Contains(err.Error(), "--work") {
		t.Errorf("second: %v", err)
	}
	unlock()
	unlock, err = lockFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	unlock()
}

// Mistakes are found before minutes of compiling, and nothing is written.
func TestBadOptionsAreRefusedAtOnce(t *testing.T) {
	other := t.TempDir()
	if err := os.WriteFile(filepath.Join(other, "letter.txt"), []byte("dear"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		arch, out, path, want string
	}{
		"arch":      {"vax", "r", os.Getenv("PATH"), `architecture "vax": is not one of amd64, arm64, arm`},
		"no tool":   {"amd64", "r", "/nonexistent", "apt-get install erofs-utils"},
		"no folder": {"amd64", other, os.Getenv("PATH"), "holds files that are no release"},
	} {
		t.Run(name, func(t *testing.T) {
			if c.want == "holds files that are no release" {
				needs(t, "mkfs.erofs")
			}
			t.Setenv("PATH", c.path)
			top := t.TempDir()
			if !filepath.IsAbs(c.out) {
				c.out = filepath.Join(top, c.out)
			}
			_, err := Build(t.Context(), Options{Source: &Source{Dir: top}, Arch: c.arch, Keys: &keys.Set{}, Out: c.out, Work: filepath.Join(top, "work"), Cache: filepath.Join(top, "cache")})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
			if left, err := os.ReadDir(top); err != nil || len(left) != 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
		})
	}
}

func TestSource(t *testing.T) {
	src, err := FindSource(t.Context(), ".")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(src.Dir, LockName)); err != nil {
		t.Error(err)
	}
	if _, err := FindSource(t.Context(), t.TempDir()); err == nil || !strings.Contains(err.Error(), "--source") {
		t.Errorf("elsewhere: %v", err)
	}
	unpacked := t.TempDir()
	if err := os.WriteFile(filepath.Join(unpacked, "go.mod"), []byte("module "+Module+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if src, err := FindSource(t.Context(), unpacked); err != nil || src.Commit != "unknown" || src.Version != "0.0.0-dev" {
		t.Errorf("without git: %+v, %v", src, err)
	}
	needs(t, "git")
	for _, args := range [][]string{{"init", "-q"}, {"add", "."}, {"-c", "user.name=x", "-c", "user.email=x@x", "commit", "-qm", "x", "--date", "2026-01-02T03:04:05Z"}} {
		cmd := exec.Command("git", args...)
		cmd.Dir = unpacked
		cmd.Env = append(os.Environ(), "GIT_COMMITTER_DATE=2026-01-02T03:04:05Z")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("git %v: %v: %s", args, err, out)
		}
	}
	src, err = FindSource(t.Context(), unpacked)
	if err != nil || len(src.Commit) != 40 || src.Version != "0.0.0-1-g"+src.Commit[:9] || !src.Time.Equal(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)) {
		t.Errorf("%+v, %v", src, err)
	}
	if err := os.WriteFile(filepath.Join(unpacked, "go.mod"), []byte("module "+Module+"\n\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if src, err = FindSource(t.Context(), unpacked); err != nil || !strings.HasSuffix(src.Version, "-dirty") {
		t.Errorf("changed: %+v, %v", src, err)
	}
}

// A program of the host stands in for a package's: what it needs comes along, and what no package has is named.
func TestLibraries(t *testing.T) {
	host := "/usr/bin/ls"
	tri := "x86_64-linux-gnu"
	if _, err := os.Stat("/usr/lib/" + tri + "/libc.so.6"); err != nil {
		t.Skip("needs a Debian host with amd64 libraries")
	}
	pkg := t.TempDir()
	copyTo := func(from, to string) {
		data, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		to = filepath.Join(pkg, to)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, data, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	copyTo(host, "usr/bin/ls")
	copyTo("/lib64/ld-linux-x86-64.so.2", "lib/"+tri+"/ld-linux-x86-64.so.2")
	if err := os.Mkdir(filepath.Join(pkg, "lib64"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/lib/"+tri+"/ld-linux-x86-64.so.2", filepath.Join(pkg, "lib64/ld-linux-x86-64.so.2")); err != nil {
		t.Fatal(err)
	}
	resolve := func() (*rootfs.Tree, *libraries, error) {
		tree := rootfs.New(mergedFolders("amd64")...)
		l := &libraries{tree: tree, triplet: tri, dirs: map[string]string{pkg: "coreutils"}, used: map[string]bool{}, done: map[string]bool{}}
		return tree, l, l.resolve(filepath.Join(pkg, "usr/bin/ls"))
	}
	var tree *rootfs.Tree
	var l *libraries
	for n := 0; ; n++ { // each round brings the library that the error names
		var err error
		tree, l, err = resolve()
		if err == nil {
			if n < 2 {
				t.Errorf("resolved after %d libraries", n)
			}
			break
		}
		_, rest, ok := strings.Cut(err.Error(), "library ")
		if !ok || !errors.Is(err, errNotPackaged) || n == 20 {
			t.Fatal(err)
		}
		so, _, _ := strings.Cut(rest, ":")
		copyTo("/usr/lib/"+tri+"/"+so, "lib/"+tri+"/"+so)
	}
	for _, name := range []string{"usr/lib/" + tri + "/libc.so.6", "usr/lib64/ld-linux-x86-64.so.2", "usr/lib/" + tri + "/ld-linux-x86-64.so.2"} {
		if _, ok := tree.Get(name); !ok {
			t.Errorf("%s is missing", name)
		}
	}
	if !l.used["coreutils"] {
		t.Error("the package does not count as used")
	}
}

func TestVersionFlags(t *testing.T) {
	flags := strings.Join(versionFlags(&Source{Version: "1.2.3", Commit: "c", Time: time.Unix(60, 0).UTC()}, "v1.37.2"), " ")
	for _, want := range []string{
		"-X " + Module + "/pkg/version.version=1.2.3", "-X " + Module + "/pkg/version.buildTime=60",
		"-X k8s.io/component-base/version.gitVersion=v1.37.2", "version.gitMajor=1 ", "version.gitMinor=37 ", "version.buildDate=1970-01-01T00:01:00Z",
	} {
		if !strings.Contains(flags+" ", want) {
			t.Errorf("%q is not in %s", want, flags)
		}
	}
}

func TestLogSaysWhatWasDone(t *testing.T) {
	var buf bytes.Buffer
	log := NewLog(&buf)
	log.Stage("packing")("3 MB")
	if got := buf.String(); !strings.Contains(got, "packing") || !strings.Contains(got, "3 MB") || strings.Count(got, "\n") != 1 {
		t.Errorf("%q", got)
	}
	Log{}.Stage("nobody listens")()
}

func needs(t *testing.T, tool string) {
	t.Helper()
	if _, err := exec.LookPath(tool); err != nil {
		t.Skipf("%s is not installed", tool)
	}
}

// What an earlier version built and this one does not would end up in the root.
func TestProgramsOfBeforeGo(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"usr/bin/skerryd", "usr/bin/old", "usr/libexec/skerry/cni/old", "usr/share/skerry/images/pause.tar", "usr/lib/old.so"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("skerryd", filepath.Join(dir, "usr/bin/oldctl")); err != nil {
		t.Fatal(err)
	}
	if err := link(filepath.Join(dir, "usr/bin/kubectl"), "skerryd"); err != nil {
		t.Fatal(err)
	}
	if err := prune(dir); err != nil {
		t.Fatal(err)
	}
	var got []string
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			got = append(got, strings.TrimPrefix(p, dir+"/"))
		}
		return err
	})
	if want := "usr/bin/kubectl usr/bin/skerryd usr/share/skerry/images/pause.tar"; err != nil || strings.Join(got, " ") != want {
		t.Errorf("left are %v, %v; want %s", got, err, want)
	}
}

// U-Boot takes what mkimage makes; so what is made here is what mkimage reads, and says the same of.
func TestBootScriptIsWhatMkimageKnows(t *testing.T) {
	needs(t, "mkimage")
	file := filepath.Join(t.TempDir(), "boot.scr")
	if err := os.WriteFile(file, bootScript(slot.UBootScript, time.Unix(1_800_000_000, 0)), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "mkimage", "-l", file).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "ARM Linux Script (uncompressed)") || !strings.Contains(string(out), "Image Name:   Skerry") {
		t.Errorf("mkimage -l: %v: %s", err, out)
	}
}
