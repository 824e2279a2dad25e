package image

import (
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

func nice(t *testing.T) int {
	t.Helper()
	n, err := unix.Getpriority(unix.PRIO_PROCESS, 0)
	if err != nil {
		t.Fatal(err)
	}
	return 20 - n // getpriority(2): the system call answers 20 minus nice
}

func TestLowPriorityEndsWithItsWork(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before := nice(t)
	low := 0
	if err := atLowPriority(func() error { low = nice(t); return os.ErrExist }); err != os.ErrExist {
		t.Error(err)
	}
	if low != max(before, lowNice) || nice(t) != before {
		t.Errorf("nice was %d, %d inside, and is %d", before, low, nice(t))
	}
	// No thread that others may get stays low.
	for range 100 {
		done := make(chan int)
		go func() { done <- nice(t) }()
		if n := <-done; n != before {
			t.Fatalf("a goroutine runs at nice %d", n)
		}
	}
}

// TestUnpackRunsLow looks at the threads of a process that pulls.
func TestUnpackRunsLow(t *testing.T) {
	h, s := newHub(t), newStore(t)
	low := 0
	ref := h.push(t, "app:1", imageOf(t, "", pack("gzip", file{"a", noise(1, 8<<20), 0})))
	_, err := s.Pull(deadline(t), ref, PullOptions{Progress: func(p Progress) {
		if p.Phase == "downloading" && p.Done > 0 {
			low = max(low, nice(t))
		}
	}})
	if err != nil || low < lowNice {
		t.Errorf("the unpack ran at nice %d, %v", low, err)
	}
}
