package shim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// logFile is the file both streams of a container write to. Each batch is one write(2) to a file opened with O_APPEND, so
// that the streams need no lock between them, and rotation never waits for a disk that hangs.
//
// A write that fails drops its bytes: the container goes on. They are counted, and the next write that succeeds is preceded by
// a line that tells.
type logFile struct {
	path   string
	policy LogPolicy
	file   atomic.Pointer[os.File] // nil once closed
	queue  *logQueue               // nil: the container waits for each write
	budget budget
	gap    gap

	size    atomic.Int64 // of the file, with what room was reserved for; kept with LogPolicy.Max only
	full    atomic.Int32
	bytes   atomic.Uint64 // written since the container was made
	dropped atomic.Uint64

	reopening chan struct{} // held by an open of the path, which may never return

	hurt  atomic.Bool // something was lost and not told yet
	mu    sync.Mutex
	lost  int   // bytes of log that are in no file
	torn  bool  // the file ends within a line
	cause error // of the last loss
}

var errLogClosed = errors.New("its output has ended")

func openLog(path string, policy *LogPolicy) (*logFile, error) {
	f, err := createLog(path)
	if err != nil {
		return nil, err
	}
	l := &logFile{path: path, reopening: make(chan struct{}, 1)}
	if policy != nil {
		l.policy, l.budget.rate = *policy, policy.Rate
	}
	l.opened(f)
	l.file.Store(f)
	if l.policy.Drop {
		l.queue = &logQueue{wake: make(chan struct{}, 1)}
		go l.queue.run(l.writeNow, l.closeNow)
	}
	return l, nil
}

// opened begins to count the file's size anew.
func (l *logFile) opened(f *os.File) {
	if l.policy.Max == 0 {
		return
	}
	if info, err := f.Stat(); err == nil {
		l.size.Store(info.Size())
	}
	l.full.Store(fileHasRoom)
}

func createLog(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o640)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("cannot create log %s: directory %s is missing: %w", path, filepath.Dir(path), err)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot create log: %w", err)
	}
	return f, nil
}

// reopen switches to a new file at the log's path between two batches. A batch that is being written ends in the old file.
//
// Storage that does not answer costs one thread, however often it is asked, until it answers; the log goes on in the old
// file until then, and in the new one afterwards.
func (l *logFile) reopen(ctx context.Context) error {
	select {
	case l.reopening <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("an earlier reopening of %s is still waiting: %w", l.path, ctx.Err())
	}
	switched := make(chan error, 1)
	go func() {
		switched <- l.switchFile()
		<-l.reopening
	}()
	select {
	case err := <-switched:
		return err
	case <-ctx.Done():
		return fmt.Errorf("%s is not open yet: %w", l.path, ctx.Err())
	}
}

func (l *logFile) switchFile() error {
	f, err := createLog(l.path)
	if err != nil {
		return err
	}
	for {
		old := l.file.Load()
		if old == nil {
			// A container may live on after it has closed its output: its log is as any other for those who rotate it.
			f.Close()
			return nil
		}
		if l.file.CompareAndSwap(old, f) {
			l.opened(f)
			// The descriptor itself is closed when the last write on it has returned. An error of that (network file systems
			// tell here of earlier writes) must not undo the rotation: the caller would rename the old file over the new one.
			old.Close()
			return nil
		}
	}
}

// close lets the queue, if there is one, run empty first, for which nobody waits.
func (l *logFile) close() {
	l.tellGap()
	if l.queue != nil {
		l.queue.end()
		return
	}
	l.closeNow()
}

func (l *logFile) closeNow() {
	if l.hurt.Load() {
		l.tell()
	}
	if f := l.file.Swap(nil); f != nil {
		f.Close()
	}
}

// write appends whole lines. It reports nothing, since the container must not notice.
func (l *logFile) write(lines []byte) {
	if l.policy == (LogPolicy{}) {
		l.writeNow(lines)
	} else {
		l.writeBounded(lines)
	}
}

func (l *logFile) writeNow(lines []byte) {
	if l.hurt.Load() && !l.tell() {
		l.lose(len(lines), false, nil)
		return
	}
	if n, err := l.put(lines); err != nil {
		whole := bytes.LastIndexByte(lines[:n], '\n') + 1
		l.lose(len(lines)-whole, n > whole, err)
	}
}

// put writes to the file of this moment.
func (l *logFile) put(data []byte) (n int, err error) {
	for {
		f := l.file.Load()
		if f == nil {
			return 0, errLogClosed
		}
		if n, err = f.Write(data); !errors.Is(err, os.ErrClosed) {
			l.bytes.Add(uint64(max(n, 0)))
			return n, err
		}
		// Reopened since the load, and nothing was written.
	}
}

func (l *logFile) lose(n int, torn bool, cause error) {
	l.dropped.Add(uint64(n))
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lost += n
	l.torn = l.torn || torn
	if cause != nil {
		l.cause = cause
	}
	l.hurt.Store(true)
}

// tell writes what was lost into the log, and reports whether it could.
func (l *logFile) tell() bool {
	l.mu.Lock()
	lost, torn, cause := l.lost, l.torn, l.cause
	l.lost, l.torn = 0, false
	l.hurt.Store(false)
	l.mu.Unlock()

	notice := lossNotice(time.Now(), lost, torn, cause)
	n, err := l.put(notice)
	if err != nil {
		l.lose(lost, torn && n == 0 || n > 1, err)
		l.dropped.Add(-uint64(lost)) // counted before
	}
	return err == nil
}

func lossNotice(now time.Time, lost int, torn bool, cause error) []byte {
	var line []byte
	if torn {
		line = append(line, '\n')
	}
	if lost == 0 {
		return line
	}
	var errno syscall.Errno
	if errors.As(cause, &errno) {
		cause = errno // without the path, which is known to who reads the log
	}
	return append(line, notice(now, fmt.Sprintf("%d bytes of log dropped: %v", lost, cause))...)
}

// notice is a record of the engine's own.
func notice(now time.Time, text string) []byte {
	return fmt.Appendf(appendHead(nil, now, "stderr", 'F'), "[evenkeel: %s]\n", text)
}
