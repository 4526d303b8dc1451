// Package bootstrapdata keeps what the servers of a cluster share, its authorities and keys, in the cluster's datastore, sealed
// with the cluster's token. So a server that is given a datastore and the token is one of the cluster that the datastore is of,
// and a snapshot holds all that a new machine needs in an old one's place.
//
// The seal is a secretbox under a key that scrypt makes of the token: whoever has the datastore, or a snapshot, and not the token
// can do no more than guess, and a token has at least 16 characters. In the open is a name of the cluster alone: the digest of the key that signs
// service-account tokens, the one thing that is never replaced.
package bootstrapdata

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"golang.org/x/crypto/nacl/secretbox"
	"golang.org/x/crypto/scrypt"

	"github.com/skerry-os/skerry/pkg/atomicfile"
	"github.com/skerry-os/skerry/pkg/pki"
	"github.com/skerry-os/skerry/pkg/server/secrets"
)

const (
	key   = "/bootstrap/skerry"
	token = "server/token" // is the seal's, and not under it

	// objects are in the datastore of every cluster.
	objects = "/registry/namespaces/"

	format  = 1
	saltLen = 16
	limit   = 30 * time.Second
)

// ErrToken means that the data is sealed with another token.
var ErrToken = errors.New("the cluster in this datastore has another token than --token; it is in server/token of the data folder of each of its servers")

// Data is what servers share.
type Data struct {
	Files    map[string][]byte `json:"files"`    // by name below the data folder; see pki.Shared
	Settings map[string]any    `json:"settings"` // those that all nodes share
}

// sealed is the value in the datastore.
type sealed struct {
	Format  int    `json:"format"`
	Cluster string `json:"cluster"`
	Salt    []byte `json:"salt"`
	Box     []byte `json:"box"`
}

// cluster names the cluster that files are of.
func cluster(files map[string][]byte) string {
	sum := sha256.Sum256(files[pki.ServiceAccountKeyFile])
	sum = sha256.Sum256(append([]byte("skerry cluster "), sum[:]...))
	return hex.EncodeToString(sum[:])
}

func seal(secret string, d Data) ([]byte, error) {
	text, err := json.Marshal(d)
	if err != nil {
		return nil, err
	}
	s := sealed{Format: format, Cluster: cluster(d.Files), Salt: make([]byte, saltLen)}
	_, _ = rand.Read(s.Salt) // never fails
	k, err := stretch(secret, s.Salt)
	if err != nil {
		return nil, err
	}
	s.Box = secretbox.Seal(nil, text, new([24]byte), k) // the salt is new, so the key is good for one nonce
	return json.Marshal(s)
}

func stretch(secret string, salt []byte) (*[32]byte, error) {
	k, err := scrypt.Key([]byte(secret), salt, 1<<14, 8, 1, 32)
	if err != nil {
		return nil, err
	}
	return (*[32]byte)(k), nil
}

func parse(value []byte) (s sealed, err error) {
	if err := json.Unmarshal(value, &s); err != nil {
		return s, fmt.Errorf("%s in the datastore: %w", key, err)
	}
	if s.Format > format {
		return s, fmt.Errorf("%s in the datastore was written by a newer version; update this machine first", key)
	}
	return s, nil
}

func (s sealed) open(secret string) (d Data, err error) {
	k, err := stretch(secret, s.Salt)
	if err != nil {
		return d, err
	}
	text, ok := secretbox.Open(nil, s.Box, new([24]byte), k)
	if !ok {
		return d, ErrToken
	}
	return d, json.Unmarshal(text, &d)
}

// New makes the shared files of a new cluster, and a token for it.
func New(now time.Time) (files map[string][]byte, secret string, err error) {
	if files, err = pki.NewCluster(now, now); err != nil {
		return nil, "", err
	}
	maps.Copy(files, secrets.New())
	secret = string(bytes.TrimSpace(files[token]))
	delete(files, token)
	return files, secret, nil
}

// client talks to a datastore as the API server does.
func client(endpoint string) (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, DialTimeout: limit, Logger: zap.NewNop()})
}

