package namespace

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// InEachNet calls f inside each of the network namespaces in turn, for questions that take microseconds: a thread per
// namespace would cost more than the question, and on a busy machine even one new thread waits for its turn. So the
// caller's own thread goes there and comes back. What cannot be entered is given to f with the error.
func InEachNet(paths []string, f func(i int, err error)) error {
	if len(paths) == 0 {
		return nil
	}
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() { // the process's first thread is never taken, see onOwnThread
		runtime.UnlockOSThread()
		return OnThrowawayThread(func() error { visit(paths, f); return nil })
	}
	home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("cannot open own network namespace: %w", err)
	}
	defer unix.Close(home)
	visit(paths, f)
	if err := unix.Setns(home, unix.CLONE_NEWNET); err != nil {
		// The thread stays locked and ends with its goroutine, so that nobody else comes to run in a foreign network.
		return fmt.Errorf("cannot return to own network namespace: %w", err)
	}
	runtime.UnlockOSThread()
	return nil
}

func visit(paths []string, f func(i int, err error)) {
	for i, path := range paths {
		f(i, enterNet(path))
	}
}

func enterNet(path string) error {
	target, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("cannot open network namespace %s: %w", path, err)
	}
	defer unix.Close(target)
	if err := unix.Setns(target, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("cannot enter network namespace %s: %w", path, err)
	}
	return nil
}
