package main

import (
	"context"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// deaf takes requests and answers none before its client leaves, except for the list of containers where there is one.
type deaf struct {
	cri.UnimplementedRuntimeServiceServer
	cri.UnimplementedImageServiceServer
	containers []*cri.Container
}

func (d *deaf) ListContainers(ctx context.Context, _ *cri.ListContainersRequest) (*cri.ListContainersResponse, error) {
	if d.containers == nil {
		<-ctx.Done()
	}
	return &cri.ListContainersResponse{Containers: d.containers}, ctx.Err()
}

func (d *deaf) ListPodSandbox(context.Context, *cri.ListPodSandboxRequest) (*cri.ListPodSandboxResponse, error) {
	return &cri.ListPodSandboxResponse{}, nil
}

func (d *deaf) ContainerStatus(ctx context.Context, _ *cri.ContainerStatusRequest) (*cri.ContainerStatusResponse, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func (d *deaf) ListImages(ctx context.Context, _ *cri.ListImagesRequest) (*cri.ListImagesResponse, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func (d *deaf) StopContainer(ctx context.Context, _ *cri.StopContainerRequest) (*cri.StopContainerResponse, error) {
	time.Sleep(300 * time.Millisecond)
	return &cri.StopContainerResponse{}, ctx.Err()
}

// engineOf serves the CRI to a client with a limit.
func engineOf(t *testing.T, pods cri.RuntimeServiceServer, images cri.ImageServiceServer, limit time.Duration) *engine {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	cri.RegisterRuntimeServiceServer(server, pods)
	cri.RegisterImageServiceServer(server, images)
	go server.Serve(listener)
	t.Cleanup(server.Stop)
	e, err := dial("unix://"+path, path, limit)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	return e
}

// TestPatience: lists and statuses do not wait for ever on an engine that hangs; what takes its time may.
func TestPatience(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	hung, half := &deaf{}, &deaf{containers: []*cri.Container{{Id: "a"}, {Id: "b"}}}
	for name, ask := range map[string]func(*engine) error{
		"ListContainers": func(e *engine) error { _, err := e.look(ctx); return err },
		"ListImages":     func(e *engine) error { _, err := e.imageRows(ctx); return err },
	} {
		e := engineOf(t, hung, hung, 100*time.Millisecond)
		err := ask(e)
		if err == nil || !strings.Contains(err.Error(), "the engine at "+e.address+" has not answered "+name+" within 100ms") {
			t.Errorf("%s: %v", name, err)
		}
	}
	// The second container is not asked about: ten would take five minutes.
	e := engineOf(t, half, half, 100*time.Millisecond)
	if _, err := e.containerRows(ctx, true); !isUnanswered(err) {
		t.Errorf("ps: %v", err)
	}
	if err := e.stopContainer(ctx, half.containers[0], graceFlag{}); err != nil {
		t.Errorf("a stop that takes longer: %v", err)
	}
	if ctx.Err() != nil {
		t.Error("only the end of the test ended a call")
	}
}
