package image

import (
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/evenkeel/evenkeel/internal/namespace"
)

// Priorities of threads that do bulk work: inflating, hashing, writing, reading back. They order the daemon's threads
// behind whatever shares its cgroup, and on nodes without cgroup weights behind every pod. Between cgroups nothing but
// the cgroups' weights counts, and on cgroup v2 a thread cannot leave its process's: there the daemon's unit decides
// (CPUWeight=, IOWeight=). Buffered writes reach the disk through the kernel's flushers, whatever a thread's I/O class.
//
// The best-effort class at its lowest level still makes progress beside a busy
// neighbour, which the idle class would not.
const (
	lowNice   = 10
	ioClass   = 2 << 13 // IOPRIO_CLASS_BE << IOPRIO_CLASS_SHIFT, include/uapi/linux/ioprio.h
	lowestIO  = ioClass | 7
	ioProcess = 1 // IOPRIO_WHO_PROCESS
)

// atLowPriority runs f on a thread of its own, which lets others go first and ends with f. It may itself use only that
// thread: goroutines that f starts run elsewhere.
func atLowPriority(f func() error) error {
	return namespace.OnThrowawayThread(func() error {
		lower()
		return f()
	})
}

// lowerForGood lets the calling goroutine, which must do nothing else until it ends, give way. Its thread ends with it.
func lowerForGood() {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() { // the first thread cannot end, and would stay low for whoever comes next
		runtime.UnlockOSThread()
		return
	}
	lower()
}

// lower gives the calling thread less. A kernel that refuses changes nothing but speed.
func lower() {
	unix.Setpriority(unix.PRIO_PROCESS, 0, lowNice) // of the thread alone: Linux counts threads, whatever POSIX says
	unix.Syscall(unix.SYS_IOPRIO_SET, ioProcess, 0, lowestIO)
}
