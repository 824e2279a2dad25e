package sandbox

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// List answers from memory: it touches neither disk nor shim.
func (p *Pods) List(f *cri.PodSandboxFilter) []*cri.PodSandbox {
	var list []*cri.PodSandbox
	for _, pod := range p.index.allPods() {
		r := pod.facts()
		if pod.listed() && podMatches(r, f) {
			list = append(list, r.item())
		}
	}
	return list
}

// item is what a list says of the pod.
func (r *podRecord) item() *cri.PodSandbox {
	cfg := r.Config.Message
	return &cri.PodSandbox{
		Id: r.ID, Metadata: cfg.Metadata, State: r.state(), CreatedAt: r.CreatedAt.UnixNano(),
		Labels: cfg.Labels, Annotations: cfg.Annotations, RuntimeHandler: r.Handler,
	}
}

func podMatches(r *podRecord, f *cri.PodSandboxFilter) bool {
	return strings.HasPrefix(r.ID, f.GetId()) &&
		(f.GetState() == nil || f.GetState().GetState() == r.state()) &&
		labelsMatch(r.Config.Message.GetLabels(), f.GetLabelSelector())
}

func labelsMatch(have, want map[string]string) bool {
	for key, value := range want {
		if got, ok := have[key]; !ok || got != value {
			return false
		}
	}
	return true
}

// Status is a pod's status with those of its containers.
func (p *Pods) Status(id string) (*cri.PodSandboxStatus, []*cri.ContainerStatus, error) {
	pod, err := p.index.pod(id)
	if err != nil {
		return nil, nil, err
	}
	r := pod.facts()
	if !pod.listed() {
		return nil, nil, fmt.Errorf("pod sandbox %q: %w", id, ErrNotFound)
	}
	cfg := r.Config.Message
	status := &cri.PodSandboxStatus{
		Id: r.ID, Metadata: cfg.Metadata, State: r.state(), CreatedAt: r.CreatedAt.UnixNano(),
		Labels: cfg.Labels, Annotations: cfg.Annotations, RuntimeHandler: r.Handler,
		Network: &cri.PodSandboxNetworkStatus{},
		Linux: &cri.LinuxPodSandboxStatus{Namespaces: &cri.Namespace{
			Options: proto.CloneOf(cmp.Or(pod.namespaceOptions(), &cri.NamespaceOption{})),
		}},
	}
	for i, ip := range r.IPs {
		if i == 0 {
			status.Network.Ip = ip
			continue
		}
		status.Network.AdditionalIps = append(status.Network.AdditionalIps, &cri.PodIP{Ip: ip})
	}
	var containers []*cri.ContainerStatus
	for _, c := range p.index.allContainers(r.ID) {
		if c.facts().listed() {
			containers = append(containers, c.status())
		}
	}
	return status, containers, nil
}

// Info is the verbose part of the status, for people and for agents that read it. pid is a process of the pod, where there is one.
func (p *Pods) Info(id string) (map[string]any, error) {
	pod, err := p.index.pod(id)
	if err != nil {
		return nil, err
	}
	r := pod.facts()
	return map[string]any{
		"pid": pod.process(), "shimPid": r.Shim.PID, "runtimeHandler": r.Handler, "runtimeType": pod.runtime().Path,
		"cgroup": r.Cgroup, "namespaces": pod.namespaces(), "stateDir": p.podState(r.ID), "image": "", "config": r.Config,
		"runtimeSpec": pod.spec(), "timeline": pod.history(),
	}, nil
}

// spec says in the terms of the runtime-spec what the pod is made of. There is no container of that kind: agents that
// look for the network namespace of a pod read it here.
func (p *pod) spec() *specs.Spec {
	linux := &specs.Linux{CgroupsPath: p.facts().Cgroup}
	files := p.namespaces()
	for _, kind := range slices.Sorted(maps.Keys(files)) {
		linux.Namespaces = append(linux.Namespaces, specs.LinuxNamespace{Type: kind, Path: files[kind]})
	}
	return &specs.Spec{Version: specs.Version, Hostname: p.facts().Config.Message.GetHostname(), Linux: linux}
}

// List answers from memory: it touches neither disk nor shim.
func (c *Containers) List(f *cri.ContainerFilter) []*cri.Container {
	var list []*cri.Container
	for _, found := range c.pods.index.allContainers("") {
		r := found.facts()
		if state := found.stateOf(r); r.listed() && found.matches(r, state, f) {
			list = append(list, r.item(state))
		}
	}
	return list
}

