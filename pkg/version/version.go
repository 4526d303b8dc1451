// Package version says which Skerry this is. The values come from git by way of the linker (see the Makefile); a plain
// `go build` gives a binary that calls itself "dev".
package version

import (
	"fmt"
	"runtime"
	"strconv"
	"time"
)

// Set by -ldflags -X. They are strings because the linker sets nothing else.
var (
	version   = "0.0.0-dev"
	commit    = "unknown"
	buildTime = "0" // Unix seconds of the commit, so that one commit gives one binary
)

// Version is the release's version, as in `git describe`, without the leading v.
func Version() string { return version }

// Commit is the full git commit, or "unknown".
func Commit() string { return commit }

// BuildTime is the time of the commit, in UTC. The clock of a node never goes below it. It is zero (1970) in a plain `go build`.
func BuildTime() time.Time {
	s, err := strconv.ParseInt(buildTime, 10, 64)
	if err != nil {
		return time.Unix(0, 0).UTC()
	}
	return time.Unix(s, 0).UTC()
}

// String is the line that `version` commands print.
func String(program string) string {
	return fmt.Sprintf("%s %s (commit %s, %s, %s/%s)", program, version, commit, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}
