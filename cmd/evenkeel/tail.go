package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// tail reads one CRI log file and, when Follow is set, what is appended to it until ended closes. It sleeps in inotify and
// survives rotation: the renamed file is read to its end before the new one.
type tail struct {
	Path   string
	Lines  int // start at the last so many records; negative: at the beginning
	Follow bool
	Since  time.Time // skip what is older
	Line   func(logLine) error

	// Skipped hears how many lines were no log lines and what was wrong with the first: a machine that lost its power may leave
	// some. It is called once for what the log had at first and, where it is followed, once more for the rest.
	Skipped func(count int, first error)

	told  bool
	bad   int // since Skipped was called
	first error
}

// run returns nil at the end of the log, or the context's error.
func (t *tail) run(ctx context.Context, ended <-chan struct{}) error {
	defer t.tell()
	f, err := os.Open(t.Path)
	if err != nil {
		return fmt.Errorf("cannot open log: %w", err)
	}
	defer func() { f.Close() }()
	if err := seekTail(f, t.Lines); err != nil {
		return fmt.Errorf("cannot find the last %d lines of %s: %w", t.Lines, t.Path, err)
	}
	if !t.Follow {
		return t.drain(&lineReader{r: bufio.NewReader(f)})
	}
	watch, err := watchLog(t.Path)
	if err != nil {
		return fmt.Errorf("cannot watch %s: %w", t.Path, err)
	}
	defer watch.Close()
	return t.follow(ctx, ended, f, watch)
}

func (t *tail) follow(ctx context.Context, ended <-chan struct{}, f *os.File, watch *os.File) error {
	stop := wakeWhen(ctx, ended, watch)
	defer stop()
	first, lines := f, &lineReader{r: bufio.NewReader(f)}
	defer func() {
		if f != first {
			f.Close()
		}
	}()
	for {
		// Asked before reading, so that what was written before the end is read after it.
		last := isClosed(ended)
		if err := t.drain(lines); err != nil {
			return err
		}
		next, err := t.rotated(f)
		switch {
		case err != nil:
			return err
		case next != nil:
			// The writer is told to reopen after the rename; until then it writes to the old file.
			if err := t.drain(lines); err != nil {
				next.Close()
				return err
			}
			if f != first {
				f.Close()
			}
			f, lines = next, &lineReader{r: bufio.NewReader(next)}
			continue
		case ctx.Err() != nil:
			return ctx.Err()
		case last:
			return nil
		}
		if err := waitEvent(watch); err != nil {
			return err
		}
	}
}

// rotated opens the file that has taken the path's name, or returns nil when it is still the one that is read.
func (t *tail) rotated(f *os.File) (*os.File, error) {
	now, err := os.Stat(t.Path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot follow log: %w", err)
	}
	old, err := f.Stat()
	if err != nil || os.SameFile(old, now) {
		return nil, err
	}
	next, err := os.Open(t.Path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	return next, err
}

// tell says what has been skipped since it was last said.
func (t *tail) tell() {
	if t.bad > 0 {
		t.Skipped(t.bad, fmt.Errorf("%s: %w", t.Path, t.first))
		t.told, t.bad, t.first = true, 0, nil
	}
}

func (t *tail) drain(lines *lineReader) error {
	for {
		raw, ok, err := lines.next()
		if err != nil {
			return fmt.Errorf("cannot read log %s: %w", t.Path, err)
		}
		if !ok {
			if !t.told {
				t.tell()
			}
			return nil
		}
		line, err := parseLogLine(raw)
		if err != nil {
			t.bad, t.first = t.bad+1, cmp.Or(t.first, err)
			continue
		}
		if line.Time.Before(t.Since) {
			continue
		}
		if err := t.Line(line); err != nil {
			return err
		}
	}
}

// lineReader hands out whole lines and keeps a half-written one for later.
type lineReader struct {
	r    *bufio.Reader
	half []byte
}

func (l *lineReader) next() (line []byte, ok bool, err error) {
	part, err := l.r.ReadBytes('\n')
	l.half = append(l.half, part...)
	if err == io.EOF {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	line, l.half = l.half, nil
	return line, true, nil
}

// watchLog reports, as bytes to read, that the log grew or that something took its name.
func watchLog(path string) (*os.File, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, err
	}
	watch := os.NewFile(uintptr(fd), "inotify")
	// The directory's watch reports writes to its files, too, whichever of them has the name at that time.
	if _, err := unix.InotifyAddWatch(fd, filepath.Dir(path), unix.IN_MODIFY|unix.IN_CREATE|unix.IN_MOVED_TO); err != nil {
		watch.Close()
		return nil, err
	}
	return watch, nil
}

// waitEvent returns when anything happened, or when wakeWhen cut the wait short.
func waitEvent(watch *os.File) error {
	var events [4096]byte
	if _, err := watch.Read(events[:]); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("cannot read inotify events: %w", err)
	}
	return nil
}

// wakeWhen ends all waits on watch once the context or the log has ended.
func wakeWhen(ctx context.Context, ended <-chan struct{}, watch *os.File) (stop func()) {
	quit := make(chan struct{})
	go func() {
		select {
		case <-ctx.Done():
		case <-ended:
		case <-quit:
			return
		}
		watch.SetReadDeadline(time.Unix(1, 0))
	}()
	return func() { close(quit) }
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// tailBlock is how much of the file's end is read at a time.
const tailBlock = 16 << 10

// seekTail puts the file at the start of its last n lines. Negative n leaves it at the beginning.
func seekTail(f io.ReadSeeker, n int) error {
	if n < 0 {
		return nil
	}
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil || n == 0 {
		return err
	}
	block := make([]byte, tailBlock)
	// The newline that ends the last line is not counted: it separates nothing.
	for newlines := -1; end > 0; {
		start := max(0, end-tailBlock)
		part := block[:end-start]
		if err := readAt(f, part, start); err != nil {
			return err
		}
		for i := bytes.LastIndexByte(part, '\n'); i >= 0; i = bytes.LastIndexByte(part[:i], '\n') {
			if newlines++; newlines == n {
				_, err := f.Seek(start+int64(i)+1, io.SeekStart)
				return err
			}
		}
		end = start
	}
	_, err = f.Seek(0, io.SeekStart)
	return err
}

func readAt(f io.ReadSeeker, part []byte, at int64) error {
	if _, err := f.Seek(at, io.SeekStart); err != nil {
		return err
	}
	_, err := io.ReadFull(f, part)
	return err
}
