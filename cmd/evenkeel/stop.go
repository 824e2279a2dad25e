package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// defaultGrace is what Kubernetes gives a pod that names no terminationGracePeriodSeconds.
const defaultGrace = 30 * time.Second

// graceAnnotation is put on containers by the kubelet (pkg/kubelet/kuberuntime/labels.go) and by `evenkeel run`.
const graceAnnotation = "io.kubernetes.pod.terminationGracePeriod"

func stopCommand() *cobra.Command {
	var t tool
	grace := graceFlag{}
	c := &cobra.Command{
		Use:   "stop POD|CONTAINER...",
		Short: "Stop pods or containers: first politely, then by force",
		Args:  cobra.MinimumNArgs(1),
		RunE: t.eachTarget(func(ctx context.Context, e *engine, w *world, at target) error {
			if at.pod != nil {
				return e.stopPod(ctx, w, at.pod.Id, grace)
			}
			return e.stopContainer(ctx, at.container, grace)
		}),
	}
	c.Flags().VarP(&grace, "time", "t", "seconds between the two (default: what the pod's manifest says, or 30)")
	return t.register(c)
}

// eachTarget resolves every reference against one look at the engine and does one thing to each.
func (t *tool) eachTarget(do func(context.Context, *engine, *world, target) error) action {
	return t.looking(func(c *cobra.Command, e *engine, w *world, refs []string) error {
		return t.each(c, refs, func(ref string) (done, error) {
			at, err := w.find(ref)
			if err != nil {
				return done{}, err
			}
			return done{at.kind(), at.id(), at.name()}, do(c.Context(), e, w, at)
		})
	})
}

// graceFlag is a number of seconds that may be absent.
type graceFlag struct {
	set   bool
	value time.Duration
}

func (g *graceFlag) String() string { return "" }
func (g *graceFlag) Type() string   { return "seconds" }
func (g *graceFlag) Set(s string) error {
	n, err := strconv.ParseUint(s, 10, 31)
	if err != nil {
		return errors.New("a number of seconds is wanted")
	}
	*g = graceFlag{true, time.Duration(n) * time.Second}
	return nil
}

// of is how long a container may take to end itself.
func (g graceFlag) of(c *cri.Container) time.Duration {
	if g.set {
		return g.value
	}
	if n, err := strconv.ParseUint(c.Annotations[graceAnnotation], 10, 31); err == nil {
		return time.Duration(n) * time.Second
	}
	return defaultGrace
}

func (e *engine) stopContainer(ctx context.Context, c *cri.Container, g graceFlag) error {
	_, err := e.pods.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: c.Id, Timeout: int64(g.of(c) / time.Second)})
	if err != nil {
		return fmt.Errorf("cannot stop container %s: %w", c.GetMetadata().GetName(), err)
	}
	return nil
}

// stopPod stops the containers with their grace, and then the pod itself, which by itself has none. Containers stop all at
// once, except for sidecars, which follow one by one, the last one first.
func (e *engine) stopPod(ctx context.Context, w *world, id string, g graceFlag) error {
	var failed []error
	for _, wave := range stopOrder(w.containers, id) {
		var group errgroup.Group
		for _, c := range wave {
			group.Go(func() error { return e.stopContainer(ctx, c, g) })
		}
		failed = append(failed, group.Wait())
	}
	if _, err := e.pods.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: id}); err != nil {
		failed = append(failed, fmt.Errorf("cannot stop pod %s: %w", shortID(id), err))
	}
	return errors.Join(failed...)
}

func stopOrder(containers []*cri.Container, podID string) (waves [][]*cri.Container) {
	byNumber := map[int][]*cri.Container{}
	for _, c := range containers {
		if c.PodSandboxId == podID && c.State != cri.ContainerState_CONTAINER_EXITED {
			n, _ := strconv.Atoi(c.Annotations[sidecarAnnotation]) // 0: no sidecar
			byNumber[n] = append(byNumber[n], c)
		}
	}
	if proper := byNumber[0]; proper != nil {
		waves = append(waves, proper)
	}
	delete(byNumber, 0)
	for _, n := range slices.Backward(slices.Sorted(maps.Keys(byNumber))) {
		waves = append(waves, byNumber[n])
	}
	return waves
}
