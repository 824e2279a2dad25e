package sandbox

import (
	"cmp"
	"context"
	"encoding/json"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/evenkeel/evenkeel/internal/effect"
)

// An Operation is one thing that was done with a pod or container, step by step: what `evenkeel explain` tells.
type Operation struct {
	Name        string       `json:"name"` // of the request, as the CRI has it, or ContainerEnded
	ContainerID string       `json:"containerId,omitempty"`
	Container   string       `json:"container,omitempty"` // its name
	Start       time.Time    `json:"start"`
	Took        Milliseconds `json:"tookMs"`
	Error       string       `json:"error,omitempty"`
	Unfinished  bool         `json:"unfinished,omitempty"` // it is running, or its engine died in it
	Steps       []Step       `json:"steps,omitempty"`      // in the order in which they began; one can be a part of the one before
	More        int          `json:"moreSteps,omitempty"`  // how many steps beyond the limit were dropped
}

// Step is one effect of an operation.
type Step struct {
	Name  string       `json:"name"`
	At    Milliseconds `json:"atMs"` // since the operation began
	Took  Milliseconds `json:"tookMs"`
	Error string       `json:"error,omitempty"`
}

// Milliseconds is a duration that JSON shows as a number with microseconds behind the point.
type Milliseconds time.Duration

// MarshalJSON implements json.Marshaler.
func (m Milliseconds) MarshalJSON() ([]byte, error) {
	return json.Marshal(float64(time.Duration(m).Microseconds()) / 1000)
}

// UnmarshalJSON implements json.Unmarshaler.
func (m *Milliseconds) UnmarshalJSON(data []byte) error {
	var n float64
	err := json.Unmarshal(data, &n)
	*m = Milliseconds(time.Duration(math.Round(n*1000)) * time.Microsecond)
	return err
}

// How much is remembered. A pod whose container crashes for weeks keeps its beginning and its latest past.
const (
	operationLimit = 24 // per pod or container
	stepLimit      = 48 // per operation
	errorLimit     = 1024
)

// A timeline is what was done with one object, oldest first. It is written with the record, never for itself, so it costs no
// file write: what has ended since the last record is lost with the daemon, as is the duration of that last write.
type timeline struct {
	mu   sync.Mutex // guards what follows
	past []Operation
	now  []*running
}

// running is an operation that has not ended.
type running struct {
	name  string
	last  effect.Effect // the record whose writing completes it
	start time.Time
	trace *effect.Trace
}

// begin notes that an operation starts; its steps are those of the returned context. end must be called with its outcome.
// An operation that does nothing, such as a second Stop, leaves no trace.
func (t *timeline) begin(ctx context.Context, name string, last effect.Effect) (_ context.Context, end func(error)) {
	r := &running{name: name, last: last, start: time.Now()}
	ctx, r.trace = effect.WithTrace(ctx)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.now = append(t.now, r)
	return ctx, func(err error) {
		o := r.operation()
		if err != nil {
			o.Error = brief(err)
		}
		t.mu.Lock()
		defer t.mu.Unlock()
		t.now = slices.DeleteFunc(t.now, func(other *running) bool { return other == r })
		if len(o.Steps) > 0 || err != nil {
			t.keep(o)
		}
	}
}

func (r *running) operation() Operation {
	o := Operation{Name: r.name, Start: r.start, Took: Milliseconds(time.Since(r.start))}
	for _, s := range r.trace.Steps() {
		step := Step{Name: s.Name, At: Milliseconds(s.Start.Sub(r.start)), Took: Milliseconds(s.Took)}
		if s.Err != nil {
			step.Error = brief(s.Err)
		}
		o.Steps = append(o.Steps, step)
	}
	slices.SortStableFunc(o.Steps, func(a, b Step) int { return cmp.Or(cmp.Compare(a.At, b.At), cmp.Compare(b.Took, a.Took)) })
	if o.More = len(o.Steps) - stepLimit; o.More > 0 {
		o.Steps = slices.Clip(o.Steps[:stepLimit])
	} else {
		o.More = 0
	}
	return o
}

