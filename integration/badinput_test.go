package integration

import (
	"context"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/integration/engine"
	"github.com/evenkeel/evenkeel/integration/registry"
)

const nobody = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func TestUnknownIDs(t *testing.T) {
	n := start(t, "builtin")
	ctx, r := n.ctx(), n.Runtime
	for name, call := range map[string]func() error{
		"PodSandboxStatus": func() error {
			_, err := r.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: nobody})
			return err
		},
		"ContainerStatus": func() error {
			_, err := r.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: nobody})
			return err
		},
		"CreateContainer": func() error {
			_, err := r.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: nobody, Config: engine.Sleeper("c", busybox), SandboxConfig: n.Pod("p")})
			return err
		},
		"StartContainer": func() error {
			_, err := r.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: nobody})
			return err
		},
		"ExecSync": func() error {
			_, err := r.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: nobody, Cmd: []string{"true"}})
			return err
		},
		"Exec": func() error {
			_, err := r.Exec(ctx, &cri.ExecRequest{ContainerId: nobody, Cmd: []string{"true"}, Stdout: true})
			return err
		},
		"Attach": func() error {
			_, err := r.Attach(ctx, &cri.AttachRequest{ContainerId: nobody, Stdout: true})
			return err
		},
		"PortForward": func() error {
			_, err := r.PortForward(ctx, &cri.PortForwardRequest{PodSandboxId: nobody, Port: []int32{80}})
			return err
		},
		"ReopenContainerLog": func() error {
			_, err := r.ReopenContainerLog(ctx, &cri.ReopenContainerLogRequest{ContainerId: nobody})
			return err
		},
		"ContainerStats": func() error {
			_, err := r.ContainerStats(ctx, &cri.ContainerStatsRequest{ContainerId: nobody})
			return err
		},
		"UpdateContainerResources": func() error {
			_, err := r.UpdateContainerResources(ctx, &cri.UpdateContainerResourcesRequest{ContainerId: nobody, Linux: &cri.LinuxContainerResources{}})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) { refused(t, call(), codes.NotFound, nobody) })
	}
	n.stop(nobody, 1)
	n.remove(nobody)
	n.stopPod(nobody)
	n.removePod(nobody)
	_, err := n.Images.RemoveImage(ctx, &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: "example.org/nothing:1"}})
	must(t, err)
	if img := n.imageStatus("example.org/nothing:1"); img != nil {
		t.Errorf("an unknown image: %v", img)
	}
}

