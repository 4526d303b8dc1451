package platform

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"testing/synctest"
	"time"

	"github.com/skerry-os/skerry/pkg/platform/platformtest"
)

// An answer counts if it is whole, 200 and of a size that a machine has room for. Only what is not there is nothing.
func TestAnswers(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/none":
			http.NotFound(w, r)
		case "/forbidden":
			http.Error(w, "no", http.StatusForbidden)
		case "/unauthorized":
			http.Error(w, "no", http.StatusUnauthorized)
		case "/partial":
			w.WriteHeader(http.StatusPartialContent)
		case "/broken":
			w.WriteHeader(http.StatusInternalServerError)
		case "/cut":
			w.Header().Set("Content-Length", "100")
			_, _ = io.WriteString(w, "half")
		case "/largest":
			_, _ = w.Write(make([]byte, maxAnswer))
		case "/larger":
			_, _ = w.Write(make([]byte, maxAnswer+1))
		}
	}))
	defer s.Close()
	for path, want := range map[string]struct{ ok, none, refused bool }{
		"/none": {none: true}, "/forbidden": {refused: true}, "/unauthorized": {refused: true}, "/partial": {}, "/broken": {}, "/cut": {},
		"/largest": {ok: true}, "/larger": {refused: true},
	} {
		data, header, err := request(t.Context(), http.MethodGet, s.URL+path, "")
		if (err == nil) != want.ok || errors.Is(err, errNone) != want.none || errors.As(err, new(refused)) != want.refused || (len(data) > 0) != want.ok {
			t.Errorf("%s: %d bytes, %v", path, len(data), err)
		}
		if _, err := optional(data, header, err); (err == nil) != (want.ok || want.none) {
			t.Errorf("%s, which need not be there: %v", path, err)
		}
	}
}

// What a service leaves out is asked for again: a machine without its name would be another node at its next start.
func TestAnswersThatLackSomething(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	answers := map[string]string{}
	var google string
	serve(t, "169.254.169.254", func(w http.ResponseWriter, r *http.Request) {
		if google != "" {
			w.Header().Set("Metadata-Flavor", google)
		}
		text, ok := answers[r.URL.Path]
		if !ok {
			http.NotFound(w, r)
			return
		}
		_, _ = io.WriteString(w, text)
	})
	const (
		document = "/latest/dynamic/instance-identity/document"
		gce      = "/computeMetadata/v1/instance/"
		project  = "/computeMetadata/v1/project/project-id"
		vm       = "/metadata/instance"
		meta     = "/openstack/latest/meta_data.json"
	)
	for name, c := range map[string]struct {
		platform, google string
		answers          map[string]string
		hostname, err    string
	}{
		"aws, id":           {"aws", "", map[string]string{"/latest/api/token": "t", document: `{"availabilityZone":"a"}`}, "", "lacks instanceId"},
		"aws, zone":         {"aws", "", map[string]string{"/latest/api/token": "t", document: `{"instanceId":"i-1"}`}, "", "lacks instanceId or availabilityZone"},
		"gcp, name":         {"gcp", "Google", map[string]string{gce: `{"zone":"projects/1/zones/a-b"}`, project: "p"}, "", "lacks its name"},
		"gcp, zone":         {"gcp", "Google", map[string]string{gce: `{"name":"n"}`, project: "p"}, "", "lacks its name or zone"},
		"gcp, project":      {"gcp", "Google", map[string]string{gce: `{"name":"n","zone":"z"}`}, "", "project-id"},
		"gcp, another's":    {"gcp", "Other", map[string]string{gce: `{"name":"n","zone":"z"}`, project: "p"}, "", "does not answer as Google's"},
		"gcp":               {"gcp", "Google", map[string]string{gce: `{"name":"n","zone":"z"}`, project: "p"}, "n", ""},
		"azure, id":         {"azure", "", map[string]string{vm: `{"compute":{"resourceId":"/r"}}`}, "", "lacks vmId"},
		"azure, resource":   {"azure", "", map[string]string{vm: `{"compute":{"vmId":"v"}}`}, "", "lacks vmId or resourceId"},
		"azure, not base64": {"azure", "", map[string]string{vm: `{"compute":{"vmId":"v","resourceId":"/r","userData":"?"}}`}, "", "not base64"},
		"azure, by name":    {"azure", "", map[string]string{vm: `{"compute":{"vmId":"v","resourceId":"/r","name":"Vm-3"}}`}, "vm-3", ""},
		"nova, id":          {"openstack", "", map[string]string{meta: `{"name":"n"}`}, "", "lacks uuid"},
		"nova, by name":     {"openstack", "", map[string]string{meta: `{"uuid":"u","name":"North 1"}`}, "north-1", ""},
		"nova, not JSON":    {"openstack", "", map[string]string{meta: `<html>`}, "", "is not the JSON"},
	} {
		answers, google = c.answers, c.google
		i, err := sources[c.platform](t.Context(), &Place{})
		if c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) || c.err == "" && (err != nil || i.Hostname != c.hostname) {
			t.Errorf("%s: %+v, %v", name, i, err)
		}
	}
	// A drive that cannot be read is not the same as none.
	answers = map[string]string{meta: `{"uuid":"u"}`}
	if i, err := openstack(t.Context(), &Place{Volume: func(context.Context, ...string) (fs.FS, bool, func(), error) {
		return nil, false, nil, fs.ErrPermission
	}}); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("an unreadable drive: %+v, %v", i, err)
	}
	goal := `<GoalState><Incarnation>7</Incarnation><Container><ContainerId>c-1</ContainerId><RoleInstanceList><RoleInstance><InstanceId>i</InstanceId></RoleInstance></RoleInstanceList></Container></GoalState>`
	posts := 0
	serve(t, "168.63.129.16", func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			posts++
		}
		_, _ = io.WriteString(w, goal)
	})
	whole := goal
	for _, part := range []string{"<Incarnation>7</Incarnation>", "<ContainerId>c-1</ContainerId>", "<RoleInstance><InstanceId>i</InstanceId></RoleInstance>", "</GoalState>"} {
		goal = strings.Replace(whole, part, "", 1)
		if err := Report(t.Context(), &Instance{Platform: "azure"}); err == nil || posts > 0 {
			t.Errorf("without %s: %v, reported %d times", part, err, posts)
		}
	}
}

