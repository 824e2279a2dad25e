package cgroup

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Remove removes the cgroup and all below it, in every hierarchy. A nil error means none remains, whoever removed it.
// It waits for processes that are about to leave until ctx ends, then names those that stay.
func (t *Tree) Remove(ctx context.Context, path string) error {
	if err := check(path); err != nil {
		return fmt.Errorf("cannot remove cgroup: %w", err)
	}
	for round := 0; ; round++ {
		busy, err := removeAll(t.Dirs(path))
		if err != nil {
			return fmt.Errorf("cannot remove cgroup %s: %w", path, err)
		}
		if !busy {
			return nil
		}
		if !t.awaitLeaving(ctx, path, round) {
			return t.whyBusy(path, ctx.Err())
		}
	}
}

func removeAll(dirs []string) (busy bool, err error) {
	for _, dir := range dirs {
		switch err := removeTree(dir); err {
		case nil:
		case unix.EBUSY:
			busy = true
		default:
			return busy, &os.PathError{Op: "rmdir", Path: dir, Err: err}
		}
	}
	return busy, nil
}

// removeTree removes a cgroup, children first. The plain rmdir comes before the look for children: most have none.
func removeTree(dir string) error {
	err := rmdir(dir)
	if err != unix.EBUSY {
		return err
	}
	children, err := subdirectories(dir)
	if err != nil && !vanished(err) {
		return err
	}
	for _, child := range children {
		if err := removeTree(filepath.Join(dir, child)); err != nil {
			return err
		}
	}
	return rmdir(dir)
}

func rmdir(dir string) error {
	for {
		switch err := unix.Rmdir(dir); err {
		case unix.EINTR:
		case unix.ENOENT, unix.ENODEV:
			return nil
		default:
			return err
		}
	}
}

// awaitLeaving waits for a reason to try again: v2 tells when the last process has left, v1 tells nothing. Also an empty
// cgroup can be busy for a moment, so an event is never trusted to be the last.
func (t *Tree) awaitLeaving(ctx context.Context, path string, round int) bool {
	if t.V2 {
		waitEmpty(ctx, t.unifiedDir(path))
	}
	return pause(ctx, round)
}

func (t *Tree) whyBusy(path string, cause error) error {
	pids, _ := t.Procs(path)
	if len(pids) == 0 {
		return fmt.Errorf("cannot remove cgroup %s: %w: %w, and the kernel lists none", path, cause, ErrBusy)
	}
	return fmt.Errorf("cannot remove cgroup: %w: %w", cause, stuck(path, pids))
}
