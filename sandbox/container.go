package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/internal/effect"
	"github.com/evenkeel/evenkeel/shim"
)

// A container belongs to one pod. Its record is immutable: a change swaps in a new one.
type container struct {
	*Pods
	id, podID          string
	record             atomic.Pointer[containerRecord]
	writing            turn // held while the record is written
	turn               turn // held by build, start, stop, remove
	built              *result
	wanted             context.Context // ends when somebody asks for the container's end
	unwant             context.CancelCauseFunc
	silent             atomic.Bool // the shim does not answer: UNKNOWN
	doing              activity    // what the build waits for
	stopping, removing ending
	gone               bool  // removed; guarded by turn
	heard              heard // by plugins; guarded by turn

	starting atomic.Pointer[result] // the start that is under way, or was
	killed   chan struct{}          // closed when SIGKILL is sent
	killOnce sync.Once
	ended    chan struct{} // closed once FinishedAt is recorded
	endOnce  sync.Once
	usage    usageCache
	encoding atomic.Pointer[encoding[containerRecord]] // for lists
	timeline timeline
}

func (p *Pods) newContainer(r containerRecord) *container {
	c := &container{
		Pods: p, id: r.ID, podID: r.PodID, writing: newTurn(), turn: newTurn(), built: newResult(),
		killed: make(chan struct{}), ended: make(chan struct{}),
	}
	c.wanted, c.unwant = context.WithCancelCause(context.Background())
	c.turn.hold() // the build's, until it ends
	c.timeline.past, r.Timeline = r.Timeline, nil
	c.record.Store(&r)
	if !r.FinishedAt.IsZero() {
		c.markEnded()
	}
	return c
}

func (c *container) facts() *containerRecord { return c.record.Load() }
func (c *container) markKilled()             { c.killOnce.Do(func() { close(c.killed) }) }
func (c *container) markEnded()              { c.endOnce.Do(func() { close(c.ended) }) }

// note writes what has happened, or is about to, before anybody can read it. What cannot be written does not count.
func (c *container) note(ctx context.Context, e effect.Effect, change func(*containerRecord)) error {
	return c.amend(ctx, e, change, false)
}

// noteAnyway is for what counts also where it cannot be written: that a process runs or has ended is true whatever the disk
// says, and a full disk must not keep what is to be removed from it. The next record that is written holds it, too. If the
// engine dies before, the shim or the exit file tells the same, and what was to be ended or removed is there for another request.
func (c *container) noteAnyway(ctx context.Context, e effect.Effect, change func(*containerRecord)) {
	err := c.amend(ctx, e, change, true)
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // one that was refused before its first record has no place for any
		c.Log.Error("cannot write the record of a container", "container", c.id, "error", err)
	}
}

func (c *container) amend(ctx context.Context, e effect.Effect, change func(*containerRecord), anyway bool) error {
	if err := c.writing.take(ctx); err != nil {
		return err
	}
	defer c.writing.give()
	next := *c.facts()
	change(&next)
	next.Timeline = c.timeline.operations(e)
	err := e.Do(ctx, func() error { return writeRecord(c.containerRoot(c.id), &next) })
	if err != nil && !anyway {
		return err
	}
	next.Timeline, next.unwritten = nil, err != nil
	c.swap(&next)
	if !next.FinishedAt.IsZero() {
		c.markEnded()
	}
	return err
}

// whileWanted ends with ctx, or when somebody has asked for the container's end and patience is over.
func (c *container) whileWanted(ctx context.Context, patience time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(c.wanted, func() {
		time.AfterFunc(patience, func() { cancel(context.Cause(c.wanted)) })
	})
	return ctx, func() { stop(); cancel(nil) }
}

// state derives the CRI's state from the facts.
func (c *container) state() cri.ContainerState { return c.stateOf(c.facts()) }

func (c *container) stateOf(r *containerRecord) cri.ContainerState {
	switch {
	case !r.FinishedAt.IsZero():
		return cri.ContainerState_CONTAINER_EXITED
	case c.silent.Load():
		return cri.ContainerState_CONTAINER_UNKNOWN
	case !r.StartedAt.IsZero():
		return cri.ContainerState_CONTAINER_RUNNING
	default:
		return cri.ContainerState_CONTAINER_CREATED
	}
}

// listed tells whether clients see the container: one that is still being made, or was given up, is nobody's.
func (r *containerRecord) listed() bool { return !r.CreatedAt.IsZero() }

// exits is the directory into which the shim writes the exit file; rootfs is where the container's root is mounted.
func (c *container) stateDir() string { return c.containerState(c.id) }
func (c *container) rootfs() string   { return filepath.Join(c.stateDir(), "rootfs") }

func (c *container) shim() shim.Client { return shim.Client{Dir: c.podState(c.podID)} }

func (c *container) pod() (*pod, error) { return c.index.pod(c.podID) }

