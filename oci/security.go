package oci

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Kubernetes' default lists (k8s.io/kubernetes/pkg/securitycontext), for clients that send none.
var (
	maskedPaths = []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug",
		"/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware",
	}
	readonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

// confinement decides what stands between the process and the kernel.
func (in *Input) confinement(spec *specs.Spec) error {
	in.kernelPaths(spec)
	if err := in.selinux(spec); err != nil {
		return err
	}
	if err := in.apparmor(spec); err != nil {
		return err
	}
	return in.seccomp(spec)
}

// kernelPaths takes the request's lists as they are. An empty list cannot be told from a missing one on the wire. The kubelet
// sends an empty one for procMount Unmasked only, which Kubernetes allows in user namespaces only: there it is what was
// meant, and elsewhere it is a client that left the choice to us. A mask is a mount: below a volume that propagates both ways
// it would hide the path from the node, which the volume shows anyway.
func (in *Input) kernelPaths(spec *specs.Spec) {
	if in.security().GetPrivileged() {
		return
	}
	masked, readonly := slices.Clone(in.security().GetMaskedPaths()), slices.Clone(in.security().GetReadonlyPaths())
	if !in.hasUserNamespace() {
		masked, readonly = orDefault(masked, maskedPaths), orDefault(readonly, readonlyPaths)
	}
	spec.Linux.MaskedPaths = slices.DeleteFunc(masked, in.showsOnNode)
	spec.Linux.ReadonlyPaths = slices.DeleteFunc(readonly, in.showsOnNode)
}

func orDefault(asked, fallback []string) []string {
	if len(asked) > 0 {
		return slices.Clone(asked)
	}
	return slices.Clone(fallback)
}

// selinux gives a privileged container no label of its own: its processes keep the engine's.
func (in *Input) selinux(spec *specs.Spec) error {
	process, files, err := selinuxLabels(in.Host, in.Pod, in.Container)
	if err != nil {
		return err
	}
	spec.Linux.MountLabel = files
	if !in.security().GetPrivileged() {
		spec.Process.SelinuxLabel = process
	}
	return nil
}

// MountLabel returns the SELinux label of what the engine mounts or writes for a container, the same as the document's mount label,
// or without a container for all of the pod; empty where SELinux is off. Its errors are about the request.
func MountLabel(host Host, pod *cri.PodSandboxConfig, container *cri.ContainerConfig) (string, error) {
	_, files, err := selinuxLabels(host, pod, container)
	return files, err
}

// selinuxLabels completes the container's options, or else the pod's, with the container policy's own user, role and types
// (container-selinux). Labels stand in mount options between quotation marks, which nothing escapes there.
func selinuxLabels(host Host, pod *cri.PodSandboxConfig, container *cri.ContainerConfig) (process, files string, err error) {
	if !host.SELinux {
		return "", "", nil
	}
	options := container.GetLinux().GetSecurityContext().GetSelinuxOptions()
	if options == nil {
		options = pod.GetLinux().GetSecurityContext().GetSelinuxOptions()
	}
	user, level := cmp.Or(options.GetUser(), "system_u"), cmp.Or(options.GetLevel(), "s0")
	role, kind := cmp.Or(options.GetRole(), "system_r"), cmp.Or(options.GetType(), "container_t")
	process = strings.Join([]string{user, role, kind, level}, ":")
	if strings.ContainsAny(process, "\"\\ \t\n") {
		return "", "", fmt.Errorf("security_context.selinux_options: %q is not a label", process)
	}
	return process, strings.Join([]string{user, "object_r", "container_file_t", level}, ":"), nil
}

// profile reads a security profile: the message, or the deprecated string that older clients send instead of it.
// Nothing given is fallback.
func profile(p *cri.SecurityProfile, deprecated string, fallback cri.SecurityProfile_ProfileType) (cri.SecurityProfile_ProfileType, string, error) {
	if p != nil {
		return p.GetProfileType(), strings.TrimPrefix(p.GetLocalhostRef(), "localhost/"), nil
	}
	switch local, isLocal := strings.CutPrefix(deprecated, "localhost/"); {
	case deprecated == "":
		return fallback, "", nil
	case deprecated == "runtime/default", deprecated == "docker/default":
		return cri.SecurityProfile_RuntimeDefault, "", nil
	case deprecated == "unconfined":
		return cri.SecurityProfile_Unconfined, "", nil
	case isLocal:
		return cri.SecurityProfile_Localhost, local, nil
	}
	return 0, "", fmt.Errorf("%q is none of runtime/default, unconfined and localhost/<profile>", deprecated)
}

