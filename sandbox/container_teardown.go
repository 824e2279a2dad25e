package sandbox

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/image"
	"github.com/evenkeel/evenkeel/internal/effect"
	"github.com/evenkeel/evenkeel/shim"
)

// The effects of ending and removing a container, in order.
var (
	containerSignal   = effect.New("container.signal")
	containerKill     = effect.New("container.kill")
	containerExited   = effect.New("container.exited")
	containerDelete   = effect.New("container.delete")
	containerUnmount  = effect.New("container.unmount")
	containerUncgroup = effect.New("container.cgroup.remove")
	containerUndirs   = effect.New("container.dirs.remove")
	containerReleased = effect.New("container.released")
	containerDoomed   = effect.New("container.doomed")
	containerErase    = effect.New("container.erase")
)

// exitPatience is how long a shim that answers nothing may take to report a killed process before the exit file is asked instead.
const exitPatience = 5 * time.Second

// stop asks politely, then kills. The wait for the process belongs to the caller; the kill at its end does not.
func (c *container) stop(ctx context.Context, timeout time.Duration) error {
	if err := c.built.wait(ctx); err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	grace := time.Now().Add(timeout)
	if err := c.awaitStart(ctx, grace); err != nil {
		return err
	}
	if state := c.state(); state != cri.ContainerState_CONTAINER_RUNNING && state != cri.ContainerState_CONTAINER_UNKNOWN {
		return nil
	}
	c.unwant(errContainerStopped) // a checkpoint has the processes stand still: none could end as it is asked to
	if timeout = time.Until(grace); timeout > 0 && !c.silent.Load() {
		if err := c.ask(ctx, timeout); err != nil {
			return err
		}
		if c.state() == cri.ContainerState_CONTAINER_EXITED {
			return nil // watch frees what it held
		}
	}
	work := context.WithoutCancel(ctx)
	killed := c.stopping.join(func() error {
		c.turn.hold()
		defer c.turn.give()
		return c.release(work)
	})
	return killed.await(ctx, fmt.Sprintf("container %s is not stopped", c.id), c)
}

// awaitStart returns when no start is under way: what is being started runs in a moment, and whoever asks for its end means that.
// A start that outlasts the grace period is ended.
func (c *container) awaitStart(ctx context.Context, grace time.Time) error {
	start := c.starting.Load()
	if start == nil {
		return nil
	}
	polite, end := context.WithDeadline(ctx, grace)
	defer end()
	if err := start.wait(polite); err == nil || ctx.Err() != nil {
		return err
	}
	c.unwant(errContainerStopped)
	return start.await(ctx, fmt.Sprintf("container %s is not stopped", c.id), c)
}

// ask sends the stop signal and waits for the end of the process, at most timeout. A shim that is silent uses up that time, too.
func (c *container) ask(ctx context.Context, timeout time.Duration) error {
	polite, end := context.WithTimeout(ctx, timeout)
	defer end()
	signal := syscall.Signal(c.facts().StopSignal)
	err := containerSignal.Do(polite, func() error { return c.shim().Signal(polite, c.id, signal) })
	if err != nil && polite.Err() == nil && !errors.Is(err, shim.ErrGone) && !errors.Is(err, shim.ErrNotFound) {
		return fmt.Errorf("cannot send signal %d to container %s: %w", signal, c.id, err)
	}
	select {
	case <-c.ended:
		return nil
	case <-polite.Done():
	}
	if ctx.Err() != nil {
		return fmt.Errorf("container %s has not ended yet: %w", c.id, context.Cause(ctx))
	}
	return nil
}

// halt ends the container as a part of its pod's end: no politeness, no turn of a build left running.
func (c *container) halt(ctx context.Context) error {
	c.unwant(errContainerStopped)
	c.turn.hold()
	defer c.turn.give()
	return c.release(ctx)
}

