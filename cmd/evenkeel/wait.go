package main

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/shim"
)

// settleLimit bounds how long a container that has exited may take to show its exit, also across a restart of the daemon.
const settleLimit = 2 * time.Minute

// wait returns the status of a container that runs no longer. It sleeps on the process itself, through a pidfd, and so it
// neither polls nor depends on the daemon's life in between.
func (e *engine) wait(ctx context.Context, id string) (*cri.ContainerStatus, error) {
	s, pid, err := e.statusAndPid(ctx, id)
	if err != nil || pid == 0 {
		return s, err
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil && !shim.NoProcess(err) {
		return nil, fmt.Errorf("cannot watch process %d of container %s: %w", pid, shortID(id), err)
	}
	if err == nil {
		defer unix.Close(fd)
		// Only a container that still runs proves that the pidfd is its process and not a later one of the same number.
		if s, pid, err = e.statusAndPid(ctx, id); err != nil || pid == 0 {
			return s, err
		}
		if err := sleepOn(ctx, fd); err != nil {
			return nil, err
		}
	}
	return e.settled(ctx, id)
}

// settled asks until the engine has taken note of an exit: the shim reaps and records within milliseconds, and a daemon
// that restarts just now answers when it is back.
func (e *engine) settled(ctx context.Context, id string) (*cri.ContainerStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, settleLimit)
	defer cancel()
	for pause := 2 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		answer, err := e.pods.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: id}, grpc.WaitForReady(true))
		switch {
		case err == nil && answer.Status.State == cri.ContainerState_CONTAINER_EXITED:
			return answer.Status, nil
		case err != nil && status.Code(err) != codes.Unavailable:
			return nil, fmt.Errorf("cannot learn how container %s ended: %w", shortID(id), err)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("container %s has no process any more, but the engine does not say how it ended: %w", shortID(id), ctx.Err())
		case <-time.After(pause):
		}
	}
}

// statusAndPid gives a pid for a running container only. One that cannot be asked about is an error: it may well run.
func (e *engine) statusAndPid(ctx context.Context, id string) (*cri.ContainerStatus, int, error) {
	answer, err := e.pods.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: id, Verbose: true}, grpc.WaitForReady(true))
	if err != nil {
		return nil, 0, fmt.Errorf("cannot ask for the status of container %s: %w", shortID(id), err)
	}
	switch answer.Status.State {
	case cri.ContainerState_CONTAINER_RUNNING:
	case cri.ContainerState_CONTAINER_UNKNOWN:
		return nil, 0, fmt.Errorf("the engine cannot ask container %s for its state at the moment", shortID(id))
	default:
		return answer.Status, 0, nil
	}
	var info struct {
		Pid int `json:"pid"`
	}
	if err := json.Unmarshal([]byte(answer.Info["info"]), &info); err != nil || info.Pid <= 0 {
		return nil, 0, fmt.Errorf("the engine does not tell the process of container %s", shortID(id))
	}
	return answer.Status, info.Pid, nil
}

// sleepOn returns when the process behind a pidfd has exited, or with the context's error.
func sleepOn(ctx context.Context, pidfd int) error {
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("cannot make an eventfd: %w", err)
	}
	defer unix.Close(wake)
	woken := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		unix.Write(wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
		close(woken)
	})
	defer func() {
		// The descriptor must outlive a writer that has begun.
		if !stop() {
			<-woken
		}
	}()
	fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}, {Fd: int32(wake), Events: unix.POLLIN}}
	for {
		_, err := unix.Poll(fds, -1)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return fmt.Errorf("cannot wait for a process: %w", err)
		case fds[0].Revents != 0:
			return nil
		default:
			return ctx.Err()
		}
	}
}
