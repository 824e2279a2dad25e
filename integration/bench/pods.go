package main

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/integration/engine"
)

// A pod with its one container.
type pod struct {
	id, container string
	config        *cri.PodSandboxConfig
	took          float64 // ms that RunPodSandbox took
}

func (s *session) runPod(ctx context.Context, hostNetwork bool) (pod, error) {
	s.mu.Lock()
	s.made++
	name := fmt.Sprintf("bench%d", s.made)
	s.mu.Unlock()
	p := pod{config: s.Pod(name)}
	p.config.Linux.CgroupParent = s.group + "/pods"
	if hostNetwork {
		p.config.Hostname = ""
		p.config.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_NODE
	}
	runtime, _ := s.Client()
	begin := time.Now()
	r, err := runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: p.config})
	p.took = milliseconds(time.Since(begin))
	p.id = r.GetPodSandboxId()
	return p, err
}

func (s *session) up(ctx context.Context) (pod, error) {
	p, err := s.runPod(ctx, false)
	if err != nil {
		return p, err
	}
	p.container, err = s.start(ctx, p, engine.Container("main", s.busybox, "sleep", "100000"))
	return p, err
}

func (s *session) start(ctx context.Context, p pod, c *cri.ContainerConfig) (string, error) {
	runtime, _ := s.Client()
	created, err := runtime.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: p.id, Config: c, SandboxConfig: p.config})
	if err != nil {
		return "", err
	}
	_, err = runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: created.ContainerId})
	return created.ContainerId, err
}

func (s *session) down(ctx context.Context, id string) error {
	runtime, _ := s.Client()
	if _, err := runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: id}); err != nil {
		return err
	}
	_, err := runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: id})
	return err
}

func (s *session) execTrue(ctx context.Context, container string) error {
	runtime, _ := s.Client()
	r, err := runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: container, Cmd: []string{"true"}, Timeout: 30})
	if err == nil && r.ExitCode != 0 {
		err = fmt.Errorf("true ended with %d: %s", r.ExitCode, r.Stderr)
	}
	return err
}

// inParallel calls do for 0 to count-1, limit at a time.
func inParallel(limit, count int, do func(int) error) error {
	var g errgroup.Group
	g.SetLimit(limit)
	for i := range count {
		g.Go(func() error { return do(i) })
	}
	return g.Wait()
}
