// Package oci turns a CRI request and an image config into a runtime-spec document: purely, without touching the
// machine, so that golden files can hold every decision. What it cannot know without looking comes in with Input; the
// default seccomp profile alone asks the kernel for its version (uname(2)).
package oci

import (
	"errors"
	"maps"
	"slices"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	cdi "tags.cncf.io/container-device-interface/specs-go"
)

// ErrUnsupported matches errors about a request that is right but waits for a later release.
var ErrUnsupported = errors.New("not supported yet")

// Input is everything the decision depends on.
type Input struct {
	ID, PodID string
	Container *cri.ContainerConfig
	Pod       *cri.PodSandboxConfig
	Image     ocispec.ImageConfig
	Rootfs    string // absolute path of the mounted root file system
	Cgroup    string // spec's cgroupsPath
	User      User   // resolved against the image by ResolveUser

	// Namespace files of the pod by type; a type that is absent is the host's, except Mount, which is always new, and PID, which is
	// new unless Namespaces has it or the request asks for the node's.
	Namespaces map[specs.LinuxNamespaceType]string
	// Mounts the engine adds: /etc/hosts, /etc/hostname, /etc/resolv.conf, /dev/shm of the pod. The request's mounts win over them.
	Mounts []specs.Mount
	// HostPaths maps the host_path of each of the request's mounts to the path with symlinks resolved and whether it is a directory.
	// (filled by the caller, because oci does no I/O)
	HostPaths map[string]string
	// ImageVolumes maps the container_path of each mount that has an image to the directory or file that shows it.
	ImageVolumes map[string]string
	// Devices are, for a privileged container, all devices of the host with their paths on the host; then those that the request
	// names, with their paths in the container, several for a directory. Of two with one path the later wins.
	Devices []Device
	// CDI are the edits that the request's CDI devices want, in order, with the numbers of all their device nodes filled in.
	CDI  []cdi.ContainerEdits
	Host Host
}

// Device is a host device node as found by the caller.
type Device struct {
	specs.LinuxDevice
	Access string // any of r, w and m; empty: rwm
}

// Host is what this machine and its runtime can do.
type Host struct {
	Hostname          string // HOSTNAME of a pod that has none of its own because it uses the node's network
	SpecVersion       string // newest ociVersion the runtime accepts; empty: 1.0.2
	CgroupV2          bool
	Seccomp           bool // kernel and runtime have it
	AppArmor          bool
	AppArmorProfile   string                             // name of the loaded default profile; empty: there is none
	AppArmorLoaded    func(profile string) (bool, error) // whether the kernel has a Localhost profile; nil: not asked
	SELinux           bool
	OOMScoreFloor     int                               // lowest oom_score_adj this process may set
	Hugetlb           bool                              // the container's hierarchy has the hugetlb controller
	Swap              bool                              // memory+swap can be limited
	RecursiveReadOnly bool                              // the runtime handler and the kernel have recursive read-only mounts
	Rlimits           []specs.POSIXRlimit               // of the runtime handler's base spec; empty: the engine's own
	LocalhostSeccomp  func(path string) ([]byte, error) // reads a Localhost profile
	Capabilities      []string                          // the capabilities this process may hand out (bounding set); nil: all
}

// User is who the process runs as.
type User struct {
	UID, GID uint32
	Groups   []uint32 // supplementary, as the policy (Merge or Strict) asks
	Username string
	Home     string // for HOME, when the image does not set it
}

const defaultSpecVersion = "1.0.2"

// ContainerSpec decides the whole document. Its errors are about the request and name the field.
func ContainerSpec(in Input) (*specs.Spec, error) {
	spec := &specs.Spec{
		Version:     in.Host.SpecVersion,
		Root:        &specs.Root{Path: in.Rootfs, Readonly: in.security().GetReadonlyRootfs()},
		Annotations: in.annotations(),
		Linux:       &specs.Linux{CgroupsPath: in.Cgroup},
	}
	if spec.Version == "" {
		spec.Version = defaultSpecVersion
	}
	// Process comes before security: seccomp's default profile depends on the capabilities.
	for _, decide := range []func(*specs.Spec) error{
		in.privilege, in.namespaces, in.process, in.resources, in.devices, in.mounts, in.cdi, in.confinement,
	} {
		if err := decide(spec); err != nil {
			return nil, err
		}
	}
	return spec, nil
}

func (in *Input) security() *cri.LinuxContainerSecurityContext {
	return in.Container.GetLinux().GetSecurityContext()
}

func (in *Input) podSecurity() *cri.LinuxSandboxSecurityContext {
	return in.Pod.GetLinux().GetSecurityContext()
}

// privilege checks what the CRI demands of the pod: LinuxSandboxSecurityContext.privileged must be true before a
// privileged container may run in it.
func (in *Input) privilege(*specs.Spec) error {
	if in.security().GetPrivileged() && !in.podSecurity().GetPrivileged() {
		return errors.New("security_context.privileged: a privileged container needs a pod sandbox that was made privileged")
	}
	return nil
}

func (in *Input) process(spec *specs.Spec) error {
	args, err := in.args()
	if err != nil {
		return err
	}
	env, err := in.env()
	if err != nil {
		return err
	}
	caps, err := in.capabilities()
	if err != nil {
		return err
	}
	score, err := in.oomScore()
	if err != nil {
		return err
	}
	spec.Process = &specs.Process{
		Terminal:        in.Container.GetTty(),
		User:            specs.User{UID: in.User.UID, GID: in.User.GID, AdditionalGids: slices.Clone(in.User.Groups)},
		Args:            args,
		Env:             env,
		Cwd:             in.workingDir(),
		Capabilities:    caps,
		NoNewPrivileges: in.security().GetNoNewPrivs(),
		OOMScoreAdj:     &score,
		Rlimits:         slices.Clone(in.Host.Rlimits),
	}
	return nil
}

// annotations let a runtime, and whoever reads the bundle, find the pod. The first four keys are the kubelet's own labels.
func (in *Input) annotations() map[string]string {
	all := map[string]string{
		"io.kubernetes.pod.name":       in.Pod.GetMetadata().GetName(),
		"io.kubernetes.pod.namespace":  in.Pod.GetMetadata().GetNamespace(),
		"io.kubernetes.pod.uid":        in.Pod.GetMetadata().GetUid(),
		"io.kubernetes.container.name": in.Container.GetMetadata().GetName(),
		"dev.evenkeel.pod":             in.PodID,
	}
	maps.DeleteFunc(all, func(_, value string) bool { return value == "" })
	return all
}
