package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func rmCommand() *cobra.Command {
	var t tool
	var force bool
	grace := graceFlag{}
	c := &cobra.Command{
		Use:   "rm POD|CONTAINER...",
		Short: "Remove pods or containers that do not run; with -f, stop them first",
		Long:  "Remove pods or containers that do not run; with -f, stop them first.\nThe volumes and logs of pods that `evenkeel run` started go with them.",
		Args:  cobra.MinimumNArgs(1),
		RunE: t.eachTarget(func(ctx context.Context, e *engine, w *world, at target) error {
			if at.pod != nil {
				return e.rmPod(ctx, w, at.pod, force, grace)
			}
			return e.rmContainer(ctx, at.container, force, grace)
		}),
	}
	c.Flags().BoolVarP(&force, "force", "f", false, "stop what still runs")
	c.Flags().VarP(&grace, "time", "t", "with -f: seconds to end by itself (default: what the pod's manifest says, or 30)")
	return t.register(c)
}

func (e *engine) rmPod(ctx context.Context, w *world, p *cri.PodSandbox, force bool, g graceFlag) error {
	if !force {
		if err := w.idle(p); err != nil {
			return err
		}
	}
	if err := e.stopPod(ctx, w, p.Id, g); err != nil {
		return err
	}
	return e.removePod(ctx, p)
}

// idle is an error when the pod still has a container that may be running. The state of the pod itself does not count: an
// empty pod that is READY has nothing to lose.
func (w *world) idle(p *cri.PodSandbox) error {
	for _, c := range w.containers {
		if c.PodSandboxId == p.Id && (c.State == cri.ContainerState_CONTAINER_RUNNING || c.State == cri.ContainerState_CONTAINER_UNKNOWN) {
			return fmt.Errorf("container %s of pod %s is %s: stop the pod first, or remove it with -f",
				c.GetMetadata().GetName(), podName(p), containerState(c.State))
		}
	}
	return nil
}

// removePod removes a stopped pod, and then what `run` kept for it on disk: not before, since a volume may still be mounted.
func (e *engine) removePod(ctx context.Context, p *cri.PodSandbox) error {
	if _, err := e.pods.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.Id}); err != nil {
		return fmt.Errorf("cannot remove pod %s: %w", podName(p), err)
	}
	dir, found := podDirOf(p, e.runBase(ctx))
	if !found {
		return nil
	}
	return dir.remove()
}

func (e *engine) rmContainer(ctx context.Context, c *cri.Container, force bool, g graceFlag) error {
	name := c.GetMetadata().GetName()
	running := c.State == cri.ContainerState_CONTAINER_RUNNING || c.State == cri.ContainerState_CONTAINER_UNKNOWN
	if running && !force {
		return fmt.Errorf("container %s is %s: stop it first, or remove it with -f", name, containerState(c.State))
	}
	var err error
	if running {
		err = e.stopContainer(ctx, c, g)
	}
	if _, remove := e.pods.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: c.Id}); remove != nil {
		return errors.Join(err, fmt.Errorf("cannot remove container %s: %w", name, remove))
	}
	return err
}
