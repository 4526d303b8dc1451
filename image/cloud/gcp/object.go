package gcp

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"

	"github.com/skerry-os/skerry/image/cloud/publish"
	"github.com/skerry-os/skerry/pkg/atomicfile"
)

// chunk is how much travels in one request: a multiple of 256 KiB, as Cloud Storage wants it.
const chunk = 8 << 20

// Archive is the tar.gz that an image is made of.
type Archive struct {
	io.ReaderAt
	Size int64
}

// object is what Cloud Storage says of one.
type object struct {
	CRC32C     string `json:"crc32c"`
	Size       string `json:"size"`
	Generation string `json:"generation"`
}

// upload is the state file: where an upload goes on. The session lets anybody who knows it go on, so the file is its owner's.
type upload struct {
	Object  string `json:"object"` // gs://BUCKET/NAME
	CRC32C  string `json:"crc32c"`
	Session string `json:"session"`
}

// checksum is the CRC32C of the archive as Cloud Storage writes it.
func checksum(ctx context.Context, a Archive) (string, error) {
	sum := crc32.New(crc32.MakeTable(crc32.Castagnoli))
	b := make([]byte, 1<<20)
	for at := int64(0); at < a.Size; at += int64(len(b)) {
		if err := ctx.Err(); err != nil {
			return "", err
		}
		part := b[:min(int64(len(b)), a.Size-at)]
		if n, err := a.ReadAt(part, at); n < len(part) {
			return "", fmt.Errorf("reading the archive at %d: %w", at, errors.Join(err, io.ErrUnexpectedEOF))
		}
		_, _ = sum.Write(part)
	}
	return base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(nil, sum.Sum32())), nil
}

// find gives the object, or nil.
func (p *Publisher) findObject(ctx context.Context, bucket, name string) (*object, error) {
	var o object
	err := p.call(ctx, http.MethodGet, address("storage", "b", bucket, "o", name)+"?fields=crc32c,size,generation", nil, &o)
	if status(err) == http.StatusNotFound {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("gcp: looking for gs://%s/%s: %w", bucket, name, err)
	}
	return &o, nil
}

// errDamaged says that other bytes arrived than were sent.
var errDamaged = errors.New("arrived damaged")

// store brings the archive into the bucket, unless it is there. What arrives is what the checksum says, or nothing is stored.
func (p *Publisher) store(ctx context.Context, a Archive, name, sum string, o *Options, r *publish.Report) error {
	there, err := p.findObject(ctx, o.Bucket, name)
	if err != nil {
		return err
	}
	where := "gs://" + o.Bucket + "/" + name
	switch {
	case there != nil && there.CRC32C == sum && there.Size == strconv.FormatInt(a.Size, 10):
		p.log("%s is there already", where)
		return nil
	case there != nil:
		return fmt.Errorf("gcp: %s is there and holds something else; choose another name, or delete it: skerry publish gcp delete --project %s --bucket %s %s",
			where, p.project, o.Bucket, o.Name)
	}
	for try := 1; ; try++ {
		err := p.transfer(ctx, a, name, sum, o, r)
		if !errors.Is(err, errDamaged) || try == 3 {
			return err
		}
		p.log("%s %v; once more from the start", where, errDamaged)
		r.Uploaded = 0
		if err := forget(o); err != nil {
			return err
		}
	}
}

func (p *Publisher) transfer(ctx context.Context, a Archive, name, sum string, o *Options, r *publish.Report) error {
	u := &upload{Object: "gs://" + o.Bucket + "/" + name, CRC32C: sum}
	at, err := p.resume(ctx, u, a.Size, o)
	if err != nil {
		return err
	}
	b := make([]byte, chunk)
	for idle := 0; ; {
		part := b[:min(chunk, a.Size-at)]
		if n, err := a.ReadAt(part, at); n < len(part) {
			return fmt.Errorf("reading the archive at %d: %w", at, errors.Join(err, io.ErrUnexpectedEOF))
		}
		head := http.Header{"Content-Range": {fmt.Sprintf("bytes %d-%d/%d", at, at+int64(len(part))-1, a.Size)}}
		if len(part) == 0 { // all of it is there
			head.Set("Content-Range", fmt.Sprintf("bytes */%d", a.Size))
		}
		next, done, err := p.put(ctx, u, head, part, a.Size)
		if err != nil {
			if o.State != "" && !errors.Is(err, errDamaged) {
				p.log("what is uploaded is remembered in %s; the same command goes on from there", o.State)
			}
			return fmt.Errorf("gcp: %s: %w", u.Object, err)
		}
		if next > at {
			r.Uploaded++
			idle = 0
		} else if idle++; idle == tries && !done {
			return fmt.Errorf("gcp: %s: the service takes no more than %d of %d bytes", u.Object, at, a.Size)
		}
		at = next
		if o.Progress != nil && at > 0 {
			o.Progress(int((at+chunk-1)/chunk), r.Blocks)
		}
		if done {
			break
		}
	}
	return forget(o)
}

