package azure

import (
	"bytes"
	"cmp"
	"context"
	"crypto/md5" // Azure's checksum of what travels, not a secret's
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/pageblob"
	"golang.org/x/sync/errgroup"

	"github.com/skerry-os/skerry/image/cloud/publish"
)

const (
	pieceSize = 4 << 20  // the most that one request may carry
	granule   = 64 << 10 // of which zeros are left out; whole pages of 512 bytes
)

// Metadata of a blob of ours: whose disk it holds, and whether all of it is there.
const (
	metaDisk = "skerrydisk" // publish.Disk.ID
	metaDone = "skerrydone"
)

// containerOf is where the blobs of an account are.
func (p *Publisher) containerOf(store *storageAccount, at Place) (*container.Client, error) {
	u := strings.TrimSuffix(store.Properties.Endpoints.Blob, "/") + "/" + cmp.Or(at.Container, "images")
	c, err := container.NewClient(u, p.cred, &container.ClientOptions{ClientOptions: p.options.ClientOptions})
	if err != nil {
		return nil, fmt.Errorf("azure: %s: %w", u, err)
	}
	return c, nil
}

// there is what is known of a blob.
type there struct {
	disk string
	done bool
	size int64
}

// findBlob gives a blob, or nil.
func findBlob(ctx context.Context, b *pageblob.Client) (*there, error) {
	props, err := b.GetProperties(ctx, nil)
	if status(err) == http.StatusNotFound {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("azure: %s: %w", b.URL(), short(err))
	}
	t := &there{}
	for k, v := range props.Metadata { // a header's name has no case
		switch strings.ToLower(k) {
		case metaDisk:
			t.disk = *v
		case metaDone:
			t.done = true
		}
	}
	if props.ContentLength != nil {
		t.size = *props.ContentLength
	}
	return t, nil
}

// upload brings the parts of the VHD that are not zeros into the blob, as many at a time as asked for. What an upload that was
// interrupted has brought there is compared, and sent again only if it is something else.
func (p *Publisher) upload(ctx context.Context, c *container.Client, b *pageblob.Client, d publish.Disk, o *Options, r *publish.Report) error {
	now, err := findBlob(ctx, b)
	switch {
	case err != nil:
		return err
	case now != nil && now.disk != d.ID:
		return fmt.Errorf("azure: %s is there and holds something else; choose another name, or delete it: %s", b.URL(), deleteCommand(o.Place, o.Name))
	case now != nil && now.done && now.size == d.Size:
		p.log("%s is there already", b.URL())
		return nil
	case now != nil && now.size == d.Size:
		p.log("going on with %s", b.URL())
	default:
		if err := create(ctx, c, b, d); err != nil {
			return err
		}
	}
	has, err := ranges(ctx, b)
	if err != nil {
		return err
	}
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(o.Parallel)
	var sent atomic.Int32
	err = publish.Runs(gctx, d, granule, pieceSize, func(at, done int64, part []byte) error {
		r.Blocks++
		covered := has.covers(at, int64(len(part)))
		group.Go(func() error {
			if covered {
				if same, err := holds(gctx, b, at, part); same || err != nil {
					return err
				}
			}
			sent.Add(1)
			return put(gctx, b, at, part)
		})
		if o.Progress != nil {
			o.Progress(int(done>>20), int(d.Size>>20))
		}
		return nil
	})
	if werr := group.Wait(); werr != nil {
		err = werr
	}
	r.Uploaded = int(sent.Load())
	if err != nil || ctx.Err() != nil {
		p.log("what is uploaded stays; the same command goes on from there")
		return errors.Join(err, ctx.Err())
	}
	meta := map[string]*string{metaDisk: &d.ID, metaDone: to.Ptr("yes")}
	if _, err := b.SetMetadata(ctx, meta, nil); err != nil {
		return fmt.Errorf("azure: %s: %w", b.URL(), short(err))
	}
	return nil
}

