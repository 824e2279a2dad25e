package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/internal/effect"
)

// The effects of a checkpoint, in order. The last one undoes all the others but the archive, and comes in every case.
var (
	checkpointBegin  = effect.New("checkpoint.begin")
	checkpointPause  = effect.New("checkpoint.pause")
	checkpointDump   = effect.New("checkpoint.dump")
	checkpointLayer  = effect.New("checkpoint.layer")
	checkpointResume = effect.New("checkpoint.resume")
	checkpointWrite  = effect.New("checkpoint.write")
	checkpointEnd    = effect.New("checkpoint.end")
)

const (
	checkpointLimit = 10 * time.Minute // where the request names none (CheckpointContainerRequest.timeout)
	// dumpLimit is when CRIU is given up. It is no part of a request's time: a CRIU that is killed can leave the processes
	// broken that it is reading, so one that is merely too slow is left to finish, and its work thrown away.
	dumpLimit = 20 * time.Minute
	// dumpPatience is what it gets once somebody asks for the container's end: nobody needs the processes then.
	dumpPatience = 3 * time.Second
)

// Checkpoint writes the memory and the files of a running container into an archive at location, which must not exist,
// and lets the container go on. It fails with ErrUnsupported where CRIU or the runtime's support of it is missing.
func (c *Containers) Checkpoint(ctx context.Context, id, location string, timeout time.Duration) error {
	if !filepath.IsAbs(location) || strings.HasSuffix(location, "/") {
		return fmt.Errorf("location: %q is not the absolute path of a file: %w", location, ErrInvalid)
	}
	found, err := c.running(id)
	if err != nil {
		return err
	}
	if err := found.checkpoint().possible(); err != nil {
		return err
	}
	if timeout <= 0 {
		timeout = checkpointLimit
	}
	ctx, end := beforeDeadline(ctx)
	defer end()
	ctx, stop := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("it is not made within %s: %w", timeout, ErrTimeout))
	defer stop()
	return found.timeline.during(ctx, "CheckpointContainer", checkpointEnd, func(ctx context.Context) error {
		if err := found.checkpoint().take(ctx, filepath.Clean(location)); err != nil {
			return fmt.Errorf("cannot write a checkpoint of container %s to %s: %w", found.id, location, err)
		}
		return nil
	})
}

// A checkpoint of a container is under way, or was when the engine died, as long as its directory exists. There is one at a time.
type checkpoint struct {
	*container
	dir string // holds what becomes the archive; memory images are large, so it is not on a tmpfs
}

func (c *container) checkpoint() checkpoint {
	return checkpoint{c, filepath.Join(c.containerRoot(c.id), "checkpoint")}
}

func (c checkpoint) begun() bool {
	_, err := os.Lstat(c.dir)
	return !errors.Is(err, fs.ErrNotExist)
}

// possible looks for what makes a checkpoint. CRIU is looked for each time: it can be installed while the engine runs.
func (c checkpoint) possible() error {
	if r := c.runtime(); r.NoCheckpoint {
		return fmt.Errorf("the OCI runtime %s is built without checkpoints: %w", r.Path, ErrUnsupported)
	}
	if _, err := exec.LookPath("criu"); err != nil {
		return fmt.Errorf("checkpoints need the program criu (https://criu.org), which is not in the engine's PATH: %w", ErrUnsupported)
	}
	return nil
}

func (c checkpoint) take(ctx context.Context, location string) error {
	if err := c.mayCreate(ctx, location); err != nil {
		return err
	}
	if err := c.turn.take(ctx); err != nil {
		return fmt.Errorf("another operation on the container is running: %w", err)
	}
	done := newResult()
	go func() { // a CRIU that is too slow for the caller must come to its end before anybody else touches the container
		defer c.turn.give()
		wanted, enough := c.whileWanted(ctx, 0)
		defer enough()
		err := c.capture(wanted, location)
		undo, end := undoing(ctx)
		defer end()
		done.end(errors.Join(err, c.end(undo)))
	}()
	return done.wait(ctx)
}

// mayCreate finds out early what would make all the work vain.
func (c checkpoint) mayCreate(ctx context.Context, location string) error {
	ctx, stop := context.WithTimeoutCause(ctx, hostPathLimit, fmt.Errorf("no answer within %s: %w", hostPathLimit, ErrTimeout))
	defer stop()
	dir, err := c.paths.Resolve(ctx, filepath.Dir(location))
	if err != nil {
		return invalidIfMissing(err)
	}
	if !dir.Dir {
		return fmt.Errorf("%s is not a directory: %w", filepath.Dir(location), ErrInvalid)
	}
	switch _, err := c.paths.Resolve(ctx, location); {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	}
	return fmt.Errorf("it exists already: %w", ErrInvalid)
}

