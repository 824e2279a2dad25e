package shim

import (
	"bytes"
	"errors"
	"fmt"
	"sync"
	"time"
)

// LogPolicy bounds a container's log. The zero value bounds nothing: the container waits until its output is written, and a
// log that cannot be written loses it.
type LogPolicy struct {
	Drop bool  `json:",omitempty"` // what the log cannot take in time is dropped and counted; the container never waits
	Rate int64 `json:",omitempty"` // bytes of log per second, on average over some seconds; 0: any
	// Max is the size of one log file in bytes, notices included; 0: any. What is more is dropped until ReopenLog, also
	// without Drop: a container must not wait for a rotation that may never come.
	Max int64 `json:",omitempty"`
}

const (
	// noticeRoom is kept free below Max, for what is to be told about the rest.
	noticeRoom = 512
	// queueLimit is what a log with Drop may lag behind its container.
	queueLimit = 1 << 20
)

var errLogSlow = errors.New("the disk was slower than the container")

// budget is a token bucket: it holds what may be written at once, a second's worth at most. One that is overdrawn is in debt.
type budget struct {
	rate int64

	mu    sync.Mutex
	level int64
	at    time.Time
	spent bool // dropping, until half a second's worth has come together: one notice for many lines
}

func (b *budget) refill(now time.Time) {
	if b.at.IsZero() {
		b.level = b.rate
	} else if since := now.Sub(b.at); since > 0 {
		b.level = min(b.rate, b.level+int64(since.Seconds()*float64(b.rate)))
	}
	b.at = now
}

// pay spends n bytes and returns how long to wait until they are paid for.
func (b *budget) pay(n int, now time.Time) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.refill(now)
	b.level -= int64(n)
	if b.level >= 0 {
		return 0
	}
	return time.Duration(float64(-b.level) / float64(b.rate) * float64(time.Second))
}

// afford spends what there is on the first records and returns their length.
func (b *budget) afford(records []byte, now time.Time) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.refill(now)
	if b.spent && b.level < b.rate/2 {
		return 0
	}
	n := wholeRecords(records, b.level)
	b.level -= int64(n)
	b.spent = n < len(records)
	return n
}

// wholeRecords is the length of the records that fit into room.
func wholeRecords(records []byte, room int64) int {
	if int64(len(records)) <= room {
		return len(records)
	}
	return bytes.LastIndexByte(records[:max(room, 0)], '\n') + 1
}

// gap is what the policy left out and nobody was told of yet.
type gap struct {
	mu    sync.Mutex
	bytes int
	cause error
}

func (g *gap) add(n int, cause error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.bytes += n
	g.cause = cause
}

func (g *gap) take() (n int, cause error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	n, g.bytes = g.bytes, 0
	return n, g.cause
}

// writeBounded writes what the policy lets into the log. What it leaves out is told when something is let in again.
func (l *logFile) writeBounded(records []byte) {
	n, cause := l.admit(records)
	if n > 0 {
		l.tellGap()
		if !l.deliver(records[:n]) {
			l.size.Add(-int64(n))
			n, cause = 0, errLogSlow
		}
	}
	if left := len(records) - n; left > 0 {
		l.dropped.Add(uint64(left))
		l.gap.add(left, cause)
	}
	l.tellFull()
}

// deliver hands records on to be written. Refusing is for the queue only.
func (l *logFile) deliver(records []byte) bool {
	if l.queue != nil {
		return l.queue.push(records)
	}
	l.writeNow(records)
	return true
}

// admit returns how many bytes of the records, whole ones, the policy lets into the log, and why not all.
func (l *logFile) admit(records []byte) (n int, cause error) {
	n = len(records)
	if l.policy.Rate > 0 && !l.policy.Drop {
		l.budget.pay(n, time.Now()) // the stream waits before it reads on
	} else if l.policy.Rate > 0 {
		if n = l.budget.afford(records, time.Now()); n < len(records) {
			cause = fmt.Errorf("more than %d bytes per second", l.policy.Rate)
		}
	}
	if l.policy.Max > 0 {
		if fits := l.fit(records[:n]); fits < n {
			n, cause = fits, fmt.Errorf("a file of this log is limited to %d bytes", l.policy.Max)
		}
	}
	return n, cause
}

