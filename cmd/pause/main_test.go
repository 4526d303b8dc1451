package main

import (
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMain turns the test program into pause itself, or into the parent of an orphan, when asked to.
func TestMain(m *testing.M) {
	switch os.Getenv("PAUSE_TEST_ROLE") {
	case "pause":
		if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
			os.Exit(3)
		}
		// A grandchild whose parent exits at once is handed to pause, as in a pod with a shared process namespace.
		orphan := exec.Command("/bin/sh", "-c", "( read line <&3; exit 0 ) & exit 0")
		orphan.ExtraFiles = []*os.File{os.Stdin}
		if err := orphan.Start(); err != nil {
			os.Exit(4)
		}
		main()
		// Nothing may be left to wait for: an unreaped zombie would be found here.
		if pid, _ := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); pid > 0 {
			os.Exit(5)
		}
		os.Exit(0)
	default:
		os.Exit(m.Run())
	}
}

func TestPauseReapsAndStops(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run(sig.String(), func(t *testing.T) {
			read, write, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), "PAUSE_TEST_ROLE=pause")
			cmd.Stdin = read
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			_ = read.Close()
			waitChildren(t, cmd.Process.Pid, 1) // the shell is reaped, the orphan lives
			_ = write.Close()                   // the orphan ends
			waitChildren(t, cmd.Process.Pid, 0)
			if err := cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			done := make(chan error, 1)
			go func() { done <- cmd.Wait() }()
			select {
			case err := <-done:
				if err != nil {
					t.Errorf("after %v: %v", sig, err)
				}
			case <-time.After(10 * time.Second):
				_ = cmd.Process.Kill()
				t.Errorf("still running 10 s after %v", sig)
			}
		})
	}
}
