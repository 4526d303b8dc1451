package stock

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Usage is what a set of processes takes from the machine.
type Usage struct {
	Processes int
	Memory    int64         // bytes, with pages that several share counted in parts (PSS)
	CPU       time.Duration // since their start
	Written   int64         // bytes to disks since their start
}

// Of adds up what processes take, by their number on this host.
func Of(t testing.TB, pids ...int) (u Usage) {
	t.Helper()
	for _, pid := range pids {
		one, err := of(fmt.Sprintf("/proc/%d", pid))
		if err != nil {
			t.Fatal(err)
		}
		u.Processes++
		u.Memory += one.Memory
		u.CPU += one.CPU
		u.Written += one.Written
	}
	return u
}

// PIDs are the cluster's programs that run, by their number on this host.
func (c *Cluster) PIDs() (pids []int) {
	c.t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil {
		c.t.Fatal(err)
	}
	for _, link := range all {
		exe, err := os.Readlink(link) // an error: it has ended, or is the kernel's
		if err != nil || filepath.Dir(exe) != c.programs {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(link)))
		if err != nil {
			c.t.Fatal(err)
		}
		pids = append(pids, pid)
	}
	if len(pids) != len(Programs) {
		c.t.Fatalf("%d programs of %s run instead of %d", len(pids), c.programs, len(Programs))
	}
	return pids
}

func of(dir string) (u Usage, err error) {
	kilobytes, err := number(filepath.Join(dir, "smaps_rollup"), `(?m)^Pss:\s+([0-9]+) kB`)
	if err != nil {
		return u, err
	}
	u.Memory = kilobytes << 10
	if u.Written, err = number(filepath.Join(dir, "io"), `(?m)^write_bytes: ([0-9]+)`); err != nil {
		return u, err
	}
	b, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return u, err
	}
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:])) // utime and stime are fields 14 and 15, in hundredths of a second
	for _, text := range f[11:13] {
		ticks, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return u, err
		}
		u.CPU += time.Duration(ticks) * 10 * time.Millisecond
	}
	return u, nil
}

func number(file, form string) (int64, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	m := regexp.MustCompile(form).FindSubmatch(b)
	if m == nil {
		return 0, fmt.Errorf("%s: holds nothing like %s", file, form)
	}
	return strconv.ParseInt(string(m[1]), 10, 64)
}
