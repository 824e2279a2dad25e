package shim

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// reaper collects every child of the shim, started by it or orphaned to it, and hands each ending to whoever claimed
// the pid. It is the only caller of wait in the process.
//
// A process may end before its pid is known to us: we learn it from a file that the runtime writes. So while anybody is
// starting something (a birth), the endings that nobody claims are kept. A birth claims only what ended after it began,
// which keeps an old ending of a reused pid out.
type reaper struct {
	null *os.File
	oom  oomScore

	mu        sync.Mutex
	sequence  uint64
	claims    map[int]chan<- ending
	births    map[*birth]struct{}
	unclaimed []ending
}

type ending struct {
	pid      int
	status   unix.WaitStatus
	at       time.Time
	sequence uint64
}

type birth struct {
	r    *reaper
	from uint64
}

// run collects for ever. SIGTERM and its like are taken and dropped: a shim ends by Shutdown. They are not ignored,
// because an ignored signal stays ignored through exec, down into the container.
func (r *reaper) run() {
	c := make(chan os.Signal, 1)
	signal.Notify(c, unix.SIGCHLD, unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2)
	go func() {
		for {
			r.collect()
			<-c
		}
	}()
}

func (r *reaper) collect() {
	for r.collectOne() {
	}
}

// collectOne frees a pid and tells of it under one lock: a pid whose ending was not delivered is still its process's.
func (r *reaper) collectOne() (more bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var e ending
	pid, err := unix.Wait4(-1, &e.status, unix.WNOHANG, nil)
	if err == unix.EINTR {
		return true
	}
	if err != nil || pid <= 0 {
		return false
	}
	e.pid, e.at = pid, time.Now()
	r.deliver(e)
	return true
}

func (r *reaper) deliver(e ending) {
	r.sequence++
	e.sequence = r.sequence
	if c, ok := r.claims[e.pid]; ok {
		delete(r.claims, e.pid)
		c <- e
	} else if len(r.births) > 0 {
		r.unclaimed = append(r.unclaimed, e)
	}
}

// begin must come before the process can exist.
func (r *reaper) begin() *birth {
	r.mu.Lock()
	defer r.mu.Unlock()
	b := &birth{r: r, from: r.sequence}
	r.births[b] = struct{}{}
	return b
}

// claim returns where the ending of the process will arrive, or already has.
func (b *birth) claim(pid int) <-chan ending {
	b.r.mu.Lock()
	defer b.r.mu.Unlock()
	c := make(chan ending, 1)
	for i, e := range b.r.unclaimed {
		if e.pid == pid && e.sequence > b.from {
			b.r.unclaimed = append(b.r.unclaimed[:i], b.r.unclaimed[i+1:]...)
			c <- e
			return c
		}
	}
	b.r.claims[pid] = c
	return c
}

// adopted reports whether a claimed process is ours to reap. If not, because a runtime has waited for it itself, the claim is given
// up: no ending will come, and the pid may be anybody's.
func (r *reaper) adopted(pid int, ended <-chan ending) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(ended) > 0 {
		return true
	}
	stat, err := readStat(pid)
	if err == nil && stat.parent == os.Getpid() || err != nil && !noSuchProcess(err) {
		return true
	}
	delete(r.claims, pid)
	return false
}

// end gives up the endings that only this birth could still have claimed.
func (b *birth) end() {
	b.r.mu.Lock()
	defer b.r.mu.Unlock()
	delete(b.r.births, b)
	oldest := b.r.sequence
	for other := range b.r.births {
		oldest = min(oldest, other.from)
	}
	kept := b.r.unclaimed[:0]
	for _, e := range b.r.unclaimed {
		if e.sequence > oldest {
			kept = append(kept, e)
		}
	}
	b.r.unclaimed = kept
	if len(kept) == 0 {
		b.r.unclaimed = nil
	}
}

// command runs a command to its end; it is how package runc runs the runtime inside the shim. When ctx ends, the command
// and all its descendants are killed.
func (r *reaper) command(ctx context.Context, cmd *exec.Cmd) error {
	b := r.begin()
	defer b.end()
	pid, err := r.start(cmd)
	if err != nil {
		return err
	}
	ended := b.claim(pid)
	var e ending
	select {
	case e = <-ended:
	case <-ctx.Done():
		killTree(pid)
		e = <-ended
	}
	if e.status != 0 {
		return exitStatus(e.status)
	}
	return nil
}

func (r *reaper) start(cmd *exec.Cmd) (pid int, err error) {
	if cmd.Err != nil {
		return 0, cmd.Err
	}
	attr := &syscall.ProcAttr{Dir: cmd.Dir, Env: cmd.Env, Sys: cmd.SysProcAttr}
	if attr.Env == nil {
		attr.Env = os.Environ()
	}
	for _, file := range []any{cmd.Stdin, cmd.Stdout, cmd.Stderr} {
		f, ok := file.(*os.File)
		if file == nil {
			f = r.null
		} else if !ok {
			return 0, fmt.Errorf("cannot run %s: the shim gives files to its children, not %T", cmd.Path, file)
		}
		attr.Files = append(attr.Files, f.Fd())
	}
	for _, f := range cmd.ExtraFiles {
		attr.Files = append(attr.Files, f.Fd())
	}
	r.oom.child(func() { pid, err = syscall.ForkExec(cmd.Path, cmd.Args, attr) })
	if err != nil {
		return 0, &os.PathError{Op: "fork/exec", Path: cmd.Path, Err: err}
	}
	return pid, nil
}
