// Command pause is process 1 of a pod's sandbox: it holds the pod's namespaces open, reaps the orphans of pods that share
// their process namespace, and leaves at once when told to stop. It imports as little as it can, for one runs per pod.
package main

import (
	"os"
	"os/signal"
	"syscall"
)

func main() {
	// Notify before the first wait, so that no signal falls between.
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	child := make(chan os.Signal, 1)
	signal.Notify(child, syscall.SIGCHLD)

	reap()
	for {
		select {
		case <-stop:
			return
		case <-child:
			reap()
		}
	}
}

// reap collects every child that has exited; one SIGCHLD may stand for many.
func reap() {
	for {
		pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
	}
}
