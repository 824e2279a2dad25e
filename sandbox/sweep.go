package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"regexp"
	"time"

	"github.com/evenkeel/evenkeel/image"
	"github.com/evenkeel/evenkeel/internal/effect"
	"github.com/evenkeel/evenkeel/internal/namespace"
)

const sweepOrphanName = "sweep.orphan"

var sweepOrphan = effect.New(sweepOrphanName)

var idShape = regexp.MustCompile(`^[0-9a-f]{64}$`)

// sweepAll sweeps until nothing refuses to go: after a reboot CNI plugins often need a daemon that is a pod itself, and comes up
// after us. Nobody else asks again for what has no record.
func (p *Pods) sweepAll(ctx context.Context) error {
	for pause := time.Second; ; pause = min(2*pause, 5*time.Minute) {
		err := p.sweep(ctx)
		if err == nil {
			return nil
		}
		p.Log.Error("cannot sweep all that belongs to nobody; it is tried again", "after", pause, "error", err)
		time.Sleep(pause)
	}
}

// sweep removes effects that carry our naming and have no record: the record is written first and deleted last, so
// they are what a power cut or a lost root directory left. It runs through the same undo steps as any teardown.
func (p *Pods) sweep(ctx context.Context) error {
	ctx, end := undoing(ctx)
	defer end()
	ctx, trace := effect.WithTrace(ctx)
	defer func() { p.countSwept(trace) }()
	return errors.Join(
		p.sweepRuntime(ctx),
		p.sweepStates(ctx, p.containerState(""), p.freeContainerState),
		p.sweepStates(ctx, p.podState(""), p.freePodState),
		p.sweepCgroups(ctx),
		p.sweepScopes(ctx),
		p.Network.Sweep(ctx, p.Known),
	)
}

// sweepRuntime deletes containers that only the OCI runtimes still know.
func (p *Pods) sweepRuntime(ctx context.Context) error {
	var errs []error
	for name, runtime := range p.Runtimes {
		entries, err := os.ReadDir(runtime.Root)
		if err != nil {
			continue // the runtime has not been used yet
		}
		for _, entry := range entries {
			if id := entry.Name(); idShape.MatchString(id) && !p.Known(id) {
				p.Log.Warn("removing a container without a record from the runtime", "container", id, "handler", name)
				if err := sweepOrphan.Do(ctx, func() error { return runtime.Delete(ctx, id) }); err != nil {
					errs = append(errs, fmt.Errorf("cannot delete container %s from the runtime: %w", id, err))
				}
			}
		}
	}
	return errors.Join(errs...)
}

// sweepStates frees the state directories that have no record.
func (p *Pods) sweepStates(ctx context.Context, dir string, free func(context.Context, string) error) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, entry := range entries {
		id := entry.Name()
		if p.Known(id) {
			continue
		}
		p.Log.Warn("removing the live parts of an object without a record", "dir", dir, "id", id)
		errs = append(errs, sweepOrphan.Do(ctx, func() error { return free(ctx, id) }))
	}
	return errors.Join(errs...)
}

func (p *Pods) freeContainerState(ctx context.Context, id string) error {
	c := p.newContainer(containerRecord{ID: id})
	if err := errors.Join(c.unmountVolumes(ctx), image.Unmount(c.rootfs())); err != nil {
		return err
	}
	return os.RemoveAll(c.stateDir())
}

func (p *Pods) freePodState(ctx context.Context, id string) error {
	pod := p.newPod(podRecord{ID: id, BootID: p.BootID}) // its shim is looked for in this boot
	err := errors.Join(pod.endShim(ctx), namespace.Unpin(pod.namespaceDir()), unmountShm(pod.file("shm")))
	if err != nil {
		return err
	}
	return os.RemoveAll(p.podState(id))
}

// sweepCgroups empties and removes cgroups below our own parent that belong to nobody.
func (p *Pods) sweepCgroups(ctx context.Context) error {
	names, err := p.Cgroups.Children(p.CgroupParent)
	if err != nil {
		return nil // there is none yet
	}
	var errs []error
	for _, id := range names {
		if !idShape.MatchString(id) || p.Known(id) {
			continue
		}
		p.Log.Warn("removing a cgroup without a record", "cgroup", path.Join(p.CgroupParent, id))
		errs = append(errs, sweepOrphan.Do(ctx, func() error {
			group := path.Join(p.CgroupParent, id)
			return errors.Join(p.Cgroups.Kill(ctx, group), p.Cgroups.Remove(ctx, group))
		}))
	}
	return errors.Join(errs...)
}

// sweepScopes ends and forgets scopes of containers that belong to nobody, in whatever slice they are.
func (p *Pods) sweepScopes(ctx context.Context) error {
	if p.Systemd == nil {
		return nil
	}
	scopes, err := p.Systemd.Scopes(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for id, group := range scopes {
		if p.Known(id) {
			continue
		}
		p.Log.Warn("removing a scope without a record", "unit", p.Systemd.Scope(id), "cgroup", group)
		errs = append(errs, sweepOrphan.Do(ctx, func() error {
			if group != "" {
				if err := p.Cgroups.Kill(ctx, group); err != nil {
					return err
				}
			}
			return p.Systemd.Discard(ctx, p.Systemd.Scope(id))
		}))
	}
	return errors.Join(errs...)
}

// Drain stops and removes every pod, for an engine that is being taken off the machine. What it cannot do it names.
func (p *Pods) Drain(ctx context.Context, limit time.Duration) error {
	ctx, end := context.WithTimeout(ctx, limit)
	defer end()
	var errs []error
	for _, pod := range p.index.allPods() {
		if err := pod.remove(ctx); err != nil {
			errs = append(errs, fmt.Errorf("pod %s: %w", pod.id, err))
		}
	}
	return errors.Join(errs...)
}
