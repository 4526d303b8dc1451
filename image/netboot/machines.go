package netboot

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skerry-os/skerry/image/netboot/protocol"
	"github.com/skerry-os/skerry/pkg/atomicfile"
	"github.com/skerry-os/skerry/pkg/machine"
)

// Machine is what is known of one machine that asked to be started. It is a file of the state folder, so that it outlives the
// server, and a second command can read and change it.
type Machine struct {
	MAC      string   `json:"mac"` // of the card it asked by: its name here
	UUID     string   `json:"uuid,omitempty"`
	Serial   string   `json:"serial,omitempty"`
	Model    string   `json:"model,omitempty"`
	Arch     string   `json:"arch,omitempty"`
	Board    string   `json:"board,omitempty"`
	Firmware string   `json:"firmware,omitempty"`
	By       Means    `json:"by,omitempty"`    // of its last question
	Cards    []string `json:"cards,omitempty"` // addresses of all its cards, as it says
	Node     string   `json:"node,omitempty"`  // its name, once it has one
	Key      string   `json:"key,omitempty"`   // of the fleet's node that it is, or says it is
	Bound    string   `json:"bound,omitempty"` // key of the node that it is: its config was given to this machine, or a person said so
	Address  string   `json:"address,omitempty"`

	Stage string `json:"stage"` // one of the stages below, or of protocol's
	Done  int64  `json:"done,omitempty"`
	Total int64  `json:"total,omitempty"`
	Disk  string `json:"disk,omitempty"`
	Error string `json:"error,omitempty"` // the last one, with what to do

	First time.Time `json:"first"`
	Last  time.Time `json:"last"`

	// The marker that stops wipe loops: an installation has an ID, its config is handed out once, and when it is done the
	// machine gets no boot file any more.
	Install   string    `json:"install,omitempty"`  // the ID
	Session   string    `json:"session,omitempty"`  // sha256 of the session that got the config
	Handed    time.Time `json:"handed,omitzero"`    // when it got it
	Installed time.Time `json:"installed,omitzero"` // when it was done
	Again     bool      `json:"again,omitempty"`    // a person asked for a second installation
	Approved  bool      `json:"approved,omitempty"` // by a person, with a config of its own beside this file
}

// Stages of this side.
const (
	StageSeen    = "asked for a boot file"
	StageBooting = "loading the installer"
	StageWaiting = "waiting for approval"
	StageHello   = "installer started"
	StageLeft    = "left alone" // nobody knows it, and such machines are not to wait
)

// Store is the state folder. Its changes are whole and in turn, across processes.
type Store struct{ dir string }

const (
	machinesDir = "machines"
	lockName    = "lock"
)

// OpenStore opens or makes a state folder.
func OpenStore(dir string) (*Store, error) {
	if err := os.MkdirAll(filepath.Join(dir, machinesDir), 0o700); err != nil {
		return nil, err
	}
	return &Store{dir}, nil
}

func (s *Store) file(mac, ext string) string {
	return filepath.Join(s.dir, machinesDir, strings.ReplaceAll(mac, ":", "-")+ext)
}

// Get reads one machine; fs.ErrNotExist for one that was never seen.
func (s *Store) Get(mac string) (*Machine, error) {
	name := s.file(mac, ".json")
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	m := new(Machine)
	if err := json.Unmarshal(data, m); err != nil {
		return nil, fmt.Errorf("%s: %w; remove it to forget the machine", name, err)
	}
	return m, nil
}

// List reads all machines, in the order they came.
func (s *Store) List() ([]*Machine, error) {
	names, err := filepath.Glob(filepath.Join(s.dir, machinesDir, "*.json"))
	if err != nil {
		return nil, err
	}
	var out []*Machine
	var errs []error
	for _, name := range names {
		mac := strings.ReplaceAll(strings.TrimSuffix(filepath.Base(name), ".json"), "-", ":")
		m, err := s.Get(mac)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		out = append(out, m)
	}
	slices.SortFunc(out, func(a, b *Machine) int {
		if c := a.First.Compare(b.First); c != 0 {
			return c
		}
		return strings.Compare(a.MAC, b.MAC)
	})
	return out, errors.Join(errs...)
}

// Change reads a machine, lets f change it and writes it, with nobody else in between. A machine that was never seen is made.
// An error of f leaves it as it was.
func (s *Store) Change(mac string, f func(*Machine) error) (*Machine, error) {
	unlock, err := s.lock()
	if err != nil {
		return nil, err
	}
	defer unlock()
	m, err := s.Get(mac)
	if errors.Is(err, fs.ErrNotExist) {
		m, err = &Machine{MAC: mac, First: time.Now().UTC()}, nil
	}
	if err != nil {
		return nil, err
	}
	if err := f(m); err != nil {
		return m, err
	}
	return m, s.write(m)
}