// create makes an empty blob, and its container if there is none.
func create(ctx context.Context, c *container.Client, b *pageblob.Client, d publish.Disk) error {
	o := &pageblob.CreateOptions{
		Metadata: map[string]*string{metaDisk: &d.ID}, HTTPHeaders: &blob.HTTPHeaders{BlobContentType: to.Ptr("application/octet-stream")},
	}
	_, err := b.Create(ctx, d.Size, o)
	if bloberror.HasCode(err, bloberror.ContainerNotFound) {
		if _, err = c.Create(ctx, nil); err == nil || bloberror.HasCode(err, bloberror.ContainerAlreadyExists) {
			_, err = b.Create(ctx, d.Size, o)
		}
	}
	if err != nil {
		return fmt.Errorf("azure: making %s: %w", b.URL(), short(err))
	}
	return nil
}

// put sends a part. What the blob holds is what the checksum says, or it is an error.
func put(ctx context.Context, b *pageblob.Client, at int64, part []byte) error {
	sum := md5.Sum(part) // Azure's checksum of what travels
	for try := 1; ; try++ {
		resp, err := b.UploadPages(ctx, streaming.NopCloser(bytes.NewReader(part)), blob.HTTPRange{Offset: at, Count: int64(len(part))},
			&pageblob.UploadPagesOptions{TransactionalValidation: blob.TransferValidationTypeMD5(sum[:])})
		if err == nil && len(resp.ContentMD5) > 0 && !bytes.Equal(resp.ContentMD5, sum[:]) {
			return fmt.Errorf("azure: %s at %d: arrived with MD5 %x, sent with %x", b.URL(), at, resp.ContentMD5, sum)
		}
		if err == nil {
			return nil
		}
		if !bloberror.HasCode(err, bloberror.MD5Mismatch) || try == 3 {
			return fmt.Errorf("azure: %s at %d: %w", b.URL(), at, short(err))
		}
	}
}

// holds compares a part with what the blob has there.
func holds(ctx context.Context, b *pageblob.Client, at int64, part []byte) (bool, error) {
	resp, err := b.DownloadStream(ctx, &blob.DownloadStreamOptions{Range: blob.HTTPRange{Offset: at, Count: int64(len(part))}})
	if err != nil {
		return false, fmt.Errorf("azure: reading %s at %d: %w", b.URL(), at, short(err))
	}
	body := resp.NewRetryReader(ctx, nil)
	defer func() { _ = body.Close() }()
	got, err := io.ReadAll(io.LimitReader(body, int64(len(part))+1))
	if err != nil {
		return false, fmt.Errorf("azure: reading %s at %d: %w", b.URL(), at, err)
	}
	return bytes.Equal(got, part), nil
}

// spans are ranges that a blob has, rising and apart.
type spans [][2]int64

func (s spans) covers(at, n int64) bool {
	for _, x := range s {
		if x[0] <= at && at+n <= x[1] {
			return true
		}
	}
	return false
}

// ranges asks what has been written to a blob.
func ranges(ctx context.Context, b *pageblob.Client) (spans, error) {
	var out spans
	for pages := b.NewGetPageRangesPager(nil); pages.More(); {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return nil, fmt.Errorf("azure: what %s holds: %w", b.URL(), short(err))
		}
		for _, r := range page.PageRange {
			if r.Start == nil || r.End == nil {
				continue
			}
			if n := len(out); n > 0 && out[n-1][1] == *r.Start {
				out[n-1][1] = *r.End + 1
			} else {
				out = append(out, [2]int64{*r.Start, *r.End + 1})
			}
		}
	}
	return out, nil
}

// end waits for something that the resource manager does.
func end[T any](ctx context.Context, poll *runtime.Poller[T], err error, look func()) error {
	if err != nil {
		return err
	}
	return publish.Wait(ctx, func() (bool, error) {
		if _, err := poll.Poll(ctx); err != nil {
			return false, err
		}
		if !poll.Done() {
			if look != nil {
				look()
			}
			return false, nil
		}
		_, err := poll.Result(ctx)
		return true, err
	})
}

// deleteCommand is what removes an image.
func deleteCommand(at Place, name string) string {
	s := fmt.Sprintf("skerry publish azure delete --resource-group %s --storage-account %s", at.Group, at.Account)
	if at.Gallery != "" {
		s += " --gallery " + at.Gallery
	}
	return s + " " + name
}

// passed says whether a day has come.
func passed(day time.Time) bool { return !day.After(time.Now()) }
