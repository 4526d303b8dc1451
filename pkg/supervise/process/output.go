package process

import (
	"context"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// maxOutput is how much of a program's output Output keeps.
const maxOutput = 64 << 10

// Output runs a program to its end and gives what it wrote to both outputs, the last 64 KiB of it. An exit status other
// than 0 is an *ExitError. When ctx ends first, the program is killed.
func (r *Reaper) Output(ctx context.Context, s Spec) (string, error) {
	pr, pw, err := os.Pipe()
	if err != nil {
		return "", err
	}
	defer pr.Close()
	s.Stdout, s.Stderr = pw, pw
	c, err := r.Start(s)
	_ = pw.Close()
	if err != nil {
		return "", err
	}
	read := make(chan string, 1)
	go func() {
		t := tail{max: maxOutput}
		_, _ = io.Copy(&t, pr) // ends when the program and all it started have closed the pipe, or with pr
		read <- string(t.buf)
	}()
	select {
	case <-c.Done():
	case <-ctx.Done():
		_ = c.Signal(unix.SIGKILL)
		<-c.Done()
		_ = pr.Close()
		return <-read, &ExitError{Path: s.Path, Status: c.Status(), Output: context.Cause(ctx).Error()}
	}
	var out string
	select {
	case out = <-read:
	case <-ctx.Done(): // something it started holds the pipe
		_ = pr.Close()
		out = <-read
	}
	if c.Status().Code() != 0 {
		return out, &ExitError{Path: s.Path, Status: c.Status(), Output: out}
	}
	return out, nil
}

// tail keeps the last max bytes written.
type tail struct {
	max int
	buf []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.buf = append(t.buf, p...)
	if over := len(t.buf) - t.max; over > 0 {
		t.buf = append(t.buf[:0], t.buf[over:]...)
	}
	return len(p), nil
}
