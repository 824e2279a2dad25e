package main

import (
	"context"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// forgetful makes a pod and a container, each when it is asked first, and loses some answers.
type forgetful struct {
	cri.UnimplementedRuntimeServiceServer
	cri.UnimplementedImageServiceServer

	mu    sync.Mutex     // guards what follows
	lose  map[string]int // how many answers of each request are lost
	calls []string
	pod   *cri.PodSandbox
}

func (f *forgetful) answer(call string) error {
	f.calls = append(f.calls, call)
	if f.lose[call]--; f.lose[call] >= 0 {
		return status.Error(codes.Unavailable, "the daemon is gone")
	}
	return nil
}

func (f *forgetful) Version(context.Context, *cri.VersionRequest) (*cri.VersionResponse, error) {
	return &cri.VersionResponse{}, nil
}

func (f *forgetful) RunPodSandbox(_ context.Context, req *cri.RunPodSandboxRequest) (*cri.RunPodSandboxResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.pod = &cri.PodSandbox{Id: "the-pod", Metadata: req.Config.Metadata}
	return &cri.RunPodSandboxResponse{PodSandboxId: "the-pod"}, f.answer("RunPodSandbox")
}

func (f *forgetful) CreateContainer(context.Context, *cri.CreateContainerRequest) (*cri.CreateContainerResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return &cri.CreateContainerResponse{ContainerId: "the-container"}, f.answer("CreateContainer")
}

func (f *forgetful) StartContainer(context.Context, *cri.StartContainerRequest) (*cri.StartContainerResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if slices.Contains(f.calls, "StartContainer") {
		return nil, status.Error(codes.FailedPrecondition, "it is running, not created")
	}
	return &cri.StartContainerResponse{}, f.answer("StartContainer")
}

func (f *forgetful) ListPodSandbox(context.Context, *cri.ListPodSandboxRequest) (*cri.ListPodSandboxResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.pod == nil {
		return &cri.ListPodSandboxResponse{}, f.answer("ListPodSandbox")
	}
	return &cri.ListPodSandboxResponse{Items: []*cri.PodSandbox{f.pod}}, f.answer("ListPodSandbox")
}

func (f *forgetful) ListContainers(context.Context, *cri.ListContainersRequest) (*cri.ListContainersResponse, error) {
	return &cri.ListContainersResponse{}, nil
}

func (f *forgetful) StopPodSandbox(context.Context, *cri.StopPodSandboxRequest) (*cri.StopPodSandboxResponse, error) {
	return &cri.StopPodSandboxResponse{}, nil
}

func (f *forgetful) RemovePodSandbox(_ context.Context, req *cri.RemovePodSandboxRequest) (*cri.RemovePodSandboxResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.pod = nil
	return &cri.RemovePodSandboxResponse{}, f.answer("RemovePodSandbox " + req.PodSandboxId)
}

// runOn is a run up to where its sandbox is asked for.
func runOn(t *testing.T, f *forgetful) *podRun {
	t.Helper()
	pod, err := readManifest("-", strings.NewReader("apiVersion: v1\nkind: Pod\nmetadata: {name: web, uid: u-1}\nspec:\n  containers: [{name: main, image: busybox}]\n"))
	if err != nil {
		t.Fatal(err)
	}
	r := &podRun{engine: engineOf(t, f, f, time.Minute), pod: pod, out: &runOutput{logs: &logPrinter{stdout: io.Discard, stderr: io.Discard}}}
	r.dir = podDir{t.TempDir() + "/u-1"}
	if r.lock, err = r.dir.create(dirOwner{"u-1", podTitle(pod)}); err != nil {
		t.Fatal(err)
	}
	r.at = place{dir: r.dir, images: map[string]imageFacts{"busybox": {ID: "sha256:0"}}}
	return r
}

// TestLostAnswers: what a daemon made that died before it answered is found by asking again.
func TestLostAnswers(t *testing.T) {
	f := &forgetful{lose: map[string]int{"RunPodSandbox": 2, "CreateContainer": 1, "StartContainer": 1}}
	r := runOn(t, f)
	if err := r.runSandbox(t.Context()); err != nil || r.id != "the-pod" {
		t.Fatalf("pod %q: %v", r.id, err)
	}
	if id, err := r.start(t.Context(), &r.pod.Spec.Containers[0], 0); err != nil || id != "the-container" {
		t.Errorf("container %q: %v", id, err)
	}
}

// TestAdoption: a pod that was made and never answered goes with its directory, which stays where that cannot be told.
func TestAdoption(t *testing.T) {
	f := &forgetful{lose: map[string]int{"ListPodSandbox": 1}}
	r := runOn(t, f)
	r.asked = true
	f.pod = &cri.PodSandbox{Id: "the-pod", Metadata: &cri.PodSandboxMetadata{Uid: "u-1"}}
	if err := r.remove(t.Context()); err == nil || !strings.Contains(err.Error(), "cannot tell whether pod default/web was made") {
		t.Errorf("without an answer: %v", err)
	}
	if _, err := os.Stat(r.dir.Path); err != nil {
		t.Error(err)
	}
	if err := r.remove(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(r.dir.Path); err == nil || !slices.Contains(f.calls, "RemovePodSandbox the-pod") {
		t.Errorf("%s is there: %v; the engine was asked: %q", r.dir.Path, err == nil, f.calls)
	}
}
