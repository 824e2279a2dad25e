package main

import (
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
	"k8s.io/client-go/tools/remotecommand"
)

// terminal is the operator's own, in raw mode while a session lasts. It tells the other side of each change of its size.
type terminal struct {
	fd      int
	before  *term.State
	changed chan os.Signal
	closed  chan struct{}
	once    sync.Once
}

// openTerminal puts the terminal behind in into raw mode. Input from elsewhere (a pipe, a script) has no terminal: nil.
func openTerminal(in io.Reader) (*terminal, error) {
	f := stdinFile(in)
	if f == nil || !term.IsTerminal(int(f.Fd())) {
		return nil, nil
	}
	before, err := term.MakeRaw(int(f.Fd()))
	if err != nil {
		return nil, fmt.Errorf("cannot put the terminal into raw mode: %w", err)
	}
	t := &terminal{fd: int(f.Fd()), before: before, changed: make(chan os.Signal, 1), closed: make(chan struct{})}
	signal.Notify(t.changed, unix.SIGWINCH)
	t.changed <- unix.SIGWINCH // the first size is sent at once
	return t, nil
}

// Close gives the terminal back as it was. It is safe on nil and more than once.
func (t *terminal) Close() error {
	if t == nil {
		return nil
	}
	var err error
	t.once.Do(func() {
		signal.Stop(t.changed)
		close(t.closed)
		err = term.Restore(t.fd, t.before)
	})
	return err
}

// Next waits for the next size; nil when the session is over.
func (t *terminal) Next() *remotecommand.TerminalSize {
	select {
	case <-t.closed:
		return nil
	case <-t.changed:
	}
	width, height, err := term.GetSize(t.fd)
	if err != nil {
		return nil
	}
	return &remotecommand.TerminalSize{Width: uint16(width), Height: uint16(height)}
}
