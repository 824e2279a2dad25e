package sandbox

import (
	"context"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/evenkeel/evenkeel/internal/effect"
)

// Shims counts the shims that answer, or did when they were asked last.
func (p *Pods) Shims() (n int) {
	for _, pod := range p.index.allPods() {
		if pod.facts().ready() && !pod.silent.Load() {
			n++
		}
	}
	return n
}

// Leftovers counts what sweeps found and removed: effects that carry our naming and have no record.
func (p *Pods) Leftovers() uint64 { return p.swept.Load() }

func (p *Pods) countSwept(trace *effect.Trace) {
	for _, step := range trace.Steps() {
		if step.Name == sweepOrphanName && step.Err == nil {
			p.swept.Add(1)
		}
	}
}

// LogTotals asks the shims, which write the logs, how many bytes the containers of READY pods have written and lost. A
// shim that does not answer before ctx ends is left out.
func (p *Pods) LogTotals(ctx context.Context) (written, lost uint64) {
	var sumWritten, sumLost atomic.Uint64
	var asking errgroup.Group
	asking.SetLimit(8)
	for _, pod := range p.readyPods(func(*podRecord) bool { return true }) {
		if pod.silent.Load() {
			continue
		}
		asking.Go(func() error {
			state, err := pod.shim().State(ctx)
			for _, c := range state.Containers {
				sumWritten.Add(c.LogBytes)
				sumLost.Add(c.LogLost)
			}
			return err
		})
	}
	asking.Wait() // what could not be asked is not counted
	return sumWritten.Load(), sumLost.Load()
}
