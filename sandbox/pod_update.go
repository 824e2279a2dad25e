package sandbox

import (
	"context"
	"fmt"

	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/internal/effect"
	"github.com/evenkeel/evenkeel/oci"
)

var podUpdated = effect.New("pod.updated")

// UpdateResources records a pod's new resources and overhead; nil leaves one as it is. The kubelet has changed the pod's
// cgroup, which is its own, before it tells (CRI, UpdatePodSandboxResources), so there is nothing to act on: what is
// recorded shows in the verbose status.
func (p *Pods) UpdateResources(ctx context.Context, id string, overhead, resources *cri.LinuxContainerResources) error {
	pod, err := p.index.pod(id)
	if err != nil {
		return err
	}
	for field, asked := range map[string]*cri.LinuxContainerResources{"overhead": overhead, "resources": resources} {
		if _, err := oci.Resources(asked, pod.host()); err != nil {
			return fmt.Errorf("cannot update pod %s: %s.%w: %w", pod.id, field, err, ErrInvalid)
		}
	}
	return pod.timeline.during(ctx, "UpdatePodSandboxResources", podUpdated, func(ctx context.Context) error {
		return pod.update(ctx, overhead, resources)
	})
}

func (p *pod) update(ctx context.Context, overhead, resources *cri.LinuxContainerResources) error {
	if err := p.turn.take(ctx); err != nil {
		return fmt.Errorf("cannot update pod %s yet, another operation on it is running: %w", p.id, err)
	}
	defer p.turn.give()
	if p.gone || !p.listed() {
		return fmt.Errorf("pod sandbox %q: %w", p.id, ErrNotFound)
	}
	if !p.facts().ready() {
		return fmt.Errorf("cannot update pod %s: it is not ready: %w", p.id, ErrState)
	}
	if err := p.consultUpdate(ctx, overhead, resources); err != nil {
		return err
	}
	err := p.note(ctx, podUpdated, func(r *podRecord) {
		config := proto.CloneOf(r.Config.Message) // others read the old one
		if config.Linux == nil {
			config.Linux = &cri.LinuxPodSandboxConfig{}
		}
		if overhead != nil {
			config.Linux.Overhead = overhead
		}
		if resources != nil {
			config.Linux.Resources = resources
		}
		r.Config.Message = config
	})
	if err == nil {
		p.tellPlugins(ctx, PodUpdated)
	}
	return err
}

func (p *pod) consultUpdate(ctx context.Context, overhead, resources *cri.LinuxContainerResources) error {
	if p.Plugins == nil {
		return nil
	}
	err := pluginsPodUpdate.Do(ctx, func() error { return p.Plugins.UpdatePod(ctx, p.view(), overhead, resources) })
	if err != nil {
		return fmt.Errorf("cannot update pod %s: %w", p.id, err)
	}
	return nil
}
