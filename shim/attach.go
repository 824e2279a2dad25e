package shim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// attachLimit is what an attached reader may lag behind before it loses output.
const attachLimit = 1 << 20

// fanout copies a stream's output to those who are attached.
type fanout struct {
	attached atomic.Int32 // so that a stream nobody watches takes no lock

	mu      sync.Mutex
	readers []*reader
}

func (f *fanout) write(data []byte) {
	if f.attached.Load() == 0 {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range f.readers {
		r.push(data)
	}
}

func (f *fanout) add(r *reader) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.readers = append(f.readers, r)
	f.attached.Store(int32(len(f.readers)))
}

func (f *fanout) remove(r *reader) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range f.readers {
		if f.readers[i] == r {
			f.readers = append(f.readers[:i], f.readers[i+1:]...)
			break
		}
	}
	f.attached.Store(int32(len(f.readers)))
}

// reader is one attached descriptor. Whoever pushes never waits for it.
type reader struct {
	file *os.File
	wake chan struct{}

	mu      sync.Mutex
	pending []byte
	over    bool // nothing will be pushed any more
}

func (r *reader) push(data []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if room := attachLimit - len(r.pending); len(data) > room {
		data = data[:room]
	}
	r.pending = append(r.pending, data...)
	r.poke()
}

func (r *reader) poke() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

func (r *reader) finish() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.over = true
	r.poke()
}

func (r *reader) next() (data []byte, over bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	data, r.pending = r.pending, nil
	return data, r.over
}

// run writes until the peer has gone, or all that was pushed before finish is written.
func (r *reader) run() {
	for range r.wake {
		data, over := r.next()
		if _, err := r.file.Write(data); err != nil || over {
			return
		}
	}
}

// attachment is one Attach call.
type attachment struct {
	stdin *os.File
	out   []*attachedOutput

	stdinOver context.Context
	stdinEnd  context.CancelFunc

	work sync.WaitGroup // copying
	live atomic.Int32   // descriptors whose peer is still there
	gone chan struct{}  // closed when there is none
}

type attachedOutput struct {
	reader
	stream *stream
}

func (s *server) attach(ctx context.Context, id string, files [3]*os.File) error {
	c, err := s.get(id)
	if err != nil {
		return err
	}
	a := &attachment{gone: make(chan struct{})}
	defer a.stop()
	if err = a.connect(c.stdio, files); err == nil && c.hasEnded() {
		err = errors.New("it has ended")
	}
	if err != nil {
		return fmt.Errorf("cannot attach to container %s: %w", id, err)
	}
	a.run(c.stdio)
	select {
	case <-c.stdio.outputOver.Done():
		a.finish(ctx)
	case <-a.gone:
	case <-ctx.Done():
	}
	if a.stdin != nil && c.stdio.once {
		c.stdio.closeStdin()
	}
	return nil
}

// connect takes descriptors of its own, which stop closes.
func (a *attachment) connect(o *stdio, files [3]*os.File) (err error) {
	a.stdinOver, a.stdinEnd = context.WithCancel(o.stdinOver)
	for i, f := range files {
		if f == nil || i > len(o.output) {
			continue // a terminal has no stderr
		}
		if f, err = duplicate(f); err != nil {
			return err
		}
		a.live.Add(1)
		if i == 0 {
			a.stdin = f
		} else {
			a.out = append(a.out, &attachedOutput{reader{file: f, wake: make(chan struct{}, 1)}, o.output[i-1]})
		}
	}
	if a.live.Load() == 0 {
		return errors.New("no stream is asked for")
	}
	return nil
}

// run starts to copy.
func (a *attachment) run(o *stdio) {
	for _, out := range a.out {
		out.stream.tee.add(&out.reader)
		a.work.Go(out.run)
		go a.watch(out.file)
	}
	if a.stdin != nil {
		a.work.Go(func() { a.copyStdin(o) })
	}
}

// finish lets the readers take what is pending; they may take their time, until ctx ends or their peers go.
func (a *attachment) finish(ctx context.Context) {
	for _, out := range a.out {
		out.stream.tee.remove(&out.reader)
		out.reader.finish()
	}
	a.stdinEnd()
	written := make(chan struct{})
	go func() { a.work.Wait(); close(written) }()
	select {
	case <-written:
	case <-a.gone:
	case <-ctx.Done():
	}
}

// stop drops what is pending and returns when nothing is copied any more.
func (a *attachment) stop() {
	a.stdinEnd()
	for _, out := range a.out {
		out.stream.tee.remove(&out.reader)
		out.reader.finish()
		out.file.Close()
	}
	a.work.Wait()
	if a.stdin != nil {
		a.stdin.Close()
	}
}

// watch notices a peer that goes while nothing is written: the kernel tells with POLLERR or POLLHUP.
func (a *attachment) watch(f *os.File) {
	raw, err := f.SyscallConn()
	if err != nil {
		return
	}
	err = raw.Read(func(fd uintptr) bool {
		p := []unix.PollFd{{Fd: int32(fd)}}
		n, err := unix.Poll(p, 0)
		return n > 0 || err != nil && err != unix.EINTR
	})
	if err == nil {
		a.lost()
	}
}

func (a *attachment) lost() {
	if a.live.Add(-1) == 0 {
		close(a.gone)
	}
}

// copyStdin ends with the attached descriptor, the attachment or the container's stdin. It writes through a descriptor of
// its own, so that closing that unblocks it when the container does not read.
func (a *attachment) copyStdin(o *stdio) {
	defer a.lost()
	if o.stdin == nil {
		return
	}
	stdin, err := duplicate(o.stdin)
	if err != nil {
		return
	}
	defer stdin.Close()
	defer context.AfterFunc(a.stdinOver, func() { a.stdin.Close(); stdin.Close() })()
	io.Copy(onlyWriter{stdin}, onlyReader{a.stdin})
	if o.once {
		o.closeStdin()
	}
}

// io.Copy would splice, which cannot be undone where the container does not read: what is in the inner pipe would be lost.
type (
	onlyReader struct{ io.Reader }
	onlyWriter struct{ io.Writer }
)
