package shim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// How long the last output of a container that has ended may take to reach its log before the exit is told, and how long
// the runtime may take to undo what it made.
const (
	drainLimit = 2 * time.Second
	undoLimit  = 30 * time.Second
)

// container is one that `runtime create` has made.
type container struct {
	request CreateRequest
	stdio   *stdio
	process Process
	pidfd   *os.File
	leaves  leaf // where those of its execs go; zero: nowhere
	oom     oomWatch
	killed  atomic.Bool // a caller had us send SIGKILL

	ended   chan struct{} // closed when the exit is on disk
	deleted chan struct{} // closed when the runtime's state is gone, or could not be removed

	mu        sync.Mutex
	startedAt time.Time
	starting  *attempt // the last start, running or over
	exit      *Exit
	deleteErr error
	runtime   bool
}

// attempt is a start that several callers may wait for.
type attempt struct {
	done chan struct{}
	err  error
}

func (a *attempt) over() bool {
	select {
	case <-a.done:
		return true
	default:
		return false
	}
}

func (s *server) create(ctx context.Context, r *CreateRequest) (*Process, error) {
	if r == nil || r.ID == "" {
		return nil, errors.New("cannot create a container without an id")
	}
	if err := s.reserve(r.ID); err != nil {
		return nil, err
	}
	c, err := s.build(ctx, *r)
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.making[r.ID])
	delete(s.making, r.ID)
	if err != nil {
		delete(s.containers, r.ID)
		return nil, err // whoever asked knows what for
	}
	s.containers[r.ID] = c
	return &c.process, nil
}

func (s *server) reserve(id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, taken := s.containers[id]; taken {
		return errors.New("the shim holds a container of this id already")
	}
	if s.stopped {
		return errors.New("the shim is shutting down")
	}
	s.containers[id], s.making[id] = nil, make(chan struct{})
	return nil
}

// made waits for the end of a create whose caller has gone: what it has made is still being removed.
func (s *server) made(ctx context.Context, id string) error {
	s.mu.Lock()
	making := s.making[id]
	s.mu.Unlock()
	if making == nil {
		return nil
	}
	select {
	case <-making:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("cannot forget container %s: it is still being made, or removed: %w", id, ctx.Err())
	}
}

// build makes the container or leaves nothing of it.
func (s *server) build(ctx context.Context, r CreateRequest) (*container, error) {
	c := &container{request: r, runtime: true, ended: make(chan struct{}), deleted: make(chan struct{})}
	var err error
	if c.stdio, err = s.openStdio(r); err != nil {
		return nil, err
	}
	b := s.reaper.begin()
	defer b.end()
	c.oom = watchOOM(r.Cgroup)
	ending, err := s.runCreate(ctx, c, b)
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoLimit)
		defer cancel()
		err = errors.Join(err, s.runtime(undo).Delete(undo, r.ID))
		c.release()
		return nil, err
	}
	c.leaves = leavesOf(c.process)
	if s.config.SystemdCgroup {
		c.oom.follow()
	}
	// Only now: what a failing runtime writes to the stdio it hands down is not the container's output.
	c.stdio.run()
	go s.bury(c, ending)
	return c, nil
}

func (s *server) runCreate(ctx context.Context, c *container, b *birth) (<-chan ending, error) {
	o, cleanup, err := s.createOptions(c)
	if err != nil {
		return nil, err
	}
	defer cleanup()
	if err := s.runtime(ctx).Create(ctx, c.request.ID, o.CreateOptions); err != nil {
		return nil, err
	}
	if err := c.stdio.created(o.console); err != nil {
		return nil, err
	}
	pid, err := readPID(o.PIDFile)
	if err != nil {
		return nil, err
	}
	ending := b.claim(pid)
	return ending, c.hold(pid, ending)
}

var errStillborn = errors.New("its first process ended before it was started")

// hold pins the first process. Only our reaper can free its pid, so as long as no ending was delivered the pid is still the one
// the runtime wrote down.
func (c *container) hold(pid int, ending <-chan ending) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return fmt.Errorf("%w: %w", errStillborn, err)
	}
	c.pidfd = os.NewFile(uintptr(fd), "pidfd")
	if c.process, err = processOf(pid); err != nil {
		return fmt.Errorf("%w: %w", errStillborn, err)
	}
	if len(ending) > 0 {
		return errStillborn
	}
	return nil
}

