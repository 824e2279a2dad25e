package sandbox

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// An ending is a stop or a removal. It belongs to no caller: a process that the kernel holds can need hours to die, and
// the work waits for that, while callers are told after a time what is in the way. Whoever asks again joins it.
type ending struct {
	mu  sync.Mutex // guards now
	now *result    // nil: none is under way
}

// join returns the ending that is under way, or begins one.
func (e *ending) join(work func() error) *result {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.now != nil {
		return e.now
	}
	begun := newResult()
	e.now = begun
	go func() {
		err := work()
		e.mu.Lock()
		e.now = nil
		e.mu.Unlock()
		begun.end(err)
	}()
	return begun
}

// endPatience is how long a caller waits at most for processes that cannot be killed. The kubelet gives a call two minutes and
// calls again; kubeadm reset gives it two seconds, five times.
const endPatience = 10 * time.Second

// A mortal is what an ending is of.
type mortal interface {
	inTheWay() error                      // processes that no signal reaches
	silence(whole context.Context) string // of its shim, which is given some seconds to tell what it knows
}

// await waits for an ending as long as its caller has time. It gives up earlier on a process that no signal reaches, whose
// end nobody can bring about; everything else that can take long has a limit of its own.
func (r *result) await(ctx context.Context, what string, of mortal) error {
	whole := ctx
	ctx, stop := beforeDeadline(ctx)
	defer stop()
	patience := time.NewTimer(endPatience)
	defer patience.Stop()
	for {
		select {
		case <-r.done:
			return r.err
		case <-patience.C:
			if err := of.inTheWay(); err != nil {
				return unended(what, err, "")
			}
			patience.Reset(endPatience)
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return fmt.Errorf("%s yet, and the work goes on: %w", what, context.Cause(ctx))
			}
			return unended(what, of.inTheWay(), of.silence(whole))
		}
	}
}

func unended(what string, reason error, silence string) error {
	if reason == nil {
		return fmt.Errorf("%s yet%s, and the work goes on; another request joins it: %w", what, silence, ErrTimeout)
	}
	return fmt.Errorf("%s yet: %w: this ends by itself when the kernel lets go of them, and another request joins it: %w", what, reason, ErrTimeout)
}

// inTheWay names the processes of the pod that cannot be killed, and what its half-made containers wait for.
func (p *pod) inTheWay() error {
	errs := []error{p.Cgroups.Stuck(p.facts().Cgroup)}
	for _, c := range p.index.allContainers(p.id) {
		errs = append(errs, c.inTheWay())
	}
	return errors.Join(errs...)
}

func (c *container) inTheWay() error {
	if err := c.Cgroups.Stuck(c.facts().Cgroup); err != nil {
		return err
	}
	if !c.built.ended() {
		return fmt.Errorf("container %s is being made: %s", c.id, &c.doing)
	}
	return nil
}
