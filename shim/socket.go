package shim

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Names inside a pod's state directory.
const (
	socketName = "shim.sock"
	pidName    = "shim.pid"
	configName = "shim.json"
	stderrName = "shim.log"
)

// Package net is not used: it is much to link into every pod, with resolvers and their tables, for sockets that have no network.

// listen makes a listening socket Dir/name that only root can connect to. The path of a socket address holds 108 bytes, which a
// state directory may well exceed, so sockets are bound and connected to through a descriptor of their directory.
func listen(dir, name string) (fd int, err error) {
	d, err := openDir(dir)
	if err != nil {
		return -1, err
	}
	defer unix.Close(d)
	return listenAt(d, name)
}

func listenAt(dir int, name string) (int, error) {
	fd, err := unixSocket()
	if err != nil {
		return -1, err
	}
	// The mode of the socket before bind is the mode of the file after it, less the umask.
	err = unix.Fchmod(fd, 0o600)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrUnix{Name: throughDir(os.Getpid(), dir, name)})
	}
	if err == nil {
		err = unix.Listen(fd, unix.SOMAXCONN)
	}
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("cannot listen on socket %s: %w", name, err)
	}
	return fd, nil
}

// connect gives EAGAIN when the backlog is full.
func connect(dir, name string) (fd int, err error) {
	d, err := openDir(dir)
	if err != nil {
		return -1, err
	}
	defer unix.Close(d)
	if fd, err = unixSocket(); err != nil {
		return -1, err
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: throughDir(os.Getpid(), d, name)}); err != nil {
		unix.Close(fd)
		return -1, &os.PathError{Op: "connect", Path: filepath.Join(dir, name), Err: err}
	}
	return fd, nil
}

// throughDir is a short path of a name in a directory that this process has open.
func throughDir(pid, dir int, name string) string {
	return fmt.Sprintf("/proc/%d/fd/%d/%s", pid, dir, name)
}

func openDir(dir string) (int, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	return fd, nil
}

func unixSocket() (int, error) {
	return unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
}

// accept takes the next connection from a non-blocking listener without costing a thread while it waits.
func accept(l *os.File) (*os.File, error) {
	raw, err := l.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd := -1
	var acceptErr error
	err = raw.Read(func(listener uintptr) bool {
		fd, _, acceptErr = unix.Accept4(int(listener), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
		return acceptErr != unix.EAGAIN && acceptErr != unix.EINTR && acceptErr != unix.ECONNABORTED
	})
	if err == nil {
		err = acceptErr
	}
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "connection"), nil
}
