package network

import (
	"context"
	"sync"
)

// Turns lets one caller at a time work on a name: a pod's id, or the host's own end. It is a queue and not a mutex,
// so a caller whose context ends stops waiting, whatever the one in front is waiting for.
type turns struct {
	mu   sync.Mutex // guards busy
	busy map[string]chan struct{}
}

// take waits for the name to be free and takes it; the caller gives it back with the returned function.
func (t *turns) take(ctx context.Context, name string) (release func(), err error) {
	for {
		wait := t.try(name)
		if wait == nil {
			return func() { t.give(name) }, nil
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// try takes the name, or returns what is closed when it becomes free.
func (t *turns) try(name string) (wait <-chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if ch, ok := t.busy[name]; ok {
		return ch
	}
	if t.busy == nil {
		t.busy = map[string]chan struct{}{}
	}
	t.busy[name] = make(chan struct{})
	return nil
}

func (t *turns) give(name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	close(t.busy[name])
	delete(t.busy, name)
}
