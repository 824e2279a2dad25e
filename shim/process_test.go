package shim

import (
	"errors"
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// TestPin: a pid may by now be nobody's, a thread's, or another process's. After a restart of the machine it often is a thread's.
func TestPin(t *testing.T) {
	self, err := processOf(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	fd, err := self.Pin()
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(fd)
	runtime.LockOSThread() // threads that are not the first have ids of their own
	defer runtime.UnlockOSThread()
	tid := make(chan int)
	go func() {
		runtime.LockOSThread() // so this is another thread
		defer runtime.UnlockOSThread()
		tid <- unix.Gettid()
		<-tid
	}()
	thread := <-tid
	defer close(tid)
	if thread == os.Getpid() { // then this one is not the first
		thread = unix.Gettid()
	}
	for what, gone := range map[string]Process{"nobody's": {PID: 1 << 22, Start: 1}, "a thread's": {PID: thread, Start: self.Start}, "another's": {PID: self.PID, Start: self.Start + 1}, "none": {}} {
		if fd, err := gone.Pin(); !errors.Is(err, os.ErrProcessDone) {
			t.Errorf("%s: descriptor %d, %v", what, fd, err)
		}
	}
}

// TestSilenceIsNotTheEnd: who cannot open anything does not know that a process is gone.
func TestSilenceIsNotTheEnd(t *testing.T) {
	self, err := processOf(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 0, Max: limit.Max}); err != nil {
		t.Fatal(err)
	}
	alive := self.Alive()
	_, pinned := self.Pin()
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if !alive {
		t.Error("a process that cannot be looked at counts as dead")
	}
	if !errors.Is(pinned, unix.EMFILE) || errors.Is(pinned, os.ErrProcessDone) {
		t.Errorf("pinning it: %v", pinned)
	}
}