// capture freezes the container for as long as its memory and its files are read, so that they fit together. The archive is
// written while it runs again.
func (c checkpoint) capture(ctx context.Context, location string) error {
	if c.gone || c.state() != cri.ContainerState_CONTAINER_RUNNING {
		return fmt.Errorf("it has ended: %w", ErrState)
	}
	if err := c.end(ctx); err != nil { // one that could not be undone
		return err
	}
	steps := []struct {
		effect effect.Effect
		act    func(context.Context) error
	}{
		{checkpointBegin, func(context.Context) error { return os.Mkdir(c.dir, 0o700) }},
		{checkpointPause, c.freeze},
		{checkpointDump, c.dump},
		{checkpointLayer, c.dumpLayer},
		{checkpointResume, c.thaw},
		{checkpointWrite, func(ctx context.Context) error { return c.write(ctx, location) }},
	}
	for _, step := range steps {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := step.effect.Do(ctx, func() error { return step.act(ctx) }); err != nil {
			return err
		}
	}
	return nil
}

// write leaves the writing to a helper: the storage at location may never answer.
func (c checkpoint) write(ctx context.Context, location string) error {
	if err := c.describe(); err != nil {
		return err
	}
	err := c.paths.Create(ctx, location, func(w io.Writer) error { return archiveOf(c.dir, w) })
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("it exists already: %w", ErrInvalid)
	}
	return err
}

// freezeTries is how often a container is asked to stand still.
const freezeTries = 20

// freeze has the runtime stop every process. The freezer of cgroup v1 misses children that are born while it is at work, and
// runc gives up on a container that forks all the time; it has thawed it by then.
func (c checkpoint) freeze(ctx context.Context) (err error) {
	for range freezeTries {
		err = c.runtime().Pause(ctx, c.id)
		if err == nil || ctx.Err() != nil || !strings.Contains(err.Error(), "unable to freeze") {
			break
		}
	}
	return err
}

// thaw lets the container go on. A nil error means that nothing of it is frozen.
func (c checkpoint) thaw(ctx context.Context) error {
	runtime := c.runtime()
	if _, err := os.Lstat(filepath.Join(runtime.Root, c.id)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	state, err := runtime.State(ctx, c.id)
	if err != nil {
		return err
	}
	if state.Status != "paused" {
		return nil
	}
	return runtime.Resume(ctx, c.id)
}

// end brings the container back to where it was before a checkpoint. A nil error means that it is not frozen and
// that nothing of the checkpoint is left but a finished archive. A CRIU is known by its working directory.
func (c checkpoint) end(ctx context.Context) error {
	if !c.begun() {
		return nil
	}
	err := checkpointEnd.Do(ctx, func() error {
		for _, pid := range workingIn(c.dir) {
			endProcess(pid)
		}
		if err := c.thaw(ctx); err != nil {
			return err
		}
		return os.RemoveAll(c.dir)
	})
	if err != nil {
		return fmt.Errorf("cannot undo a checkpoint of container %s: %w", c.id, err)
	}
	return nil
}

// recover leaves half of its time to a CRIU whose engine has died, which goes on and leaves the container as frozen as it
// found it, and the rest to undoing.
func (c checkpoint) recover(ctx context.Context) error {
	if err := c.turn.take(ctx); err != nil {
		return err
	}
	defer c.turn.give()
	wanted, end := c.whileWanted(ctx, dumpPatience)
	defer end()
	deadline := time.Now().Add(teardownLimit / 2)
	for len(workingIn(c.dir)) > 0 && wanted.Err() == nil && time.Now().Before(deadline) {
		time.Sleep(100 * time.Millisecond)
	}
	return c.end(ctx)
}

// workingIn lists the processes whose working directory is dir.
func workingIn(dir string) (pids []int) {
	links, _ := filepath.Glob("/proc/[0-9]*/cwd")
	for _, link := range links {
		if cwd, err := os.Readlink(link); err == nil && cwd == dir {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(link)))
			pids = append(pids, pid)
		}
	}
	return pids
}

// endProcess kills a process and waits for its end.
func endProcess(pid int) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
	waitPidfd(fd, exitPatience)
}