func (s *Store) write(m *Machine) error {
	data, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	return atomicfile.Write(s.file(m.MAC, ".json"), append(data, '\n'), 0o600)
}

// owners are the machines that a node of the fleet is bound to, but for one: its own cards have other addresses.
func (s *Store) owners(key string, but *Machine) ([]*Machine, error) {
	list, err := s.List()
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(list, func(o *Machine) bool { return o.Bound != key || o.MAC == but.MAC }), nil
}

// bind says that a machine is the node that it claims to be, and no other machine is any more, but by another of its cards.
func (s *Store) bind(m *Machine) error {
	if m.Key == "" {
		return nil
	}
	list, err := s.owners(m.Key, m)
	if err != nil {
		return err
	}
	for _, o := range list {
		if slices.Contains(m.Cards, o.MAC) {
			continue
		}
		o.Bound, o.Session, o.Error = "", "", "node "+m.Node+" is machine "+m.MAC+" now, as a person said; if it is this one: skerry pxe approve "+o.MAC
		if err := s.write(o); err != nil {
			return err
		}
	}
	m.Bound = m.Key
	return nil
}

func (s *Store) lock() (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(s.dir, lockName), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		_ = f.Close()
		return nil, err
	}
	return func() { _ = f.Close() }, nil
}

// Approval is what a person decides about a machine.
type Approval struct {
	Config []byte // the node config; nil: the fleet has one
	Name   string // of the config's file, for messages
	Again  bool   // install once more, over what is there
}

// Approve lets a machine be installed. Without a config it says, too, that the machine is the node of the fleet that it claims to
// be, whatever was before.
func (s *Store) Approve(mac string, a Approval) (*Machine, error) {
	if a.Config != nil {
		if _, err := machine.Decode(a.Name, a.Config); err != nil {
			return nil, err
		}
	}
	return s.Change(mac, func(m *Machine) error {
		switch {
		case m.Stage == "":
			return fmt.Errorf("%s: never asked to be started; `skerry pxe list` shows who did", mac)
		case !m.Installed.IsZero() && !a.Again:
			return fmt.Errorf("%s: %s; add --reinstall to install it anew, over what is on its disk", mac, m.fate())
		case a.Config == nil && !m.Approved && m.Node == "":
			return fmt.Errorf("%s: nobody knows this machine; give it a node config with --config", mac)
		}
		if a.Config != nil {
			if err := atomicfile.Write(s.file(mac, ".yaml"), a.Config, 0o600); err != nil {
				return err
			}
			m.Approved = true
		} else if !m.Approved {
			if err := s.bind(m); err != nil {
				return err
			}
		}
		// An installation that did not end may begin again; one that did may be repeated, if that is what was said.
		m.Again = a.Again
		m.Install, m.Session, m.Handed, m.Installed = "", "", time.Time{}, time.Time{}
		m.Error = ""
		return nil
	})
}

// silence is how long a machine may say nothing while it works, by its stage.
var silence = map[string]time.Duration{
	StageBooting: 10 * time.Minute, StageHello: time.Minute, StageWaiting: time.Minute,
	protocol.StageFetch: time.Minute, protocol.StageWrite: time.Minute, protocol.StageVerify: time.Minute,
}

// Trouble is what a person should know of: the machine's last error, or that it went silent in the middle. "" for nothing.
func (m *Machine) Trouble(now time.Time) string {
	if m.silent(now) {
		return "silent since " + m.Last.Local().Format(time.TimeOnly) + ": is its cable in, and is it on? It goes on where it was when the link is back. " + m.Error
	}
	return m.Error
}

// silent says whether a machine that works has not been heard of for too long.
func (m *Machine) silent(now time.Time) bool {
	limit, works := silence[m.Stage]
	return works && now.Sub(m.Last) > limit
}

// told says whether the machine's installer has said what it is, at some start.
func (m *Machine) told() bool { return m.Board != "" }

func (m *Machine) claim() Claim {
	return Claim{MAC: m.MAC, Cards: m.Cards, Serial: m.Serial, UUID: m.UUID, Early: !m.told()}
}

// fate says what became of an installation that was begun.
func (m *Machine) fate() string {
	if !m.Installed.IsZero() {
		return "was installed at " + m.Installed.Format(time.RFC3339)
	}
	if m.Handed.IsZero() {
		return "was approved by a person"
	}
	return "got its node config at " + m.Handed.Format(time.RFC3339) + " and did not end its installation"
}

// config reads the config that a person gave with the approval.
func (s *Store) config(mac string) ([]byte, error) { return os.ReadFile(s.file(mac, ".yaml")) }

func hash(session string) string {
	sum := sha256.Sum256([]byte(session))
	return hex.EncodeToString(sum[:])
}

func newID() string {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}
