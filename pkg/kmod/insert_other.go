//go:build !linux

package kmod

import "errors"

// insert is for nodes; the desk tool only resolves modules.
func insert(_, _ string) error { return errors.ErrUnsupported }
