package slottest_test

import (
	"testing"

	"github.com/skerry-os/skerry/pkg/slot/slottest"
)

func TestUEFI(t *testing.T)  { slottest.Run(t, slottest.UEFI{}) }
func TestUBoot(t *testing.T) { slottest.Run(t, slottest.UBoot{}) }
func TestPi(t *testing.T)    { slottest.Run(t, slottest.Pi{}) }
