package nri

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/containerd/nri/pkg/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/sandbox"
)

// podOf is NRI's view of a pod.
func podOf(v sandbox.PodView) *api.PodSandbox {
	linux, meta := v.Config.GetLinux(), v.Config.GetMetadata()
	pod := &api.PodSandbox{
		Id: v.ID, Name: meta.GetName(), Uid: meta.GetUid(), Namespace: meta.GetNamespace(), RuntimeHandler: v.Handler,
		Labels: maps.Clone(v.Config.GetLabels()), Annotations: maps.Clone(v.Config.GetAnnotations()), Pid: uint32(v.PID), Ips: slices.Clone(v.IPs),
		Linux: &api.LinuxPodSandbox{
			PodOverhead: resourcesOf(linux.GetOverhead()), PodResources: resourcesOf(linux.GetResources()),
			CgroupParent: linux.GetCgroupParent(), CgroupsPath: v.Cgroup,
		},
	}
	for _, kind := range slices.Sorted(maps.Keys(v.Namespaces)) {
		pod.Linux.Namespaces = append(pod.Linux.Namespaces, &api.LinuxNamespace{Type: string(kind), Path: v.Namespaces[kind]})
	}
	return pod
}

// containerOf is NRI's view of a container.
func containerOf(v sandbox.ContainerView) *api.Container {
	cfg := v.Config
	c := &api.Container{
		Id: v.ID, PodSandboxId: v.PodID, Name: cfg.GetMetadata().GetName(), State: stateOf(v.State), Pid: uint32(v.PID),
		Labels: maps.Clone(cfg.GetLabels()), Annotations: maps.Clone(cfg.GetAnnotations()),
		CreatedAt: nanoseconds(v.CreatedAt), StartedAt: nanoseconds(v.StartedAt), FinishedAt: nanoseconds(v.FinishedAt),
		ExitCode: v.ExitCode, StatusReason: v.Reason, StatusMessage: v.Message, Image: imageOf(v),
		Linux: &api.LinuxContainer{Resources: resourcesOf(cfg.GetLinux().GetResources())},
	}
	for _, d := range cfg.GetCDIDevices() {
		c.CDIDevices = append(c.CDIDevices, &api.CDIDevice{Name: d.GetName()})
	}
	if v.Spec != nil {
		describe(c, v.Spec, cfg)
	}
	return c
}

// describe adds what the runtime-spec says. Its annotations are shown beside the request's, which win.
func describe(c *api.Container, spec *specs.Spec, cfg *cri.ContainerConfig) {
	annotations := maps.Clone(spec.Annotations)
	if annotations == nil {
		annotations = map[string]string{}
	}
	maps.Copy(annotations, c.Annotations)
	c.Annotations = annotations
	c.Mounts, c.Hooks = api.FromOCIMounts(spec.Mounts), api.FromOCIHooks(spec.Hooks)
	if p := spec.Process; p != nil {
		c.Args, c.Env = slices.Clone(p.Args), slices.Clone(p.Env)
		c.User = &api.User{Uid: p.User.UID, Gid: p.User.GID, AdditionalGids: slices.Clone(p.User.AdditionalGids)}
		c.Linux.OomScoreAdj = api.Int(p.OOMScoreAdj)
		c.Linux.IoPriority, c.Linux.Scheduler = api.FromOCILinuxIOPriority(p.IOPriority), api.FromOCILinuxScheduler(p.Scheduler)
		for _, l := range p.Rlimits {
			c.Rlimits = append(c.Rlimits, &api.POSIXRlimit{Type: l.Type, Hard: l.Hard, Soft: l.Soft})
		}
	}
	if linux := spec.Linux; linux != nil {
		c.Linux.Namespaces, c.Linux.Devices = api.FromOCILinuxNamespaces(linux.Namespaces), api.FromOCILinuxDevices(linux.Devices)
		c.Linux.Resources, c.Linux.CgroupsPath = api.FromOCILinuxResources(linux.Resources, nil), linux.CgroupsPath
		c.Linux.SeccompProfile = profileOf(cfg.GetLinux().GetSecurityContext().GetSeccomp())
		if linux.Seccomp != nil {
			c.Linux.SeccompPolicy = api.FromOCILinuxSeccomp(linux.Seccomp)
		}
		c.Linux.Sysctl, c.Linux.NetDevices = maps.Clone(linux.Sysctl), api.FromOCILinuxNetDevices(linux.NetDevices)
		c.Linux.Rdt = rdtOf(linux.IntelRdt)
	}
}

func nanoseconds(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func stateOf(s cri.ContainerState) api.ContainerState {
	switch s {
	case cri.ContainerState_CONTAINER_CREATED:
		return api.ContainerState_CONTAINER_CREATED
	case cri.ContainerState_CONTAINER_RUNNING:
		return api.ContainerState_CONTAINER_RUNNING
	case cri.ContainerState_CONTAINER_EXITED:
		return api.ContainerState_CONTAINER_STOPPED
	}
	return api.ContainerState_CONTAINER_UNKNOWN
}

// imageOf leaves the digest of the manifest out where the image has none: its reference is its id then.
func imageOf(v sandbox.ContainerView) *api.Image {
	asked := v.Config.GetImage()
	image := &api.Image{Name: cmp.Or(asked.GetUserSpecifiedImage(), asked.GetImage()), ConfigDigest: v.ImageID}
	_, image.Digest, _ = strings.Cut(v.ImageRef, "@")
	return image
}

func profileOf(p *cri.SecurityProfile) *api.SecurityProfile {
	if p == nil {
		return nil
	}
	kinds := map[cri.SecurityProfile_ProfileType]api.SecurityProfile_ProfileType{
		cri.SecurityProfile_RuntimeDefault: api.SecurityProfile_RUNTIME_DEFAULT,
		cri.SecurityProfile_Unconfined:     api.SecurityProfile_UNCONFINED,
		cri.SecurityProfile_Localhost:      api.SecurityProfile_LOCALHOST,
	}
	return &api.SecurityProfile{ProfileType: kinds[p.GetProfileType()], LocalhostRef: p.GetLocalhostRef()}
}

func rdtOf(r *specs.LinuxIntelRdt) *api.LinuxRdt {
	if r == nil {
		return nil
	}
	return &api.LinuxRdt{ClosId: api.String(r.ClosID), Schemata: api.RepeatedString(r.Schemata), EnableMonitoring: api.Bool(r.EnableMonitoring)}
}
