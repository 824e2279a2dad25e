package shim

import (
	"errors"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	readSize  = 128 << 10 // most that one read takes from a pipe
	batchSize = 256 << 10 // most that one write gives to a log

	// chattyPipe is what a pipe is grown to once its reader finds it full: its writer then runs on while the log is written.
	chattyPipe  = 1 << 20
	defaultPipe = 64 << 10

	// keepBuffers is how long a silent stream keeps its memory.
	keepBuffers = time.Second
)

// stream copies one output of a container into its log and to whoever is attached. It waits in Go's poller, so a silent
// stream costs a goroutine and no thread, and it gives its buffers' pages back to the kernel when it has been silent for a while.
type stream struct {
	name  string
	file  *os.File
	raw   syscall.RawConn
	log   *logFile
	tee   fanout
	ended func()

	done    chan struct{} // closed at the end of output
	drained chan struct{} // closed when what was there at askDrain has been written
	asked   atomic.Bool   // askDrain was called
	hurry   chan struct{} // closed then: output no longer waits for the log's rate

	in, out []byte // mappings: address space always, memory only while in use
	rest    int    // bytes at the start of in that are the beginning of a line
	lines   lineFormatter

	used     bool // the mappings' pages may be there
	armed    bool // a wake is set that will look whether the stream has gone silent
	active   bool // output came since then
	grown    bool // the pipe was made bigger
	answered bool // askDrain has had its answer
}

var errEnd = errors.New("end of output")

func (s *stream) run() {
	defer s.ended()
	defer close(s.done)
	defer s.file.Close()
	if err := s.allocate(); err != nil {
		return // address space is exhausted: nothing can be copied, and the container gets EPIPE
	}
	defer s.free()
	for s.step() == nil {
	}
	if s.log != nil {
		s.lines.stamp(time.Now())
		s.lines.last(s.in[:s.rest])
		s.lines.write()
	}
}

func (s *stream) allocate() (err error) {
	const flags = unix.MAP_PRIVATE | unix.MAP_ANONYMOUS | unix.MAP_NORESERVE
	if s.in, err = unix.Mmap(-1, 0, lineLimit+readSize, unix.PROT_READ|unix.PROT_WRITE, flags); err != nil {
		return err
	}
	if s.out, err = unix.Mmap(-1, 0, batchSize, unix.PROT_READ|unix.PROT_WRITE, flags); err != nil {
		return err
	}
	s.lines = lineFormatter{stream: s.name, out: s.out[:0]}
	if s.log != nil {
		s.lines.flush = s.log.write
	}
	return nil
}

func (s *stream) free() {
	unix.Munmap(s.in)
	unix.Munmap(s.out)
}

// step handles one read, or one wake without data. Its error is errEnd.
func (s *stream) step() error {
	n, err := s.read()
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded) && s.asked.Load() && !s.answered:
		return s.drain()
	case errors.Is(err, os.ErrDeadlineExceeded):
		s.relax()
		return nil
	case err != nil:
		return errEnd
	}
	s.take(n)
	s.pause(s.log.debt())
	return nil
}

// pause keeps the container waiting, as soon as its pipe is full.
func (s *stream) pause(d time.Duration) {
	if d <= 0 {
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-s.hurry:
	}
}

// read waits for output; while the stream holds buffers, not for ever.
func (s *stream) read() (n int, err error) {
	waitErr := s.raw.Read(func(fd uintptr) bool {
		n, err = s.readNow(int(fd))
		if err == unix.EAGAIN && s.used && !s.armed {
			s.wake(time.Now().Add(keepBuffers))
			s.armed, s.active = true, false
		}
		return err != unix.EAGAIN
	})
	if waitErr != nil {
		return 0, waitErr
	}
	return n, err
}

// wake sets when a read without data returns, unless askDrain wants it to return now.
func (s *stream) wake(at time.Time) {
	s.file.SetReadDeadline(at)
	if s.asked.Load() && !s.answered {
		s.file.SetReadDeadline(time.Unix(1, 0))
	}
}

// relax gives the buffers' pages back if nothing came since it was decided to look. Only the beginning of a line stays.
func (s *stream) relax() {
	s.armed = false
	s.wake(time.Time{})
	if s.active {
		return
	}
	page := os.Getpagesize()
	unix.Madvise(s.in[(s.rest+page-1)/page*page:], unix.MADV_DONTNEED)
	unix.Madvise(s.out, unix.MADV_DONTNEED)
	s.used = false
}

// readNow reads without waiting. A terminal whose other side is closed gives EIO.
func (s *stream) readNow(fd int) (int, error) {
	for {
		n, err := unix.Read(fd, s.in[s.rest:])
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return 0, err
		case n == 0:
			return 0, errEnd
		}
		return n, nil
	}
}

// take hands on what a read brought.
func (s *stream) take(n int) {
	s.used, s.active = true, true
	data := s.in[s.rest : s.rest+n]
	s.tee.write(data)
	if s.log == nil {
		return
	}
	if n >= defaultPipe && !s.grown && !s.log.isHeld() {
		s.grown = true
		control(s.file, func(fd int) error {
			_, err := unix.FcntlInt(uintptr(fd), unix.F_SETPIPE_SZ, chattyPipe)
			return err // the user's pipe quota is used up, or it is a terminal: it works as it is
		})
	}
	s.lines.stamp(time.Now())
	rest := s.lines.lines(s.in[:s.rest+n])
	s.lines.write()
	s.rest = copy(s.in, rest)
}

// askDrain makes the stream close drained soon.
func (s *stream) askDrain() {
	if s.asked.Swap(true) {
		return
	}
	close(s.hurry)
	s.file.SetReadDeadline(time.Unix(1, 0))
}

// drain takes what is there and no more than a pipe can hold, since a process that survives the container may write for ever.
func (s *stream) drain() error {
	s.answered, s.armed = true, false
	s.file.SetReadDeadline(time.Time{})
	for taken := 0; taken < chattyPipe; {
		n := 0
		err := control(s.file, func(fd int) (err error) { n, err = s.readNow(fd); return err })
		if err == unix.EAGAIN {
			break
		}
		if err != nil {
			return errEnd
		}
		s.take(n)
		taken += n
	}
	close(s.drained)
	return nil
}
