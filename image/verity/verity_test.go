package verity

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/skerry-os/skerry/image/imagetest"
)

func data(blocks int) []byte {
	b := make([]byte, blocks*BlockSize)
	r := rand.NewChaCha8([32]byte{byte(blocks)})
	_, _ = r.Read(b)
	return b
}

var salt = bytes.Repeat([]byte{0xa5}, 32)

func TestEveryChangeIsFound(t *testing.T) {
	for _, blocks := range []int{1, 2, 127, 128, 129, 300} {
		d := data(blocks)
		tree, err := Build(bytes.NewReader(d), int64(len(d)), salt)
		if err != nil {
			t.Fatal(err)
		}
		if int64(len(tree.Bytes)) != Size(int64(len(d))) {
			t.Errorf("%d blocks: tree is %d bytes, Size says %d", blocks, len(tree.Bytes), Size(int64(len(d))))
		}
		all := append(bytes.Clone(d), tree.Bytes...)
		root := hex.EncodeToString(tree.RootHash)
		if err := Verify(bytes.NewReader(all), int64(len(d)), root, hex.EncodeToString(salt)); err != nil {
			t.Errorf("%d blocks: %v", blocks, err)
		}
		step := max(1021, len(all)/40|1)
		for at := 0; at < len(all); at += step {
			all[at] ^= 1
			if Verify(bytes.NewReader(all), int64(len(d)), root, hex.EncodeToString(salt)) == nil {
				t.Fatalf("%d blocks: byte %d changed and accepted", blocks, at)
			}
			all[at] ^= 1
		}
		if Verify(bytes.NewReader(all[:len(d)-1]), int64(len(d)), root, hex.EncodeToString(salt)) == nil {
			t.Errorf("%d blocks: short data accepted", blocks)
		}
	}
	if _, err := Build(bytes.NewReader(nil), 100, salt); err == nil {
		t.Error("half a block accepted")
	}
}

func TestVeritysetupAgrees(t *testing.T) {
	tool := imagetest.Tool(t, "veritysetup", "cryptsetup-bin")
	for _, blocks := range []int{1, 2, 128, 129, 16385} {
		d := data(blocks)
		tree, err := Build(bytes.NewReader(d), int64(len(d)), salt)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(t.TempDir(), "root.img")
		if err := os.WriteFile(file, append(bytes.Clone(d), tree.Bytes...), 0o600); err != nil {
			t.Fatal(err)
		}
		args := []string{"verify", "--no-superblock", "--format=1", "--hash=sha256", "--data-block-size=4096", "--hash-block-size=4096",
			fmt.Sprintf("--data-blocks=%d", blocks), fmt.Sprintf("--hash-offset=%d", len(d)), "--salt=" + hex.EncodeToString(salt),
			file, file, hex.EncodeToString(tree.RootHash)}
		if out, err := exec.Command(tool, args...).CombinedOutput(); err != nil {
			t.Errorf("%d blocks: %v: %s", blocks, err, out)
		}
	}
}
