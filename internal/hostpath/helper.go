package hostpath

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
)

// Mode is the helper program's first argument.
const Mode = "hostpath"

// answerLimit bounds what is read of a helper, in bytes: a directory may hold any number of devices.
const answerLimit = 4 << 20

// A helper is one process and what it said. Its answer ends when the process does, since nobody else holds the pipe: so
// waiting for the pipe, which costs no thread, is waiting for the process.
type helper struct {
	process *os.Process
	done    chan struct{}
	text    []byte // valid once done is closed, as is err
	err     error
	killed  bool // guarded by Finder.mu
}

// reply is what a helper prints.
type reply struct {
	Answer json.RawMessage `json:",omitempty"`
	Error  string          `json:",omitempty"`
	Errno  syscall.Errno   `json:",omitempty"`
}

// ask has a helper do what args say and reads its answer. Of several that ask the same, one helper serves all: storage
// that does not answer holds one process for each thing asked, however often it is asked.
func (f *Finder) ask(ctx context.Context, answer any, path string, args ...string) error {
	for {
		h, mine, err := f.join(args)
		if err != nil {
			return err
		}
		select {
		case <-h.done:
		case <-ctx.Done():
			if mine {
				f.kill(h)
			}
			return silent(ctx, path)
		}
		if f.wasKilled(h) && ctx.Err() == nil { // by somebody who had less patience
			continue
		}
		if h.err != nil {
			return fmt.Errorf("the helper that looks it up failed: %w", h.err)
		}
		return h.read(answer)
	}
}

func (f *Finder) join(args []string) (h *helper, mine bool, err error) {
	key := strings.Join(args, "\x00")
	f.mu.Lock()
	defer f.mu.Unlock()
	if h := f.running[key]; h != nil {
		return h, false, nil
	}
	h = &helper{done: make(chan struct{})}
	out, err := h.start(f.Helper, nil, args)
	if err != nil {
		return nil, false, fmt.Errorf("cannot start the helper that looks it up: %w", err)
	}
	if f.running == nil {
		f.running = map[string]*helper{}
	}
	f.running[key] = h
	go func() {
		h.wait(out)
		f.mu.Lock()
		delete(f.running, key)
		f.mu.Unlock()
		close(h.done)
	}()
	return h, true, nil
}

// start does not wait for anything but fork and exec of a program of ours. Without stdin it gets an empty one.
func (h *helper) start(program string, stdin *os.File, args []string) (*os.File, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	if stdin == nil {
		stdin = null
	}
	out, in, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer in.Close()
	h.process, err = os.StartProcess(program, append([]string{program, Mode}, args...), &os.ProcAttr{
		Dir: "/", Env: []string{"GOMAXPROCS=1"}, Files: []*os.File{stdin, in, null},
	})
	if err != nil {
		out.Close()
		return nil, err
	}
	return out, nil
}

func (h *helper) wait(out *os.File) {
	text, readErr := io.ReadAll(io.LimitReader(out, answerLimit+1))
	if len(text) > answerLimit {
		readErr = fmt.Errorf("its answer is longer than %d bytes", answerLimit)
	}
	out.Close() // a helper with more to say would wait for a reader
	state, err := h.process.Wait()
	switch {
	case readErr != nil:
		err = readErr
	case err != nil:
	case !state.Success():
		err = errors.New(state.String())
	}
	h.text, h.err = text, err
}

// kill uses the pidfd that package os holds. A process that waits for storage in state D dies when that answers or goes.
func (f *Finder) kill(h *helper) {
	f.mu.Lock()
	h.killed = true
	f.mu.Unlock()
	h.process.Kill()
}

func (f *Finder) wasKilled(h *helper) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return h.killed
}

func (h *helper) read(answer any) error {
	var r reply
	if err := json.Unmarshal(h.text, &r); err != nil {
		return fmt.Errorf("cannot read what the helper that looks it up said: %w", err)
	}
	switch {
	case r.Errno != 0:
		return &remote{r.Error, r.Errno}
	case r.Error != "":
		return errors.New(r.Error)
	}
	return json.Unmarshal(r.Answer, answer)
}

// remote is an error that crossed the process boundary with its number, so that errors.Is knows it.
type remote struct {
	message string
	errno   syscall.Errno
}

func (r *remote) Error() string { return r.message }
func (r *remote) Unwrap() error { return r.errno }
