package sandbox

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/internal/effect"
	"github.com/evenkeel/evenkeel/oci"
)

// The effects of asking plugins. They have no undo but to tell of the end of what they have heard of.
var (
	pluginsPodRun           = effect.New("plugins.pod.run")
	pluginsPodUpdate        = effect.New("plugins.pod.update")
	pluginsPodUpdated       = effect.New("plugins.pod.updated")
	pluginsPodStopped       = effect.New("plugins.pod.stopped")
	pluginsPodRemoved       = effect.New("plugins.pod.removed")
	pluginsContainerCreate  = effect.New("plugins.container.create")
	pluginsContainerUpdate  = effect.New("plugins.container.update")
	pluginsContainerCreated = effect.New("plugins.container.created")
	pluginsContainerStart   = effect.New("plugins.container.start")
	pluginsContainerStarted = effect.New("plugins.container.started")
	pluginsContainerUpdated = effect.New("plugins.container.updated")
	pluginsContainerStopped = effect.New("plugins.container.stopped")
	pluginsContainerRemoved = effect.New("plugins.container.removed")
)

var podNews = map[PodEvent]effect.Effect{
	PodRun: pluginsPodRun, PodUpdated: pluginsPodUpdated, PodStopped: pluginsPodStopped, PodRemoved: pluginsPodRemoved,
}

var containerNews = map[ContainerEvent]effect.Effect{
	ContainerCreated: pluginsContainerCreated, ContainerStart: pluginsContainerStart, ContainerStarted: pluginsContainerStarted,
	ContainerUpdated: pluginsContainerUpdated, ContainerStopped: pluginsContainerStopped, ContainerRemoved: pluginsContainerRemoved,
}

// otherPatience is how long the update of a container that a plugin asks for waits for other work on that container.
// It is what one pod's plugin can cost another.
const otherPatience = 2 * time.Second

// heard is what plugins were told of an object by this process. Guarded by the object's turn.
type heard struct{ made, stopped, removed bool }

// askPlugins lets plugins refuse a pod that is made and that nobody sees yet.
func (p *pod) askPlugins(ctx context.Context, made podRecord) error {
	if p.Plugins == nil {
		return nil
	}
	p.heard.made = true
	view := p.view()
	view.IPs, view.PID = made.IPs, made.Init.PID // the record has them once the pod is READY
	if err := pluginsPodRun.Do(ctx, func() error { return p.Plugins.TellPod(ctx, PodRun, view) }); err != nil {
		return fmt.Errorf("cannot run pod %s: %w", p.id, err)
	}
	return nil
}

// tellPlugins reports what has happened, once. What a plugin answers is logged: it has happened.
func (p *pod) tellPlugins(ctx context.Context, what PodEvent) {
	if p.Plugins == nil || (!p.heard.made && p.facts().ReadyAt.IsZero()) || p.heard.removed || (what == PodStopped && p.heard.stopped) {
		return
	}
	p.heard.stopped, p.heard.removed = p.heard.stopped || what == PodStopped, what == PodRemoved
	if err := podNews[what].Do(ctx, func() error { return p.Plugins.TellPod(ctx, what, p.view()) }); err != nil {
		p.Log.Error("plugins cannot be told of a pod", "pod", p.id, "error", err)
	}
}

// askPlugins reports what happens to the container; an error is for the caller to heed.
func (c *container) askPlugins(ctx context.Context, what ContainerEvent) error {
	pod, err := c.pod()
	if c.Plugins == nil || err != nil {
		return nil
	}
	return containerNews[what].Do(ctx, func() error {
		updates, err := c.Plugins.Tell(ctx, what, pod.view(), c.view(nil))
		c.ApplyInBackground(ctx, updates)
		return err
	})
}

// tellPlugins reports what has happened, once.
func (c *container) tellPlugins(ctx context.Context, what ContainerEvent) {
	if c.Plugins == nil || (!c.heard.made && c.facts().CreatedAt.IsZero()) || c.heard.removed || (what == ContainerStopped && c.heard.stopped) {
		return
	}
	c.heard.stopped, c.heard.removed = c.heard.stopped || what == ContainerStopped, what == ContainerRemoved
	if err := c.askPlugins(ctx, what); err != nil {
		c.Log.Error("plugins cannot be told of a container", "container", c.id, "error", err)
	}
}

