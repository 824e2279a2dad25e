package sandbox

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/evenkeel/evenkeel/internal/atomicfile"
	"github.com/evenkeel/evenkeel/internal/hostpath"
	"github.com/evenkeel/evenkeel/shim"
)

// adoptionPatience is how long Open waits for a shim to answer. One that is silent longer keeps its pod, as UNKNOWN, and is adopted
// whenever it answers.
const adoptionPatience = 150 * time.Millisecond

// Load reads the records of pods and containers. It comes before Open since the image store must know, before it
// cleans up, which layers are in use.
func (p *Pods) Load() error {
	p.paths = &hostpath.Finder{Helper: p.Shim}
	p.index, p.waste, p.quarantine = newIndex(), &trash{dir: filepath.Join(p.Root, "trash")}, map[string]bool{}
	for _, dir := range []string{p.podRoot(""), p.containerRoot(""), p.podState(""), p.containerState("")} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return fmt.Errorf("cannot make %s: %w", dir, err)
		}
	}
	p.probeProjects()
	p.waste.empty()
	if err := p.loadRecords(); err != nil {
		return err
	}
	return p.noteBoot()
}

func (p *Pods) loadRecords() error {
	err := p.loadEach(p.podRoot(""), func(dir string) error {
		var r podRecord
		if err := readRecord(dir, &r); err != nil {
			return err
		}
		pod := p.newPod(r)
		pod.built = finished()
		pod.turn.give()
		if first := p.index.claimPod(pod); first != nil {
			return fmt.Errorf("it is another record of pod %s, as %s is: %w", keyOfPod(r.Config.Message.GetMetadata()), first.id, errTwin)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return p.loadEach(p.containerRoot(""), func(dir string) error {
		var r containerRecord
		if err := readRecord(dir, &r); err != nil {
			return err
		}
		c := p.newContainer(r)
		c.built = finished()
		c.turn.give()
		if first := p.index.claimContainer(c); first != nil {
			return fmt.Errorf("it is another record of a container of pod %s, as %s is: %w", r.PodID, first.id, errTwin)
		}
		return nil
	})
}

// errTwin is a record of what another record stands for. Which of the two tells the truth is not known, and both can own processes.
var errTwin = errors.New("two records have one key")

// bootFile says in which boot of the machine the engine was last started.
func (p *Pods) bootFile() string { return filepath.Join(p.Root, "boot") }

// rebooted reports whether this is the first start since the machine's. Without the file nothing is known, and then it
// is not.
func (p *Pods) rebooted() bool {
	last, err := os.ReadFile(p.bootFile())
	return err == nil && string(last) != p.BootID
}

// noteBoot comes when the records of the last boot have been dealt with.
func (p *Pods) noteBoot() error {
	if last, err := os.ReadFile(p.bootFile()); err == nil && string(last) == p.BootID {
		return nil
	}
	if err := atomicfile.Write(p.bootFile(), []byte(p.BootID), 0o600); err != nil {
		return fmt.Errorf("cannot note the boot of the machine: %w", err)
	}
	return nil
}

// loadEach reads every record directory below dir. An unreadable record, or the second of one key, puts its id into quarantine: it is
// reported, and nothing that it might own is touched. A directory without a record was never more than an intention, and so is
// a record that the end of the last boot tore: what it described is dead, and the sweep releases what it held.
func (p *Pods) loadEach(dir string, load func(string) error) error {
	rebooted := p.rebooted()
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("cannot read the records: %w", err)
	}
	for _, entry := range entries {
		path := filepath.Join(dir, entry.Name())
		switch err := load(path); {
		case errors.Is(err, fs.ErrNotExist), rebooted && errors.Is(err, errTorn):
			p.Log.Info("removing a directory without a whole record", "dir", path, "rebooted", rebooted)
			if err := p.waste.discard(path); err != nil {
				return err
			}
		case err != nil:
			p.Log.Error("set aside a record that cannot be used; nothing of this id will be touched until its directory is removed by hand", "dir", path, "error", err)
			p.quarantine[entry.Name()] = true
			p.quarantined = append(p.quarantined, path)
		}
	}
	return nil
}

// Open brings every loaded pod back to a state that its record tells the truth about: adopted, UNKNOWN, NOTREADY or gone. It
// returns before slow teardowns have ended; they hold the turn of their object, so nobody can get in between.
func (p *Pods) Open(ctx context.Context) *Containers {
	var asked sync.WaitGroup
	for _, pod := range p.index.allPods() {
		asked.Go(func() { pod.recover(ctx) })
	}
	asked.Wait()
	for _, c := range p.index.allContainers("") {
		if p.quarantine[c.podID] {
			c.silent.Store(true) // nobody can be asked about it, and nothing of its pod may be touched
		} else if _, err := c.pod(); err != nil {
			p.Log.Warn("removing a container whose pod is gone", "container", c.id, "pod", c.podID)
			p.inBackground(ctx, "remove a container without a pod", c.id, c.discard)
		}
	}
	p.inBackground(ctx, "sweep what belongs to nobody", "", p.sweepAll)
	return &Containers{p}
}

// Close waits for files that are being deleted. Pods go on.
func (p *Pods) Close() { p.waste.wait() }

// inBackground begins work that nobody waits for; what it cannot finish is logged and tried again at the next start.
func (p *Pods) inBackground(ctx context.Context, what, id string, work func(context.Context) error) {
	go func() {
		if err := work(context.WithoutCancel(ctx)); err != nil {
			p.Log.Error("cannot "+what, "id", id, "error", err)
		}
	}()
}

// recover is the table of docs/ARCHITECTURE.md, one row a case.
func (p *pod) recover(ctx context.Context) {
	switch r := p.facts(); {
	case r.Doomed || r.ReadyAt.IsZero():
		p.inBackground(ctx, "remove a pod that was not made or not removed completely", p.id, func(ctx context.Context) error {
			return p.beginRemove(ctx).wait(ctx)
		})
	case !r.StoppingAt.IsZero():
		p.settleStopped(ctx)
	case r.BootID != p.BootID:
		p.Log.Info("the machine was started anew; a pod of the last boot is stopped", "pod", p.id)
		p.noteReboot(ctx)
		p.settleStopped(ctx)
	default:
		p.reach(ctx)
	}
}

// noteReboot records what is certain after a reboot, before anybody can ask: nothing of the pod lives. What it held outside
// the machine's memory is released behind the socket.
func (p *pod) noteReboot(ctx context.Context) {
	p.noteAnyway(ctx, podStopping, func(r *podRecord) { r.StoppingAt = time.Now() })
	for _, c := range p.index.allContainers(p.id) {
		c.settle(ctx)
	}
}

// settleStopped finishes a stop that was under way, and the removals of containers in a pod that is stopped.
func (p *pod) settleStopped(ctx context.Context) {
	p.inBackground(ctx, "stop a pod completely", p.id, func(ctx context.Context) error {
		return errors.Join(p.beginStop(ctx).wait(ctx), p.removeHalfContainers(ctx))
	})
}

// removeHalfContainers removes containers that were not made, or not removed, completely.
func (p *pod) removeHalfContainers(ctx context.Context) error {
	var errs []error
	for _, c := range p.index.allContainers(p.id) {
		if r := c.facts(); r.Doomed || r.CreatedAt.IsZero() {
			errs = append(errs, c.discard(ctx))
		}
	}
	return errors.Join(errs...)
}

// reach asks the shim. The question stays asked until the shim answers or is gone: silence is not death.
func (p *pod) reach(ctx context.Context) {
	for _, c := range p.index.allContainers(p.id) {
		c.silent.Store(true)
	}
	p.silent.Store(true)
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		if state, err := p.askShim(context.WithoutCancel(ctx)); err == nil {
			p.adopt(ctx, state)
		} else {
			p.abandon(ctx)
		}
	}()
	patience := time.NewTimer(adoptionPatience)
	defer patience.Stop()
	select {
	case <-answered:
	case <-patience.C:
		p.Log.Warn("the shim of a pod does not answer; the pod is UNKNOWN until it does", "pod", p.id, "shim", p.facts().Shim.PID)
	}
}

// askRest is the longest pause before a shim is asked again that could not be.
const askRest = 5 * time.Second

// askShim waits for the shim's answer. An error means that the shim is gone, or that the pod is being stopped. A question can fail
// while the shim lives: its socket is lost, this process is out of descriptors, or the shim is dying and its connections went first.
func (p *pod) askShim(ctx context.Context) (shim.State, error) {
	told := false
	for rest := time.Millisecond; ; rest = min(2*rest, askRest) {
		state, err := p.shim().State(ctx)
		if err == nil || !p.facts().Shim.Alive() || !p.facts().ready() {
			return state, err
		}
		if rest > adoptionPatience && !told {
			told = true
			p.Log.Error("the shim of a pod lives but cannot be asked", "pod", p.id, "error", err)
		}
		time.Sleep(rest)
	}
}

// abandon takes over from a shim that is gone. That the pod is over is on record before anybody can ask; what it held is released
// behind the socket.
func (p *pod) abandon(ctx context.Context) {
	if p.facts().ready() {
		p.Log.Warn("the shim of a pod is gone; the pod is stopped", "pod", p.id)
		p.noteAnyway(ctx, podStopping, func(r *podRecord) { r.StoppingAt = cmp.Or(r.StoppingAt, time.Now()) })
	}
	for _, c := range p.index.allContainers(p.id) {
		c.silent.Store(false)
	}
	p.silent.Store(false)
	p.settleStopped(ctx)
}

// adopt takes the shim's word for what happened while nobody listened. Until all of it is on record the pod stays silent: half of it
// would be shown, and what is freed now is asked for by those who may ask the shim.
func (p *pod) adopt(ctx context.Context, state shim.State) {
	known := map[string]shim.ContainerState{}
	for _, s := range state.Containers {
		known[s.ID] = s
	}
	var rest []func()
	for _, c := range p.index.allContainers(p.id) {
		s, held := known[c.id]
		rest = append(rest, c.adopt(ctx, s, held))
	}
	p.speak()
	for _, work := range rest {
		work()
	}
	go p.watchShim(state.Process)
	go p.watchInit(p.facts().Init)
}

// adopt brings one container's record up to date with its shim, and returns what is left to be begun.
func (c *container) adopt(ctx context.Context, s shim.ContainerState, held bool) (rest func()) {
	r := c.facts()
	free := func() { c.inBackground(ctx, "free what an ended container held", c.id, c.halt) }
	switch {
	case r.Doomed || r.CreatedAt.IsZero():
		return func() {
			c.inBackground(ctx, "remove a container that was not made or not removed completely", c.id, c.discard)
		}
	case !r.FinishedAt.IsZero():
		return free
	case !held && r.StartFault != "":
		return func() {}
	case !held: // its end was told to a daemon that died before it could write it down
		c.finish(ctx, c.lastExit())
		return free
	}
	var begun *result
	switch {
	case s.Starting && r.StartedAt.IsZero():
		begun = newResult()
		c.starting.Store(begun)
	case s.Exit != nil:
		c.finishAt(ctx, s.StartedAt, *s.Exit)
	case r.StartedAt.IsZero() && !s.StartedAt.IsZero():
		c.noteAnyway(ctx, containerStarted, func(r *containerRecord) { r.StartedAt = s.StartedAt })
	}
	return func() {
		if begun != nil {
			c.inBackground(ctx, "start a container whose start was under way", c.id, func(ctx context.Context) error { return c.joinStart(ctx, begun) })
		}
		if c.checkpoint().begun() {
			c.inBackground(ctx, "end a checkpoint that was under way", c.id, c.checkpoint().recover)
		}
		go c.watch()
	}
}
