package sandbox

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// A console is the unix socket over which an OCI runtime sends the master of a new terminal (runc, docs/terminals.md).
type console struct {
	path     string // short enough for a socket address: it leads through a descriptor of this process
	file     string
	dir      *os.File
	listener *net.UnixListener
}

func listenConsole(dir string) (*console, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("cannot make a console socket: %w", err)
	}
	name := "console-" + newID()[:12]
	path := fmt.Sprintf("/proc/%d/fd/%d/%s", os.Getpid(), d.Fd(), name)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		d.Close()
		return nil, fmt.Errorf("cannot make a console socket: %w", err)
	}
	return &console{path: path, file: filepath.Join(dir, name), dir: d, listener: l}, nil
}

// receive waits for the terminal, no longer than ctx.
func (c *console) receive(ctx context.Context) (*os.File, error) {
	stop := context.AfterFunc(ctx, func() { c.listener.Close() })
	defer stop()
	conn, err := c.listener.AcceptUnix()
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	space := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := conn.ReadMsgUnix(make([]byte, 256), space)
	if err != nil {
		return nil, err
	}
	messages, err := unix.ParseSocketControlMessage(space[:n])
	if err != nil || len(messages) == 0 {
		return nil, errors.Join(errors.New("the runtime sent no terminal"), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) == 0 {
		return nil, errors.Join(errors.New("the runtime sent no terminal"), err)
	}
	unix.CloseOnExec(fds[0])
	unix.SetNonblock(fds[0], true)
	return os.NewFile(uintptr(fds[0]), "terminal"), nil
}

func (c *console) close() {
	c.listener.Close()
	os.Remove(c.file)
	c.dir.Close()
}