func brief(err error) string {
	text := err.Error()
	return text[:min(len(text), errorLimit)]
}

// keep makes room by forgetting the second oldest: the oldest tells how the object came to be. The lock is held.
func (t *timeline) keep(o Operation) {
	t.past = append(t.past, o)
	if len(t.past) > operationLimit {
		t.past = slices.Delete(t.past, 1, len(t.past)-operationLimit+1)
	}
}

// operations returns what was done and what is being done. With the writing of a record that completes an operation, the
// operation counts as ended.
func (t *timeline) operations(writing effect.Effect) []Operation {
	t.mu.Lock()
	defer t.mu.Unlock()
	list := slices.Clone(t.past)
	for _, r := range t.now {
		o := r.operation()
		o.Unfinished = r.last != writing
		if len(o.Steps) > 0 || o.Unfinished {
			list = append(list, o)
		}
	}
	return list
}

// during runs work as an operation.
func (t *timeline) during(ctx context.Context, name string, last effect.Effect, work func(context.Context) error) error {
	ctx, end := t.begin(ctx, name, last)
	err := work(ctx)
	end(err)
	return err
}

// bequeath moves the past of a container that is gone to its pod, where it outlives it: why a container could not be made
// is asked after the attempt is gone. Of what went well, the steps are dropped.
func (c *container) bequeath() {
	pod, err := c.pod()
	if err != nil {
		return
	}
	past := c.history()
	c.timeline.mu.Lock()
	c.timeline.past = nil
	c.timeline.mu.Unlock()
	pod.timeline.mu.Lock()
	defer pod.timeline.mu.Unlock()
	for _, o := range past {
		if o.Unfinished {
			continue // it comes when it has ended
		}
		if o.Error == "" {
			o.Steps, o.More = nil, 0
		}
		pod.timeline.keep(o)
	}
}

var noEffect effect.Effect

// history is the timeline of a container, each operation saying whose it is.
func (c *container) history() []Operation {
	list := c.timeline.operations(noEffect)
	for i := range list {
		list[i].ContainerID, list[i].Container = c.id, c.facts().Config.Message.GetMetadata().GetName()
	}
	return list
}

// history is the timeline of a pod with those of its containers.
func (p *pod) history() []Operation {
	list := p.timeline.operations(noEffect)
	for _, c := range p.index.allContainers(p.id) {
		list = append(list, c.history()...)
	}
	slices.SortStableFunc(list, func(a, b Operation) int { return a.Start.Compare(b.Start) })
	return list
}

// GonePod is a pod that no list shows any more: it could not be made, or was removed.
type GonePod struct {
	ID         string      `json:"id"`
	Namespace  string      `json:"namespace"`
	Name       string      `json:"name"`
	UID        string      `json:"uid"`
	Attempt    uint32      `json:"attempt"`
	At         time.Time   `json:"at"` // when it went
	Operations []Operation `json:"operations"`
}

// goneLimit is how many pods that are gone are remembered, in memory only.
const goneLimit = 64

// bygone remembers pods for whoever asks why one did not come up.
type bygone struct {
	mu   sync.Mutex // guards what follows
	pods []*pod     // oldest first
	at   []time.Time
}

func (b *bygone) remember(p *pod) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.pods, b.at = append(b.pods, p), append(b.at, time.Now())
	if over := len(b.pods) - goneLimit; over > 0 {
		b.pods, b.at = slices.Delete(b.pods, 0, over), slices.Delete(b.at, 0, over)
	}
}

// Gone lists the pods that were lately removed or could not be made, newest first. This process remembers them; the next
// one does not.
func (p *Pods) Gone() []GonePod {
	b := &p.bygone
	b.mu.Lock()
	defer b.mu.Unlock()
	var list []GonePod
	for i, pod := range slices.Backward(b.pods) {
		m := pod.facts().Config.Message.GetMetadata()
		list = append(list, GonePod{
			ID: pod.id, Namespace: m.GetNamespace(), Name: m.GetName(), UID: m.GetUid(), Attempt: m.GetAttempt(), At: b.at[i], Operations: pod.history(),
		})
	}
	return list
}
