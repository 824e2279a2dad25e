package machine

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"strings"
	"time"

	"github.com/evenkeel/evenkeel/integration/vm/job"
)

const (
	// tries to boot. That an emulator trips over a kernel at boot says nothing about what is under test.
	tries = 3
	// upLimit is how long a machine may take until its first process says that it is up; on a busy host it takes seconds
	// without systemd, and less than a minute with it.
	upLimit = 3 * time.Minute
)

// Boot starts the machine and returns when its first process has said that it is up. A machine that dies before, or that says
// nothing for some minutes, is started again, twice at most; again hears why. What happens later is the caller's business.
func (m *Machine) Boot(ctx context.Context, again func(failed string)) (*Running, error) {
	for try := 1; ; try++ {
		r, err := m.Start(ctx)
		if err != nil {
			return nil, err
		}
		d := r.await(upLimit)
		if d.up {
			return r, nil
		}
		d.cancelled, d.terminal = ctx.Err() != nil, m.Terminal
		if d.cancelled {
			return nil, errors.Join(d.err, context.Cause(ctx))
		}
		if !d.again(try) {
			return nil, fmt.Errorf("the machine did not come up at try %d: %s", try, d)
		}
		again(d.String())
	}
}

// A death of a machine before it was up, or how it did not die.
type death struct {
	up        bool
	refused   string // what the guest's first process could not do: it would fail at the next boot as well
	slow      bool   // it was killed since it said nothing for too long
	cancelled bool   // it was killed since nobody wants it any more
	terminal  bool   // a person was at the console
	err       error  // of qemu
	console   string // the end of what was printed
}

// await reads events until the machine is up or gone.
func (r *Running) await(limit time.Duration) (d death) {
	patience := time.AfterFunc(limit, r.Kill)
	for e := range r.Events {
		switch e.What {
		case job.Up:
			d.up = patience.Stop() // otherwise it has just been killed
			if d.up {
				return d
			}
		case job.Failed:
			d.refused = e.Detail
		}
	}
	d.slow = !patience.Stop()
	d.err = r.Wait()
	d.console = r.tail.String()
	return d
}

// again decides whether the machine is worth another boot.
func (d death) again(try int) bool {
	var exit *exec.ExitError
	switch {
	case d.up, d.cancelled, d.refused != "", try >= tries:
		return false
	case errors.As(d.err, &exit) && exit.Exited():
		return false // qemu itself gave up: a panic ends it with code 0, Kill and a crash with a signal
	case d.terminal && !d.slow:
		return strings.Contains(d.console, panicked) // otherwise the person ended it
	}
	return true
}

func (d death) String() string {
	switch {
	case d.refused != "":
		return d.refused
	case d.slow:
		return fmt.Sprintf("not up after %s; the console ends with %q", upLimit, lastWords(d.console))
	case d.err != nil:
		return fmt.Sprintf("%v: %s", d.err, lastWords(d.console))
	}
	return lastWords(d.console)
}

// Panic is why the kernel of a machine that is gone has panicked; empty: it has not.
func (r *Running) Panic() string {
	console := r.tail.String()
	if !strings.Contains(console, panicked) {
		return ""
	}
	return lastWords(console)
}

const panicked = "Kernel panic"

var (
	timestamp = regexp.MustCompile(`^\[ *[0-9]+\.[0-9]+\](\[ *[TC][0-9]+\])? `)
	firstOops = regexp.MustCompile(`\[#1\]`)
)

// lastWords are what a dying kernel said: its first Oops and why it panicked, or else the last line of the console.
func lastWords(console string) string {
	last, oops, why := "nothing on the console", "", ""
	for line := range strings.Lines(console) {
		line = timestamp.ReplaceAllString(strings.TrimSpace(line), "")
		switch {
		case line == "":
			continue
		case oops == "" && firstOops.MatchString(line):
			oops = line + ": "
		case why == "" && strings.Contains(line, panicked):
			why = line
		}
		last = line
	}
	if why != "" {
		last = why
	}
	return oops + last
}
