package agent

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// Helpers finds the folders that come with the engine: libexec/skerry and share/skerry beside the folder of the running
// program, as in a release's root and in a build's output, else the system's.
func Helpers(executable string) (libexec, share string) {
	prefix := filepath.Dir(filepath.Dir(executable))
	libexec, share = "/usr/libexec/skerry", "/usr/share/skerry"
	if p := filepath.Join(prefix, "libexec/skerry"); isDir(p) {
		libexec = p
	}
	if p := filepath.Join(prefix, "share/skerry"); isDir(p) {
		share = p
	}
	return libexec, share
}

func isDir(name string) bool {
	info, err := os.Stat(name)
	return err == nil && info.IsDir()
}

func findProgram(libexec, name string) (string, error) {
	if p := filepath.Join(libexec, name); isProgram(p) {
		return p, nil
	}
	p, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("%s: neither in %s nor in PATH; install it, or put it into that folder", name, libexec)
	}
	return filepath.Abs(p)
}

func isProgram(name string) bool {
	info, err := os.Stat(name)
	return err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0
}
