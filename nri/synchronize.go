package nri

import (
	"context"
	"slices"

	"github.com/containerd/nri/pkg/adaptation"
	"github.com/containerd/nri/pkg/api"

	"github.com/evenkeel/evenkeel/sandbox"
)

// synchronize tells a plugin that has just come of all that lives. What it wants changed is done behind its back: it is
// not a part of the plugin's registration, and others wait for that to end.
func (p *Plugins) synchronize(ctx context.Context, tell adaptation.SyncCB) (err error) {
	defer survive(&err)
	pods, containers := p.alive()
	wishes, err := tell(ctx, pods, containers)
	if err != nil {
		return err
	}
	updates, err := updatesOf(wishes)
	if err != nil {
		return err
	}
	p.Pods.ApplyInBackground(ctx, updates)
	return nil
}

// alive leaves out what plugins have not been asked about yet: they will be.
func (p *Plugins) alive() (pods []*api.PodSandbox, containers []*api.Container) {
	livingPods, livingContainers := p.Pods.Alive()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, pod := range livingPods {
		if pod.Made || p.asked[pod.ID] {
			pods = append(pods, podOf(pod))
		}
	}
	for _, c := range livingContainers {
		if c.Made || p.asked[c.ID] {
			containers = append(containers, containerOf(c))
		}
	}
	return pods, containers
}

// settle keeps plugins from being synchronized until the returned function is called: whoever is asked about something
// new must either have been there, or hear of it by being synchronized.
func (p *Plugins) settle() func() { return p.nri.BlockPluginSync().Unblock }

func (p *Plugins) remember(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked[id] = true
}

func (p *Plugins) forget(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.asked, id)
}

// update makes changes that a plugin asks for of its own accord, and returns those that could not be made.
func (p *Plugins) update(ctx context.Context, wishes []*api.ContainerUpdate) (failed []*api.ContainerUpdate, err error) {
	defer survive(&err)
	updates, err := updatesOf(wishes)
	if err != nil {
		return wishes, err
	}
	undone := p.Pods.ApplyUpdates(ctx, updates)
	return slices.DeleteFunc(slices.Clone(wishes), func(w *api.ContainerUpdate) bool {
		return !slices.ContainsFunc(undone, func(f sandbox.ResourceUpdate) bool { return f.ContainerID == w.GetContainerId() })
	}), nil
}