// read gives the value and its revision; nil and 0 if there is none.
func read(ctx context.Context, c *clientv3.Client) (value []byte, rev int64, err error) {
	r, err := c.Get(ctx, key)
	if err != nil || len(r.Kvs) == 0 {
		return nil, 0, err
	}
	return r.Kvs[0].Value, r.Kvs[0].ModRevision, nil
}

// write replaces the value of revision rev, and says whether nobody else was faster.
func write(ctx context.Context, c *clientv3.Client, value []byte, rev int64) (bool, error) {
	txn := c.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", rev)).Then(clientv3.OpPut(key, string(value)))
	if rev > 0 {
		txn = txn.Else(clientv3.OpGet(key)) // the one form of an update that kine knows
	}
	r, err := txn.Commit()
	if err != nil {
		return false, err
	}
	return r.Succeeded, nil
}

// ErrNone means that the datastore has objects of a cluster, and nothing of its keys.
var ErrNone = errors.New("holds a cluster that has not stored its authorities and keys")

// Take gives what the cluster of a datastore shares, opened with the token. A datastore that is empty becomes that of the proposal, if
// there is one; of several servers that propose at once all get the same answer. The result is nil if there is none.
func Take(ctx context.Context, endpoint, secret string, proposal *Data) (*Data, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	c, err := client(endpoint)
	if err != nil {
		return nil, err
	}
	defer c.Close() //nolint:errcheck // answered
	for {
		value, _, err := read(ctx, c)
		if err != nil {
			return nil, err
		}
		if value != nil {
			s, err := parse(value)
			if err != nil {
				return nil, err
			}
			d, err := s.open(secret)
			return &d, err
		}
		any, err := c.Get(ctx, objects, clientv3.WithPrefix(), clientv3.WithLimit(1))
		if err != nil {
			return nil, err
		}
		if len(any.Kvs) > 0 {
			return nil, ErrNone
		}
		if proposal == nil {
			return nil, nil
		}
		if value, err = seal(secret, *proposal); err != nil {
			return nil, err
		}
		if _, err := write(ctx, c, value, 0); err != nil {
			return nil, err
		}
	}
}

// Check says whether the datastore is that of another cluster than the one whose files are in the data folder.
func Check(ctx context.Context, endpoint, dataDir string) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	files, _, err := load(dataDir)
	if err != nil {
		return err
	}
	c, err := client(endpoint)
	if err != nil {
		return err
	}
	defer c.Close() //nolint:errcheck // answered
	value, _, err := read(ctx, c)
	if err != nil || value == nil {
		if err != nil {
			slog.Warn("whose datastore it is cannot be read", "err", err)
		}
		return nil
	}
	s, err := parse(value)
	if err == nil && s.Cluster != cluster(files) {
		err = fmt.Errorf("the datastore is another cluster's than the keys in %s; to make this server one of that cluster, remove server/tls, server/cred, server/token and server/encryption.yaml "+
			"from there, and start it with that cluster's --token", dataDir)
	}
	return err
}

// load reads the shared files and the token.
func load(dataDir string) (files map[string][]byte, secret string, err error) {
	files = map[string][]byte{}
	for _, name := range pki.Shared() {
		data, err := os.ReadFile(filepath.Join(dataDir, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue // not every cluster has each
		}
		if err != nil {
			return nil, "", err
		}
		files[name] = data
	}
	secret = string(bytes.TrimSpace(files[token]))
	delete(files, token)
	return files, secret, nil
}

// Write puts the files where a server has them. What says that they are all there comes last.
func (d *Data) Write(dataDir, secret string) error {
	files := map[string][]byte{token: []byte(secret + "\n")}
	for _, name := range pki.Shared() {
		if data, ok := d.Files[name]; ok {
			files[name] = data
		}
	}
	names := slices.DeleteFunc(slices.Sorted(maps.Keys(files)), func(name string) bool { return name == pki.ServerCAFile })
	for _, name := range append(names, pki.ServerCAFile) {
		file := filepath.Join(dataDir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			return err
		}
		if err := atomicfile.Write(file, files[name], 0o600); err != nil {
			return err
		}
	}
	return nil
}
