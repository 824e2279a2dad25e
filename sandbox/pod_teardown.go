package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/evenkeel/evenkeel/internal/effect"
	"github.com/evenkeel/evenkeel/internal/namespace"
	"github.com/evenkeel/evenkeel/shim"
)

// The effects of stopping and removing a pod, in order.
var (
	podStopping = effect.New("pod.stopping")
	podKillInit = effect.New("pod.init.kill")
	podEndShim  = effect.New("pod.shim.end")
	podDetach   = effect.New("pod.network.detach")
	podUnpin    = effect.New("pod.namespaces.unpin")
	podUnmount  = effect.New("pod.shm.unmount")
	podUncgroup = effect.New("pod.cgroup.remove")
	podUndirs   = effect.New("pod.dirs.remove")
	podStopped  = effect.New("pod.stopped")
	podDoomed   = effect.New("pod.doomed")
	podErase    = effect.New("pod.erase")
)

var errStopped = errors.New("the pod was stopped while it was being made")

// stop ends the pod's life. It returns nil when nothing of it lives, whoever ended it.
func (p *pod) stop(ctx context.Context) error {
	return p.beginStop(ctx).await(ctx, fmt.Sprintf("pod %s is not stopped", p.id), p)
}

func (p *pod) beginStop(ctx context.Context) *result {
	p.unwant(errStopped)
	return p.stopping.join(func() error {
		return p.timeline.during(context.WithoutCancel(ctx), "StopPodSandbox", podStopped, func(ctx context.Context) error {
			p.turn.hold()
			defer p.turn.give()
			return p.halt(ctx)
		})
	})
}

// halt is stop for those who hold the turn.
func (p *pod) halt(ctx context.Context) error {
	if p.gone || !p.facts().StoppedAt.IsZero() {
		return nil
	}
	if p.facts().StoppingAt.IsZero() {
		p.noteAnyway(ctx, podStopping, func(r *podRecord) { r.StoppingAt = time.Now() })
	}
	if err := p.release(ctx); err != nil {
		return fmt.Errorf("pod %s is not stopped completely: %w", p.id, err)
	}
	if slices.ContainsFunc(p.index.allContainers(p.id), func(c *container) bool { return c.facts().unwritten }) {
		return nil // the next start looks for exits that are not on record where no completed stop is
	}
	p.noteAnyway(ctx, podStopped, func(r *podRecord) { r.StoppedAt = time.Now() })
	return nil
}

// remove stops the pod and forgets it. It returns nil when nothing of it is left, whoever removed it.
func (p *pod) remove(ctx context.Context) error {
	return p.beginRemove(ctx).await(ctx, fmt.Sprintf("pod %s is not removed", p.id), p)
}

func (p *pod) beginRemove(ctx context.Context) *result {
	p.unwant(errStopped)
	return p.removing.join(func() error {
		return p.timeline.during(context.WithoutCancel(ctx), "RemovePodSandbox", podErase, func(ctx context.Context) error {
			p.turn.hold()
			defer p.turn.give()
			return p.teardown(ctx)
		})
	})
}

// teardown undoes everything, whatever stage the pod has reached, and deletes the record last. What cannot be undone
// keeps the record, so that Remove, the next RunPodSandbox or the next start tries again.
func (p *pod) teardown(ctx context.Context) error {
	if p.gone {
		return nil
	}
	ctx = context.WithoutCancel(ctx) // a build that failed comes here with its own context ended
	if !p.facts().Doomed {
		p.noteAnyway(ctx, podDoomed, func(r *podRecord) { r.Doomed = true })
	}
	var errs []error
	for _, c := range p.index.allContainers(p.id) {
		errs = append(errs, c.discard(ctx))
	}
	if p.facts().StoppedAt.IsZero() {
		errs = append(errs, p.release(ctx))
	}
	if err := errors.Join(errs...); err != nil {
		p.stuck.Store(true)
		return fmt.Errorf("pod %s is not removed completely: %w", p.id, err)
	}
	if err := podErase.Do(ctx, func() error { return p.waste.discard(p.podRoot(p.id)) }); err != nil {
		return err
	}
	p.gone = true
	p.tellPlugins(ctx, PodRemoved)
	p.forget()
	p.bygone.remember(p)
	return nil
}

// release frees all that lives of the pod: its containers' processes and mounts, then its own. It needs no memory of
// what was made, and a nil error means that nothing is left. The processes have all the time they need to die; what
// comes after them has a limit.
func (p *pod) release(ctx context.Context) error {
	over := make(chan struct{})
	go p.detachEarly(ctx, over)
	dead := errors.Join(p.releaseContainers(ctx), undoAll(context.WithoutCancel(ctx), undo{podKillInit, p.killInit}))
	close(over)
	ctx, end := undoing(ctx)
	defer end()
	p.tellPlugins(ctx, PodStopped)
	return errors.Join(dead, undoAll(ctx,
		undo{podEndShim, p.endShim},
		undo{podDetach, p.detach},
		undo{podUnpin, func(context.Context) error { return namespace.Unpin(p.namespaceDir()) }},
		undo{podUnmount, func(context.Context) error { return unmountShm(p.file("shm")) }},
		undo{podUncgroup, p.removeCgroup},
		undo{podUndirs, func(context.Context) error { return os.RemoveAll(p.podState(p.id)) }},
	))
}

