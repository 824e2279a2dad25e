package runc

import (
	"context"
	"os/exec"
)

// CheckpointOptions describes a `checkpoint`.
type CheckpointOptions struct {
	Images string // directory that receives the images; made by the runtime
	Work   string // existing directory for CRIU's log and statistics; it is the working directory of the runtime and of CRIU, too
}

// Checkpoint writes the state of all processes of a running or paused container, which goes on as it was before. A context
// that ends kills the runtime, but not CRIU, its child: that goes on in o.Work.
func (r *Runc) Checkpoint(ctx context.Context, id string, o CheckpointOptions) error {
	here := *r
	here.Run = func(cmd *exec.Cmd) error {
		cmd.Dir = o.Work
		return cmd.Run()
	}
	args := []string{"checkpoint", "--image-path", o.Images, "--work-path", o.Work, "--leave-running",
		"--tcp-established", "--ext-unix-sk", "--file-locks", id}
	return here.run(ctx, call{op: "checkpoint", id: id, args: args})
}

// Pause freezes all processes of a container.
func (r *Runc) Pause(ctx context.Context, id string) error {
	return r.run(ctx, call{op: "pause", id: id, args: []string{"pause", id}})
}

// Resume lets them go on.
func (r *Runc) Resume(ctx context.Context, id string) error {
	return r.run(ctx, call{op: "resume", id: id, args: []string{"resume", id}})
}
