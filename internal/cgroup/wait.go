package cgroup

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// lostEvent is how long an event is trusted to come, in milliseconds. The kernel sends it from a work queue
// (fs/kernfs/file.c, kernfs_notify), and drops it if the cgroup is removed before the work runs: whoever else removes it,
// such as the shim's runtime, may leave us waiting for nothing.
const lostEvent = 20

// waitEmpty blocks until nobody is in a v2 cgroup and below, or ctx ends. The kernel reports a change of cgroup.events
// as POLLPRI (cgroup-v2.rst, "Populated Notification").
func waitEmpty(ctx context.Context, dir string) error {
	events, err := unix.Open(filepath.Join(dir, "cgroup.events"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if vanished(err) { // nobody is in what is not there
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(events)
	cancelled, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(cancelled)
	finished := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(finished)
		unix.Write(cancelled, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	})
	defer func() {
		if !stop() {
			<-finished // the descriptor must not be closed, and maybe reused, before the write
		}
	}()
	for ctx.Err() == nil {
		if empty, err := isEmpty(events); empty || err != nil { // read before each wait: that also arms the event
			return err
		}
		fds := []unix.PollFd{{Fd: int32(events), Events: unix.POLLPRI}, {Fd: int32(cancelled), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, lostEvent); err != nil && err != unix.EINTR {
			return err
		}
	}
	return ctx.Err()
}

func isEmpty(events int) (bool, error) {
	var buffer [256]byte
	n, err := unix.Pread(events, buffer[:], 0)
	if vanished(err) {
		return true, nil
	}
	return bytes.Contains(buffer[:max(n, 0)], []byte("populated 0")), err
}

// awaitExit returns when the process has ended, which its pidfd tells on every kind of machine, or after limit, or when
// ctx ends. It holds no thread meanwhile.
func awaitExit(ctx context.Context, pid int, limit time.Duration) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return // gone already, or about to be looked at again
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	defer f.Close()
	f.SetReadDeadline(time.Now().Add(limit))
	defer context.AfterFunc(ctx, func() { f.SetReadDeadline(time.Unix(1, 0)) })()
	conn, err := f.SyscallConn()
	if err != nil {
		return
	}
	conn.Read(func(fd uintptr) bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		return err == nil && n > 0
	})
}
