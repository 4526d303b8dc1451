package aws

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ebs"
	ebstypes "github.com/aws/aws-sdk-go-v2/service/ebs/types"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	ec2types "github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"golang.org/x/sync/errgroup"

	"github.com/skerry-os/skerry/image/cloud/publish"
	"github.com/skerry-os/skerry/pkg/atomicfile"
)

// blockSize is the only one EBS has.
const blockSize = 512 << 10

// saveEvery is how many blocks go up between two writes of the state file.
const saveEvery = 128

// upload is the state file: which blocks of which snapshot are there. Whether the snapshot is whole, EC2 says.
type upload struct {
	Disk     string `json:"disk"`
	Region   string `json:"region"`
	Account  string `json:"account"`
	Snapshot string `json:"snapshot"`
	Done     []byte `json:"done"` // one bit per block

	mu    sync.Mutex
	file  string
	fresh int
}

// snapshot brings the disk's blocks that are not zeros into a snapshot, as many at a time as asked for. An upload that was
// interrupted goes on where it was, as long as the snapshot is still open; one that is complete is used as it is: EBS completes
// a snapshot only if the checksum of all blocks is right.
func (p *Publisher) snapshot(ctx context.Context, d publish.Disk, o *Options, r *publish.Report) (string, error) {
	client := p.ebs(p.Region())
	u, whole, err := p.openUpload(ctx, client, d, o)
	if err != nil {
		return "", err
	}
	if whole {
		return u.Snapshot, nil
	}
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(o.Parallel)
	total := sha256.New()
	err = publish.Runs(gctx, d, blockSize, blockSize, func(offset, done int64, b []byte) error {
		i := int(offset / blockSize)
		b = append(b, zeroBlock[len(b):]...) // the last one of a disk may be shorter
		sum := sha256.Sum256(b)
		total.Write(sum[:])
		r.Blocks++
		if u.has(i) {
			return nil
		}
		r.Uploaded++
		group.Go(func() error {
			if err := put(gctx, client, u.Snapshot, i, b, sum); err != nil {
				return err
			}
			return u.did(i)
		})
		if o.Progress != nil {
			o.Progress(int(done/blockSize), int(d.Size/blockSize))
		}
		return nil
	})
	if werr := group.Wait(); werr != nil {
		err = werr
	}
	serr := u.save() // also before it is completed: no block can be sent after that
	if err != nil || ctx.Err() != nil {
		if serr == nil && u.file != "" {
			p.log("what is uploaded is remembered in %s; the same command goes on from there", u.file)
		}
		return "", errors.Join(err, ctx.Err())
	}
	if serr != nil {
		return "", serr
	}
	return u.Snapshot, p.complete(ctx, client, u, r.Blocks, total.Sum(nil))
}

// complete closes a snapshot and waits until it can be used. One that somebody has closed before, as a request whose answer was
// lost does, is waited for as well.
func (p *Publisher) complete(ctx context.Context, client *ebs.Client, u *upload, blocks int, sum []byte) error {
	_, err := client.CompleteSnapshot(ctx, &ebs.CompleteSnapshotInput{
		SnapshotId: &u.Snapshot, ChangedBlocksCount: sdk.Int32(int32(blocks)), Checksum: sdk.String(base64.StdEncoding.EncodeToString(sum)),
		ChecksumAlgorithm: ebstypes.ChecksumAlgorithmChecksumAlgorithmSha256, ChecksumAggregationMethod: ebstypes.ChecksumAggregationMethodChecksumAggregationLinear,
	})
	if err != nil && code(err) != "ConflictException" {
		return fmt.Errorf("aws: snapshot %s: %w (its blocks stay; the same command goes on from there)", u.Snapshot, short(err))
	}
	return p.wait(ctx, "snapshot "+u.Snapshot, func() (bool, error) {
		state, err := p.state(ctx, u.Snapshot)
		if err == nil && state == ec2types.SnapshotStateError {
			err = errors.New("it ended as an error; the same command begins another")
		}
		return state == ec2types.SnapshotStateCompleted, err
	})
}

var zeroBlock = make([]byte, blockSize)

// put uploads one block. What EBS stores is what the checksum says, or it is an error.
func put(ctx context.Context, client *ebs.Client, snapshot string, index int, b []byte, sum [32]byte) error {
	checksum := base64.StdEncoding.EncodeToString(sum[:])
	out, err := client.PutSnapshotBlock(ctx, &ebs.PutSnapshotBlockInput{
		SnapshotId: &snapshot, BlockIndex: sdk.Int32(int32(index)), BlockData: bytes.NewReader(b), DataLength: sdk.Int32(blockSize),
		Checksum: &checksum, ChecksumAlgorithm: ebstypes.ChecksumAlgorithmChecksumAlgorithmSha256,
	})
	if err != nil {
		return fmt.Errorf("aws: snapshot %s, block %d: %w", snapshot, index, short(err))
	}
	if got := sdk.ToString(out.Checksum); got != checksum {
		return fmt.Errorf("aws: snapshot %s, block %d: arrived with checksum %q, sent with %q", snapshot, index, got, checksum)
	}
	return nil
}