// runtime of the container's pod, or the default if the pod is not known any more.
func (c *container) runtime() *Runtime {
	if p, err := c.pod(); err == nil {
		return p.runtime()
	}
	return c.Runtimes[""]
}

// Create makes a container in a READY pod and leaves it CREATED. A repeated request joins the running one or finds its container.
func (c *Containers) Create(ctx context.Context, podID string, cfg *cri.ContainerConfig) (string, error) {
	whole := ctx
	ctx, stop := beforeDeadline(ctx)
	defer stop()
	pod, err := c.pods.index.pod(podID)
	if err != nil {
		return "", err
	}
	if cfg.GetMetadata().GetName() == "" {
		return "", fmt.Errorf("config.metadata.name of the container is empty: %w", ErrInvalid)
	}
	for {
		found, late := c.claim(ctx, pod, cfg)
		err := found.built.wait(ctx)
		switch r := found.facts(); {
		case ctx.Err() != nil:
			return "", fmt.Errorf("container %q is not made yet: %s%s: %w", cfg.Metadata.Name, &found.doing, pod.silence(whole), context.Cause(ctx))
		case late && (r.Doomed || r.CreatedAt.IsZero()): // a removal that did not finish: finish it, then begin anew
			if err := found.remove(ctx); err != nil {
				return "", fmt.Errorf("container %q of this attempt still exists as %s and cannot be removed: %w", cfg.Metadata.Name, found.id, err)
			}
		case err != nil:
			return "", err
		default:
			return found.id, nil
		}
	}
}

// claim finds the container of this key, or begins to build it. Late means that it had been built, or given up, before.
func (c *Containers) claim(ctx context.Context, pod *pod, cfg *cri.ContainerConfig) (found *container, late bool) {
	id := newID()
	fresh := c.pods.newContainer(containerRecord{
		ID: id, PodID: pod.id, BootID: c.pods.BootID, Config: document[*cri.ContainerConfig]{cfg},
		Cgroup: pod.containerCgroup(id), LogPath: logPath(pod, cfg),
		Resources: document[*cri.LinuxContainerResources]{cfg.GetLinux().GetResources()},
		User:      document[*cri.ContainerUser]{&cri.ContainerUser{}},
	})
	if old := c.pods.index.claimContainer(fresh); old != nil {
		return old, old.built.ended()
	}
	go fresh.build(context.WithoutCancel(ctx), pod)
	return fresh, false
}

func logPath(pod *pod, cfg *cri.ContainerConfig) string {
	dir := pod.facts().Config.Message.GetLogDirectory()
	if dir == "" || cfg.GetLogPath() == "" {
		return ""
	}
	return filepath.Join(dir, cfg.GetLogPath())
}

// Start runs the container's process. Starting a running container is no error: the answer to an earlier start may have been lost.
func (c *Containers) Start(ctx context.Context, id string) error {
	found, err := c.pods.index.container(id)
	if err != nil {
		return err
	}
	if err := found.built.wait(ctx); err != nil {
		return err
	}
	return found.start(ctx)
}

// Stop sends the stop signal, waits up to timeout, then kills. A container that does not exist or does not run is stopped.
func (c *Containers) Stop(ctx context.Context, id string, timeout time.Duration) error {
	found, err := c.pods.index.container(id)
	if errors.Is(err, ErrNotFound) {
		return nil
	} else if err != nil {
		return err
	}
	ctx, stop := beforeDeadline(ctx)
	defer stop()
	return found.timeline.during(ctx, "StopContainer", containerReleased, func(ctx context.Context) error { return found.stop(ctx, timeout) })
}

// Remove kills the container if need be and forgets it. A container that does not exist is removed.
func (c *Containers) Remove(ctx context.Context, id string) error {
	found, err := c.pods.index.container(id)
	if errors.Is(err, ErrNotFound) {
		return nil
	} else if err != nil {
		return err
	}
	return found.remove(ctx)
}

// running returns a container whose process can be talked to.
func (c *Containers) running(id string) (*container, error) {
	found, err := c.pods.index.container(id)
	if err != nil {
		return nil, err
	}
	switch state := found.state(); state {
	case cri.ContainerState_CONTAINER_RUNNING:
		return found, nil
	case cri.ContainerState_CONTAINER_UNKNOWN:
		return nil, fmt.Errorf("container %s: its shim does not answer: %w", found.id, ErrUnknownState)
	default:
		return nil, fmt.Errorf("container %s is %s, not running: %w", found.id, stateName(state), ErrState)
	}
}

func stateName(s cri.ContainerState) string {
	switch s {
	case cri.ContainerState_CONTAINER_CREATED:
		return "created"
	case cri.ContainerState_CONTAINER_RUNNING:
		return "running"
	case cri.ContainerState_CONTAINER_EXITED:
		return "exited"
	default:
		return "unknown"
	}
}
