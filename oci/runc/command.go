package runc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"
)

// call is one command of the runtime.
type call struct {
	op, id string
	args   []string
	io     *IO           // what the container's process inherits; nil: the command has no container process
	out    *bytes.Buffer // receives stdout, if wanted
}

// logFD is the descriptor a runtime finds its log at: the first after stdio.
const logFD = 3

// outputDelay is how long a runtime's output is waited for once the runtime has ended or was killed. What it has said is in the pipe
// by then, and a child that it leaves behind (it may be a script around the real one) can hold the pipe for ever.
const outputDelay = time.Second

func (r *Runc) run(ctx context.Context, c call) error {
	log, err := r.unlinked("log")
	if err != nil {
		return &Error{Op: c.op, ID: c.id, Message: err.Error(), Code: -1, cause: err}
	}
	defer log.Close()
	run := r.Run
	if run == nil {
		run = (*exec.Cmd).Run
	}
	if err := run(r.command(ctx, c, log)); err != nil && !errors.Is(err, exec.ErrWaitDelay) {
		return r.failure(ctx, c, err, log)
	}
	return nil
}

func (r *Runc) command(ctx context.Context, c call, log *os.File) *exec.Cmd {
	args := []string{"--root", r.Root, "--log", fmt.Sprintf("/proc/self/fd/%d", logFD), "--log-format", "json"}
	if r.SystemdCgroup {
		args = append(args, "--systemd-cgroup")
	}
	cmd := exec.CommandContext(ctx, r.Path, append(args, c.args...)...)
	cmd.ExtraFiles = []*os.File{log}
	switch {
	case c.io != nil:
		setFile(&cmd.Stdin, c.io.Stdin)
		setFile(&cmd.Stdout, c.io.Stdout)
		setFile(&cmd.Stderr, c.io.Stderr)
	case c.out != nil:
		cmd.Stdout, cmd.WaitDelay = c.out, outputDelay
		cmd.Stderr = log
	default:
		// What a runtime says before it has parsed --log, or while it panics.
		cmd.Stderr = log
	}
	return cmd
}

// setFile avoids an interface that holds a nil *os.File, which os/exec would not take for /dev/null.
func setFile[I any](field *I, f *os.File) {
	if f != nil {
		*field = any(f).(I)
	}
}

// unlinked makes a file that has no name and therefore cannot be left behind.
func (r *Runc) unlinked(what string) (*os.File, error) {
	if err := os.MkdirAll(r.Root, 0o700); err != nil {
		return nil, fmt.Errorf("cannot make the runtime's root: %w", err)
	}
	// Appending, since the runtime writes through a descriptor of its own and through its stderr at once.
	if f, err := os.OpenFile(r.Root, unix.O_TMPFILE|os.O_RDWR|os.O_APPEND, 0o600); err == nil {
		return f, nil
	}
	// A file system without O_TMPFILE: it has a name for a moment, in which this process could be killed.
	temp, err := os.CreateTemp(r.Root, "."+what+"-")
	if err != nil {
		return nil, fmt.Errorf("cannot make the runtime's %s file: %w", what, err)
	}
	defer temp.Close()
	defer os.Remove(temp.Name())
	f, err := os.OpenFile(temp.Name(), os.O_RDWR|os.O_APPEND, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot make the runtime's %s file: %w", what, err)
	}
	return f, nil
}

// logLimit bounds what is read back of a runtime's log. The last message counts, so the tail is read.
const logLimit = 64 << 10

func tail(f *os.File) []byte {
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil
	}
	data := make([]byte, min(size, logLimit))
	n, _ := f.ReadAt(data, max(0, size-logLimit))
	return data[:n]
}
