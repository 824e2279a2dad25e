package shim

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// The first process of a pod that shares one PID namespace is this program again, in another mode (see RunInit). It lives on
// when its shim dies: with it the kernel would kill every process of the pod, and a dead shim is no reason for that. The next
// teardown of the pod ends it by its cgroup.

const readyWord = "ready"

func (s *server) startInit(r *InitRequest) (*Process, error) {
	if r == nil {
		return nil, errors.New("cannot start an init: nothing is said about it")
	}
	started, first, err := s.beginInit()
	if err != nil {
		return nil, err
	}
	if !first {
		<-started
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.init.PID == 0 {
			return nil, errors.New("cannot start the pod's init: the attempt this call waited for has failed")
		}
		return &s.init, nil
	}
	p, pidfd, err := s.forkInit(*r)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.starting = nil
	close(started)
	if err != nil {
		return nil, fmt.Errorf("cannot start the pod's init: %w", err)
	}
	s.init, s.initFD = p, pidfd
	return &p, nil
}

// beginInit returns a channel that is closed once there is an init or the attempt to start one has failed.
func (s *server) beginInit() (started chan struct{}, first bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return nil, false, errors.New("cannot start the pod's init: the shim is shutting down")
	}
	if s.starting != nil {
		return s.starting, false, nil
	}
	started = make(chan struct{})
	if s.init.PID != 0 {
		close(started)
		return started, false, nil
	}
	s.starting = started
	return started, true, nil
}

func (s *server) forkInit(r InitRequest) (Process, *os.File, error) {
	ready, child, err := pipe()
	if err != nil {
		return Process{}, nil, err
	}
	defer ready.Close()
	pid, fd, err := s.cloneInit(r, child)
	child.Close()
	if err != nil {
		return Process{}, nil, err
	}
	pidfd := os.NewFile(uintptr(fd), "pidfd")
	p, err := settleInit(pid, r.Cgroups, ready)
	if err != nil {
		signalFile(pidfd, unix.SIGKILL)
		pidfd.Close()
	}
	return p, pidfd, err
}

// cloneInit forks from a thread that has joined the namespaces, since a program in Go has several threads before its first
// line runs, of which setns would move one. The thread is not fit for anything else then: it ends with its goroutine.
func (s *server) cloneInit(r InitRequest, ready *os.File) (pid, pidfd int, err error) {
	attr := &syscall.ProcAttr{
		Dir:   s.config.Dir,
		Env:   runtimeKnobs,
		Files: []uintptr{s.reaper.null.Fd(), s.reaper.null.Fd(), os.Stderr.Fd(), ready.Fd()},
		Sys:   &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS, Setsid: true, PidFD: &pidfd},
	}
	r.Owned.apply(attr.Sys)
	onSpareThread(func() {
		if err = join(r.Namespaces); err == nil {
			s.reaper.oom.child(func() { pid, err = syscall.ForkExec("/proc/self/exe", []string{"evenkeel-shim", "init"}, attr) })
		}
	})
	return pid, pidfd, err
}

// apply makes the new process root of a user namespace that owns the process's other namespaces (user_namespaces(7)).
func (o *OwnedNamespaces) apply(sys *syscall.SysProcAttr) {
	if o == nil {
		return
	}
	ids := []syscall.SysProcIDMap{{HostID: o.FirstID, Size: o.IDs}}
	sys.Cloneflags |= uintptr(o.Flags) | unix.CLONE_NEWUSER
	sys.UidMappings, sys.GidMappings, sys.GidMappingsEnableSetgroups = ids, ids, true
	sys.Credential = &syscall.Credential{}
}

// onSpareThread runs f on a thread that ends afterwards. That cannot be the main thread: it does not end, and its namespaces
// are what /proc shows as those of the whole process.
func onSpareThread(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			onSpareThread(f) // on another thread, since this one is ours
			runtime.UnlockOSThread()
			return
		}
		f()
	}()
	<-done
}

func join(namespaces []string) error {
	for _, path := range namespaces {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			err = unix.Setns(fd, 0)
			unix.Close(fd)
		}
		if err != nil {
			return fmt.Errorf("cannot join namespace %s: %w", path, err)
		}
	}
	return nil
}

func settleInit(pid int, cgroups []string, ready io.Reader) (Process, error) {
	for _, dir := range cgroups {
		path := filepath.Join(dir, "cgroup.procs")
		if err := os.WriteFile(path, []byte(strconv.Itoa(pid)), 0); err != nil {
			return Process{}, fmt.Errorf("cannot put it into its cgroup: %w", err)
		}
	}
	said, err := io.ReadAll(io.LimitReader(ready, 4096))
	if err != nil {
		return Process{}, err
	}
	if string(said) != readyWord {
		return Process{}, fmt.Errorf("it ended: %s", said)
	}
	return processOf(pid)
}
