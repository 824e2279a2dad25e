package namespace

import (
	"errors"
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

var errNoReturn = errors.New("the function ended without an answer")

// OnThrowawayThread runs f on a thread of its own, which ends with f: a goroutine that ends locked takes its thread
// along (runtime.LockOSThread). Whatever f does to its thread (unshare, setns, chdir after CLONE_FS) harms nobody.
func OnThrowawayThread(f func() error) error {
	return onOwnThread(func() (error, bool) { return f(), false })
}

// onOwnThread runs f on a locked thread; f says whether the thread is as it was and may serve others again.
//
// The process's first thread is never taken. Go cannot end it, and /proc/PID/ns of the whole process shows its
// namespaces: taken, it would keep a pod's network alive and let the daemon look as if it lived there.
func onOwnThread(f func() (err error, clean bool)) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			defer runtime.UnlockOSThread()
			done <- onOwnThread(f) // while this goroutine holds the first thread, the next one gets another
			return
		}
		answer := errNoReturn // what a panicking or exiting f gives
		defer func() { done <- answer }()
		err, clean := f()
		answer = err
		if clean {
			runtime.UnlockOSThread()
		}
	}()
	return <-done
}

// InNet runs f on a thread inside the network namespace at path, in a goroutine of its own. The thread ends with f if it
// cannot be brought back.
func InNet(path string, f func() error) error {
	target, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("cannot open network namespace %s: %w", path, err)
	}
	defer unix.Close(target)
	return onOwnThread(func() (error, bool) {
		home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("cannot open own network namespace: %w", err), true
		}
		defer unix.Close(home)
		if err := unix.Setns(target, unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("cannot enter network namespace %s: %w", path, err), true
		}
		err = f()
		return err, unix.Setns(home, unix.CLONE_NEWNET) == nil
	})
}
