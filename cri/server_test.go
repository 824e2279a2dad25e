package cri

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	criclient "k8s.io/cri-client/pkg"

	"github.com/evenkeel/evenkeel/network"
	"github.com/evenkeel/evenkeel/sandbox"
)

// pending is a network that is not ready, and remembers the range it was told.
type pending struct {
	network.Provider
	cidr string
}

func (p *pending) Ready() error                 { return errors.New("no conflist in /etc/cni/net.d") }
func (p *pending) Info() map[string]any         { return map[string]any{"confDir": "/etc/cni/net.d"} }
func (p *pending) SetPodCIDR(cidr string) error { p.cidr = cidr; return nil }

// engine is a server without a pod, for all that is decided before one is touched.
func engine() *Server {
	return &Server{
		Release:      "1.2.3",
		CgroupDriver: cri.CgroupDriver_CGROUPFS,
		Config:       struct{ Listen string }{"unix:///run/x.sock"},
		Containers:   &sandbox.Containers{},
		Pods: &sandbox.Pods{
			State:   "/run/evenkeel",
			Network: &pending{},
			Runtimes: map[string]*sandbox.Runtime{
				"": {RecursiveReadOnly: true}, "runc": {RecursiveReadOnly: true}, "test-handler": {},
			},
		},
		Log: slog.New(slog.DiscardHandler),
	}
}

// serve serves s on a unix socket until the test ends and returns its address.
func serve(t *testing.T, s *Server) string {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return "unix://" + l.Addr().String()
}