func TestBadPods(t *testing.T) {
	n := start(t, "builtin")
	for name, c := range map[string]struct {
		change func(*cri.RunPodSandboxRequest)
		code   codes.Code
		words  []string
	}{
		"no metadata":     {func(r *cri.RunPodSandboxRequest) { r.Config.Metadata = nil }, codes.InvalidArgument, []string{"metadata"}},
		"no uid":          {func(r *cri.RunPodSandboxRequest) { r.Config.Metadata.Uid = "" }, codes.InvalidArgument, []string{"uid"}},
		"unknown handler": {func(r *cri.RunPodSandboxRequest) { r.RuntimeHandler = "gvisor-please" }, codes.InvalidArgument, []string{"gvisor-please"}},
		"group without user": {func(r *cri.RunPodSandboxRequest) {
			r.Config.Linux.SecurityContext.RunAsGroup = &cri.Int64Value{Value: 1}
		}, codes.InvalidArgument, []string{"run_as_group"}},
		"unknown network":        {func(r *cri.RunPodSandboxRequest) { options(r).Network = 7 }, codes.InvalidArgument, []string{"namespace_options.network", "7"}},
		"network of a container": {func(r *cri.RunPodSandboxRequest) { options(r).Network = cri.NamespaceMode_CONTAINER }, codes.InvalidArgument, []string{"namespace_options.network", "CONTAINER"}},
		"network of a target":    {func(r *cri.RunPodSandboxRequest) { options(r).Network = cri.NamespaceMode_TARGET }, codes.InvalidArgument, []string{"namespace_options.network", "TARGET"}},
		"ipc of a container":     {func(r *cri.RunPodSandboxRequest) { options(r).Ipc = cri.NamespaceMode_CONTAINER }, codes.InvalidArgument, []string{"namespace_options.ipc", "CONTAINER"}},
		"ipc of a target":        {func(r *cri.RunPodSandboxRequest) { options(r).Ipc = cri.NamespaceMode_TARGET }, codes.InvalidArgument, []string{"namespace_options.ipc", "TARGET"}},
		"pid of a target":        {func(r *cri.RunPodSandboxRequest) { options(r).Pid = cri.NamespaceMode_TARGET }, codes.InvalidArgument, []string{"namespace_options.pid", "TARGET"}},
		"unknown pid":            {func(r *cri.RunPodSandboxRequest) { options(r).Pid = 7 }, codes.InvalidArgument, []string{"namespace_options.pid", "7"}},
		"a pod with a target":    {func(r *cri.RunPodSandboxRequest) { options(r).TargetId = nobody }, codes.InvalidArgument, []string{"namespace_options.target_id", nobody}},
		"network sysctl on the node's network": {func(r *cri.RunPodSandboxRequest) {
			options(r).Network, r.Config.Hostname = cri.NamespaceMode_NODE, ""
			r.Config.Linux.Sysctls = map[string]string{"net.ipv4.ip_forward": "1"}
		}, codes.InvalidArgument, []string{`sysctls["net.ipv4.ip_forward"]`, "network namespace"}},
		"IPC sysctl in the node's IPC namespace": {func(r *cri.RunPodSandboxRequest) {
			options(r).Ipc = cri.NamespaceMode_NODE
			r.Config.Linux.Sysctls = map[string]string{"kernel.shmmax": "65536"}
		}, codes.InvalidArgument, []string{`sysctls["kernel.shmmax"]`, "IPC namespace"}},
		"sysctl of the machine": {func(r *cri.RunPodSandboxRequest) { r.Config.Linux.Sysctls = map[string]string{"vm.swappiness": "1"} }, codes.InvalidArgument, []string{`sysctls["vm.swappiness"]`}},
		"sysctl that climbs": {func(r *cri.RunPodSandboxRequest) {
			r.Config.Linux.Sysctls = map[string]string{"net/../vm/swappiness": "1"}
		}, codes.InvalidArgument, []string{"sysctls"}},
		"long host name": {func(r *cri.RunPodSandboxRequest) { r.Config.Hostname = strings.Repeat("a", 65) }, codes.InvalidArgument, []string{"config.hostname", "65"}},
		"host port that leads nowhere": {func(r *cri.RunPodSandboxRequest) {
			r.Config.PortMappings = []*cri.PortMapping{{HostPort: 8080}}
		}, codes.InvalidArgument, []string{"port_mappings[0].container_port"}},
		"host port that leads to two": {func(r *cri.RunPodSandboxRequest) {
			r.Config.PortMappings = []*cri.PortMapping{{HostPort: 8080, ContainerPort: 80}, {HostPort: 8080, ContainerPort: 81}}
		}, codes.InvalidArgument, []string{"port_mappings[1].host_port", "8080"}},
		"unknown protocol": {func(r *cri.RunPodSandboxRequest) {
			r.Config.PortMappings = []*cri.PortMapping{{HostPort: 8080, ContainerPort: 80, Protocol: 9}}
		}, codes.InvalidArgument, []string{"port_mappings[0].protocol"}},
		"host address that is none": {func(r *cri.RunPodSandboxRequest) {
			r.Config.PortMappings = []*cri.PortMapping{{HostPort: 8080, ContainerPort: 80, HostIp: "localhost"}}
		}, codes.InvalidArgument, []string{"port_mappings[0].host_ip", "localhost"}},
		"bandwidth that is none": {func(r *cri.RunPodSandboxRequest) {
			r.Config.Annotations = map[string]string{"kubernetes.io/egress-bandwidth": "lots"}
		}, codes.InvalidArgument, []string{"config.annotations", "kubernetes.io/egress-bandwidth", "lots"}},
		"hardware address that is none": {func(r *cri.RunPodSandboxRequest) {
			r.Config.Annotations = map[string]string{"network.evenkeel.dev/mac": "ff:ff:ff:ff:ff:ff"}
		}, codes.InvalidArgument, []string{"config.annotations", "network.evenkeel.dev/mac", "ff:ff:ff:ff:ff:ff"}},
		"host port out of range": {func(r *cri.RunPodSandboxRequest) {
			r.Config.PortMappings = []*cri.PortMapping{{HostPort: 70000, ContainerPort: 80}}
		}, codes.InvalidArgument, []string{"70000"}},
	} {
		t.Run(name, func(t *testing.T) {
			r := &cri.RunPodSandboxRequest{Config: n.Pod("bad")}
			c.change(r)
			_, err := n.Runtime.RunPodSandbox(n.ctx(), r)
			refused(t, err, c.code, c.words...)
		})
	}
	n.nothingListed()
}

