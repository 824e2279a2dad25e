package sandbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/evenkeel/evenkeel/shim"
)

// watchShim waits for the end of a pod's shim, which the kernel reports through a pidfd, and then ends the pod: with
// its shim it has lost its parent, its logs and its exits.
func (p *pod) watchShim(process shim.Process) {
	for err := process.Await(); err != nil; err = process.Await() {
		p.Log.Warn("cannot watch a shim; it is tried again", "pod", p.id, "pid", process.PID, "error", err)
		time.Sleep(askRest)
	}
	p.shimEnded()
}

// watchInit ends a pod whose first process has ended, by a signal from one of its containers for example: the kernel has killed
// the rest of the PID namespace with it, and no process can ever be started there again (pid_namespaces(7)).
func (p *pod) watchInit(process shim.Process) {
	if process.PID == 0 {
		return
	}
	if err := process.Await(); err != nil {
		p.Log.Warn("cannot watch the init of a pod", "pod", p.id, "pid", process.PID, "error", err)
		return
	}
	p.lost("init", process)
}

func (p *pod) shimEnded() { p.lost("shim", p.facts().Shim) }

// lost is not an error when the pod is being stopped. Otherwise the pod is over.
func (p *pod) lost(what string, process shim.Process) {
	ctx := context.Background()
	if !p.facts().ready() {
		return
	}
	p.turn.hold()
	defer p.turn.give()
	if p.gone || !p.facts().ready() {
		return
	}
	p.Log.Warn("the "+what+" of a pod ended unexpectedly; the pod is stopped", "pod", p.id, "pid", process.PID)
	if err := p.halt(ctx); err != nil {
		p.Log.Error("cannot stop a pod that has lost its "+what, "pod", p.id, "error", err)
	}
}

// waitPidfd waits for the end of the process behind fd.
func waitPidfd(fd int, limit time.Duration) error {
	deadline := time.Now().Add(limit)
	for {
		left := time.Until(deadline)
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, max(0, int(left.Milliseconds())))
		switch {
		case n > 0:
			return nil
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return err
		default:
			return fmt.Errorf("a killed process still exists after %s", limit)
		}
	}
}
