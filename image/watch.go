package image

import (
	"context"
	"fmt"
	"time"
)

// idleLimit bounds a pull, which the kubelet gives no deadline: by progress and not by time, since a large image over a
// thin line may take hours. Every request and every read has its own, shorter limit; this one ends what they overlook.
const idleLimit = 10 * time.Minute

// watch returns a context that ends when no layer has progressed for idleLimit.
func (w *work) watch(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	limit := w.patienceWithPulls()
	idle := fmt.Errorf("%w: no layer has made progress for %v", ErrUnavailable, limit)
	timer := time.AfterFunc(limit, func() { cancel(idle) })
	w.mu.Lock()
	w.idle = timer
	w.mu.Unlock()
	return ctx, func() { timer.Stop(); cancel(nil) }
}

func (w *work) progressed() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.idle != nil && w.idle.Stop() { // else it has struck, or the watch is over
		w.idle.Reset(w.patienceWithPulls())
	}
}

func (s *Store) patienceWithPulls() time.Duration {
	if s.idleLimit > 0 {
		return s.idleLimit
	}
	return idleLimit
}
