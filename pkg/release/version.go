package release

import (
	"cmp"
	"errors"
	"regexp"
	"strconv"
	"strings"
)

// ErrRollback means that a release is older than what the machine may go back to.
var ErrRollback = errors.New("is older than this machine may go back to")

// described matches what git describe says: a tag, with a pre-release after a dash, the commits since the tag, and -dirty.
var described = regexp.MustCompile(`^(\d+)\.(\d+)\.(\d+)(?:-([A-Za-z][0-9A-Za-z.]*))?(?:-(\d+)-g[0-9a-f]+)?(-dirty)?$`)

// CompareVersions orders versions: by the tag's numbers, a pre-release (1.3.0-rc1) before its release, commits since a tag
// (1.3.0-4-gabcdef0) after it. What git describe does not say is ordered by its numbers and texts, after anything it does.
func CompareVersions(a, b string) int {
	x, y := described.FindStringSubmatch(a), described.FindStringSubmatch(b)
	if x == nil || y == nil {
		if (x == nil) != (y == nil) {
			return cmp.Compare(b2i(x == nil), b2i(y == nil))
		}
		return natural(a, b)
	}
	for i := 1; i <= 3; i++ {
		if c := compareNumbers(x[i], y[i]); c != 0 {
			return c
		}
	}
	if x[4] != y[4] {
		if x[4] == "" || y[4] == "" {
			return cmp.Compare(b2i(x[4] == ""), b2i(y[4] == ""))
		}
		return natural(x[4], y[4])
	}
	return cmp.Or(compareNumbers(x[5], y[5]), cmp.Compare(len(x[6]), len(y[6])))
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

func compareNumbers(a, b string) int {
	a, b = strings.TrimLeft(a, "0"), strings.TrimLeft(b, "0")
	return cmp.Or(cmp.Compare(len(a), len(b)), strings.Compare(a, b))
}

var pieces = regexp.MustCompile(`\d+|\D+`)

func natural(a, b string) int {
	x, y := pieces.FindAllString(a, -1), pieces.FindAllString(b, -1)
	for i := range min(len(x), len(y)) {
		_, ex := strconv.ParseUint(x[i], 10, 64)
		_, ey := strconv.ParseUint(y[i], 10, 64)
		c := strings.Compare(x[i], y[i])
		if ex == nil && ey == nil {
			c = compareNumbers(x[i], y[i])
		}
		if c != 0 {
			return c
		}
	}
	return cmp.Compare(len(x), len(y))
}
