//go:build linux

package vm

import (
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"
)

// A process whose first thread has ended runs on: what it holds, as a lock of a disk, it still holds.
func TestProcessOutlivesItsFirstThread(t *testing.T) {
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), "SKERRY_TEST_THREADS=1")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	start, err := processStart(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond) // the thread ends after it has said so
	p := process{cmd.Process.Pid, start}
	if !p.alive() {
		t.Error("the process counts as ended")
	}
	_ = in.Close()
	for deadline := time.Now().Add(10 * time.Second); p.alive(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the process does not count as ended")
		}
	}
	_ = cmd.Wait()
}

// Variables are initialised in the first thread.
var _ = endFirstThread()

func endFirstThread() bool {
	if os.Getenv("SKERRY_TEST_THREADS") == "" {
		return false
	}
	go func() {
		_, _ = os.Stdin.Read(make([]byte, 1))
		os.Exit(0)
	}()
	_, _ = os.Stdout.WriteString("x")
	_, _, _ = syscall.RawSyscall(syscall.SYS_EXIT, 0, 0, 0) // ends this thread alone
	return true
}
