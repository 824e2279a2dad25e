package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Kill ends every process in the cgroup and below with SIGKILL, by cgroup.kill where the kernel has it. A nil error means
// nobody is left; an error names the pids that stay, with their state and where in the kernel they wait.
//
// cgroup.kill (5.14) takes the whole subtree at once, forks included; hybrid machines have it too, in the v2 part, which
// runtimes join. Whoever is left after that is killed by pid.
func (t *Tree) Kill(ctx context.Context, path string) error {
	if err := check(path); err != nil {
		return fmt.Errorf("cannot kill: %w", err)
	}
	pids, err := t.victims(path)
	if err != nil || len(pids) == 0 {
		return err
	}
	if dir := t.unifiedDir(path); dir != "" && write(filepath.Join(dir, "cgroup.kill"), "1") == nil {
		t.thaw(path)
		if err := t.awaitKilled(ctx, path, dir); err != nil {
			return err
		}
	}
	return t.killEach(ctx, path)
}

// soon is how long it takes a killed process to go that nothing holds. Whoever stays longer is waited for by pid.
const soon = 500 * time.Millisecond

func (t *Tree) awaitKilled(ctx context.Context, path, dir string) error {
	ctx, end := context.WithTimeout(ctx, soon)
	defer end()
	if err := waitEmpty(ctx, dir); err != nil && ctx.Err() == nil {
		return fmt.Errorf("cannot wait for the processes of cgroup %s: %w", path, err)
	}
	return nil
}

// victims lists whom to kill.
func (t *Tree) victims(path string) ([]int, error) {
	pids, err := t.Procs(path)
	if errors.Is(err, ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return pids, sparesUs(path, pids)
}

// sparesUs makes a wrong path an error instead of the engine's end.
func sparesUs(path string, pids []int) error {
	if slices.Contains(pids, os.Getpid()) {
		return fmt.Errorf("cannot kill cgroup %s: this process (%d) is in it", path, os.Getpid())
	}
	return nil
}

// killEach kills by pid until nobody is left. There is no event for that in v1, hence the pauses: 1 ms finds nearly all
// gone, and a process that takes longer is waited for in ever fewer looks. From the third look on the cgroup is frozen
// around the kill, so that those who fork faster than they are listed hold still. Who is left then is in the kernel's
// hands, maybe for hours, and the end of one of them is the next reason to look.
func (t *Tree) killEach(ctx context.Context, path string) error {
	for look := 0; ; look++ {
		pids, err := t.victims(path)
		if err != nil || len(pids) == 0 {
			return err
		}
		if look >= 2 {
			t.freeze(path)
			if pids, err = t.victims(path); err != nil {
				t.thaw(path)
				return err
			}
		}
		err = t.killListed(path, pids)
		t.thaw(path) // v1 lets nobody die who is frozen, by us or by `runc pause`
		if err != nil {
			return err
		}
		if look > quickLooks && len(pids) > 0 {
			awaitExit(ctx, pids[0], slowLook)
		}
		if !pause(ctx, look) {
			return t.remaining(path, ctx.Err())
		}
	}
}

// killListed kills those of a list who are in the cgroup: a pid on it may be another process's by now. Whoever is listed again
// while a pidfd is open is the pidfd's process, or else that one has ended and a signal reaches nobody.
func (t *Tree) killListed(path string, pids []int) error {
	for some := range slices.Chunk(pids, 256) { // each costs a descriptor
		held, err := hold(some)
		if err == nil {
			pids, err = t.victims(path)
		}
		for _, pid := range pids {
			if fd, ok := held[pid]; ok && err == nil {
				unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
			}
		}
		for _, fd := range held {
			unix.Close(fd)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// hold opens a pidfd of each process that is still there.
func hold(pids []int) (held map[int]int, err error) {
	held = map[int]int{}
	for _, pid := range pids {
		fd, err := unix.PidfdOpen(pid, 0)
		if err == unix.ESRCH {
			continue
		}
		if err != nil {
			return held, fmt.Errorf("cannot kill pid %d: pidfd_open: %w", pid, err)
		}
		held[pid] = fd
	}
	return held, nil
}

const (
	quickLooks = 10               // take half a second
	slowLook   = 10 * time.Second // for whoever came into the cgroup meanwhile: a command that was on its way there
)

// remaining is the answer when time is up: nil if the last one left at that moment.
func (t *Tree) remaining(path string, cause error) error {
	pids, err := t.victims(path)
	if err != nil || len(pids) == 0 {
		return err
	}
	return fmt.Errorf("%w: %w", cause, stuck(path, pids))
}

// pause waits 1 ms, 2 ms, 4 ms and so on up to 64 ms; false means that ctx ended.
func pause(ctx context.Context, round int) bool {
	timer := time.NewTimer(time.Millisecond << min(round, 6))
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// freeze asks v1's freezer to stop the cgroup; thaw lets it and all below go on. Both do what they can: the caller looks
// at the outcome. v2 needs neither, as cgroup.kill and SIGKILL reach the frozen there.
func (t *Tree) freeze(path string) {
	if dir := t.freezerDir(path); dir != "" {
		write(filepath.Join(dir, "freezer.state"), "FROZEN")
	}
}

func (t *Tree) thaw(path string) {
	if dir := t.freezerDir(path); dir != "" {
		thawBelow(dir)
	}
}

func (t *Tree) freezerDir(path string) string {
	if t.V2 {
		return ""
	}
	return t.dir("freezer", path)
}

func thawBelow(dir string) {
	write(filepath.Join(dir, "freezer.state"), "THAWED")
	children, _ := subdirectories(dir)
	for _, child := range children {
		thawBelow(filepath.Join(dir, child))
	}
}
