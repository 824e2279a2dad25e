package shim

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/evenkeel/evenkeel/oci/runc"
)

// stdio is the shim's end of a container's streams: pipes, or the master of its terminal.
type stdio struct {
	log     *logFile  // nil: output is dropped
	output  []*stream // stdout and stderr, or the terminal alone
	stdin   *os.File  // write end of the pipe, or the terminal; nil: the container reads /dev/null
	console *os.File
	child   runc.IO // the container's ends, closed once the runtime has them
	once    bool

	unfinished atomic.Int32 // streams that have not reached their end
	outputOver context.Context
	outputEnd  context.CancelFunc // output reached its end, or the container did
	stdinOver  context.Context
	stdinEnd   context.CancelFunc
}

func (s *server) openStdio(r CreateRequest) (*stdio, error) {
	o := &stdio{once: r.StdinOnce && !r.TTY}
	o.outputOver, o.outputEnd = context.WithCancel(context.Background())
	o.stdinOver, o.stdinEnd = context.WithCancel(context.Background())
	err := o.open(r)
	if err != nil {
		o.close()
		return nil, err
	}
	return o, nil
}

func (o *stdio) open(r CreateRequest) (err error) {
	if r.LogPath != "" {
		if o.log, err = openLog(r.LogPath, r.Log); err != nil {
			return err
		}
	}
	if r.TTY {
		return nil // the terminal arrives when the container is created
	}
	for _, end := range []struct {
		name  string
		child **os.File
	}{{"stdout", &o.child.Stdout}, {"stderr", &o.child.Stderr}} {
		read, write, err := pipe()
		if err != nil {
			return err
		}
		*end.child = write
		if err := o.addStream(end.name, read); err != nil {
			return err
		}
	}
	if r.Stdin {
		var write *os.File
		if o.child.Stdin, write, err = pipe(); err != nil {
			return err
		}
		if o.stdin, err = polled(write); err != nil {
			return err
		}
	}
	return r.Owner.give(o.child.Stdin, o.child.Stdout, o.child.Stderr)
}

// give hands pipes over. Their permissions count when a process opens /dev/stdout, a link to /proc/self/fd/1.
func (o Owner) give(files ...*os.File) error {
	if o == (Owner{}) {
		return nil
	}
	for _, f := range files {
		if f == nil {
			continue
		}
		err := control(f, func(fd int) error {
			var st unix.Stat_t
			if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFIFO {
				return err
			}
			return unix.Fchown(fd, o.UID, o.GID)
		})
		if err != nil {
			return fmt.Errorf("cannot give a pipe to user %d: %w", o.UID, err)
		}
	}
	return nil
}

func (o *stdio) addStream(name string, read *os.File) error {
	read, err := polled(read)
	if err != nil {
		return err
	}
	s := &stream{name: name, file: read, log: o.log, done: make(chan struct{}), drained: make(chan struct{}), hurry: make(chan struct{}), ended: o.finished}
	s.raw, err = read.SyscallConn()
	o.output = append(o.output, s)
	return err
}

// pipe makes blocking ends.
func pipe() (read, write *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, fmt.Errorf("cannot make a pipe: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "pipe"), os.NewFile(uintptr(fds[1]), "pipe"), nil
}

// polled returns the file in a form that costs no thread while it waits. The given one must not be used any more.
func polled(f *os.File) (*os.File, error) {
	p, err := duplicate(f)
	f.Close()
	return p, err
}

// duplicate returns a second descriptor of f, non-blocking, whose deadlines are its own.
func duplicate(f *os.File) (*os.File, error) {
	copied := -1
	err := control(f, func(fd int) (err error) {
		if copied, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0); err != nil {
			return err
		}
		return unix.SetNonblock(copied, true)
	})
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(copied), f.Name()), nil
}

func setNonblock(f *os.File, on bool) error {
	return control(f, func(fd int) error { return unix.SetNonblock(fd, on) })
}

// createOptions is what a `create` takes beside the bundle, with the listener that will be sent the terminal.
type createOptions struct {
	runc.CreateOptions
	console *os.File
}

