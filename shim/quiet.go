package shim

import (
	"runtime/debug"
	"sync"
	"time"
)

// When the shim has been quiet for quietFor after calls that leave garbage (an exec leaves about 10 KB), it gives memory
// back to the kernel. Otherwise its heap stays as large as a burst of probes has made it. What stays in any case are Go's own
// books: for each size of object that was ever collected the collector keeps a few pages.
const (
	quietFor     = time.Second
	garbageCalls = 32
)

// quiet notices that the shim has nothing to do. It sets a timer only when something was done.
type quiet struct {
	mu    sync.Mutex
	calls int
	timer *time.Timer
}

func (q *quiet) worked() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.calls++; q.calls < garbageCalls {
		return
	}
	if q.timer == nil {
		q.timer = time.AfterFunc(quietFor, q.tidy)
	} else {
		q.timer.Reset(quietFor)
	}
}

func (q *quiet) tidy() {
	q.mu.Lock()
	q.calls = 0
	q.mu.Unlock()
	debug.FreeOSMemory()
}
