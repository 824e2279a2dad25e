package main

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	firstPause  = time.Second
	longestWait = 5 * time.Minute
	// A container that ran this long has recovered: its next failure is a first one (the kubelet's rule).
	recovered = 10 * time.Minute
)

// restartPause doubles the pause between restarts. The zero value begins at a second.
type restartPause struct{ pause time.Duration }

// next is the pause after an attempt that ran for so long.
func (b *restartPause) next(ran time.Duration) time.Duration {
	if ran >= recovered || b.pause == 0 {
		b.pause = firstPause
	} else {
		b.pause = min(2*b.pause, longestWait)
	}
	return b.pause
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// onlyCancelled tells errors that say no more than that somebody stopped waiting.
func onlyCancelled(err error) bool {
	var joined interface{ Unwrap() []error }
	if errors.As(err, &joined) {
		for _, e := range joined.Unwrap() {
			if !onlyCancelled(e) {
				return false
			}
		}
		return true
	}
	return errors.Is(err, context.Canceled) || status.Code(err) == codes.Canceled
}