func options(r *cri.RunPodSandboxRequest) *cri.NamespaceOption {
	return r.Config.Linux.SecurityContext.NamespaceOptions
}

func (n *node) nothingListed() {
	n.t.Helper()
	r, err := n.Runtime.ListPodSandbox(n.ctx(), &cri.ListPodSandboxRequest{})
	must(n.t, err)
	if len(r.Items) > 0 {
		n.t.Errorf("failed requests left pods: %v", r.Items)
	}
	n.noLeftovers()
}

func TestBadContainers(t *testing.T) {
	n := start(t, "builtin")
	cfg := n.Pod("bad")
	pod := n.runPod(cfg)
	for name, c := range map[string]struct {
		change func(*cri.ContainerConfig)
		code   codes.Code
		words  []string
	}{
		"no metadata":   {func(c *cri.ContainerConfig) { c.Metadata = nil }, codes.InvalidArgument, []string{"metadata"}},
		"missing image": {func(c *cri.ContainerConfig) { c.Image.Image = "example.org/missing:1" }, codes.NotFound, []string{"example.org/missing:1"}},
		"host path below a file": {func(c *cri.ContainerConfig) {
			c.Mounts = []*cri.Mount{{HostPath: n.LogFile() + "/volume", ContainerPath: "/x"}}
		}, anyCode, []string{"daemon.log/volume"}},
		"recursive read-only but writable": {func(c *cri.ContainerConfig) {
			c.Mounts = []*cri.Mount{{HostPath: "/tmp", ContainerPath: "/x", RecursiveReadOnly: true}}
		}, codes.InvalidArgument, nil},
		"device without a path": {func(c *cri.ContainerConfig) {
			c.Devices = []*cri.Device{{ContainerPath: "/dev/x"}}
		}, codes.InvalidArgument, []string{"config.devices: host_path"}},
		"log below a file": {func(c *cri.ContainerConfig) { c.LogPath = "../daemon.log/x.log" }, anyCode, []string{"daemon.log"}},
		"privileged in a plain pod": {func(c *cri.ContainerConfig) {
			c.Linux.SecurityContext.Privileged = true
		}, codes.InvalidArgument, []string{"privileged"}},
		"pid of a target that is not named": {func(c *cri.ContainerConfig) {
			c.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_TARGET
		}, anyCode, []string{"namespace_options.target_id"}},
		"pid of a target that is not there": {func(c *cri.ContainerConfig) {
			c.Linux.SecurityContext.NamespaceOptions.Pid, c.Linux.SecurityContext.NamespaceOptions.TargetId = cri.NamespaceMode_TARGET, nobody
		}, anyCode, []string{"namespace_options.target_id", nobody}},
		"unknown stop signal": {func(c *cri.ContainerConfig) { c.StopSignal = 99 }, codes.InvalidArgument, []string{"config.stop_signal: 99"}},
		"unknown user": {func(c *cri.ContainerConfig) {
			c.Linux.SecurityContext.RunAsUsername = "somebody-else"
		}, codes.InvalidArgument, []string{"somebody-else"}},
		"unknown capability": {func(c *cri.ContainerConfig) {
			c.Linux.SecurityContext.Capabilities = &cri.Capability{AddCapabilities: []string{"FLYING"}}
		}, codes.InvalidArgument, []string{"FLYING"}},
	} {
		t.Run(name, func(t *testing.T) {
			cc := engine.Sleeper(strings.ReplaceAll(name, " ", "-"), busybox)
			c.change(cc)
			_, err := n.Runtime.CreateContainer(n.ctx(), &cri.CreateContainerRequest{PodSandboxId: pod, Config: cc, SandboxConfig: cfg})
			refused(t, err, c.code, c.words...)
		})
	}
	list, err := n.Runtime.ListContainers(n.ctx(), &cri.ListContainersRequest{})
	must(t, err)
	if len(list.Containers) > 0 {
		t.Errorf("failed requests left containers: %v", list.Containers)
	}
	n.stopPod(pod)
	_, err = n.Runtime.CreateContainer(n.ctx(), &cri.CreateContainerRequest{PodSandboxId: pod, Config: engine.Sleeper("late", busybox), SandboxConfig: cfg})
	if err == nil {
		t.Error("a container was made in a stopped pod")
	}
}

