package integration

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/integration/engine"
)

// held makes a pod with a process that waits for a file system which has its request and never answers: state D, which no
// signal ends. The file system is gone after release.
func (n *node) held(name string, ports ...*cri.PortMapping) (pod, container string, release func()) {
	n.t.Helper()
	fuse := serveFuse(n.t) // one each: a second look-up of a name waits for the first inside the kernel
	fuse.quieten(false, func(command string) bool { return command == "stat" })
	cfg := n.Pod(name)
	cfg.PortMappings = ports
	pod = n.runPod(cfg)
	c := engine.Container("main", busybox, "sh", "-c", "while :; do /bin/stat /data/dir; usleep 10000; done")
	c.Mounts = []*cri.Mount{{HostPath: fuse.dir, ContainerPath: "/data"}}
	container = n.run(pod, cfg, c)
	n.eventually(10*time.Second, func() error {
		if fuse.waiting() == 0 {
			return fmt.Errorf("the container has not touched the file system")
		}
		return nil
	})
	return pod, container, fuse.close
}

// kubeadmsPatience is what kubeadm reset gives StopPodSandbox and RemovePodSandbox (cmd/kubeadm/app/util/runtime).
const kubeadmsPatience = 2 * time.Second

// named calls with a deadline and checks that an answer comes before it and names who is in the way. It calls five times, as
// kubeadm does: on a busy machine the answer can miss the deadline.
func (n *node) named(patience time.Duration, call func(context.Context) error) {
	n.t.Helper()
	var err error
	for range 5 {
		ctx, stop := context.WithTimeout(n.ctx(), engine.Patience(patience))
		err = call(ctx)
		inTime := ctx.Err() == nil
		stop()
		if inTime {
			break
		}
	}
	refused(n.t, err, codes.DeadlineExceeded, "pid ", "(stat", "state D", "request_wait_answer", "another request joins it")
}

// TestProcessesThatCannotBeKilled: StopPodSandbox and its like answer in bounded time, say who is in the way, and finish
// by themselves when the kernel lets go, also after a restart.
func TestProcessesThatCannotBeKilled(t *testing.T) {
	waits(t)
	n := start(t, "builtin")
	port := &cri.PortMapping{HostPort: int32(freePort(t)), ContainerPort: 80}
	stopped, _, letGo1 := n.held("stopped", port)
	removed, _, letGo2 := n.held("removed")
	living, killed, letGo3 := n.held("living")

	n.named(kubeadmsPatience, func(ctx context.Context) error {
		_, err := n.Runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: removed})
		return err
	})
	n.named(kubeadmsPatience, func(ctx context.Context) error {
		_, err := n.Runtime.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: killed})
		return err
	})
	n.named(callLimit, func(ctx context.Context) error { // the kubelet has two minutes for a call, and other work
		_, err := n.Runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: stopped})
		return err
	})
	if s := n.podStatus(stopped); s.State != cri.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("a pod that is being stopped is %s", s.State)
	}
	n.eventually(callLimit, func() error { // its host port is free before it is dead
		cfg := n.Pod("successor")
		cfg.PortMappings = []*cri.PortMapping{port}
		_, err := n.Runtime.RunPodSandbox(n.ctx(), &cri.RunPodSandboxRequest{Config: cfg})
		return err
	})

	must(t, n.Restart())
	n.named(kubeadmsPatience, func(ctx context.Context) error {
		_, err := n.Runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: stopped})
		return err
	})
	if out, err := n.tool("explain", "stopped"); err != nil || !strings.Contains(out, "StopPodSandbox") {
		t.Errorf("explain does not tell of the stop: %v\n%s", err, out)
	}
	letGo1()
	letGo2()
	letGo3()
	n.eventually(callLimit, func() error { return n.ended(removed, filepath.Join(n.Root(), "pods", removed)) })
	n.eventually(callLimit, func() error { return n.ended(stopped, filepath.Join(n.State, "pods", stopped)) })
	n.awaitState(killed, cri.ContainerState_CONTAINER_EXITED)
	if s := n.podStatus(living); s.State != cri.PodSandboxState_SANDBOX_READY {
		t.Errorf("a pod whose container was stopped is %s", s.State)
	}
	if s := n.podStatus(stopped); s.State != cri.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("a stopped pod is %s", s.State)
	}
}

// ended tells whether a directory that the pod has until its end is gone, and its cgroup.
func (n *node) ended(pod, dir string) error {
	for _, path := range append(engine.CgroupDirs(filepath.Join(n.Instance().CgroupRoot, pod)), dir) {
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s is still there: %v", path, err)
		}
	}
	return nil
}