// remove kills the container if need be and forgets it. It returns nil when nothing of it is left, whoever removed it.
func (c *container) remove(ctx context.Context) error {
	removed := c.removing.join(func() error {
		return c.timeline.during(context.WithoutCancel(ctx), "RemoveContainer", containerErase, c.discard)
	})
	return removed.await(ctx, fmt.Sprintf("container %s is not removed", c.id), c)
}

// discard is remove for those who wait for as long as it takes.
func (c *container) discard(ctx context.Context) error {
	c.unwant(errContainerStopped)
	c.turn.hold()
	defer c.turn.give()
	return c.teardown(ctx)
}

// teardown undoes everything, whatever stage the container has reached, and deletes the record last.
func (c *container) teardown(ctx context.Context) error {
	if c.gone {
		return nil
	}
	ctx = context.WithoutCancel(ctx)
	if !c.facts().Doomed {
		c.noteAnyway(ctx, containerDoomed, func(r *containerRecord) { r.Doomed = true })
	}
	if err := c.release(ctx); err != nil {
		return fmt.Errorf("container %s is not removed completely: %w", c.id, err)
	}
	if err := containerErase.Do(ctx, func() error { return c.waste.discard(c.containerRoot(c.id)) }); err != nil {
		return err
	}
	c.gone = true
	c.tellPlugins(ctx, ContainerRemoved)
	c.bequeath()
	c.forget()
	c.freeLayers(ctx)
	return nil
}

// freeLayers lets the store delete the layers of an image that was removed while this container still stood on them.
func (c *container) freeLayers(ctx context.Context) {
	if c.facts().ImageID == "" {
		return
	}
	if _, err := c.Images.Get(c.facts().ImageID); errors.Is(err, image.ErrNotFound) {
		c.inBackground(ctx, "free the layers of a removed image", c.id, c.Images.Collect)
	}
}

// release frees all that lives of the container: processes, the runtime's state, mount, cgroup. The exit is recorded
// before the directory with the exit file goes. A nil error means that nothing is left. The processes have all the time
// they need to die; what comes after them has a limit.
func (c *container) release(ctx context.Context) error {
	if c.gone || c.facts().Released {
		c.markKilled()
		c.settle(ctx)                     // it may be on record in memory only
		return os.RemoveAll(c.stateDir()) // a shim that was silent writes its exit file late, and makes the directory for it
	}
	if err := c.checkpoint().end(ctx); err != nil { // cgroup v1 kills nothing that is frozen
		return err
	}
	c.markKilled()
	kill := undo{containerKill, func(ctx context.Context) error { return c.Cgroups.Kill(ctx, c.facts().Cgroup) }}
	killed := undoAll(context.WithoutCancel(ctx), kill)
	ctx, end := undoing(ctx)
	defer end()
	if killed != nil {
		return killed // what follows would pull the ground from under a process that lives
	}
	c.settle(ctx)
	c.tellPlugins(ctx, ContainerStopped)
	err := undoAll(ctx,
		undo{containerDelete, c.deleteRuntimeState},
		undo{containerUnvolumes, c.unmountVolumes},
		undo{containerUnmount, func(context.Context) error { return image.Unmount(c.rootfs()) }},
		undo{containerUncgroup, c.removeCgroup},
	)
	if err != nil {
		return err
	}
	if r := c.facts(); r.unwritten && !r.Doomed {
		return nil // the exit file stays as long as it knows more than the record; who removes the container comes by here again
	}
	if err := containerUndirs.Do(ctx, func() error { return os.RemoveAll(c.stateDir()) }); err != nil {
		return err
	}
	if c.facts().Doomed { // the record itself goes next
		return nil
	}
	c.noteAnyway(ctx, containerReleased, func(r *containerRecord) { r.Released = true })
	return nil
}

// settle makes sure that the end of a container that ever existed is on record: as its shim reported it, else from the
// exit file, else as unknown.
func (c *container) settle(ctx context.Context) {
	if r := c.facts(); !r.CreatedAt.IsZero() && (r.FinishedAt.IsZero() || r.unwritten) {
		c.finish(ctx, c.exit(ctx))
	}
}

