package sandbox

import "context"

// A turn is held by whoever changes an object, for as long as processes and disks take. It is not a mutex: waiting
// for it ends with the caller's context, and reading an object's state never needs it.
type turn chan struct{}

func newTurn() turn { return make(turn, 1) }

func (t turn) take(ctx context.Context) error {
	select {
	case t <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// hold takes the turn, however long that takes.
func (t turn) hold() { t <- struct{}{} }

func (t turn) give() { <-t }

// A result is what one piece of work came to; many callers may wait for it.
type result struct {
	done chan struct{}
	err  error // valid once done is closed
}

func newResult() *result { return &result{done: make(chan struct{})} }

// finished is a result that was there from the start: the object was recovered, not built by this process.
func finished() *result {
	r := newResult()
	r.end(nil)
	return r
}

func (r *result) end(err error) {
	r.err = err
	close(r.done)
}

func (r *result) wait(ctx context.Context) error {
	select {
	case <-r.done:
		return r.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (r *result) ended() bool {
	select {
	case <-r.done:
		return true
	default:
		return false
	}
}