// bad is a volume of which one file cannot be read.
type bad struct {
	fstest.MapFS
	name string
}

func (b bad) Open(name string) (fs.File, error) {
	if name == b.name {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrInvalid}
	}
	return b.MapFS.Open(name)
}

func (b bad) ReadFile(name string) ([]byte, error) {
	if name == b.name {
		return nil, &fs.PathError{Op: "read", Path: name, Err: fs.ErrInvalid}
	}
	return b.MapFS.ReadFile(name)
}

// What cannot be read, or is too large, is a fault and never an answer with less in it: answers are kept.
func TestVolumesThatCannotBeRead(t *testing.T) {
	ec2 := fstest.MapFS{"openstack/latest/meta_data.json": {Data: []byte(platformtest.Nova)}, "openstack/latest/user_data": {Data: []byte("role: agent\n")}}
	plain := fstest.MapFS{"meta-data": {Data: []byte("instance-id: abc\n")}, "user-data": {Data: []byte("role: agent\n")}}
	for _, files := range []fstest.MapFS{ec2, plain} {
		for name, f := range files {
			closed := 0
			ask := func(files fs.FS) (*Instance, error) {
				return volumes(t.Context(), &Place{Volume: func(context.Context, ...string) (fs.FS, bool, func(), error) {
					return files, true, func() { closed++ }, nil
				}})
			}
			if i, err := ask(bad{files, name}); !errors.Is(err, fs.ErrInvalid) {
				t.Errorf("%s cannot be read: %+v, %v", name, i, err)
			}
			good := f.Data
			f.Data = append(bytes.Clone(good), bytes.Repeat([]byte(" "), maxAnswer-len(good))...)
			if _, err := ask(files); err != nil {
				t.Errorf("%s has 1 MiB: %v", name, err)
			}
			f.Data = append(f.Data, ' ')
			if i, err := ask(files); !errors.As(err, new(refused)) {
				t.Errorf("%s has more than 1 MiB: %+v, %v", name, i, err)
			}
			f.Data = good
			if closed != 3 {
				t.Errorf("%s: the volume was closed %d times of 3", name, closed)
			}
		}
	}
	// Where both are attached, the hypervisor's own wins.
	var asked string
	_, err := volumes(t.Context(), &Place{Volume: func(_ context.Context, labels ...string) (fs.FS, bool, func(), error) {
		asked = strings.Join(labels, " ")
		return nil, false, nil, fs.ErrPermission
	}})
	if asked != "cidata config-2" || !errors.Is(err, fs.ErrPermission) {
		t.Errorf("asked for %q: %v", asked, err)
	}
}

