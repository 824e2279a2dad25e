package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/integration/engine"
	"github.com/evenkeel/evenkeel/integration/registry"
)

// program is the image that pods run.
const program = host + "/busybox:latest"

func (b *bed) publishProgram(r *registry.Registry) error {
	img, err := registry.Busybox()
	if err != nil {
		return err
	}
	id, err := img.ConfigName()
	if err != nil {
		return err
	}
	b.program = id.String()
	_, err = r.Push("busybox:latest", img)
	return err
}

// recovered looks at what the engine made of the pods that the power cut ended: none lives, each can be removed, and
// nothing stays of them. The first boot has none.
func (b *bed) recovered(ctx context.Context) (pods, containers int, err error) {
	p, err := b.Runtime.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
	if err != nil {
		return 0, 0, err
	}
	c, err := b.Runtime.ListContainers(ctx, &cri.ListContainersRequest{})
	if err != nil {
		return 0, 0, err
	}
	for _, x := range p.Items {
		if x.State != cri.PodSandboxState_SANDBOX_NOTREADY {
			return 0, 0, fmt.Errorf("pod %s is %s after the power cut", x.Metadata.GetName(), x.State)
		}
	}
	for _, x := range c.Containers {
		if x.State != cri.ContainerState_CONTAINER_EXITED {
			return 0, 0, fmt.Errorf("container %s of pod %s is %s after the power cut", x.Id, x.PodSandboxId, x.State)
		}
	}
	if err := b.RemoveAll(ctx); err != nil {
		return 0, 0, fmt.Errorf("cannot remove the pods of the last boot: %w", err)
	}
	return len(p.Items), len(c.Containers), b.nothingLeft(ctx)
}

// restLimit is how long the sweep behind the socket and the removal of directories may follow.
const restLimit = 5 * time.Second

// nothingLeft waits until the machine holds nothing of this engine, which has no pods.
func (b *bed) nothingLeft(ctx context.Context) error {
	for deadline := time.Now().Add(engine.Patience(restLimit)); ; time.Sleep(50 * time.Millisecond) {
		found, err := b.Instance().Find(ctx, func(string) bool { return false })
		if err != nil || len(found) == 0 {
			return err
		}
		if time.Now().After(deadline) {
			var errs []error
			for _, f := range found {
				errs = append(errs, fmt.Errorf("left over: %s", f))
			}
			return errors.Join(errs...)
		}
	}
}

// life is that of a pod, from its creation to its removal. Its container must have the whole image.
func (b *bed) life(ctx context.Context, name string) error {
	cfg := b.Pod(name)
	pod, err := b.Runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: cfg})
	if err != nil {
		return err
	}
	c, err := b.Runtime.CreateContainer(ctx, &cri.CreateContainerRequest{
		PodSandboxId: pod.PodSandboxId, Config: engine.Sleeper("main", program), SandboxConfig: cfg})
	if err != nil {
		return err
	}
	if _, err := b.Runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: c.ContainerId}); err != nil {
		return err
	}
	if err := b.whole(ctx, c.ContainerId); err != nil {
		return err
	}
	if rand.IntN(2) == 0 { // or the pod is stopped as it runs
		if _, err := b.Runtime.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: c.ContainerId, Timeout: engine.Seconds(2)}); err != nil {
			return err
		}
	}
	if _, err := b.Runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: pod.PodSandboxId}); err != nil {
		return err
	}
	_, err = b.Runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: pod.PodSandboxId})
	return err
}

// whole compares the program in a container with the file that the image was made of.
func (b *bed) whole(ctx context.Context, container string) error {
	r, err := b.Runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: container, Cmd: []string{"cat", "/bin/busybox"}, Timeout: engine.Seconds(10)})
	if err != nil {
		return err
	}
	want, err := os.ReadFile("/bin/busybox")
	if err == nil && (r.ExitCode != 0 || string(r.Stdout) != string(want)) {
		err = fmt.Errorf("the container has %d bytes of the program, and not the %d that the image has (code %d %s)", len(r.Stdout), len(want), r.ExitCode, r.Stderr)
	}
	return err
}

// lives is how many pods come and go at once, beside the pulls.
const lives = 3

// churnPods makes and removes pods while images come and go. It ends with the first failure.
func (b *bed) churnPods(ctx context.Context) error {
	work, ctx := errgroup.WithContext(ctx)
	for k := range lives {
		work.Go(func() error {
			for n := 0; ; n++ {
				name := fmt.Sprintf("pod-%d-%d", k, n)
				if err := b.life(ctx, name); err != nil {
					return fmt.Errorf("%s: %w", name, err)
				}
				fmt.Printf("did %s\n", name)
			}
		})
	}
	work.Go(func() error { return b.churn(ctx) })
	return work.Wait()
}

// serves shows that the engine works: it fetches the program if that is not there, and runs a pod with it.
func (b *bed) serves(ctx context.Context) error {
	if _, err := b.Images.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: program}}); err != nil {
		return err
	}
	if err := b.life(ctx, "first"); err != nil {
		return err
	}
	return b.nothingLeft(ctx)
}

func isProgram(listed *cri.Image) bool {
	for _, tag := range listed.RepoTags {
		if strings.HasPrefix(tag, program) {
			return true
		}
	}
	return false
}
