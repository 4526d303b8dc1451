// Package imagetest holds what the tests of images share: independent tools to compare with, and a small signed release.
package imagetest

import (
	"os"
	"os/exec"
	"testing"
)

// Tool gives the path of a program that judges our output. Where it is not installed, the comparison is skipped on a
// desk and fails in CI (CI or SKERRY_TOOLS=1 in the environment), with the name of the Debian package to install.
func Tool(t testing.TB, name, debianPackage string) string {
	t.Helper()
	for _, p := range []string{name, "/usr/sbin/" + name, "/sbin/" + name} {
		if path, err := exec.LookPath(p); err == nil {
			return path
		}
	}
	msg := name + " is not installed; to compare with it: apt-get install " + debianPackage
	if os.Getenv("CI") != "" || os.Getenv("SKERRY_TOOLS") == "1" {
		t.Fatal(msg)
	}
	t.Skip(msg)
	return ""
}

// Run runs a tool and gives what it printed; a non-zero exit fails the test.
func Run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}