// put sends a part, or asks how far the upload is, and gives where the next one begins.
func (p *Publisher) put(ctx context.Context, u *upload, head http.Header, part []byte, size int64) (next int64, done bool, err error) {
	a, err := p.send(ctx, http.MethodPut, u.Session, head, part)
	if err != nil {
		return 0, false, err
	}
	switch {
	case a.status == http.StatusPermanentRedirect: // "resume incomplete"
		last := strings.TrimPrefix(a.head.Get("Range"), "bytes=0-")
		if a.head.Get("Range") == "" {
			return 0, false, nil
		}
		n, err := strconv.ParseInt(last, 10, 64)
		if err != nil || n < 0 || n >= size {
			return 0, false, fmt.Errorf("the service has a range %q of %d bytes", a.head.Get("Range"), size)
		}
		return n + 1, false, nil
	case a.status/100 == 2:
		var o object
		if err := json.Unmarshal(a.body, &o); err != nil || o.CRC32C != u.CRC32C {
			return 0, false, fmt.Errorf("is stored with checksum %q, sent was %q; delete it and try again", o.CRC32C, u.CRC32C)
		}
		return size, true, nil
	case a.status == http.StatusBadRequest && strings.Contains(strings.ToLower(string(a.body)), "crc32c"):
		return 0, false, errDamaged
	case a.status == http.StatusPreconditionFailed:
		return 0, false, errors.New("somebody else stored an object of this name meanwhile; try again")
	}
	return 0, false, a.fault()
}

// resume goes on with the session in the state file, or begins one.
func (p *Publisher) resume(ctx context.Context, u *upload, size int64, o *Options) (at int64, err error) {
	old := upload{}
	data, err := os.ReadFile(o.State)
	switch {
	case err == nil:
		if err := json.Unmarshal(data, &old); err != nil {
			return 0, fmt.Errorf("%s: %w; remove it to begin anew", o.State, err)
		}
	case o.State != "" && !errors.Is(err, fs.ErrNotExist):
		return 0, err
	}
	if old.Object == u.Object && old.CRC32C == u.CRC32C && ours(old.Session) {
		u.Session = old.Session
		next, done, err := p.put(ctx, u, http.Header{"Content-Range": {fmt.Sprintf("bytes */%d", size)}}, nil, size)
		if err == nil && next > 0 && !done {
			p.log("going on with %s at %d of %d MiB, as %s says", u.Object, next>>20, size>>20, o.State)
			return next, nil
		}
		if code := status(err); err != nil && (code == 0 || code/100 == 5) {
			return 0, fmt.Errorf("gcp: %s: %w", u.Object, err) // of the network, not of a session that has ended
		}
	}
	bucket, name, _ := strings.Cut(strings.TrimPrefix(u.Object, "gs://"), "/")
	to, err := url.Parse(address("storage", "b", bucket, "o"))
	if err != nil {
		return 0, err
	}
	to.Path = "/upload" + to.Path
	// Only if no object of this name is there, and only if its checksum is this one.
	to.RawQuery = url.Values{"uploadType": {"resumable"}, "ifGenerationMatch": {"0"}, "fields": {"crc32c,size,generation"}}.Encode()
	meta, err := json.Marshal(map[string]any{"name": name, "crc32c": u.CRC32C, "contentType": "application/gzip", "metadata": o.Labels})
	if err != nil {
		return 0, err
	}
	a, err := p.send(ctx, http.MethodPost, to.String(), http.Header{
		"Content-Type": {"application/json; charset=UTF-8"}, "X-Upload-Content-Type": {"application/gzip"}, "X-Upload-Content-Length": {strconv.FormatInt(size, 10)},
	}, meta)
	if err == nil && a.status/100 != 2 {
		err = a.fault()
	}
	if err != nil {
		return 0, fmt.Errorf("gcp: beginning %s: %w", u.Object, err)
	}
	if u.Session = a.head.Get("Location"); !ours(u.Session) {
		return 0, fmt.Errorf("gcp: beginning %s: the service names no address of its own to upload to", u.Object)
	}
	if o.State == "" {
		return 0, nil
	}
	if data, err = json.Marshal(u); err != nil {
		return 0, err
	}
	return 0, atomicfile.Write(o.State, append(data, '\n'), 0o600)
}

// ours says whether an address is Cloud Storage's: the token goes there.
func ours(session string) bool {
	have, err := url.Parse(session)
	want, werr := url.Parse(address("storage"))
	return err == nil && werr == nil && have.Scheme == want.Scheme && (have.Host == want.Host || have.Scheme == "https" && strings.HasSuffix(have.Host, ".googleapis.com"))
}

func forget(o *Options) error {
	if err := os.Remove(o.State); o.State != "" && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
