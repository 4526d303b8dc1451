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

// upload is the state file: which blocks of which snapshot are there.
type upload struct {
	Disk     string `json:"disk"`
	Region   string `json:"region"`
	Account  string `json:"account"`
	Snapshot string `json:"snapshot"`
	Done     []byte `json:"done"`     // one bit per block
	Complete bool   `json:"complete"` // only the image is missing

	mu    sync.Mutex
	file  string
	fresh int
}

// snapshot brings the disk's blocks that are not zeros into a snapshot, as many at a time as asked for. An upload that was
// interrupted goes on where it was, as long as the snapshot is still open.
func (p *Publisher) snapshot(ctx context.Context, d publish.Disk, o *Options, r *publish.Report) (string, error) {
	client := p.ebs(p.Region())
	u, err := p.openUpload(ctx, client, d, o)
	if err != nil {
		return "", err
	}
	if u.Complete {
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
	if err != nil || ctx.Err() != nil {
		if serr := u.save(); serr == nil && u.file != "" {
			p.log("what is uploaded is remembered in %s; the same command goes on from there", u.file)
		}
		return "", errors.Join(err, ctx.Err())
	}
	_, err = client.CompleteSnapshot(ctx, &ebs.CompleteSnapshotInput{
		SnapshotId: &u.Snapshot, ChangedBlocksCount: sdk.Int32(int32(r.Blocks)), Checksum: sdk.String(base64.StdEncoding.EncodeToString(total.Sum(nil))),
		ChecksumAlgorithm: ebstypes.ChecksumAlgorithmChecksumAlgorithmSha256, ChecksumAggregationMethod: ebstypes.ChecksumAggregationMethodChecksumAggregationLinear,
	})
	if err != nil {
		return "", fmt.Errorf("aws: snapshot %s: %w", u.Snapshot, short(err))
	}
	if err := p.wait(ctx, "snapshot "+u.Snapshot, func() (bool, error) {
		out, err := p.ec2(p.Region()).DescribeSnapshots(ctx, &ec2.DescribeSnapshotsInput{SnapshotIds: []string{u.Snapshot}})
		if err != nil || len(out.Snapshots) == 0 {
			return false, err
		}
		if out.Snapshots[0].State == ec2types.SnapshotStateError {
			return false, fmt.Errorf("ended as an error: %s", sdk.ToString(out.Snapshots[0].StateMessage))
		}
		return out.Snapshots[0].State == ec2types.SnapshotStateCompleted, nil
	}); err != nil {
		return "", err
	}
	u.Complete = true
	return u.Snapshot, u.save()
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

// openUpload goes on with the snapshot in the state file, or starts one.
func (p *Publisher) openUpload(ctx context.Context, client *ebs.Client, d publish.Disk, o *Options) (*upload, error) {
	u := &upload{file: o.State}
	if data, err := os.ReadFile(o.State); err == nil {
		if err := json.Unmarshal(data, u); err != nil {
			return nil, fmt.Errorf("%s: %w; remove it to begin anew", o.State, err)
		}
		if u.Disk == d.ID && u.Region == p.Region() && u.Account == p.account && p.usable(ctx, u) {
			p.log("going on with snapshot %s, as %s says", u.Snapshot, o.State)
			return u, nil
		}
	} else if o.State != "" && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
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
		return nil, fmt.Errorf("aws: starting a snapshot: %w", short(err))
	}
	if n := sdk.ToInt32(out.BlockSize); n != blockSize {
		return nil, fmt.Errorf("aws: snapshot %s has blocks of %d bytes; this program knows %d", sdk.ToString(out.SnapshotId), n, blockSize)
	}
	u = &upload{Disk: d.ID, Region: p.Region(), Account: p.account, Snapshot: sdk.ToString(out.SnapshotId), Done: make([]byte, (d.Size/blockSize+8)/8), file: o.State}
	return u, u.save()
}

// usable says whether blocks can still go into the snapshot, or whether all are in it.
func (p *Publisher) usable(ctx context.Context, u *upload) bool {
	want := ec2types.SnapshotStatePending
	if u.Complete {
		want = ec2types.SnapshotStateCompleted
	}
	out, err := p.ec2(p.Region()).DescribeSnapshots(ctx, &ec2.DescribeSnapshotsInput{SnapshotIds: []string{u.Snapshot}})
	return err == nil && len(out.Snapshots) == 1 && out.Snapshots[0].State == want
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