func dial(t *testing.T, address string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func TestTheKubeletsClientIsContent(t *testing.T) {
	// the client verifies the version when it connects, and every status it gets
	client, err := criclient.NewRemoteRuntimeService(t.Context(), serve(t, engine()), 5*time.Second, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	version, err := client.Version(t.Context(), "0.1.0")
	if err != nil || version.RuntimeName != "evenkeel" || version.RuntimeVersion != "1.2.3" || version.Version != "0.1.0" || version.RuntimeApiVersion != "v1" {
		t.Errorf("Version: %v, %v", version, err)
	}
	config, err := client.RuntimeConfig(t.Context())
	if err != nil || config.Linux == nil || config.Linux.CgroupDriver != cri.CgroupDriver_CGROUPFS {
		t.Errorf("RuntimeConfig: %v, %v", config, err)
	}
	if err := client.UpdateRuntimeConfig(t.Context(), &cri.RuntimeConfig{NetworkConfig: &cri.NetworkConfig{}}); err != nil {
		t.Errorf("UpdateRuntimeConfig without a range: %v", err)
	}
}

func TestStatus(t *testing.T) {
	client, err := criclient.NewRemoteRuntimeService(t.Context(), serve(t, engine()), 5*time.Second, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	got, err := client.Status(t.Context(), true)
	if err != nil {
		t.Fatal(err)
	}
	conditions := map[string]*cri.RuntimeCondition{}
	for _, c := range got.Status.Conditions {
		conditions[c.Type] = c
	}
	if c := conditions["RuntimeReady"]; c == nil || !c.Status {
		t.Errorf("RuntimeReady: %v", c)
	}
	if c := conditions["NetworkReady"]; c == nil || c.Status || c.Reason != "NetworkPluginNotReady" || !strings.Contains(c.Message, "no conflist") {
		t.Errorf("NetworkReady: %v", c)
	}
	var handlers []string
	for _, h := range got.RuntimeHandlers {
		handlers = append(handlers, h.Name)
	}
	if !slices.Equal(handlers, []string{"", "runc", "test-handler"}) || !got.RuntimeHandlers[0].Features.RecursiveReadOnlyMounts {
		t.Errorf("handlers %q", got.RuntimeHandlers)
	}
	if !got.Features.SupplementalGroupsPolicy || !got.Features.MountOptions || got.Features.UserNamespacesHostNetwork {
		t.Errorf("features %v", got.Features)
	}
	checkInfo(t, got.Info)
}

// checkInfo: every value is a JSON document, and config has what kubeadm, critest and people look for.
func checkInfo(t *testing.T, info map[string]string) {
	t.Helper()
	for key, value := range info {
		if !json.Valid([]byte(value)) {
			t.Errorf("info[%q] is no JSON: %s", key, value)
		}
	}
	config := map[string]string{}
	if err := json.Unmarshal([]byte(info["config"]), &config); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]string{"sandboxImage": "registry.k8s.io/pause:3.10", "stateDir": "/run/evenkeel", "Listen": "unix:///run/x.sock"} {
		if config[key] != want {
			t.Errorf("config[%q] is %q, want %q", key, config[key], want)
		}
	}
	if !strings.Contains(info["network"], "/etc/cni/net.d") {
		t.Errorf("network: %s", info["network"])
	}
}

func TestStatusWithoutADefaultRuntimeIsNotReady(t *testing.T) {
	s := engine()
	delete(s.Pods.Runtimes, "")
	got, err := s.Status(t.Context(), &cri.StatusRequest{})
	if err != nil || got.Status.Conditions[0].Status || got.Info != nil {
		t.Errorf("got %v, %v", got, err)
	}
}

func TestPodCIDR(t *testing.T) {
	for cidr, want := range map[string]codes.Code{
		"10.1.0.0/24": codes.OK, "10.1.0.0/24,fd00::/64": codes.OK, "": codes.OK,
		"10.1.0.0": codes.InvalidArgument, "10.1.0.0/24,": codes.InvalidArgument, "ten": codes.InvalidArgument,
	} {
		s := engine()
		_, err := s.UpdateRuntimeConfig(t.Context(), &cri.UpdateRuntimeConfigRequest{RuntimeConfig: &cri.RuntimeConfig{NetworkConfig: &cri.NetworkConfig{PodCidr: cidr}}})
		if code := codeOf(err); err != nil && code != want || err == nil && want != codes.OK {
			t.Errorf("%q: %v", cidr, err)
		}
		if told := s.Pods.Network.(*pending).cidr; want == codes.OK && told != cidr || want != codes.OK && told != "" {
			t.Errorf("%q: the network was told %q", cidr, told)
		}
	}
}

func pod(name, namespace, uid string) *cri.PodSandboxConfig {
	return &cri.PodSandboxConfig{Metadata: &cri.PodSandboxMetadata{Name: name, Namespace: namespace, Uid: uid}}
}

func container(name, image string) *cri.ContainerConfig {
	return &cri.ContainerConfig{Metadata: &cri.ContainerMetadata{Name: name}, Image: &cri.ImageSpec{Image: image}}
}

func TestRequestsThatLackSomethingAreRefusedByName(t *testing.T) {
	conn := dial(t, serve(t, engine()))
	r, i := cri.NewRuntimeServiceClient(conn), cri.NewImageServiceClient(conn)
	ctx := t.Context()
	fails := func(_ any, err error) error { return err }
	for _, c := range []struct {
		err  error
		want string
	}{
		{fails(r.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{})), "metadata.name"},
		{fails(r.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: pod("a", "", "u")})), "metadata.namespace"},
		{fails(r.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: pod("a", "b", "")})), "metadata.uid"},
		{fails(r.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: pod("a", "b", "c"), RuntimeHandler: "kata"})), `no runtime handler "kata"`},
		{fails(r.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{})), "pod_sandbox_id"},
		{fails(r.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{})), "pod_sandbox_id"},
		{fails(r.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{})), "pod_sandbox_id"},
		{fails(r.PodSandboxStats(ctx, &cri.PodSandboxStatsRequest{})), "pod_sandbox_id"},
		{fails(r.CreateContainer(ctx, &cri.CreateContainerRequest{Config: container("a", "i")})), "pod_sandbox_id"},
		{fails(r.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: "p", Config: container("", "i")})), "config.metadata.name"},
		{fails(r.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: "p", Config: container("a", "")})), "config.image.image"},
		{fails(r.StartContainer(ctx, &cri.StartContainerRequest{})), "container_id"},
		{fails(r.StopContainer(ctx, &cri.StopContainerRequest{})), "container_id"},
		{fails(r.RemoveContainer(ctx, &cri.RemoveContainerRequest{})), "container_id"},
		{fails(r.ContainerStatus(ctx, &cri.ContainerStatusRequest{})), "container_id"},
		{fails(r.ContainerStats(ctx, &cri.ContainerStatsRequest{})), "container_id"},
		{fails(r.UpdateContainerResources(ctx, &cri.UpdateContainerResourcesRequest{})), "container_id"},
		{fails(r.ReopenContainerLog(ctx, &cri.ReopenContainerLogRequest{})), "container_id"},
		{fails(r.ExecSync(ctx, &cri.ExecSyncRequest{Cmd: []string{"true"}})), "container_id"},
		{fails(r.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: "c"})), "command"},
		{fails(r.Exec(ctx, &cri.ExecRequest{Cmd: []string{"true"}, Stdout: true})), "container_id"},
		{fails(r.Exec(ctx, &cri.ExecRequest{ContainerId: "c", Stdout: true})), "command"},
		{fails(r.Exec(ctx, &cri.ExecRequest{ContainerId: "c", Cmd: []string{"true"}})), "one of stdin"},
		{fails(r.Exec(ctx, &cri.ExecRequest{ContainerId: "c", Cmd: []string{"true"}, Tty: true, Stderr: true})), "tty and stderr"},
		{fails(r.Attach(ctx, &cri.AttachRequest{Stdout: true})), "container_id"},
		{fails(r.Attach(ctx, &cri.AttachRequest{ContainerId: "c"})), "one of stdin"},
		{fails(r.Attach(ctx, &cri.AttachRequest{ContainerId: "c", Tty: true, Stdout: true, Stderr: true})), "tty and stderr"},
		{fails(r.PortForward(ctx, &cri.PortForwardRequest{})), "pod_sandbox_id"},
		{fails(r.PortForward(ctx, &cri.PortForwardRequest{PodSandboxId: "p", Port: []int32{80, 70000}})), "70000"},
		{fails(r.PortForward(ctx, &cri.PortForwardRequest{PodSandboxId: "p", Port: []int32{0}})), "port 0"},
		{fails(i.ImageStatus(ctx, &cri.ImageStatusRequest{})), "image"},
		{fails(i.PullImage(ctx, &cri.PullImageRequest{})), "image"},
		{fails(i.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: "web"}, Auth: &cri.AuthConfig{Auth: "!"}})), "credentials"},
		{fails(i.RemoveImage(ctx, &cri.RemoveImageRequest{})), "image"},
	} {
		if status.Code(c.err) != codes.InvalidArgument || !strings.Contains(c.err.Error(), c.want) {
			t.Errorf("%v does not name %q", c.err, c.want)
		}
	}
}