func TestWrongStates(t *testing.T) {
	n := start(t, "builtin")
	cfg := n.Pod("states")
	pod := n.runPod(cfg)
	id := n.create(pod, cfg, engine.Sleeper("main", busybox))
	_, err := n.Runtime.ExecSync(n.ctx(), &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}})
	refused(t, err, codes.FailedPrecondition)
	n.startContainer(id)
	n.stop(id, 0)
	started, finished := n.status(id).StartedAt, n.status(id).FinishedAt
	again := func(id string, words ...string) {
		t.Helper()
		_, err := n.Runtime.StartContainer(n.ctx(), &cri.StartContainerRequest{ContainerId: id})
		refused(t, err, codes.FailedPrecondition, words...)
	}
	words := func(nanoseconds int64) string { return time.Unix(0, nanoseconds).UTC().Format(time.RFC3339Nano) }
	again(id, "started at "+words(started), "ended at "+words(finished), "exit code 137 (Error)")
	short := n.run(pod, cfg, engine.Container("short", busybox, "sh", "-c", "exit 3"))
	n.awaitState(short, cri.ContainerState_CONTAINER_EXITED)
	again(short, "started at ", "exit code 3 (Error)")
	nowhere := n.create(pod, cfg, engine.Container("nowhere", busybox, "/no/such/program"))
	if _, err := n.Runtime.StartContainer(n.ctx(), &cri.StartContainerRequest{ContainerId: nowhere}); err == nil {
		t.Error("a container without a program started")
	}
	again(nowhere, "the start of this one failed", "exit code 127 (StartError)", "/no/such/program")
	never := n.create(pod, cfg, engine.Sleeper("never", busybox))
	_, err = n.Runtime.ExecSync(n.ctx(), &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}})
	refused(t, err, codes.FailedPrecondition)
	n.stopPod(pod)
	again(never, "this one was never started")
}

func TestBadPulls(t *testing.T) {
	n := start(t, "builtin")
	layer, err := registry.Layer(registry.File{Name: "f", Mode: 0o644, Content: []byte("f")})
	must(t, err)
	alien, err := registry.ImageFor(v1.Platform{OS: "linux", Architecture: "s390x"}, v1.Config{}, layer)
	must(t, err)
	alienImage, err := images.Push("alien", alien)
	must(t, err)
	alienIndex, err := images.Push("alien-index", registry.Index(registry.For{Platform: v1.Platform{OS: "linux", Architecture: "s390x"}, Image: alien}))
	must(t, err)
	damaged := damagedRegistry(t, n)
	for name, c := range map[string]struct {
		ref   string
		code  codes.Code
		words []string
	}{
		"malformed":             {"UPPER/case:??", codes.InvalidArgument, []string{"UPPER/case:??"}},
		"empty":                 {"", codes.InvalidArgument, nil},
		"missing repository":    {images.Host + "/nothing:1", codes.NotFound, []string{images.Host + "/nothing:1"}},
		"missing tag":           {strings.TrimSuffix(busybox, "latest") + "no-such-tag", codes.NotFound, []string{"no-such-tag"}},
		"missing digest":        {images.Host + "/busybox@sha256:" + nobody, codes.NotFound, []string{nobody}},
		"other architecture":    {alienImage, codes.NotFound, []string{"s390x", runtime.GOARCH}},
		"index without ours":    {alienIndex, codes.NotFound, []string{"s390x", runtime.GOARCH}},
		"damaged layer":         {damaged, codes.DataLoss, []string{"sha256:"}},
		"registry does not run": {"127.0.0.1:1/x:1", codes.Unknown, []string{"RegistryUnavailable", "127.0.0.1:1"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := n.Images.PullImage(n.ctx(), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: c.ref}})
			refused(t, err, c.code, c.words...)
		})
	}
	list, err := n.Images.ListImages(n.ctx(), &cri.ListImagesRequest{})
	must(t, err)
	if len(list.Images) != 1 {
		t.Errorf("failed pulls left images: %v", list.Images)
	}
}

// damagedRegistry serves blobs with one byte turned.
func damagedRegistry(t *testing.T, n *node) string {
	t.Helper()
	r := registry.Serve()
	t.Cleanup(r.Close)
	must(t, r.Hosts(n.HostsDir()))
	layer, err := registry.Layer(registry.File{Name: "f", Mode: 0o644, Content: []byte(strings.Repeat("damaged", 1000))})
	must(t, err)
	img, err := registry.Image(v1.Config{}, layer)
	must(t, err)
	ref, err := r.Push("damaged:1", img)
	must(t, err)
	digest, err := layer.Digest()
	must(t, err)
	r.Damage(digest.String())
	return ref
}

