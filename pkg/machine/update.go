package machine

import (
	"cmp"
	"fmt"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// UpdateFile is where init puts the Update of the config for skerryd, below the root.
const UpdateFile = "run/skerry/update.json"

// RestartFile is where skerryd puts what the firmware is to be told at the restart it then asks init for, below the root.
const RestartFile = "run/skerry/restart"

// TrustDir is where stage 1 puts the keys of the signed kernel image, below the root: release keys as *.pub, the repository's
// root.json.
const TrustDir = "run/skerry/trust"

// FirmwareUpdate ends the names of files in TrustDir that teach the firmware new certificates of Secure Boot, after the name of the
// variable: PK, KEK or db.
const FirmwareUpdate = "-update.auth"

// The policies.
const (
	UpdateAuto  = "auto"  // look and update
	UpdateCheck = "check" // look and tell
)

// Update says where new releases come from, and when.
type Update struct {
	Source   string   `yaml:"source" json:"source,omitempty" help:"web address or folder of a repository of releases"`
	Channel  string   `yaml:"channel" json:"channel,omitempty" pattern:"^[a-z0-9][a-z0-9.-]{0,62}$" default:"stable" help:"which of the repository's channels to follow"`
	Policy   string   `yaml:"policy" json:"policy,omitempty" enum:"auto,check" default:"auto" help:"auto looks and updates; check looks and tells, and leaves the rest to skerryd update apply"`
	Interval string   `yaml:"interval" json:"interval,omitempty" default:"6h" help:"time between two looks"`
	Windows  []string `yaml:"windows" json:"windows,omitempty" pattern:"^([01][0-9]|2[0-3]):([0-5][0-9])-([01][0-9]|2[0-3]):([0-5][0-9])$" default:"always" help:"when the machine may restart, in UTC, as in 02:00-05:00"`
	Deadline string   `yaml:"deadline" json:"deadline,omitempty" default:"10m" help:"time for a new release to be as healthy as the one before"`
	Stick    bool     `yaml:"stick" json:"stick,omitempty" help:"take releases from USB sticks too"`
	Debug    bool     `yaml:"debug" json:"debug,omitempty" help:"take debug releases too, which have a shell on every console; a machine that runs one needs no leave"`
	Drain    Drain    `yaml:"drain" json:"drain,omitzero" help:"how pods leave before the machine restarts into a new release, where other nodes can take them"`
}

// Drain says how pods leave before the machine restarts into a new release, in a cluster where others can take them.
type Drain struct {
	Deadline string `yaml:"deadline" json:"deadline,omitempty" default:"5m" help:"time for all pods together"`
	Stuck    string `yaml:"stuck" json:"stuck,omitempty" enum:"skip,force,stop" default:"skip" help:"what of pods that do not leave: skip restarts all the same, force deletes them, stop calls the update off"`
}

// stuckPolicies are pkg/drain's: what becomes of pods that do not leave.
var stuckPolicies = []string{"skip", "force", "stop"}

// Patience is how long all pods together may take to leave.
func (d Drain) Patience() time.Duration { return duration(d.Deadline, 5*time.Minute) }

// Auto says whether the machine updates itself.
func (u Update) Auto() bool { return u.Policy != UpdateCheck }

// Every is the time between two looks.
func (u Update) Every() time.Duration { return duration(u.Interval, 6*time.Hour) }

// Patience is how long a new release may take to be healthy.
func (u Update) Patience() time.Duration { return duration(u.Deadline, 10*time.Minute) }

func duration(text string, otherwise time.Duration) time.Duration {
	if d, err := time.ParseDuration(text); err == nil {
		return d
	}
	return otherwise
}

// Open says whether a machine may restart at a moment.
func (u Update) Open(now time.Time) bool {
	now = now.UTC()
	minute := now.Hour()*60 + now.Minute()
	for _, w := range u.Windows {
		from, to, ok := window(w)
		if ok && (from <= to && from <= minute && minute < to || from > to && (minute >= from || minute < to)) {
			return true
		}
	}
	return len(u.Windows) == 0
}

// Opens is how long it takes until a machine may restart; 0 is now.
func (u Update) Opens(now time.Time) time.Duration {
	if u.Open(now) {
		return 0
	}
	now = now.UTC()
	day := now.Sub(time.Date(now.Year(), now.Month(), now.Day(), 0, 0, 0, 0, time.UTC))
	least := 24 * time.Hour
	for _, w := range u.Windows {
		if from, _, ok := window(w); ok {
			least = min(least, (time.Duration(from)*time.Minute-day+24*time.Hour)%(24*time.Hour))
		}
	}
	return max(least, time.Second)
}

var windowForm = regexp.MustCompile(`^([01][0-9]|2[0-3]):([0-5][0-9])-([01][0-9]|2[0-3]):([0-5][0-9])$`)

// window reads 02:00-05:00 as minutes of the day.
func window(text string) (from, to int, ok bool) {
	m := windowForm.FindStringSubmatch(text)
	if m == nil {
		return 0, 0, false
	}
	var n [4]int
	for i := range n {
		n[i], _ = strconv.Atoi(m[i+1]) // two digits
	}
	return n[0]*60 + n[1], n[2]*60 + n[3], true
}

var channelForm = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{0,62}$`)

func (u *Update) problems(p *problems) {
	if u.Source != "" {
		l, err := url.Parse(u.Source)
		told := err == nil && (l.User != nil || l.RawQuery != "")
		web := err == nil && (l.Scheme == "http" || l.Scheme == "https") && l.Host != ""
		if told {
			p.add("holds a user, a password or a question, as in ?a=b; write the address without: anybody may read a repository", "update", "source")
		} else if !web && (!path.IsAbs(u.Source) || path.Clean(u.Source) != u.Source) {
			p.addf([]any{"update", "source"}, "%q is neither an http(s) address nor a folder", u.Source)
		}
	}
	if u.Channel != "" && !channelForm.MatchString(u.Channel) {
		p.addf([]any{"update", "channel"}, "%q is not a channel: small letters, digits, dots and dashes", u.Channel)
	}
	if s := cmp.Or(u.Policy, UpdateAuto); s != UpdateAuto && s != UpdateCheck {
		p.addf([]any{"update", "policy"}, "%q is not a policy; write %s or %s", u.Policy, UpdateAuto, UpdateCheck)
	}
	for _, d := range []struct {
		at          []any
		text        string
		least, most time.Duration
	}{
		{[]any{"update", "interval"}, u.Interval, 10 * time.Second, 30 * 24 * time.Hour},
		{[]any{"update", "deadline"}, u.Deadline, time.Minute, 2 * time.Hour},
		{[]any{"update", "drain", "deadline"}, u.Drain.Deadline, time.Second, 2 * time.Hour},
	} {
		if d.text == "" {
			continue
		}
		v, err := time.ParseDuration(d.text)
		if err != nil || v < d.least || v > d.most {
			p.addf(d.at, "%q is not a time from %s to %s, as in 1h30m", d.text, short(d.least), short(d.most))
		}
	}
	if s := u.Drain.Stuck; s != "" && !slices.Contains(stuckPolicies, s) {
		p.addf([]any{"update", "drain", "stuck"}, "%q is not a policy; write one of %s", s, strings.Join(stuckPolicies, ", "))
	}
	for i, w := range u.Windows {
		if from, to, ok := window(w); !ok || from == to {
			p.addf([]any{"update", "windows", i}, "%q is not a window; write 02:00-05:00, in UTC", w)
		}
	}
}

func short(d time.Duration) string {
	if d >= time.Hour {
		return fmt.Sprintf("%.0fh", d.Hours())
	}
	if d >= time.Minute {
		return fmt.Sprintf("%.0fm", d.Minutes())
	}
	return fmt.Sprintf("%.0fs", d.Seconds())
}
