package sandbox

import (
	"context"
	"runtime"
	"testing"
	"time"
	"weak"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/internal/cgroup"
)

// A pod lives for months, and what came with the request that made it need not: a gRPC request with its connection, for one.
func TestPodDoesNotKeepItsRequest(t *testing.T) {
	p := emptyPods(t)
	p.Cgroups = &cgroup.Tree{}
	found, request := claimed(t, p)
	if err := found.built.wait(t.Context()); err == nil {
		t.Error("a pod was made without a place for its logs")
	}
	for range 100 {
		if runtime.GC(); request.Value() == nil {
			break
		}
		time.Sleep(10 * time.Millisecond) // its build returns
	}
	if request.Value() != nil {
		t.Error("the request is still held")
	}
	runtime.KeepAlive(found)
}

func claimed(t *testing.T, p *Pods) (*pod, weak.Pointer[[64]byte]) {
	type key struct{}
	message := new([64]byte)
	host := &cri.NamespaceOption{Network: cri.NamespaceMode_NODE, Ipc: cri.NamespaceMode_NODE, Pid: cri.NamespaceMode_CONTAINER}
	found, _ := p.claimPod(context.WithValue(t.Context(), key{}, message), &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: "web", Namespace: "default", Uid: "1"},
		LogDirectory: "/dev/null/logs",
		Linux:        &cri.LinuxPodSandboxConfig{SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: host}},
	}, "")
	return found, weak.Make(message)
}