func readPID(path string) (int, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, fmt.Errorf("the runtime wrote no pid file: %w", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil || pid <= 1 {
		return 0, fmt.Errorf("the runtime wrote a pid file with %q", data)
	}
	return pid, nil
}

// bury waits for the end and tells it: to the disk first, then to those who wait.
func (s *server) bury(c *container, ending <-chan ending) {
	x := exitOf(<-ending)
	c.oom.judge(&x, c.process, c.killed.Load())
	c.stdio.drain(drainLimit)
	if err := writeExit(filepath.Join(s.config.Exits, c.request.ID), x); err != nil {
		s.complain(err)
	}
	c.mu.Lock()
	c.exit = &x
	c.mu.Unlock()
	close(c.ended)
	c.stdio.ended()
	s.deleteRuntime(c)
}

// deleteRuntime removes what the runtime still keeps, which also ends processes that survive in a shared PID namespace.
// It is done right away, so that removing an ended container later runs no program.
func (s *server) deleteRuntime(c *container) {
	ctx, cancel := context.WithTimeout(context.Background(), undoLimit)
	defer cancel()
	err := s.runtime(ctx).Delete(ctx, c.request.ID)
	if err != nil {
		s.complain(fmt.Errorf("container %s: %w", c.request.ID, err))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.deleteErr, c.runtime = err, err != nil
	close(c.deleted)
}

func (s *server) start(id string) (time.Time, error) {
	c, err := s.get(id)
	if err != nil {
		return time.Time{}, err
	}
	a, first := c.beginStart()
	if first {
		// Not under the caller's context: a start cannot be taken back, and the next daemon must find it made.
		err := s.runtime(context.Background()).Start(context.Background(), id)
		c.endStart(a, err)
	}
	<-a.done
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.startedAt, a.err
}

// beginStart joins a start that is running or has succeeded. The time is taken before the runtime runs, so that no
// container ends before it has started.
func (c *container) beginStart() (a *attempt, first bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.startedAt.IsZero() {
		return c.starting, false
	}
	c.starting = &attempt{done: make(chan struct{})}
	c.startedAt = time.Now()
	return c.starting, true
}

func (c *container) endStart(a *attempt, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if a.err = err; err != nil {
		c.startedAt = time.Time{}
	}
	close(a.done)
}

func (s *server) wait(ctx context.Context, id string) (*Exit, error) {
	c, err := s.get(id)
	if err != nil {
		return nil, err
	}
	select {
	case <-c.ended:
		return c.exit, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (c *container) hasEnded() bool {
	select {
	case <-c.ended:
		return true
	default:
		return false
	}
}

func (c *container) state() ContainerState {
	c.mu.Lock()
	defer c.mu.Unlock()
	state := ContainerState{ID: c.request.ID, Process: c.process, StartedAt: c.startedAt, Exit: c.exit, Runtime: c.runtime}
	state.Starting = c.starting != nil && !c.starting.over()
	if log := c.stdio.log; log != nil {
		state.LogBytes, state.LogLost = log.bytes.Load(), log.dropped.Load()
	}
	return state
}

func (c *container) signal(signal unix.Signal) error {
	if signal == unix.SIGKILL {
		c.killed.Store(true)
	}
	if err := signalFile(c.pidfd, signal); err != nil {
		return fmt.Errorf("cannot signal container %s: %w", c.request.ID, err)
	}
	return nil
}

func (s *server) forget(ctx context.Context, id string) error {
	if err := s.made(ctx, id); err != nil {
		return err
	}
	c, err := s.get(id)
	if err != nil {
		return nil
	}
	if !c.hasEnded() {
		return fmt.Errorf("cannot forget container %s: it lives", id)
	}
	select {
	case <-c.deleted:
	case <-ctx.Done():
		return ctx.Err()
	}
	if c.deleteErr != nil { // another try, now that somebody hears the error
		if err := s.runtime(ctx).Delete(ctx, id); err != nil {
			return fmt.Errorf("cannot forget container %s: %w", id, err)
		}
	}
	if s.take(c) {
		c.release()
	}
	return nil
}

// take makes the caller the one who releases the container.
func (s *server) take(c *container) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	held := s.containers[c.request.ID] == c
	if held {
		delete(s.containers, c.request.ID)
	}
	return held
}

// release closes every descriptor the container has. It is called once, when nothing can reach the container any more, and without
// a lock: the log's storage may not answer.
func (c *container) release() {
	c.stdio.close()
	if c.pidfd != nil {
		c.pidfd.Close()
	}
}