// TestNoConflistYet: a node whose network is not there yet says so, runs pods of the host's network, and picks the
// network up when it comes.
func TestNoConflistYet(t *testing.T) {
	n := prepareNode(t, "cni")
	n.Conflist = "-"
	must(t, n.Start())
	ready := func() (bool, string) {
		s, err := n.Runtime.Status(n.ctx(), &cri.StatusRequest{})
		must(t, err)
		for _, c := range s.Status.Conditions {
			if c.Type == "NetworkReady" {
				return c.Status, c.Reason
			}
		}
		return false, "no condition"
	}
	if ok, reason := ready(); ok || reason != "NetworkPluginNotReady" {
		t.Errorf("NetworkReady %v, reason %q", ok, reason)
	}
	_, err := n.Runtime.RunPodSandbox(n.ctx(), &cri.RunPodSandboxRequest{Config: n.Pod("early")})
	if err == nil {
		t.Error("a pod ran without a network")
	}
	host := n.Pod("host")
	host.Hostname = ""
	host.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_NODE
	n.runPod(host)
	n.Conflist = ""
	must(t, n.WriteConflist())
	n.eventually(callLimit, func() error {
		_, err := n.Runtime.RunPodSandbox(n.ctx(), &cri.RunPodSandboxRequest{Config: n.Pod("late")})
		return err
	})
	if ok, reason := ready(); !ok {
		t.Errorf("NetworkReady is false with a network: %s", reason)
	}
}

// TestMissingRuntime: an engine without its runtime says so before a pod finds out.
func TestMissingRuntime(t *testing.T) {
	n := prepareNode(t, "builtin")
	partial := filepath.Join(n.Base, "bin")
	must(t, os.MkdirAll(partial, 0o755))
	for _, p := range []string{"evenkeel", "evenkeel-shim"} {
		data, err := os.ReadFile(filepath.Join(n.Bin, p))
		must(t, err)
		must(t, os.WriteFile(filepath.Join(partial, p), data, 0o755))
	}
	n.Bin = partial
	n.Env = []string{"PATH=/nowhere"}
	err := n.Start()
	if err != nil {
		if !strings.Contains(err.Error(), "runc") {
			t.Errorf("the daemon ends without naming runc: %v", err)
		}
		return
	}
	s, err := n.Runtime.Status(n.ctx(), &cri.StatusRequest{})
	must(t, err)
	for _, c := range s.Status.Conditions {
		if c.Type == "RuntimeReady" && (c.Status || !strings.Contains(c.Message, "runc")) {
			t.Errorf("RuntimeReady without a runtime: %v", c)
		}
	}
	_, err = n.Runtime.RunPodSandbox(n.ctx(), &cri.RunPodSandboxRequest{Config: n.Pod("none")})
	if err == nil || !strings.Contains(err.Error(), "runc") {
		t.Errorf("a pod without a runtime: %v", err)
	}
}

// TestRuntimeVanishes: runc is gone while the daemon runs.
func TestRuntimeVanishes(t *testing.T) {
	n := prepareNode(t, "builtin")
	own := filepath.Join(n.Base, "bin")
	must(t, os.MkdirAll(own, 0o755))
	for _, p := range []string{"evenkeel", "evenkeel-shim", "runc"} {
		data, err := os.ReadFile(filepath.Join(n.Bin, p))
		must(t, err)
		must(t, os.WriteFile(filepath.Join(own, p), data, 0o755))
	}
	n.Bin = own
	must(t, n.Start())
	n.pull(busybox)
	must(t, os.Rename(filepath.Join(own, "runc"), filepath.Join(own, "runc.away")))
	cfg := n.Pod("vanished")
	ctx, cancel := context.WithTimeout(n.ctx(), engine.Patience(callLimit))
	defer cancel()
	r, err := n.Runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: cfg})
	if err == nil {
		_, err = n.Runtime.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: r.PodSandboxId, Config: engine.Sleeper("main", busybox), SandboxConfig: cfg})
	}
	if err == nil || !strings.Contains(err.Error(), "runc") {
		t.Errorf("without a runtime: %v", err)
	}
	must(t, os.Rename(filepath.Join(own, "runc.away"), filepath.Join(own, "runc")))
	pod := n.runPod(cfg)
	n.run(pod, cfg, engine.Sleeper("main", busybox))
}