// fit reserves room in the file, so that two streams cannot fill the same. A file that was full stays so until it is rotated,
// also for a shorter record that would fit: its last line says that nothing follows.
func (l *logFile) fit(records []byte) (n int) {
	if l.full.Load() != fileHasRoom {
		return 0
	}
	for {
		size := l.size.Load()
		n = wholeRecords(records, l.policy.Max-noticeRoom-size)
		if l.size.CompareAndSwap(size, size+int64(n)) {
			break
		}
	}
	if n < len(records) {
		l.full.CompareAndSwap(fileHasRoom, fileIsFull)
	}
	return n
}

// tellGap writes how much was left out, if anything was.
func (l *logFile) tellGap() {
	n, cause := l.gap.take()
	if n == 0 {
		return
	}
	line := notice(time.Now(), fmt.Sprintf("%d bytes of log dropped: %v", n, cause))
	if !l.deliver(line) {
		l.gap.add(n, cause)
		return
	}
	l.size.Add(int64(len(line)))
}

// States of logFile.full.
const (
	fileHasRoom = iota
	fileIsFull
	fullnessTold
)

// tellFull ends a full file with a line that says so.
func (l *logFile) tellFull() {
	if l.full.CompareAndSwap(fileIsFull, fullnessTold) {
		l.deliver(notice(time.Now(), fmt.Sprintf("this file has reached its limit of %d bytes: what follows is dropped until it is rotated", l.policy.Max)))
	}
}

// debt is how long the container is to wait until its output is within its rate.
func (l *logFile) debt() time.Duration {
	if l == nil || !l.isHeld() {
		return 0
	}
	return l.budget.pay(0, time.Now())
}

// isHeld tells whether the container is slowed down to a rate.
func (l *logFile) isHeld() bool { return l.policy.Rate > 0 && !l.policy.Drop }

// logQueue stands between a container that must not wait and a disk that may be slow.
type logQueue struct {
	wake chan struct{}

	mu      sync.Mutex
	pending []byte
	busy    bool            // the writer has taken what was pending before
	over    bool            // nothing comes any more
	waiting []chan struct{} // closed when all is written
}

func (q *logQueue) push(records []byte) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.over || len(q.pending)+len(records) > queueLimit {
		return false
	}
	q.pending = append(q.pending, records...)
	q.poke()
	return true
}

func (q *logQueue) poke() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// next returns what is pending, and whether that was the last. Taking says that the previous is written.
func (q *logQueue) next(spare []byte) (records []byte, over bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	records, q.pending = q.pending, spare
	q.busy = len(records) > 0
	if !q.busy {
		for _, c := range q.waiting {
			close(c)
		}
		q.waiting, q.pending = nil, nil
	}
	return records, q.over
}

func (q *logQueue) end() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.over = true
	q.poke()
}

// written returns a channel that is closed when all that was pushed before is written.
func (q *logQueue) written() <-chan struct{} {
	q.mu.Lock()
	defer q.mu.Unlock()
	c := make(chan struct{})
	if !q.busy && len(q.pending) == 0 {
		close(c)
		return c
	}
	q.waiting = append(q.waiting, c)
	q.poke()
	return c
}

// run writes until the queue is over and empty.
func (q *logQueue) run(write func([]byte), finish func()) {
	defer finish()
	var spare []byte
	for range q.wake {
		for {
			records, over := q.next(spare[:0])
			if len(records) == 0 && over {
				return
			}
			if len(records) == 0 {
				spare = nil
				break
			}
			write(records)
			spare = records
		}
	}
}
