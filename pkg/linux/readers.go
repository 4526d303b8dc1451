package linux

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Readers hears of programs that are about to read files of a folder, which wait for it.
type Readers struct{ f *os.File }

const aboutToRead = unix.FAN_OPEN_PERM | unix.FAN_ACCESS_PERM

// HearReaders is for the files right in dir. What this program itself opens is not told.
func HearReaders(dir string) (*Readers, error) {
	fd, err := unix.FanotifyInit(unix.FAN_CLASS_CONTENT|unix.FAN_CLOEXEC|unix.FAN_NONBLOCK, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_LARGEFILE)
	if err != nil {
		return nil, fmt.Errorf("hearing who reads %s: %w", dir, err)
	}
	r := &Readers{os.NewFile(uintptr(fd), "fanotify")}
	if err := unix.FanotifyMark(fd, unix.FAN_MARK_ADD, aboutToRead|unix.FAN_EVENT_ON_CHILD, unix.AT_FDCWD, dir); err != nil {
		return nil, errors.Join(fmt.Errorf("hearing who reads %s: %w", dir, err), r.Close())
	}
	return r, nil
}

// Close lets everybody read.
func (r *Readers) Close() error { return r.f.Close() }

// Run calls before for each reader, which reads once it returns. Run returns when r is closed.
func (r *Readers) Run(before func()) error {
	var waiting sync.WaitGroup
	defer waiting.Wait()
	allow := func(fd int32) {
		answer := binary.NativeEndian.AppendUint32(nil, uint32(fd))
		_, _ = r.f.Write(binary.NativeEndian.AppendUint32(answer, unix.FAN_ALLOW))
		_ = unix.Close(int(fd))
	}
	buf := make([]byte, 4096)
	for {
		n, err := r.f.Read(buf)
		if errors.Is(err, os.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		for at := 0; at+int(unsafe.Sizeof(unix.FanotifyEventMetadata{})) <= n; {
			e := *(*unix.FanotifyEventMetadata)(unsafe.Pointer(&buf[at]))
			switch {
			case e.Fd < 0: // events were lost; nobody waits
			case int(e.Pid) == os.Getpid():
				allow(e.Fd)
			default: // beside this loop: before may open a file of the folder itself
				waiting.Go(func() { before(); allow(e.Fd) })
			}
			at += int(e.Event_len)
		}
	}
}
