package sandbox

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"
)

// An activity says what work is waiting for right now, for those who have to leave before it ends.
type activity struct{ text atomic.Pointer[string] }

func (a *activity) set(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	a.text.Store(&text)
}

func (a *activity) String() string {
	if text := a.text.Load(); text != nil {
		return *text
	}
	return "waiting for its turn"
}

// Margin is how long before a client's deadline it is answered, at most.
const Margin = time.Second

// beforeDeadline ends a little earlier than ctx. A client that stops waiting at its deadline has its own words for that;
// what we know of the reason must reach it before.
func beforeDeadline(ctx context.Context) (context.Context, context.CancelFunc) {
	deadline, ok := ctx.Deadline()
	if !ok {
		return context.WithCancel(ctx)
	}
	left := time.Until(deadline)
	return context.WithDeadline(ctx, deadline.Add(-min(Margin, left/10)))
}
