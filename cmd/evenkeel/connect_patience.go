package main

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"time"

	"google.golang.org/grpc"
)

// answerLimit is how long a list or a status may take. The engine answers them from memory.
const answerLimit = 30 * time.Second

// quick are the methods, of the CRI and of the operator's service, that have the limit. What takes as long as it takes has none:
// pulls, execs, stops, checks.
var quick = []string{
	"Version", "ListPodSandbox", "PodSandboxStatus", "ListContainers", "ContainerStatus", "ListContainerStats",
	"ListImages", "ImageStatus", "Usage", "Gone", "Inventory",
}

// patience gives up a quick call that the engine at address does not answer within limit: a daemon that hangs accepts connections all
// the same. Calls that wait for a daemon to come back have limits of their own.
func patience(address string, limit time.Duration) grpc.UnaryClientInterceptor {
	return func(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		if !slices.Contains(quick, path.Base(method)) || waitsForReady(opts) {
			return invoke(ctx, method, req, reply, conn, opts...)
		}
		silence := &unanswered{address, path.Base(method), limit}
		// No deadline, which the engine would be told: it could notice it first, and answer with an error of its own.
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		defer time.AfterFunc(limit, func() { cancel(silence) }).Stop()
		err := invoke(ctx, method, req, reply, conn, opts...)
		if err != nil && context.Cause(ctx) == silence {
			return silence
		}
		return err
	}
}

func waitsForReady(opts []grpc.CallOption) bool {
	return slices.ContainsFunc(opts, func(o grpc.CallOption) bool {
		f, ok := o.(grpc.FailFastCallOption)
		return ok && !f.FailFast
	})
}

// unanswered is what became of a call that the engine took and did not answer.
type unanswered struct {
	address, method string
	limit           time.Duration
}

func (u *unanswered) Error() string {
	return fmt.Sprintf("the engine at %s has not answered %s within %s: it hangs, or the machine is overloaded; look at `journalctl -u evenkeel`, "+
		"and restart it with `systemctl restart evenkeel`, which leaves pods running", u.address, u.method, u.limit)
}

// isUnanswered tells a daemon that hangs from one that answers with an error. The next call would take as long.
func isUnanswered(err error) bool {
	var u *unanswered
	return errors.As(err, &u)
}