// item is what a list says of the container.
func (r *containerRecord) item(state cri.ContainerState) *cri.Container {
	cfg := r.Config.Message
	return &cri.Container{
		Id: r.ID, PodSandboxId: r.PodID, Metadata: cfg.Metadata, Image: cfg.Image, ImageRef: r.ImageRef, ImageId: r.ImageID,
		State: state, CreatedAt: r.CreatedAt.UnixNano(), Labels: cfg.Labels, Annotations: cfg.Annotations,
	}
}

func (c *container) matches(r *containerRecord, state cri.ContainerState, f *cri.ContainerFilter) bool {
	return strings.HasPrefix(c.id, f.GetId()) && strings.HasPrefix(c.podID, f.GetPodSandboxId()) &&
		(f.GetState() == nil || f.GetState().GetState() == state) &&
		labelsMatch(r.Config.Message.GetLabels(), f.GetLabelSelector())
}

// Status answers from memory.
func (c *Containers) Status(id string) (*cri.ContainerStatus, error) {
	found, err := c.pods.index.container(id)
	if err != nil {
		return nil, err
	}
	if !found.facts().listed() {
		return nil, fmt.Errorf("container %q: %w", id, ErrNotFound)
	}
	return found.status(), nil
}

// Verbose is Status and what else is known, of one moment.
func (c *Containers) Verbose(id string) (*cri.ContainerStatus, map[string]any, error) {
	found, err := c.pods.index.container(id)
	if err != nil {
		return nil, nil, err
	}
	r := found.facts()
	if !r.listed() {
		return nil, nil, fmt.Errorf("container %q: %w", id, ErrNotFound)
	}
	return found.statusOf(r), found.info(r), nil
}

func (c *container) status() *cri.ContainerStatus { return c.statusOf(c.facts()) }

func (c *container) statusOf(r *containerRecord) *cri.ContainerStatus {
	cfg := r.Config.Message
	status := &cri.ContainerStatus{
		Id: r.ID, Metadata: cfg.Metadata, State: c.stateOf(r), CreatedAt: r.CreatedAt.UnixNano(),
		Image: r.image(), ImageRef: r.ImageRef, ImageId: r.ImageID, Labels: cfg.Labels, Annotations: cfg.Annotations,
		Mounts: r.mountStatus(), LogPath: r.LogPath, User: r.User.Message, StopSignal: criSignal(r.StopSignal),
		Resources: &cri.ContainerResources{Linux: r.Resources.Message},
	}
	if !r.StartedAt.IsZero() {
		status.StartedAt = r.StartedAt.UnixNano()
	}
	switch {
	case !r.FinishedAt.IsZero():
		status.FinishedAt, status.ExitCode = r.FinishedAt.UnixNano(), r.Exit.Code
		status.Reason, status.Message = r.Exit.Reason, r.Exit.Message
	case status.State == cri.ContainerState_CONTAINER_UNKNOWN:
		status.Reason, status.Message = "ShimSilent", "the shim of the pod lives but does not answer; nothing is done to the container"
	}
	return status
}

// image is the request's with the image's name: Kubernetes shows it as the image that the container runs (PodStatus,
// containerStatuses[].image), and what the kubelet asks for is an id. Lists give what was asked for, as peers do.
func (r *containerRecord) image() *cri.ImageSpec {
	if r.ImageName == "" {
		return r.Config.Message.Image
	}
	spec := proto.CloneOf(r.Config.Message.Image)
	spec.Image = r.ImageName
	return spec
}

// criSignal finds the CRI's name of a signal number; 0 where it has none.
func criSignal(n int) cri.Signal { return criSignals()[n] }

// criSignals is the CRI's signals by number. Of two names of one number the first counts, every time.
var criSignals = sync.OnceValue(func() map[int]cri.Signal {
	signals := map[int]cri.Signal{}
	for _, value := range slices.Backward(slices.Sorted(maps.Values(cri.Signal_value))) {
		s := cri.Signal(value)
		if number, ok := signalNumber(strings.TrimPrefix(s.String(), "SIGNAL_")); ok {
			signals[number] = s
		}
	}
	return signals
})

// info is the verbose part of the status, for people and for agents that read it.
func (c *container) info(r *containerRecord) map[string]any {
	info := map[string]any{
		"sandboxID": r.PodID, "pid": 0, "privileged": r.Config.Message.GetLinux().GetSecurityContext().GetPrivileged(),
		"runtimeType": c.runtime().Path, "removing": r.Doomed, "cgroup": r.Cgroup, "snapshotter": "overlayfs", "snapshotKey": r.ID, "config": r.Config, "timeline": c.history(),
	}
	if r.FinishedAt.IsZero() {
		info["pid"] = r.Process.PID
	}
	spec, err := c.readBundle()
	if err == nil {
		info["runtimeSpec"] = spec
	} else if !errors.Is(err, fs.ErrNotExist) {
		info["runtimeSpecError"] = err.Error()
	}
	return info
}
