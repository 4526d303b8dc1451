// Init is process 1 of a Skerry machine, twice: in the initramfs, where it finds the root it was booted for, checks it and
// moves there (stage 1), and on that root, where it makes a node of the machine (stage 2). It is also /sbin/modprobe, which
// the kernel calls for modules it wants.
//
// The two sequences below are the whole boot. Each step says on every console how it went, in lines that tests and the
// progress display of `skerry` read, so their form is fixed:
//
//	skerry: <step>: ok (120ms)
//	skerry: <step>: <error>; <what happens next>
//	skerry: check-config: <n> checks passed
//	skerry: switch root: slot <a|b>, release <version>, <partition> (3.1s after power on)
//	skerry: waiting: <what the node waits for>
//	skerry: node: Ready (12.3s after power on)
//
// Lines that start with "skerry| " are the status display's, as serial consoles get it.
//
// A step that must succeed and does not restarts the machine ten seconds later, so that the firmware can choose another slot. It
// has a minute at least: a cheap card may stop for many seconds, and a restart makes no card faster. One that may fail is logged and
// the machine goes on without. A panic of the kernel restarts the machine too, and so does anything that keeps init from feeding
// the hardware watchdog. No failure leads to a shell: there is none.
//
// A debug release (skerry release build --debug) has one, on every console and, for the keys of its node config, over SSH. init
// says so, starts skerry-debug for each and keeps it running; the two steps of its own show nowhere else. No failure leads to that
// shell either. While somebody uses it on a serial console, lines for that console begin with a new line, so that they keep their
// form.
//
// Process 1 takes signals: SIGTERM and SIGINT (Ctrl-Alt-Del) restart the machine, SIGUSR1, SIGUSR2 and the power button turn
// it off.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// stage1 runs in the initramfs.
var stage1 = []step{
	must("mount kernel filesystems", mountKernel, time.Minute),
	must("read command line", readCmdline, time.Minute),
	may("load boot modules", loadBootModules, 2*time.Minute), // what is missing shows in the next steps
	may("start watchdog", startWatchdog, 10*time.Second),     // not every machine has one
	must("find slot", findSlot, 90*time.Second),              // USB disks take their time
	must("verify slot", orLeave(verifySlot), 5*time.Minute),
	must("check floor", orLeave(checkFloor), 5*time.Minute),  // nothing older than this machine may go back to
	must("count start", orLeave(countStart), 10*time.Minute), // of a kept slot: the third in vain reads the whole root
	must("open root", orLeave(openRoot), 5*time.Minute),
	must("switch root", switchRoot, time.Minute), // does not come back
}

// stageNet runs in the initramfs of a machine that was started over the network. An installed machine restarts in the middle.
var stageNet = []step{
	must("mount kernel filesystems", mountKernel, time.Minute),
	must("read command line", readCmdline, time.Minute),
	may("load boot modules", loadBootModules, 2*time.Minute),
	may("start watchdog", startWatchdog, 10*time.Second),
	must("run installer", runInstaller, installLimit),
	must("open root", openMemory, time.Minute),
	must("switch root", switchRoot, time.Minute), // does not come back
}

// stage2 runs on the verified root.
var stage2 = []step{
	must("mount node filesystems", mountNode, time.Minute),
	may("adopt watchdog", adoptWatchdog, 5*time.Second),
	must("read identity", readIdentity, time.Minute),
	may("load modules", loadModules, 90*time.Second),
	onDebug("start shells", startShells, 5*time.Second),
	must("find node", findOwnNode, forever), // on a fleet's card that fits all machines; one that it does not know waits
	must("read config", readConfig, time.Minute),
	must("mount data", mountData, 10*time.Minute),     // the first boot makes it; a check of a large one takes long
	may("note trial", noteTrial, 10*time.Second),      // only on trial: how far it gets, for the slot of before to tell
	may("settle update", settleUpdate, 5*time.Minute), // not on trial: how the last update ended; the node goes by it when it starts
	must("settle config", settleConfig, forever),      // waits for a person where there is none
	must("take seed", takeSeed, forever),              // of a fleet's first server: without it, it would begin another cluster
	may("set clock", setClock, 5*time.Second),         // a Pi wakes up in 1970; NTP follows behind us
	must("name machine", nameMachine, time.Minute),
	may("mount volumes", mountVolumes, 5*time.Minute),
	may("lay out files", layFiles, 10*time.Second),
	may("load configured modules", loadConfigured, 30*time.Second),
	may("apply kernel settings", applySysctls, 5*time.Second),
	may("check machine", checkMachine, 10*time.Second),
	may("bring up network", startNetwork, 30*time.Second), // keeps trying behind us
	may("teach firmware", teachFirmware, 30*time.Second),  // certificates of Secure Boot that the release brings
	onDebug("start SSH", startSSH, 10*time.Second),
	must("start node", startNode, time.Minute), // server or agent, as the config says
	must("judge slot", judgeSlot, judgeLimit),  // only on trial; a kept slot is never judged again
}

func main() {
	switch {
	case filepath.Base(os.Args[0]) == "modprobe":
		os.Exit(modprobe(os.Args[1:]))
	case os.Getpid() != 1:
		fmt.Fprintln(os.Stderr, "init: is process 1 of a Skerry machine, started by the kernel; there is nothing to run by hand")
		os.Exit(2)
	}
	s := newSystem()
	switch {
	case !inInitramfs():
		s.runStage2(stage2)
	case netbooted():
		s.runStage1(stageNet)
	default:
		s.runStage1(stage1)
	}
}
