package image

import (
	"context"
	"sync"

	"github.com/opencontainers/go-digest"
)

// flights lets callers that want the same thing share one piece of work. The work ends when it is done or when the
// last caller who is interested in it has gone, not when the one who happened to start it goes.
type flights[K comparable, V any] struct {
	mu      sync.Mutex // guards what follows and the users of every flight
	running map[K]*flight[V]
}

type flight[V any] struct {
	audience
	cancel context.CancelFunc
	users  int
	done   chan struct{} // closed when the work has ended; value and err are set by then
	value  V
	err    error
}

// join enters the flight of key and starts it if nobody has. Every join is followed by one leave.
func (f *flights[K, V]) join(ctx context.Context, key K, listen func(Progress), run func(context.Context, func(Progress)) (V, error)) (fl *flight[V], first bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	fl = f.running[key]
	if fl == nil {
		first = true
		fl = f.start(ctx, key, run)
	}
	fl.users++
	fl.listen(listen)
	return fl, first
}

func (f *flights[K, V]) start(ctx context.Context, key K, run func(context.Context, func(Progress)) (V, error)) *flight[V] {
	if f.running == nil {
		f.running = map[K]*flight[V]{}
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	fl := &flight[V]{cancel: cancel, done: make(chan struct{})}
	f.running[key] = fl
	go func() {
		defer cancel()
		fl.value, fl.err = run(ctx, fl.tell)
		if fl.err != nil {
			f.forget(key, fl) // before done: who retries must not meet this failure again
		}
		close(fl.done)
	}()
	return fl
}

func (f *flights[K, V]) forget(key K, fl *flight[V]) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.running[key] == fl {
		delete(f.running, key)
	}
}

// forgetAll lets nobody join what is under way or done.
func (f *flights[K, V]) forgetAll() {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.running)
}

// leave gives up the caller's interest. The last to leave ends the work, waits until it has ended, and disposes of
// its result; so an error that reaches a sole caller means that nothing is running for him any more.
func (f *flights[K, V]) leave(key K, fl *flight[V], dispose func(V)) {
	f.mu.Lock()
	fl.users--
	last := fl.users == 0
	if last && f.running[key] == fl {
		delete(f.running, key)
	}
	f.mu.Unlock()
	if !last {
		return
	}
	fl.cancel()
	<-fl.done
	if fl.err == nil && dispose != nil {
		dispose(fl.value)
	}
}

// cancelAll ends all work, for Close.
func (f *flights[K, V]) cancelAll() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, fl := range f.running {
		fl.cancel()
	}
}

func (fl *flight[V]) wait(ctx context.Context) (V, error) {
	select {
	case <-fl.done:
		return fl.value, fl.err
	case <-ctx.Done():
		var none V
		return none, context.Cause(ctx)
	}
}

// audience is who wants to hear how a flight gets on. Who comes late hears the last word on every blob first.
type audience struct {
	mu        sync.Mutex // guards what follows
	listeners []func(Progress)
	last      map[digest.Digest]Progress
}

func (a *audience) listen(f func(Progress)) {
	if f == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.listeners = append(a.listeners, f)
	for _, p := range a.last {
		f(p)
	}
}

// tell passes p on in order; listeners promise not to block.
func (a *audience) tell(p Progress) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.last == nil {
		a.last = map[digest.Digest]Progress{}
	}
	a.last[p.Digest] = p
	for _, f := range a.listeners {
		f(p)
	}
}