func (c *container) exit(ctx context.Context) shim.Exit {
	r := c.facts()
	switch {
	case !r.FinishedAt.IsZero():
		return shim.Exit{} // it is known, and the first report counts
	case r.StartFault != "":
		return shim.Exit{Known: true, Code: r.StartCode, At: time.Now()}
	case r.BootID == c.BootID && !c.silent.Load():
		if e, err := c.word(ctx); err == nil {
			return e
		}
	}
	return c.lastExit()
}

// word waits for the shim to say how a killed container ended. One that answers other questions meanwhile is slow, as on a machine that
// has no processor to spare, and gets half of what a teardown may take.
func (c *container) word(ctx context.Context) (e shim.Exit, err error) {
	ctx, end := context.WithTimeout(ctx, teardownLimit/2)
	defer end()
	for {
		asked, stop := context.WithTimeout(ctx, exitPatience)
		e, err = c.shim().Wait(asked, c.id)
		stop()
		if !errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil || c.silence(ctx) != "" {
			return e, err
		}
	}
}

// lastExit reads the exit file, the only word of a container whose shim is gone.
func (c *container) lastExit() shim.Exit {
	if e, err := shim.ReadExit(c.stateDir()); err == nil {
		return e
	}
	return shim.Exit{Code: 255, At: time.Now()}
}

// finish records how the container ended. The first report counts.
func (c *container) finish(ctx context.Context, e shim.Exit) { c.finishAt(ctx, time.Time{}, e) }

// finishAt is finish for a container whose start may not be on record either.
func (c *container) finishAt(ctx context.Context, startedAt time.Time, e shim.Exit) {
	if r := c.facts(); !r.FinishedAt.IsZero() && !r.unwritten {
		return
	}
	c.noteAnyway(ctx, containerExited, func(r *containerRecord) {
		if !r.FinishedAt.IsZero() {
			return
		}
		r.StartedAt, r.FinishedAt, r.Exit = cmp.Or(r.StartedAt, startedAt), e.At, exitOf(e)
		if r.FinishedAt.IsZero() {
			r.FinishedAt = time.Now()
		}
	})
}

// exitOf uses the reasons that the kubelet and people know.
func exitOf(e shim.Exit) exit {
	switch {
	case !e.Known:
		return exit{Code: 255, Reason: "Unknown", Message: "how the container ended is not known: its shim or the machine went down before, or its shim does not answer"}
	case e.OOMKilled:
		return exit{Code: int32(e.Code), Reason: "OOMKilled", Message: oomMessage(e)}
	case e.Code == 0:
		return exit{Reason: "Completed", Message: oomMessage(e)}
	default:
		return exit{Code: int32(e.Code), Reason: "Error", Message: oomMessage(e)}
	}
}

// oomMessage tells what the OOM killer did in the container. What it did to children is told too, since their parent often
// fails for lack of them; it is not the reason of the exit.
func oomMessage(e shim.Exit) string {
	o := e.OOM
	if o == nil {
		o = &shim.OOM{} // a shim that does not tell
		if !e.OOMKilled {
			return ""
		}
	}
	return "the kernel killed " + oomVictim(e, o) + oomCause(o)
}

func oomVictim(e shim.Exit, o *shim.OOM) string {
	victim := "a process of the container"
	if o.Victim != "" {
		victim = fmt.Sprintf("process %q (pid %d)", o.Victim, o.PID)
	}
	switch {
	case e.OOMKilled && o.Victim != "":
		victim += ", the container's first,"
	case e.OOMKilled:
		victim = "the container's first process"
	case o.Kills > 1:
		victim = fmt.Sprintf("%d processes of the container", o.Kills)
		if o.Victim != "" {
			victim += fmt.Sprintf(", the last of them %q (pid %d),", o.Victim, o.PID)
		}
	}
	return victim
}