// apparmor: no profile means the default one (CRI, apparmor_profile), where the machine has AppArmor and the profile. Who asks
// for it by name does not run without.
func (in *Input) apparmor(spec *specs.Spec) error {
	if in.security().GetPrivileged() {
		return nil
	}
	kind, name, err := profile(in.security().GetApparmor(), in.security().GetApparmorProfile(), cri.SecurityProfile_RuntimeDefault)
	if err != nil {
		return fmt.Errorf("security_context.apparmor_profile: %w", err)
	}
	switch kind {
	case cri.SecurityProfile_RuntimeDefault:
		asked := in.security().GetApparmor() != nil || in.security().GetApparmorProfile() != ""
		if asked && in.Host.AppArmor && in.Host.AppArmorProfile == "" {
			return errors.New("security_context.apparmor: RuntimeDefault cannot be applied, because the engine has not loaded its profile; its log says why")
		}
		spec.Process.ApparmorProfile = in.Host.AppArmorProfile
	case cri.SecurityProfile_Localhost:
		if err := in.checkAppArmor(name); err != nil {
			return fmt.Errorf("security_context.apparmor: %w", err)
		}
		spec.Process.ApparmorProfile = name
	case cri.SecurityProfile_Unconfined:
	default:
		return fmt.Errorf("security_context.apparmor.profile_type: %d is not known", kind)
	}
	return nil
}

func (in *Input) checkAppArmor(name string) error {
	switch {
	case name == "":
		return errors.New("localhost_ref: empty")
	case !in.Host.AppArmor:
		return fmt.Errorf("profile %s cannot be applied, because AppArmor is not enabled on this machine", name)
	case in.Host.AppArmorLoaded == nil:
		return nil
	}
	loaded, err := in.Host.AppArmorLoaded(name)
	if err != nil {
		return fmt.Errorf("cannot ask whether profile %s is loaded: %w", name, err)
	}
	if !loaded {
		return fmt.Errorf("profile %s is not loaded on this machine", name)
	}
	return nil
}

// seccomp: no profile means unconfined (CRI, seccomp_profile_path). The filter is a promise, so a machine that cannot
// keep it refuses.
func (in *Input) seccomp(spec *specs.Spec) error {
	if in.security().GetPrivileged() {
		return nil
	}
	kind, file, err := profile(in.security().GetSeccomp(), in.security().GetSeccompProfilePath(), cri.SecurityProfile_Unconfined)
	if err != nil {
		return fmt.Errorf("security_context.seccomp_profile_path: %w", err)
	}
	if kind == cri.SecurityProfile_Unconfined {
		return nil
	}
	if !in.Host.Seccomp {
		return fmt.Errorf("security_context.seccomp: %s cannot be applied, because the kernel or the runtime has no seccomp", kind)
	}
	switch kind {
	case cri.SecurityProfile_RuntimeDefault:
		spec.Linux.Seccomp, err = seccomp.GetDefaultProfile(spec)
	case cri.SecurityProfile_Localhost:
		spec.Linux.Seccomp, err = in.localSeccomp(spec, file)
	default:
		err = fmt.Errorf("profile_type: %d is not known", kind)
	}
	if err != nil {
		return fmt.Errorf("security_context.seccomp: %w", err)
	}
	return nil
}

// localSeccomp takes the runtime-spec's format and Docker's, which adds conditions on capabilities and kernels.
func (in *Input) localSeccomp(spec *specs.Spec, file string) (*specs.LinuxSeccomp, error) {
	if !strings.HasPrefix(file, "/") {
		return nil, fmt.Errorf("localhost_ref: %q is not an absolute path", file)
	}
	if in.Host.LocalhostSeccomp == nil {
		return nil, fmt.Errorf("profile %s: local profiles cannot be read here", file)
	}
	data, err := in.Host.LocalhostSeccomp(file)
	if err != nil {
		return nil, fmt.Errorf("cannot read profile %s: %w", file, err)
	}
	if !json.Valid(data) { // the loader's own complaint would not say that the file is not even JSON
		return nil, fmt.Errorf("profile %s is not valid JSON", file)
	}
	filter, err := seccomp.LoadProfile(string(data), spec)
	if err != nil {
		return nil, fmt.Errorf("profile %s: %w", file, err)
	}
	if filter == nil || filter.DefaultAction == "" {
		return nil, fmt.Errorf("profile %s has no defaultAction, so it would confine nothing", file)
	}
	return filter, nil
}
