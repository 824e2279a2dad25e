package hostpath

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// contentLimit bounds what is read of a file, in bytes. Base64 makes a third more of it on its way back.
const contentLimit = 1 << 20

// read refuses what is not a regular file before it opens it: the open of a pipe waits for whoever writes.
func read(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, &os.PathError{Op: "read", Path: path, Err: errors.New("it is not a regular file")}
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, contentLimit+1))
	if err == nil && len(data) > contentLimit {
		err = &os.PathError{Op: "read", Path: path, Err: fmt.Errorf("it is larger than %d bytes", contentLimit)}
	}
	return data, err
}

// Create makes a file, with mode 0600, of what write writes: whole or not at all. A path that exists gives an error
// matching fs.ErrExist.
func (f *Finder) Create(ctx context.Context, path string, write func(io.Writer) error) error {
	stdin, feed, err := os.Pipe()
	if err != nil {
		return err
	}
	defer feed.Close()
	h := &helper{done: make(chan struct{})}
	out, err := h.start(f.Helper, stdin, []string{"create", path})
	stdin.Close()
	if err != nil {
		return fmt.Errorf("cannot start the helper that writes it: %w", err)
	}
	go func() {
		h.wait(out)
		close(h.done)
	}()
	stop := context.AfterFunc(ctx, func() {
		h.process.Kill()
		feed.SetWriteDeadline(time.Unix(1, 0)) // a helper that cannot be killed does not read, either
	})
	defer stop()
	written := feedAll(feed, write)
	select {
	case <-h.done:
	case <-ctx.Done():
	}
	if ctx.Err() != nil {
		return silent(ctx, path)
	}
	if written != nil && !errors.Is(written, unix.EPIPE) { // a broken pipe is the helper's end, which has a reason
		return written
	}
	if h.err != nil {
		return fmt.Errorf("the helper that writes it failed: %w", h.err)
	}
	return h.read(&struct{}{})
}

// Content travels in pieces, each after its length, and ends with a piece of no length: a stream that merely stops is
// that of a daemon that has died or given up.
type pieces struct{ w io.Writer }

func (p pieces) Write(data []byte) (int, error) {
	if len(data) == 0 {
		return 0, nil
	}
	if err := binary.Write(p.w, binary.BigEndian, uint32(len(data))); err != nil {
		return 0, err
	}
	return p.w.Write(data)
}

func feedAll(feed *os.File, write func(io.Writer) error) error {
	defer feed.Close()
	out := bufio.NewWriterSize(pieces{feed}, 256<<10)
	if err := write(out); err != nil {
		return err
	}
	if err := out.Flush(); err != nil {
		return err
	}
	return binary.Write(feed, binary.BigEndian, uint32(0))
}

var errCutShort = errors.New("the content ended before it was complete")

func copyPieces(to io.Writer, from io.Reader) error {
	for {
		var size uint32
		if err := binary.Read(from, binary.BigEndian, &size); err != nil {
			return errCutShort
		}
		if size == 0 {
			return nil
		}
		if n, err := io.CopyN(to, from, int64(size)); err == io.EOF || n < int64(size) && err == nil {
			return errCutShort
		} else if err != nil {
			return err
		}
	}
}

// create gives the file its name when it is whole, where the file system can make files without one.
func create(path string, content io.Reader) error {
	if _, err := os.Lstat(path); err == nil {
		return &os.PathError{Op: "create", Path: path, Err: unix.EEXIST}
	}
	fd, err := unix.Open(filepath.Dir(path), unix.O_TMPFILE|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EISDIR) {
		return createNamed(path, content)
	}
	if err != nil {
		return &os.PathError{Op: "create", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	if err := copyPieces(f, content); err != nil {
		return err
	}
	if err := unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, path, unix.AT_SYMLINK_FOLLOW); err != nil {
		return &os.PathError{Op: "create", Path: path, Err: err}
	}
	return nil
}

func createNamed(path string, content io.Reader) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	err = copyPieces(f, content)
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}