// detachEarly gives addresses and host ports back while processes that were killed wait in the kernel. They will never run
// again, and the pod that replaces this one can need its host ports. One that waits for its turn to be killed runs, with its network.
func (p *pod) detachEarly(ctx context.Context, over <-chan struct{}) {
	for _, c := range p.index.allContainers(p.id) {
		select {
		case <-c.killed:
		case <-over:
			return
		}
	}
	select {
	case <-time.After(endPatience):
	case <-over:
		return
	}
	ctx, end := undoing(ctx)
	defer end()
	if err := podDetach.Do(ctx, func() error { return p.detach(ctx) }); err != nil {
		p.Log.Warn("cannot disconnect a pod whose processes are not dead yet; it is tried again", "pod", p.id, "error", err)
	}
}

func (p *pod) releaseContainers(ctx context.Context) error {
	all := p.index.allContainers(p.id)
	errs := make(chan error, len(all))
	for _, c := range all {
		go func() { errs <- c.halt(ctx) }()
	}
	var joined error
	for range all {
		joined = errors.Join(joined, <-errs)
	}
	return joined
}

// killInit ends whatever runs in the sandbox cgroup: the reaping init of a shared PID namespace, and with it all its processes.
func (p *pod) killInit(ctx context.Context) error {
	if !p.sharesPID() {
		return nil
	}
	return p.Cgroups.Kill(ctx, p.facts().Cgroup)
}

// removeCgroup comes after the end of the shim, which may have started an init meanwhile: one that was silent does late what it was asked.
func (p *pod) removeCgroup(ctx context.Context) error {
	if err := p.killInit(ctx); err != nil {
		return err
	}
	return p.Cgroups.Remove(ctx, p.facts().Cgroup)
}

// endShim leaves no shim of this pod. One that does not answer is killed: somebody asked for the end of the pod, and
// everything the shim had to tell is in the exit files. One that was silent and has just woken has yet to reap what was killed, and
// refuses until then.
func (p *pod) endShim(ctx context.Context) error {
	asked, end := context.WithTimeout(ctx, shimPatience)
	defer end()
	var refusal error
	for rest := time.Millisecond; ; rest = min(2*rest, 100*time.Millisecond) {
		err := p.shim().Shutdown(asked)
		switch {
		case err == nil:
			return p.killShim(false)
		case errors.Is(err, shim.ErrGone) || asked.Err() != nil && refusal == nil:
			return p.killShim(true)
		case asked.Err() != nil:
			return fmt.Errorf("the shim of pod %s refuses to end: %w", p.id, refusal)
		}
		refusal = err
		select {
		case <-time.After(rest):
		case <-asked.Done():
		}
	}
}

// shimPatience is how long a shim may take to answer where an answer is not needed.
const shimPatience = 2 * time.Second

// killShim makes sure of a shim's end by its pid and start time, which cannot mean another process of this boot. Those of another
// boot are gone, and could. One that has not ended in order leaves commands of the runtime behind, which are ended, too.
func (p *pod) killShim(commands bool) error {
	if p.facts().BootID != p.BootID {
		return nil
	}
	process, recorded := p.facts().Shim, true
	if process.PID == 0 {
		var err error
		if process, err = p.findShim(); err != nil {
			return err
		}
		recorded = false
	}
	fd, err := process.Pin()
	gone := errors.Is(err, os.ErrProcessDone)
	if err != nil && !gone {
		return fmt.Errorf("cannot end the shim: %w", err)
	}
	if !gone {
		defer unix.Close(fd)
	}
	if !gone && !recorded {
		if ours, err := worksIn(process.PID, p.podState(p.id)); err != nil || !ours {
			return err
		}
	}
	if commands {
		if err := process.KillAll(p.State); err != nil {
			return err
		}
	}
	if gone {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("cannot kill shim %d: %w", process.PID, err)
	}
	return waitPidfd(fd, shimPatience)
}

// findShim looks for a shim that is not on record: the pod was given up before, or its engine died. A zero one never came to life, or
// has ended in order.
func (p *pod) findShim() (shim.Process, error) {
	if process, err := shim.ReadProcess(p.podState(p.id)); err == nil {
		return process, nil
	}
	process, err := shim.Find(p.podState(p.id))
	if errors.Is(err, os.ErrProcessDone) {
		err = nil
	}
	return process, err
}

// worksIn tells whether dir is the working directory of a process, as that of its pod is a shim's. A file with a pid can be of
// another boot, where the state directory outlives one, and name anybody.
func worksIn(pid int, dir string) (bool, error) {
	here, err := os.Stat(dir)
	if err != nil {
		return false, fmt.Errorf("cannot tell whose shim process %d is: %w", pid, err)
	}
	there, err := os.Stat(fmt.Sprintf("/proc/%d/cwd", pid))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) { // it has ended, or is about to
		return false, nil
	} else if err != nil {
		return false, fmt.Errorf("cannot tell whose shim process %d is: %w", pid, err)
	}
	return os.SameFile(here, there), nil
}

func (p *pod) detach(ctx context.Context) error {
	if p.onHostNetwork() {
		return nil
	}
	if err := p.Network.Detach(ctx, p.networkPod()); err != nil {
		return fmt.Errorf("cannot disconnect pod %s from the network: %w", p.id, err)
	}
	return nil
}