func TestWhatIsNotThereYetIsUnimplemented(t *testing.T) {
	r := cri.NewRuntimeServiceClient(dial(t, serve(t, engine())))
	_, restore := r.RestorePod(t.Context(), &cri.RestorePodRequest{})
	_, checkpoint := r.CheckpointPod(t.Context(), &cri.CheckpointPodRequest{})
	for _, err := range []error{restore, checkpoint} {
		if status.Code(err) != codes.Unimplemented || !strings.Contains(err.Error(), "CheckpointContainer") {
			t.Errorf("got %v", err)
		}
	}
}

func TestSecondsNeitherOverflowNorRunBackwards(t *testing.T) {
	for n, want := range map[int64]time.Duration{
		-1: 0, 0: 0, 30: 30 * time.Second, 1 << 62: 9223372036 * time.Second,
	} {
		if got := seconds(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}

func TestFitKeepsTheShorterStreamWhole(t *testing.T) {
	for _, c := range []struct{ a, b, limit, wantA, wantB int }{
		{3, 4, 10, 3, 4}, {8, 2, 10, 8, 2}, {9, 2, 10, 8, 2}, {2, 9, 10, 2, 8}, {100, 100, 10, 5, 5}, {100, 0, 10, 10, 0}, {0, 100, 10, 0, 10}, {6, 7, 11, 5, 6},
	} {
		a, b := fit(make([]byte, c.a), make([]byte, c.b), c.limit)
		if len(a) != c.wantA || len(b) != c.wantB {
			t.Errorf("%d and %d in %d: %d and %d", c.a, c.b, c.limit, len(a), len(b))
		}
	}
}

func TestBatchesHoldEachItemOnce(t *testing.T) {
	for _, n := range []int{0, 1, batch, batch + 1, 3*batch - 1} {
		items := make([]*cri.Image, n)
		for i := range items {
			items[i] = &cri.Image{Id: strconv.Itoa(i)}
		}
		var got []*cri.Image
		if err := inBatches(items, func(part []*cri.Image) error {
			if len(part) == 0 || len(part) > batch {
				t.Errorf("a message of %d items", len(part))
			}
			got = append(got, part...)
			return nil
		}); err != nil || !slices.Equal(got, items) {
			t.Errorf("%d items: %d arrived, %v", n, len(got), err)
		}
	}
	if err := inBatches([]*cri.Image{{}}, func([]*cri.Image) error { return io.ErrClosedPipe }); err != io.ErrClosedPipe {
		t.Errorf("got %v", err)
	}
}

// A pod's annotations can be 256 KiB, and a hundred such pods must not make a message that no client takes.
func TestBatchesAreBoundedInBytes(t *testing.T) {
	var items []*cri.PodSandbox
	for _, size := range []int{10, 256 << 10, 256 << 10, 256 << 10, 256 << 10, 3 << 20, 10, 10, 3 << 20} {
		items = append(items, &cri.PodSandbox{Annotations: map[string]string{"a": strings.Repeat("x", size)}})
	}
	var parts []int
	inBatches(items, func(part []*cri.PodSandbox) error {
		if size := proto.Size(&cri.StreamPodSandboxesResponse{PodSandboxes: part}); len(part) > 1 && size > batchBytes+1<<10 {
			t.Errorf("a message of %d items has %d bytes", len(part), size)
		}
		parts = append(parts, len(part))
		return nil
	})
	if want := []int{4, 1, 1, 2, 1}; !slices.Equal(parts, want) {
		t.Errorf("messages of %v items, want %v", parts, want)
	}
}

// lines collects what is logged.
type lines struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func TestTheLogNamesWhatAndHidesSecrets(t *testing.T) {
	var log lines
	s := engine()
	s.Log = slog.New(slog.NewTextHandler(&log, nil))
	conn := dial(t, serve(t, s))
	r, i := cri.NewRuntimeServiceClient(conn), cri.NewImageServiceClient(conn)
	r.Version(t.Context(), &cri.VersionRequest{})
	r.ContainerStatus(t.Context(), &cri.ContainerStatusRequest{})
	if log.String() != "" {
		t.Errorf("questions are logged: %s", log.String())
	}
	r.UpdateRuntimeConfig(t.Context(), &cri.UpdateRuntimeConfigRequest{})
	config := pod("web", "shop", "u-1")
	config.Annotations = map[string]string{"token": "s3cret"}
	r.RunPodSandbox(t.Context(), &cri.RunPodSandboxRequest{Config: config, RuntimeHandler: "kata"})
	i.PullImage(t.Context(), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: "web:1"}, Auth: &cri.AuthConfig{Auth: "s3cret", ServerAddress: "docker.io"}, SandboxConfig: config})
	for _, want := range []string{"UpdateRuntimeConfig", "name=shop/web", "uid=u-1", "took=", "code=InvalidArgument", "level=ERROR"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log does not say %s:\n%s", want, log.String())
		}
	}
	if strings.Contains(log.String(), "s3cret") {
		t.Errorf("the log holds a secret:\n%s", log.String())
	}
}

func TestServeEndsThoughARequestDoesNot(t *testing.T) {
	s := engine()
	s.StopLimit = 50 * time.Millisecond
	entered := make(chan struct{})
	s.Pods.Network = stuck{entered}
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, l) }()
	go cri.NewRuntimeServiceClient(dial(t, "unix://"+l.Addr().String())).Status(context.Background(), &cri.StatusRequest{})
	<-entered
	cancel()
	select {
	case err := <-served:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(5 * time.Second):
		t.Error("Serve waits for ever")
	}
}

// stuck never says whether it is ready.
type stuck struct{ entered chan struct{} }

func (s stuck) Ready() error { close(s.entered); select {} }

func (stuck) Attach(context.Context, network.Pod) (network.Result, error) { panic("not asked") }
func (stuck) Detach(context.Context, network.Pod) error                   { panic("not asked") }
func (stuck) Check(context.Context, network.Pod) error                    { panic("not asked") }
func (stuck) Sweep(context.Context, func(string) bool) error              { panic("not asked") }
func (stuck) SetPodCIDR(string) error                                     { panic("not asked") }
func (stuck) Info() map[string]any                                        { panic("not asked") }