// openUpload goes on with the snapshot in the state file, or with a whole one of this disk that has no image, or starts one.
func (p *Publisher) openUpload(ctx context.Context, client *ebs.Client, d publish.Disk, o *Options) (u *upload, whole bool, err error) {
	u = &upload{file: o.State}
	if data, err := os.ReadFile(o.State); err == nil {
		if err := json.Unmarshal(data, u); err != nil {
			return nil, false, fmt.Errorf("%s: %w; remove it to begin anew", o.State, err)
		}
		if u.Disk == d.ID && u.Region == p.Region() && u.Account == p.account {
			state, err := p.state(ctx, u.Snapshot)
			switch {
			case err != nil:
				return nil, false, fmt.Errorf("aws: snapshot %s, of which %s says that an upload goes on there: %w", u.Snapshot, o.State, short(err))
			case state == ec2types.SnapshotStatePending:
				p.log("going on with snapshot %s, as %s says", u.Snapshot, o.State)
				return u, false, nil
			case state == ec2types.SnapshotStateCompleted:
				p.log("snapshot %s is whole already, as %s says", u.Snapshot, o.State)
				return u, true, nil
			}
		}
	} else if o.State != "" && !errors.Is(err, fs.ErrNotExist) {
		return nil, false, err
	}
	left, err := p.snapshotsOf(ctx, p.Region(), o.Name)
	if err != nil {
		return nil, false, err
	}
	for _, s := range left {
		if s.State == ec2types.SnapshotStateCompleted && tag(s.Tags, tagDisk) == d.ID {
			p.log("snapshot %s is whole already", sdk.ToString(s.SnapshotId))
			return &upload{Snapshot: sdk.ToString(s.SnapshotId)}, true, nil
		}
	}
	tags := []ebstypes.Tag{}
	for k, v := range o.Labels {
		tags = append(tags, ebstypes.Tag{Key: sdk.String(k), Value: sdk.String(v)})
	}
	token := sha256.Sum256(fmt.Appendf(nil, "%s %s %d", d.ID, o.Name, time.Now().UnixNano()))
	gib := (d.Size + 1<<30 - 1) >> 30
	out, err := client.StartSnapshot(ctx, &ebs.StartSnapshotInput{
		VolumeSize: &gib, Description: sdk.String(o.Description), Tags: tags, Timeout: sdk.Int32(24 * 60), // minutes without a block until it is given up
		ClientToken: sdk.String(hex.EncodeToString(token[:])), // so that a repeated request does not start a second one
	})
	if err != nil {
		return nil, false, fmt.Errorf("aws: starting a snapshot: %w", short(err))
	}
	if n := sdk.ToInt32(out.BlockSize); n != blockSize {
		return nil, false, fmt.Errorf("aws: snapshot %s has blocks of %d bytes; this program knows %d", sdk.ToString(out.SnapshotId), n, blockSize)
	}
	u = &upload{Disk: d.ID, Region: p.Region(), Account: p.account, Snapshot: sdk.ToString(out.SnapshotId), Done: make([]byte, (d.Size/blockSize+8)/8), file: o.State}
	return u, false, u.save()
}

// state says how far a snapshot of this region is; "" if there is none.
func (p *Publisher) state(ctx context.Context, snapshot string) (ec2types.SnapshotState, error) {
	out, err := p.ec2(p.Region()).DescribeSnapshots(ctx, &ec2.DescribeSnapshotsInput{SnapshotIds: []string{snapshot}})
	if gone(err) {
		return "", nil
	}
	if err != nil || len(out.Snapshots) != 1 {
		return "", err
	}
	if out.Snapshots[0].State == ec2types.SnapshotStateError {
		p.log("snapshot %s ended as an error: %s", snapshot, sdk.ToString(out.Snapshots[0].StateMessage))
	}
	return out.Snapshots[0].State, nil
}

// snapshotsOf gives the account's snapshots that were made for an image of this name, whether or not the image is there.
func (p *Publisher) snapshotsOf(ctx context.Context, region, name string) ([]ec2types.Snapshot, error) {
	var all []ec2types.Snapshot
	pages := ec2.NewDescribeSnapshotsPaginator(p.ec2(region), &ec2.DescribeSnapshotsInput{
		OwnerIds: []string{"self"}, Filters: []ec2types.Filter{{Name: sdk.String("tag:" + tagImage), Values: []string{name}}},
	})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return nil, fmt.Errorf("aws: %s: looking for snapshots of image %s: %w", region, name, short(err))
		}
		for _, s := range page.Snapshots {
			if tag(s.Tags, tagImage) == name { // a name with * in it is a pattern for the filter
				all = append(all, s)
			}
		}
	}
	return all, nil
}

func (u *upload) has(i int) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return i/8 < len(u.Done) && u.Done[i/8]&(1<<(i%8)) != 0
}

func (u *upload) did(i int) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.Done[i/8] |= 1 << (i % 8)
	if u.fresh++; u.fresh < saveEvery {
		return nil
	}
	return u.write()
}

func (u *upload) save() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.write()
}

func (u *upload) write() error {
	u.fresh = 0
	if u.file == "" {
		return nil
	}
	data, err := json.Marshal(u)
	if err != nil {
		return err
	}
	return atomicfile.Write(u.file, append(data, '\n'), 0o600)
}

// wait asks until something is done.
func (p *Publisher) wait(ctx context.Context, what string, done func() (bool, error)) error {
	if err := publish.Wait(ctx, done); err != nil {
		return fmt.Errorf("aws: waiting for %s: %w", what, short(err))
	}
	return nil
}
