// Package effect gives every change the engine makes to the world a name.
//
// A name is declared once, beside the code that acts, and the act runs inside Do:
//
//	var attach = effect.New("pod.network")
//	…
//	err := attach.Do(ctx, func() error { return p.Network.Attach(ctx, pod) })
//
// Names buy three things. A test can make the effect fail, or kill the process right before or right after it
// (see Fault), and so prove that recovery leaves it finished or undone. A Trace carried by the context records how
// long each step took, so that an error can say which one was slow. And All lists what there is to attack.
package effect

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// An Effect is one named change to the world.
type Effect struct{ name string }

var registry struct {
	sync.Mutex
	names []string
}

// New declares an effect. Names read room.thing or room.thing.verb; declaring one twice panics, since a test that
// names it could then mean either.
func New(name string) Effect {
	registry.Lock()
	defer registry.Unlock()
	if slices.Contains(registry.names, name) {
		panic("effect declared twice: " + name)
	}
	registry.names = append(registry.names, name)
	return Effect{name}
}

// All returns the names of all declared effects, sorted.
func All() []string {
	registry.Lock()
	defer registry.Unlock()
	return slices.Sorted(slices.Values(registry.names))
}

// Do runs f, records its duration in the context's Trace, and obeys the process's Fault for this name.
func (e Effect) Do(ctx context.Context, f func() error) error {
	if err := strike(e.name, before); err != nil {
		return err
	}
	start := time.Now()
	err := f()
	if trace, ok := ctx.Value(traceKey{}).(*Trace); ok {
		trace.add(Step{Name: e.name, Start: start, Took: time.Since(start), Err: err})
	}
	if err != nil {
		return err
	}
	return strike(e.name, after)
}

// A Step is one effect that ran.
type Step struct {
	Name  string
	Start time.Time
	Took  time.Duration
	Err   error
}

// A Trace collects the steps of one request.
type Trace struct {
	outer *Trace     // of the work that this one is a part of
	watch func(Step) // told of each step, which is not kept then; nil: they are kept
	mu    sync.Mutex
	steps []Step
}

type traceKey struct{}

// WithTrace returns a context whose effects are recorded in the returned Trace, and in the one that ctx carries already.
func WithTrace(ctx context.Context) (context.Context, *Trace) {
	trace := &Trace{}
	trace.outer, _ = ctx.Value(traceKey{}).(*Trace)
	return context.WithValue(ctx, traceKey{}, trace), trace
}

// Watch returns a context each of whose effects is told when it has ended, also to those who watch or trace ctx already.
func Watch(ctx context.Context, watch func(Step)) context.Context {
	trace := &Trace{watch: watch}
	trace.outer, _ = ctx.Value(traceKey{}).(*Trace)
	return context.WithValue(ctx, traceKey{}, trace)
}

func (t *Trace) add(s Step) {
	for ; t != nil; t = t.outer {
		if t.watch != nil {
			t.watch(s)
			continue
		}
		t.mu.Lock()
		t.steps = append(t.steps, s)
		t.mu.Unlock()
	}
}

// Steps returns what ran so far, in the order in which it ended.
func (t *Trace) Steps() []Step {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.steps)
}

// told is how many steps String lists: the removal of a pod with a thousand containers has many thousands.
const told = 60

// String lists the steps with their durations: "pod.namespaces 1ms, pod.network 38ms".
func (t *Trace) String() string {
	var parts []string
	steps := t.Steps()
	for i, s := range steps {
		if i == told {
			parts = append(parts, fmt.Sprintf("and %d more", len(steps)-told))
			break
		}
		parts = append(parts, fmt.Sprintf("%s %s", s.Name, s.Took.Round(100*time.Microsecond)))
	}
	return strings.Join(parts, ", ")
}