func TestAddressesThatAreNotAsked(t *testing.T) {
	s := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer s.Close()
	transport := client.Transport.(*http.Transport)
	transport.TLSClientConfig = s.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
	defer func() { transport.TLSClientConfig = nil }()
	for url, says := range map[string]string{
		"https://me:secret@192.0.2.1/n": "write https://HOST/PATH", "https:///node.yaml": "write https://HOST/PATH", "": "write https://HOST/PATH",
		"file:///etc/node.yaml": "write https://HOST/PATH", s.URL: "answers with nothing",
	} {
		if _, err := fromURL(t.Context(), &Place{URL: url}); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", url, err)
		}
	}
}

// A try that hangs ends, and is followed by another.
func TestATryThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start, tries := time.Now(), 0
		i, err := Ask(t.Context(), "proxmox", &Place{Log: t.Logf, Volume: func(ctx context.Context, _ ...string) (fs.FS, bool, func(), error) {
			if tries++; tries == 1 {
				<-ctx.Done()
				return nil, false, nil, ctx.Err()
			}
			return fstest.MapFS{}, true, func() {}, nil
		}})
		if err != nil || i == nil || time.Since(start) != oneTry+firstWait {
			t.Errorf("%+v, %v after %v", i, err, time.Since(start))
		}
	})
	if _, err := Ask(t.Context(), "cloud-9", &Place{}); err == nil || !strings.Contains(err.Error(), "is not one this release knows") {
		t.Error(err)
	}
}

func TestNamesThatAreTooLong(t *testing.T) {
	long := strings.Repeat("a", 62)
	if got := hostname(long + ".b"); got != long {
		t.Errorf("host name %q", got)
	}
	for _, tail := range []string{"bc", "-c", "_c"} {
		host, label := hostname(long+tail), labelValue(long+tail)
		want := strings.TrimRight((long + tail)[:63], "-_")
		if host != want || label != want {
			t.Errorf("%s: host name %q, label %q", tail, host, label)
		}
	}
}

// Only root looks into the folder, and a damaged answer is a fault: the machine would ask anew and be another.
func TestKeptIsDamaged(t *testing.T) {
	file := filepath.Join(t.TempDir(), "platform", "instance.json")
	if err := (&Kept{Machine: "u1"}).Save(file); err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(filepath.Dir(file)); err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", fi.Mode(), err)
	}
	if err := os.WriteFile(file, []byte(`{"machine": "u1`), 0o600); err != nil {
		t.Fatal(err)
	}
	if k, err := Load(file, "u1"); err == nil {
		t.Errorf("%+v", k)
	}
}