// consult lets plugins change the spec, and holds the result to the rules that every container is held to.
func (c *creation) consult(ctx context.Context, in oci.Input) error {
	if c.Plugins == nil {
		return nil
	}
	before, err := cloned(c.spec)
	if err != nil {
		return err
	}
	c.doing.set("waiting for plugins")
	c.heard.made = true
	var wish Adjustment
	err = pluginsContainerCreate.Do(ctx, func() (err error) {
		wish, err = c.Plugins.Create(ctx, c.pod.view(), c.view(c.spec))
		return err
	})
	if err == nil {
		err = c.inject(ctx, in, wish.CDI)
	}
	if err == nil {
		err = in.Revised(c.spec, before)
	}
	if err == nil {
		err = c.checkAddedMounts(ctx, before)
	}
	if err != nil {
		return fmt.Errorf("cannot make container %q as plugins want it: %w", c.config.Metadata.Name, err)
	}
	if wish.Resources != nil {
		next := *c.facts()
		next.Resources.Message = wish.Resources
		c.record.Store(&next)
	}
	c.ApplyUpdates(ctx, wish.Updates)
	return nil
}

func cloned(spec *specs.Spec) (*specs.Spec, error) {
	data, err := json.Marshal(spec)
	if err != nil {
		return nil, err
	}
	copied := &specs.Spec{}
	return copied, json.Unmarshal(data, copied)
}

func (c *creation) inject(ctx context.Context, in oci.Input, devices []string) error {
	if len(devices) == 0 {
		return nil
	}
	cfg := &cri.ContainerConfig{}
	for _, name := range devices {
		cfg.CDIDevices = append(cfg.CDIDevices, &cri.CDIDevice{Name: name})
	}
	edits, err := c.findCDI(ctx, cfg)
	if err != nil {
		return err
	}
	return in.InjectCDI(c.spec, edits)
}

// checkAddedMounts asks for the host paths that plugins brought, so that one whose storage does not answer is named.
func (c *creation) checkAddedMounts(ctx context.Context, before *specs.Spec) error {
	ctx, stop := context.WithTimeoutCause(ctx, hostPathLimit, fmt.Errorf("no answer within %s: %w", hostPathLimit, ErrTimeout))
	defer stop()
	for _, m := range c.spec.Mounts {
		if !oci.Bound(m) || oci.HasMount(before, m) {
			continue
		}
		if _, err := c.paths.Resolve(ctx, m.Source); err != nil {
			return fmt.Errorf("cannot mount host path %s at %s: %w", m.Source, m.Destination, err)
		}
	}
	return nil
}

// consultUpdate lets plugins change what an update asks for. No turn is held: plugins may want other containers updated,
// and those may be waiting for this one.
func (c *container) consultUpdate(ctx context.Context, want *cri.LinuxContainerResources) (*cri.LinuxContainerResources, error) {
	pod, err := c.pod()
	if c.Plugins == nil || err != nil {
		return want, nil
	}
	var others []ResourceUpdate
	err = pluginsContainerUpdate.Do(ctx, func() (err error) {
		want, others, err = c.Plugins.Update(ctx, pod.view(), c.view(nil), proto.CloneOf(want))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("cannot update container %s: %w", c.id, err)
	}
	c.ApplyUpdates(ctx, others)
	return want, nil
}

// ApplyUpdates makes the changes that plugins want, and returns those that could not be made. It waits for no
// container longer than a moment, and for all of them together no longer.
func (p *Pods) ApplyUpdates(ctx context.Context, updates []ResourceUpdate) (failed []ResourceUpdate) {
	if len(updates) == 0 {
		return nil
	}
	ctx, stop := context.WithTimeoutCause(ctx, otherPatience, fmt.Errorf("not done within %s: %w", otherPatience, ErrTimeout))
	defer stop()
	errs := make([]error, len(updates))
	var all sync.WaitGroup
	for i, u := range updates {
		all.Go(func() { errs[i] = p.applyUpdate(ctx, u) })
	}
	all.Wait()
	for i, u := range updates {
		if errs[i] == nil || u.Tolerant {
			continue
		}
		p.Log.Error("a plugin's update of a container failed", "container", u.ContainerID, "error", errs[i])
		failed = append(failed, u)
	}
	return failed
}

func (p *Pods) applyUpdate(ctx context.Context, u ResourceUpdate) error {
	c, err := p.index.container(u.ContainerID)
	if err != nil {
		return err
	}
	return c.timeline.during(ctx, "PluginUpdate", containerUpdated, func(ctx context.Context) error { return c.change(ctx, u.Resources) })
}

// ApplyInBackground is for callers that hold the turn of a container, or something else that others wait for.
func (p *Pods) ApplyInBackground(ctx context.Context, updates []ResourceUpdate) {
	if len(updates) > 0 {
		go p.ApplyUpdates(context.WithoutCancel(ctx), updates)
	}
}
