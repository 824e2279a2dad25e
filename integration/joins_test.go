package integration

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/integration/engine"
	"github.com/evenkeel/evenkeel/integration/registry"
)

// TestRepeatedRequestsJoin is guarantee 2: twenty identical requests make one object, and a caller that leaves takes
// nobody with it.
func TestRepeatedRequestsJoin(t *testing.T) {
	n := start(t, "builtin")
	cfg := n.Pod("joined")
	pod := n.sameAnswer(time.Millisecond, func(ctx context.Context) (string, error) {
		r, err := n.Runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: cfg})
		return r.GetPodSandboxId(), err
	})
	c := engine.Sleeper("main", busybox)
	id := n.sameAnswer(time.Millisecond, func(ctx context.Context) (string, error) {
		r, err := n.Runtime.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: pod, Config: c, SandboxConfig: cfg})
		return r.GetContainerId(), err
	})
	n.startContainer(id)
	if pods, _ := n.Runtime.ListPodSandbox(n.ctx(), &cri.ListPodSandboxRequest{}); len(pods.GetItems()) != 1 {
		t.Errorf("twenty requests made %d pods", len(pods.GetItems()))
	}
	if list, _ := n.Runtime.ListContainers(n.ctx(), &cri.ListContainersRequest{}); len(list.GetContainers()) != 1 {
		t.Errorf("twenty requests made %d containers", len(list.GetContainers()))
	}
	if again := n.runPod(cfg); again != pod {
		t.Errorf("a repeated RunPodSandbox answers %s, want %s", again, pod)
	}
	n.sameAnswer(time.Millisecond, func(ctx context.Context) (string, error) {
		_, err := n.Runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: pod})
		return "", err
	})
	n.sameAnswer(time.Millisecond, func(ctx context.Context) (string, error) {
		_, err := n.Runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: pod})
		return "", err
	})
}

func TestConcurrentPullsDownloadOnce(t *testing.T) {
	n := start(t, "builtin")
	ref := image(t, "joined", v1.Config{}, registry.File{Name: "f", Mode: 0o644, Content: make([]byte, 64<<20)})
	before := images.Requests.Load()
	n.sameAnswer(20*time.Millisecond, func(ctx context.Context) (string, error) {
		r, err := n.Images.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: ref}})
		return r.GetImageRef(), err
	})
	if got := images.Requests.Load() - before; got > 2 {
		t.Errorf("%d blobs were downloaded for one layer and one config", got)
	}
}

// sameAnswer sends a request twenty times at once. The first caller leaves after a while; all others must get one answer.
func (n *node) sameAnswer(leaves time.Duration, send func(context.Context) (string, error)) string {
	n.t.Helper()
	const callers = 20
	answers, errs := make([]string, callers), make([]error, callers)
	first, leave := context.WithCancel(n.ctx())
	var wg sync.WaitGroup
	call := func(i int, ctx context.Context) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			answers[i], errs[i] = send(ctx)
		}()
	}
	call(0, first)
	time.Sleep(500 * time.Microsecond) // the first is likely the one that does the work
	for i := 1; i < callers; i++ {
		call(i, n.ctx())
	}
	time.Sleep(leaves)
	leave()
	wg.Wait()
	if code := status.Code(errs[0]); errs[0] != nil && code != codes.Canceled {
		n.t.Errorf("the first caller left and got %v", errs[0])
	}
	if err := errors.Join(errs[1:]...); err != nil {
		n.t.Fatalf("not all callers succeeded: %v", err)
	}
	for _, a := range answers[1:] {
		if a != answers[1] {
			n.t.Fatalf("the callers got different answers: %q", answers)
		}
	}
	return answers[1]
}