func zipped(t *testing.T, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := z.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// What unpacks to more than it may is refused, and before it fills the memory.
func TestPackedUserData(t *testing.T) {
	got, err := ReadUserData(zipped(t, []byte("role: agent\n")))
	if err != nil || string(got.Node) != "role: agent\n" {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := ReadUserData(zipped(t, bytes.Repeat([]byte("a"), maxAnswer))); err != nil || len(got.Node) != maxAnswer {
		t.Errorf("1 MiB: %v", err)
	}
	if _, err := ReadUserData(zipped(t, bytes.Repeat([]byte("a"), maxAnswer+1))); err == nil || !strings.Contains(err.Error(), "more than 1 MiB") {
		t.Errorf("more than 1 MiB: %v", err)
	}
	// Behind the first MiB is garbage, which nobody reads.
	bomb := zipped(t, make([]byte, 64*maxAnswer))
	if _, err := ReadUserData(bomb[:len(bomb)-8]); err == nil || !strings.Contains(err.Error(), "more than 1 MiB") {
		t.Errorf("64 MiB: %v", err)
	}
}

// Each file is written as it was meant or not at all, and the node config has the last word on what it says itself.
func TestCloudConfig(t *testing.T) {
	hello := base64.StdEncoding.EncodeToString([]byte("hello"))
	for file, want := range map[string]string{
		"path: /etc/skerry/x, content: hello":                                                  "hello -rw-------",
		"path: /etc/skerry//a/../x, permissions: '644', content: hello":                        "hello -rw-r--r--",
		"path: /etc/skerry/x, permissions: '4755', content: hello":                             "are not octal",
		"path: /etc/skerry/x, permissions: '0999', content: hello":                             "are not octal",
		"path: /etc/skerry/x, permissions: rw, content: hello":                                 "are not octal",
		"path: /etc/skerry/x, encoding: text/plain, content: hello":                            "hello -rw-------",
		"path: /etc/skerry/x, encoding: base64, content: " + hello:                             "hello -rw-------",
		"path: /etc/skerry/x, encoding: gzip, content: hello":                                  "unexpected EOF",
		"path: /etc/skerry/x, encoding: gzip+base64, content: '?'":                             "base64",
		"path: /etc/skerry/x, encoding: rot13, content: uryyb":                                 `"rot13" is not one of`,
		"path: /etc/skerry, content: hello":                                                    "the root cannot be changed",
		"path: /etc/skerryd/x, content: hello":                                                 "the root cannot be changed",
		"path: etc/skerry/x, content: hello":                                                   "the root cannot be changed",
		"path: /var/lib/skerry/server/manifests/../tls/x, content: hello":                      "the root cannot be changed",
		"path: /var/lib/skerry/server/manifests/../../../../../etc/skerry/x, content: 'hello'": "hello -rw-------",
	} {
		got, err := ReadUserData([]byte("#cloud-config\nwrite_files: [{" + file + "}]\n"))
		text := ""
		if err == nil && len(got.Files) == 1 {
			text = string(got.Files[0].Data) + " " + got.Files[0].Mode.String()
			if got.Files[0].Path != "/etc/skerry/x" {
				t.Errorf("%s: at %s", file, got.Files[0].Path)
			}
		}
		if err != nil && !strings.Contains(err.Error(), want) || err == nil && text != want {
			t.Errorf("%s: %q, %v", file, text, err)
		}
	}
	for text, want := range map[string]string{
		"hostname: a\nfqdn: b.example.org\n":                          "hostname: a\n",
		"hostname: a\nskerry: {hostname: c}\n":                        "hostname: c\n",
		"ntp: {enabled: false}\nskerry: {ntp: {servers: [\"1\"]}}\n":  "ntp:\n    servers:\n        - \"1\"\n",
		"ntp: {enabled: true, servers: [a]}\n":                        "ntp:\n    servers:\n        - a\n",
		"ntp: {enabled: false, servers: [a]}\npreserve_hostname: 1\n": "ntp:\n    servers: []\n",
	} {
		got, err := ReadUserData([]byte("#cloud-config\n" + text))
		if err != nil || string(got.Node) != want || len(got.Warnings) > 0 {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
	}
}

// fat16 is the head of a FAT filesystem whose root folder has these entries, and "BOOT" as the boot sector's label.
func fat16(entries ...string) []byte {
	b := make([]byte, 40<<10)
	le := binary.LittleEndian
	le.PutUint16(b[11:], 512)
	le.PutUint16(b[14:], 1)
	b[16] = 2
	le.PutUint16(b[17:], 16)
	le.PutUint16(b[22:], 1)
	copy(b[43:], "BOOT       FAT16")
	b[510], b[511] = 0x55, 0xaa
	for i, e := range entries {
		copy(b[3*512+32*i:], e)
	}
	return b
}

// The label is the one of the root folder: neither a deleted one, nor a piece of a long name, nor what lies behind its end.
func TestLabelInTheRootFolder(t *testing.T) {
	change := func(at int, v byte) []byte { b := fat16(); b[at] = v; return b }
	for name, c := range map[string]struct {
		disk        []byte
		label, kind string
	}{
		"label":            {fat16("CIDATA     \x08"), "CIDATA", VFAT},
		"behind a file":    {fat16("USER-DATA  \x20", "CIDATA     \x28"), "CIDATA", VFAT},
		"deleted":          {fat16("\xe5IDATA     \x08"), "BOOT", VFAT},
		"of a long name":   {fat16("Au\x00s\x00e\x00r\x00-\x00\x0f"), "BOOT", VFAT},
		"behind the end":   {fat16("USER-DATA  \x20", "\x00", "CIDATA     \x08"), "BOOT", VFAT},
		"none":             {fat16(), "BOOT", VFAT},
		"no signature":     {change(511, 0), "", ""},
		"half a signature": {change(510, 0), "", ""},
		"sectors of 0":     {change(12, 0), "", ""},
		"sectors of 8192":  {change(12, 32), "", ""},
		"too short":        {fat16()[:511], "", ""},
	} {
		if label, kind := Volume(reader(c.disk)); label != c.label || kind != c.kind {
			t.Errorf("%s: %q %q", name, label, kind)
		}
	}
	// Of two alike the first one counts; what the machine itself made out of others does not.
	sys := fstest.MapFS{"class/block/dm-0": {}, "class/block/loop0": {}, "class/block/ram0": {}, "class/block/vdb": {}, "class/block/vdc": {}}
	var opened []string
	device, _ := FindVolume(sys, func(name string) (io.ReaderAt, func(), error) {
		opened = append(opened, name)
		return reader(fat16("CIDATA     \x08")), func() {}, nil
	}, "cidata")
	if device != "vdb" || strings.Join(opened, " ") != "vdb vdc" {
		t.Errorf("found %s in %v", device, opened)
	}
}
