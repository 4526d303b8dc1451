package main

import (
	"testing"

	"github.com/skerry-os/skerry/cmd/internal/helptest"
)

func TestHelp(t *testing.T) { helptest.Check(t, newRootCmd()) }