func oomCause(o *shim.OOM) string {
	switch {
	case o.Group == "/" && o.Limit == 0:
		return " because the machine was out of memory"
	case o.Limit == 0:
		return " for want of memory"
	case o.Group != "":
		return fmt.Sprintf(" for exceeding the memory limit of %d bytes of cgroup %s", o.Limit, o.Group)
	}
	return fmt.Sprintf(" for exceeding the memory limit of %d bytes", o.Limit)
}

// deleteRuntimeState makes shim and runtime forget the container. The shim has run the runtime's delete when it saw the end; the
// daemon runs it only where there was no shim to do so.
func (c *container) deleteRuntimeState(ctx context.Context) error {
	if err := c.forgotten(ctx); err != nil {
		if err := c.endCommands(ctx); err != nil {
			return err
		}
	}
	runtime := c.runtime()
	if _, err := os.Lstat(filepath.Join(runtime.Root, c.id)); errors.Is(err, fs.ErrNotExist) {
		return nil // where runc and its like keep a container; without it there is nothing to delete
	}
	if err := runtime.Delete(ctx, c.id); err != nil {
		return fmt.Errorf("cannot delete container %s from the runtime: %w", c.id, err)
	}
	return nil
}

// forgotten is nil when the shim has nothing more to do with the container.
func (c *container) forgotten(ctx context.Context) error {
	if c.silent.Load() {
		return ErrUnknownState
	}
	asked, end := context.WithTimeout(ctx, exitPatience)
	defer end()
	err := c.forgetInShim(asked)
	if err != nil && !errors.Is(err, shim.ErrGone) {
		c.Log.Warn("a shim did not forget a container", "container", c.id, "error", err)
	}
	return err
}

// endCommands ends what the runtime still does about the container, and what has come of that since the container was killed.
func (c *container) endCommands(ctx context.Context) error {
	pod, err := c.pod()
	if err != nil || c.facts().BootID != c.BootID {
		return nil
	}
	pod.facts().Shim.KillCommands(c.State, c.id)
	return containerKill.Do(ctx, func() error { return c.Cgroups.Kill(ctx, c.facts().Cgroup) })
}

// forgetInShim asks twice: a start that failed is on record before its process is killed, and a process that was killed lives for
// its shim until that has reaped it.
func (c *container) forgetInShim(ctx context.Context) error {
	err := c.shim().Forget(ctx, c.id)
	if err == nil || errors.Is(err, shim.ErrGone) {
		return err
	}
	if _, unseen := c.shim().Wait(ctx, c.id); unseen != nil {
		return err
	}
	return c.shim().Forget(ctx, c.id)
}

// awaitExit asks for as long as the shim has the container: nobody else waits for this exit, and a question can fail for want of
// descriptors in this process.
func (c *container) awaitExit(ctx context.Context) (shim.Exit, error) {
	for rest := time.Millisecond; ; rest = min(2*rest, askRest) {
		e, err := c.shim().Wait(ctx, c.id)
		if err == nil || errors.Is(err, shim.ErrGone) || errors.Is(err, shim.ErrNotFound) {
			return e, err
		}
		if rest == askRest {
			c.Log.Error("cannot wait for a container", "container", c.id, "error", err)
		}
		time.Sleep(rest)
	}
}

// watch waits for the container's end, records it and frees what the container held. It ends when the shim does:
// watchShim takes over then.
func (c *container) watch() {
	ctx := context.Background()
	e, err := c.awaitExit(ctx)
	if err != nil {
		return
	}
	// A process can end before the answer to its start is on record; what happened first is recorded first.
	if start := c.starting.Load(); start != nil {
		start.wait(ctx)
	}
	ctx, told := c.timeline.begin(ctx, "ContainerEnded", containerReleased)
	defer func() { told(err) }()
	c.finish(ctx, e)
	c.Log.Info("container ended", "container", c.id, "code", e.Code, "signal", e.Signal, "oom", e.OOMKilled)
	if err = c.halt(ctx); err != nil {
		c.Log.Error("cannot free what an ended container held", "container", c.id, "error", err)
	}
}
