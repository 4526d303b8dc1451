//go:build !linux

package vm

import "syscall"

// Machines are run on Linux; the desk tool is built for other systems to flash with.
func childAttr(bool) *syscall.SysProcAttr { return nil }
