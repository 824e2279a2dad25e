package sandbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/evenkeel/evenkeel/shim"
)

// voiceLimit is how long a shim may take to show that it lives, when somebody who has waited for it in vain wants to know why.
const voiceLimit = time.Second

// silence tells of a shim that does not answer right now, as the end of a sentence about what waits for it; empty: it answers, or is gone. Who
// asks has lost patience a little before ctx ends (beforeDeadline), and a third of what is left is the shim's.
func (p *pod) silence(ctx context.Context) string {
	limit := voiceLimit
	if deadline, ok := ctx.Deadline(); ok {
		limit = min(limit, time.Until(deadline)/3)
	}
	if limit < 5*time.Millisecond {
		return "" // no shim could
	}
	asked, end := context.WithTimeout(context.WithoutCancel(ctx), limit)
	defer end()
	if _, err := p.shim().State(asked); err == nil || errors.Is(err, shim.ErrGone) {
		return ""
	}
	return fmt.Sprintf(", and the shim of its pod%s does not answer", p.shimNumber())
}

// shimNumber is also known of a shim that is not on record yet.
func (p *pod) shimNumber() string {
	process := p.facts().Shim
	if process.PID == 0 {
		if process, _ = p.findShim(); process.PID == 0 {
			return ""
		}
	}
	return fmt.Sprintf(", pid %d,", process.PID)
}

// silenceAtStart is silence where the shim of a pod that is being made is what is waited for.
func (p *pod) silenceAtStart(ctx context.Context) string {
	if p.doing.String() != startingInit {
		return ""
	}
	return p.silence(ctx)
}

func (c *container) silence(ctx context.Context) string {
	p, err := c.pod()
	if err != nil {
		return ""
	}
	return p.silence(ctx)
}
