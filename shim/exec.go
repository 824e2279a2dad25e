package shim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/evenkeel/evenkeel/oci/runc"
)

// execution is one exec.
type execution struct {
	*server
	request request
	files   [3]*os.File
	leaf    *leaf // nil where the kernel or the runtime does not allow one
	pid     int
}

// exec runs a process beside the container's first and returns its end.
func (s *server) exec(ctx context.Context, r request, files [3]*os.File) (*Exit, error) {
	c, err := s.get(r.ID)
	if err != nil {
		return nil, err
	}
	if c.hasEnded() {
		return nil, fmt.Errorf("cannot exec in container %s: it has ended", r.ID)
	}
	e := &execution{server: s, request: r, files: files, leaf: s.openLeaf(c)}
	b := s.reaper.begin()
	err = e.run(ctx)
	if e.pid == 0 {
		b.end()
		e.killAll(nil)
		return nil, err
	}
	ended := b.claim(e.pid)
	b.end()
	if !s.reaper.adopted(e.pid, ended) {
		e.killAll(nil)
		return nil, errors.Join(err, fmt.Errorf("cannot tell how an exec in container %s has ended: the runtime did not leave its process to the shim", r.ID))
	}
	if err != nil {
		e.killAll(ended)
		return nil, err
	}
	select {
	case ending := <-ended:
		x := exitOf(ending)
		e.part()
		return &x, nil
	case <-ctx.Done():
		e.killAll(ended)
		return nil, ctx.Err()
	}
}

// part leaves behind what the process has started, or not.
func (e *execution) part() {
	switch {
	case e.leaf == nil:
	case e.request.KillRest:
		e.killAll(nil)
	default:
		if e.leaf.dissolve() != nil {
			e.late.add(lateLeaf{e.leaf, (*leaf).moveOut})
		}
	}
}

// killAll ends the process, unless its ending was delivered, and whatever it has started. Without a leaf that is its tree, so
// far as it can still be seen.
func (e *execution) killAll(ended <-chan ending) {
	if e.leaf != nil {
		if err := e.leaf.kill(); err != nil {
			e.complain(fmt.Errorf("what an exec in container %s has started does not end: %w", e.request.ID, err))
			e.late.add(lateLeaf{e.leaf, (*leaf).killNow})
		}
	}
	if ended == nil {
		return
	}
	if len(ended) == 0 { // not reaped: the pid is still the exec's
		killTree(e.pid) // there is no leaf, or a privileged process has moved out of it
	}
	<-ended
}

// run sets pid whenever there is one, also with an error.
func (e *execution) run(ctx context.Context) error {
	defer closeAll(e.files[:]) // the process has them; its peers must see them close when it ends
	for _, f := range e.files {
		if f != nil {
			// A Go program's pipe ends are non-blocking, which is a property that the process would share.
			if err := setNonblock(f, false); err != nil {
				return fmt.Errorf("cannot exec in container %s: %w", e.request.ID, err)
			}
		}
	}
	err := e.attempt(ctx)
	if err != nil && e.pid == 0 && e.leaf != nil && ctx.Err() == nil && blamesCgroup(err) {
		// Not every runtime knows sub cgroups, and some containers arrange their own so that there can be none.
		refusal := err
		e.leaf.remove()
		e.leaf = nil
		if err = e.attempt(ctx); err == nil {
			e.giveUpLeaves(refusal)
		}
	}
	return err
}

func (e *execution) attempt(ctx context.Context) error {
	name := filepath.Join(e.config.Dir, e.unique("exec"))
	o := runc.ExecOptions{ProcessFile: name + ".json", PIDFile: name + ".pid", ConsoleSocket: e.request.ConsoleSocket,
		IO: runc.IO{Stdin: e.files[0], Stdout: e.files[1], Stderr: e.files[2]}}
	if e.leaf != nil {
		o.Cgroup = e.leaf.flag
	}
	defer os.Remove(o.ProcessFile)
	defer os.Remove(o.PIDFile)
	if err := os.WriteFile(o.ProcessFile, e.request.Process, 0o600); err != nil {
		return fmt.Errorf("cannot exec in container %s: %w", e.request.ID, err)
	}
	err := e.runtime(ctx).Exec(ctx, e.request.ID, o)
	pid, pidErr := readPID(o.PIDFile)
	e.pid = pid
	if err == nil {
		err = pidErr
	} else if errors.Is(err, runc.ErrNotExist) {
		err = fmt.Errorf("%w: %w", ErrNotFound, err)
	}
	return err
}

// blamesCgroup reports whether a runtime's message is about --cgroup: an option it does not know, or a place it cannot put the
// process into.
func blamesCgroup(err error) bool {
	var e *runc.Error
	return errors.As(err, &e) && strings.Contains(strings.ToLower(e.Message), "cgroup")
}
