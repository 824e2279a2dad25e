package sandbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/internal/effect"
	"github.com/evenkeel/evenkeel/oci/runc"
)

// The effects of starting a container, in order.
var (
	containerStart   = effect.New("container.start")
	containerStarted = effect.New("container.started")
)

// start runs what create prepared. It begins as long as the caller is there, and goes on without: half a start cannot be taken back.
func (c *container) start(ctx context.Context) error {
	patient, stop := beforeDeadline(ctx)
	defer stop()
	if err := c.turn.take(patient); err != nil {
		return fmt.Errorf("cannot start container %s yet, another operation on it is running%s: %w", c.id, c.silence(ctx), err)
	}
	started := newResult()
	go func() {
		err := c.timeline.during(context.WithoutCancel(ctx), "StartContainer", containerStarted, c.begin)
		c.turn.give()
		started.end(err)
	}()
	select {
	case <-started.done:
		return started.err
	case <-patient.Done():
		return fmt.Errorf("container %s is not started yet, and the work goes on: waiting for the OCI runtime%s: %w", c.id, c.silence(ctx), context.Cause(patient))
	}
}

// begin is start for those who hold the turn.
func (c *container) begin(ctx context.Context) error {
	switch state := c.state(); {
	case c.gone || c.facts().Doomed:
		return fmt.Errorf("container %s: %w", c.id, ErrNotFound)
	case state == cri.ContainerState_CONTAINER_RUNNING:
		return nil
	case state == cri.ContainerState_CONTAINER_UNKNOWN:
		return fmt.Errorf("cannot start container %s: its shim does not answer: %w", c.id, ErrUnknownState)
	case state != cri.ContainerState_CONTAINER_CREATED:
		return fmt.Errorf("cannot start container %s: a container starts once, and %s: %w", c.id, c.facts().story(), ErrState)
	}
	if fault := c.facts().StartFault; fault != "" {
		return c.failStart(ctx, c.facts().StartCode, errors.New(fault))
	}
	begun := newResult()
	c.starting.Store(begun)
	defer begun.end(nil)
	if err := c.askPlugins(ctx, ContainerStart); err != nil {
		return c.failStart(ctx, 128, err)
	}
	return c.finishStart(ctx)
}

// story says how a container ended, for who asks to start it: to repeat a start whose answer got lost is no reason to fail, to start
// anew what has ended is one, and only the caller knows which it is.
func (r *containerRecord) story() string {
	at := func(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }
	ended := fmt.Sprintf("ended at %s with exit code %d (%s)", at(r.FinishedAt), r.Exit.Code, r.Exit.Reason)
	if r.Exit.Message != "" {
		ended += ": " + r.Exit.Message
	}
	switch {
	case !r.StartedAt.IsZero():
		return "this one was started at " + at(r.StartedAt) + " and " + ended
	case r.Exit.Reason == startError:
		return "the start of this one failed; it " + ended
	}
	return "this one was never started; it " + ended
}

// finishStart runs what plugins have allowed to run.
func (c *container) finishStart(ctx context.Context) error {
	startedAt, err := c.startInShim(ctx)
	if err != nil {
		return c.failStart(ctx, 128, err)
	}
	c.noteAnyway(ctx, containerStarted, func(r *containerRecord) { r.StartedAt = startedAt })
	c.tellPlugins(ctx, ContainerStarted)
	return nil
}

// joinStart takes over a start that was under way in the shim when the engine died which had asked for it.
func (c *container) joinStart(ctx context.Context, begun *result) error {
	c.turn.hold()
	defer c.turn.give()
	defer begun.end(nil)
	if r := c.facts(); c.gone || r.Doomed || !r.FinishedAt.IsZero() {
		return nil
	}
	return c.timeline.during(ctx, "StartContainer", containerStarted, c.finishStart)
}

// startInShim waits as long as it takes, unless somebody waits for the turn to end the container: the shim can be silent, and
// what it starts after that is dead already.
func (c *container) startInShim(ctx context.Context) (startedAt time.Time, err error) {
	err = containerStart.Do(ctx, func() (err error) {
		wanted, end := c.whileWanted(ctx, shimPatience)
		defer end()
		if startedAt, err = c.shim().Start(wanted, c.id); err != nil && wanted.Err() != nil {
			return context.Cause(wanted)
		}
		return err
	})
	return startedAt, err
}

const startError = "StartError" // reason of an exit

// failStart leaves the container EXITED with the reason, so that the kubelet backs off as it does with a process that ended.
func (c *container) failStart(ctx context.Context, code int, cause error) error {
	if known, ok := runc.ErrExecutable(cause); ok {
		code = known
	}
	ctx, end := undoing(ctx)
	defer end()
	c.noteAnyway(ctx, containerExited, func(r *containerRecord) {
		if r.FinishedAt.IsZero() {
			r.FinishedAt = time.Now()
			r.Exit = exit{Code: int32(code), Reason: startError, Message: cause.Error()}
		}
	})
	return errors.Join(fmt.Errorf("cannot start container %q (%s): %w", c.facts().Config.Message.Metadata.Name, c.id, cause), c.release(ctx))
}