func (s *server) createOptions(c *container) (o createOptions, cleanup func(), err error) {
	name := s.unique("create")
	o.Bundle, o.IO = c.request.Bundle, c.stdio.child
	o.PIDFile = filepath.Join(s.config.Dir, name+".pid")
	if !c.request.TTY {
		return o, func() { os.Remove(o.PIDFile) }, nil
	}
	fd, err := listenAt(s.dir, name+".sock")
	if err != nil {
		return o, nil, err
	}
	o.console = os.NewFile(uintptr(fd), name)
	o.ConsoleSocket = throughDir(s.self.PID, s.dir, name+".sock")
	return o, func() {
		o.console.Close()
		unix.Unlinkat(s.dir, name+".sock", 0)
		os.Remove(o.PIDFile)
	}, nil
}

// created takes the terminal, and drops the container's ends, so that the container's last process closes its output.
func (o *stdio) created(console *os.File) error {
	o.closeChild()
	if console == nil {
		return nil
	}
	master, err := receiveConsole(console)
	if err != nil {
		return err
	}
	o.console = master
	if o.stdin, err = duplicate(master); err != nil {
		return err
	}
	read, err := duplicate(master)
	if err != nil {
		return err
	}
	return o.addStream("stdout", read)
}

// receiveConsole does not wait: a runtime has sent the terminal before it reports success.
func receiveConsole(listener *os.File) (*os.File, error) {
	listener.SetDeadline(time.Now().Add(time.Second))
	conn, err := accept(listener)
	if err != nil {
		return nil, fmt.Errorf("the runtime sent no terminal: %w", err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(time.Second))
	// The message is the terminal's name, which nobody needs.
	_, files, err := recvmsg(conn, make([]byte, 4096))
	if err != nil || len(files) != 1 {
		closeAll(files)
		return nil, fmt.Errorf("the runtime sent %d terminals: %w", len(files), err)
	}
	return files[0], nil
}

func (o *stdio) closeChild() {
	closeAll([]*os.File{o.child.Stdin, o.child.Stdout, o.child.Stderr})
	o.child = runc.IO{}
}

func (o *stdio) run() {
	o.unfinished.Store(int32(len(o.output)))
	for _, s := range o.output {
		go s.run()
	}
}

// finished is called by each stream at its end.
func (o *stdio) finished() {
	if o.unfinished.Add(-1) == 0 {
		o.outputEnd()
		if o.log != nil {
			o.log.close()
		}
	}
}

// drain returns when all output that is in the pipes now has been written, or after the limit. What a surviving background
// process goes on to write is still copied, until it too closes its end.
func (o *stdio) drain(limit time.Duration) {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for _, s := range o.output {
		s.askDrain()
	}
	for _, s := range o.output {
		select {
		case <-s.done:
		case <-s.drained:
		case <-timer.C:
			return
		}
	}
	if o.log != nil && o.log.queue != nil {
		select {
		case <-o.log.queue.written():
		case <-timer.C:
		}
	}
}

// ended lets go of what only a living container needs.
func (o *stdio) ended() {
	o.outputEnd()
	o.closeStdin()
}

func (o *stdio) closeStdin() {
	o.stdinEnd()
	if o.stdin != nil {
		o.stdin.Close()
	}
}

func (o *stdio) close() {
	o.closeChild()
	o.ended()
	for _, s := range o.output {
		s.file.Close()
	}
	if o.console != nil {
		o.console.Close()
	}
	if o.log != nil {
		o.log.close()
	}
}

func (c *container) resize(width, height uint16) error {
	if c.stdio.console == nil {
		return fmt.Errorf("cannot resize container %s: it has no terminal", c.request.ID)
	}
	err := control(c.stdio.console, func(fd int) error {
		return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: height, Col: width})
	})
	if err != nil {
		return fmt.Errorf("cannot resize the terminal of container %s: %w", c.request.ID, err)
	}
	return nil
}

func (c *container) reopenLog(ctx context.Context) error {
	if c.stdio.log == nil {
		return nil
	}
	if err := c.stdio.log.reopen(ctx); err != nil {
		return fmt.Errorf("cannot reopen log of container %s: %w", c.request.ID, err)
	}
	return nil
}
