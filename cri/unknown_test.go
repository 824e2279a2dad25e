package cri

import (
	"context"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	criclient "k8s.io/cri-client/pkg"

	"github.com/evenkeel/evenkeel/cri/operator"
	"github.com/evenkeel/evenkeel/internal/cgroup"
	"github.com/evenkeel/evenkeel/sandbox"
)

// Sweep finds nothing: the network has never been ready.
func (p *pending) Sweep(context.Context, func(string) bool) error { return nil }

// empty is an engine with a real, empty index of pods.
func empty(t *testing.T) *Server {
	t.Helper()
	tree, err := cgroup.Detect()
	if err != nil {
		t.Fatal(err)
	}
	s := engine()
	dir := t.TempDir()
	s.Pods = &sandbox.Pods{
		Root: filepath.Join(dir, "root"), State: filepath.Join(dir, "state"), CgroupParent: "/evenkeel-cri-test", Cgroups: tree,
		Network: &pending{}, Runtimes: map[string]*sandbox.Runtime{"": {}}, Log: slog.New(slog.DiscardHandler),
	}
	if err := s.Pods.Load(); err != nil {
		t.Fatal(err)
	}
	s.Containers = s.Pods.Open(t.Context())
	t.Cleanup(s.Pods.Close)
	return s
}

const nobody = "4f1c000000000000000000000000000000000000000000000000000000000000"

func TestTheUnknownIsStoppedAndRemovedButHasNoStatus(t *testing.T) {
	r := cri.NewRuntimeServiceClient(dial(t, serve(t, empty(t))))
	ctx := t.Context()
	fails := func(_ any, err error) error { return err }
	for what, c := range map[string]struct {
		err  error
		want codes.Code
	}{
		"StopPodSandbox":           {fails(r.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: nobody})), codes.OK},
		"RemovePodSandbox":         {fails(r.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: nobody})), codes.OK},
		"StopContainer":            {fails(r.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: nobody})), codes.OK},
		"RemoveContainer":          {fails(r.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: nobody})), codes.OK},
		"PodSandboxStatus":         {fails(r.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: nobody})), codes.NotFound},
		"PodSandboxStats":          {fails(r.PodSandboxStats(ctx, &cri.PodSandboxStatsRequest{PodSandboxId: nobody})), codes.NotFound},
		"CreateContainer":          {fails(r.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: nobody, Config: container("a", "i")})), codes.NotFound},
		"StartContainer":           {fails(r.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: nobody})), codes.NotFound},
		"ContainerStatus":          {fails(r.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: nobody, Verbose: true})), codes.NotFound},
		"ContainerStats":           {fails(r.ContainerStats(ctx, &cri.ContainerStatsRequest{ContainerId: nobody})), codes.NotFound},
		"UpdateContainerResources": {fails(r.UpdateContainerResources(ctx, &cri.UpdateContainerResourcesRequest{ContainerId: nobody, Linux: &cri.LinuxContainerResources{}})), codes.NotFound},
		"update of nothing":        {fails(r.UpdateContainerResources(ctx, &cri.UpdateContainerResourcesRequest{ContainerId: nobody})), codes.NotFound},
		"ReopenContainerLog":       {fails(r.ReopenContainerLog(ctx, &cri.ReopenContainerLogRequest{ContainerId: nobody})), codes.NotFound},
		"ExecSync":                 {fails(r.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: nobody, Cmd: []string{"true"}})), codes.NotFound},
		"Exec":                     {fails(r.Exec(ctx, &cri.ExecRequest{ContainerId: nobody, Cmd: []string{"true"}, Stdout: true})), codes.NotFound},
		"Attach":                   {fails(r.Attach(ctx, &cri.AttachRequest{ContainerId: nobody, Stdout: true})), codes.NotFound},
		"PortForward":              {fails(r.PortForward(ctx, &cri.PortForwardRequest{PodSandboxId: nobody})), codes.NotFound},
	} {
		if status.Code(c.err) != c.want {
			t.Errorf("%s: %v, want %s", what, c.err, c.want)
		}
		if c.want == codes.NotFound && !strings.Contains(c.err.Error(), nobody) {
			t.Errorf("%s does not say what was not found: %v", what, c.err)
		}
	}
}

func TestAnEmptyEngineListsNothingBothWays(t *testing.T) {
	s := empty(t)
	s.Instance = map[string]string{"bridge": "ek0"}
	address := serve(t, s)
	for _, streaming := range []bool{false, true} {
		client, err := criclient.NewRemoteRuntimeService(t.Context(), address, 5*time.Second, nil, streaming)
		if err != nil {
			t.Fatal(err)
		}
		pods, err1 := client.ListPodSandbox(t.Context(), nil)
		containers, err2 := client.ListContainers(t.Context(), nil)
		stats, err3 := client.ListContainerStats(t.Context(), nil)
		podStats, err4 := client.ListPodSandboxStats(t.Context(), nil)
		for _, err := range []error{err1, err2, err3, err4} {
			if err != nil {
				t.Error(err)
			}
		}
		if n := len(pods) + len(containers) + len(stats) + len(podStats); n != 0 {
			t.Errorf("streaming %t: %d things", streaming, n)
		}
	}
	inventory, err := operator.Client{Conn: dial(t, address)}.Inventory(t.Context())
	if err != nil || inventory.Pods == nil || len(inventory.Pods)+len(inventory.Containers) != 0 || string(inventory.Instance) != `{"bridge":"ek0"}` {
		t.Errorf("inventory: %+v, %v", inventory, err)
	}
}
