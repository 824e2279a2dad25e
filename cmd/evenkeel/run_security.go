package main

import (
	"fmt"
	"path"
	"slices"

	v1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// What the kubelet hides of /proc and /sys (k8s.io/kubernetes/pkg/securitycontext/util.go).
var (
	maskedPaths = []string{
		"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap",
	}
	readonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

func sandboxSecurity(pod *v1.Pod) *cri.LinuxSandboxSecurityContext {
	sc := pod.Spec.SecurityContext
	s := &cri.LinuxSandboxSecurityContext{
		NamespaceOptions:         namespaceOptions(pod),
		SupplementalGroups:       podGroups(pod),
		SupplementalGroupsPolicy: groupsPolicy(pod),
		Privileged:               anyPrivileged(pod),
		Seccomp:                  &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault},
	}
	if sc.RunAsUser != nil {
		s.RunAsUser = &cri.Int64Value{Value: *sc.RunAsUser}
		s.RunAsGroup = int64Value(sc.RunAsGroup)
	}
	return s
}

func int64Value(n *int64) *cri.Int64Value {
	if n == nil {
		return nil
	}
	return &cri.Int64Value{Value: *n}
}

func anyPrivileged(pod *v1.Pod) bool {
	for _, c := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
		if isTrue(c.SecurityContext.Privileged) {
			return true
		}
	}
	return false
}

func isTrue(b *bool) bool { return b != nil && *b }

// podGroups are the supplemental groups, of which fsGroup is one.
func podGroups(pod *v1.Pod) []int64 {
	sc := pod.Spec.SecurityContext
	groups := slices.Clone(sc.SupplementalGroups)
	if sc.FSGroup != nil {
		groups = append(groups, *sc.FSGroup)
	}
	return groups
}

func groupsPolicy(pod *v1.Pod) cri.SupplementalGroupsPolicy {
	if p := pod.Spec.SecurityContext.SupplementalGroupsPolicy; p != nil && *p == v1.SupplementalGroupsPolicyStrict {
		return cri.SupplementalGroupsPolicy_Strict
	}
	return cri.SupplementalGroupsPolicy_Merge
}

func containerSecurity(pod *v1.Pod, c *v1.Container, image imageFacts) (*cri.LinuxContainerSecurityContext, error) {
	sc := c.SecurityContext
	s := &cri.LinuxContainerSecurityContext{
		Capabilities:             capabilities(sc.Capabilities),
		Privileged:               isTrue(sc.Privileged),
		NamespaceOptions:         namespaceOptions(pod),
		ReadonlyRootfs:           isTrue(sc.ReadOnlyRootFilesystem),
		SupplementalGroups:       podGroups(pod),
		SupplementalGroupsPolicy: groupsPolicy(pod),
		NoNewPrivs:               sc.AllowPrivilegeEscalation != nil && !*sc.AllowPrivilegeEscalation,
		Seccomp:                  seccomp(first(sc.SeccompProfile, pod.Spec.SecurityContext.SeccompProfile)),
		Apparmor:                 apparmor(first(sc.AppArmorProfile, pod.Spec.SecurityContext.AppArmorProfile)),
	}
	if sc.ProcMount == nil || *sc.ProcMount == v1.DefaultProcMount {
		s.MaskedPaths, s.ReadonlyPaths = maskedPaths, readonlyPaths
	}
	return s, runAs(s, pod, c, image)
}

// runAs sets user and group: the container's choice, else the pod's, else the image's. It refuses root, and what cannot be
// told apart from root, under runAsNonRoot.
func runAs(s *cri.LinuxContainerSecurityContext, pod *v1.Pod, c *v1.Container, image imageFacts) error {
	user := first(c.SecurityContext.RunAsUser, pod.Spec.SecurityContext.RunAsUser)
	group := first(c.SecurityContext.RunAsGroup, pod.Spec.SecurityContext.RunAsGroup)
	if isTrue(first(c.SecurityContext.RunAsNonRoot, pod.Spec.SecurityContext.RunAsNonRoot)) {
		if err := notRoot(c, first(user, image.UID), image); err != nil {
			return err
		}
	}
	s.RunAsUser, s.RunAsGroup = int64Value(user), int64Value(group)
	if user == nil && group != nil {
		// CRI refuses a group without a user; the image's user is the one meant.
		s.RunAsUser, s.RunAsUsername = int64Value(image.UID), image.Username
		if image.UID == nil && image.Username == "" {
			s.RunAsUser = &cri.Int64Value{}
		}
	}
	return nil
}

func notRoot(c *v1.Container, user *int64, image imageFacts) error {
	switch {
	case user != nil && *user == 0:
		return fmt.Errorf("container %s would run as root (user 0), which runAsNonRoot forbids", c.Name)
	case user == nil && image.Username != "":
		return fmt.Errorf("container %s has runAsNonRoot, but its image names its user, %q, so it cannot be told apart from root: give runAsUser", c.Name, image.Username)
	case user == nil:
		return fmt.Errorf("container %s has runAsNonRoot, but its image runs as root: give runAsUser", c.Name)
	}
	return nil
}

// first is the container's setting where there is one, else the pod's.
func first[T any](container, pod *T) *T {
	if container != nil {
		return container
	}
	return pod
}

func capabilities(c *v1.Capabilities) *cri.Capability {
	if c == nil {
		return nil
	}
	list := func(names []v1.Capability) (words []string) {
		for _, n := range names {
			words = append(words, string(n))
		}
		return words
	}
	return &cri.Capability{AddCapabilities: list(c.Add), DropCapabilities: list(c.Drop)}
}

// seccompRoot is where a node has its profiles; CRI wants whole paths.
const seccompRoot = "/var/lib/kubelet/seccomp"

// seccomp of a manifest that names no profile is Unconfined, as the kubelet has it.
func seccomp(p *v1.SeccompProfile) *cri.SecurityProfile {
	if p == nil {
		return &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Unconfined}
	}
	s := profile(string(p.Type), p.LocalhostProfile)
	if s.LocalhostRef != "" && !path.IsAbs(s.LocalhostRef) {
		s.LocalhostRef = path.Join(seccompRoot, s.LocalhostRef)
	}
	return s
}

// apparmor of a manifest that names no profile is the engine's choice.
func apparmor(p *v1.AppArmorProfile) *cri.SecurityProfile {
	if p == nil {
		return nil
	}
	return profile(string(p.Type), p.LocalhostProfile)
}

func profile(kind string, localhost *string) *cri.SecurityProfile {
	p := &cri.SecurityProfile{ProfileType: cri.SecurityProfile_ProfileType(cri.SecurityProfile_ProfileType_value[kind])}
	if localhost != nil {
		p.LocalhostRef = *localhost
	}
	return p
}

// validateSecurity refuses what the conversion could not carry.
func validateSecurity(at string, c *v1.Container, pod *v1.Pod) error {
	sc := c.SecurityContext
	if isTrue(sc.Privileged) && sc.AllowPrivilegeEscalation != nil && !*sc.AllowPrivilegeEscalation {
		return fmt.Errorf("%s.securityContext.allowPrivilegeEscalation: cannot be false for a privileged container", at)
	}
	if p := first(sc.SeccompProfile, pod.Spec.SecurityContext.SeccompProfile); p != nil {
		if err := validateProfile(at+".securityContext.seccompProfile", string(p.Type), p.LocalhostProfile); err != nil {
			return err
		}
	}
	if p := first(sc.AppArmorProfile, pod.Spec.SecurityContext.AppArmorProfile); p != nil {
		if err := validateProfile(at+".securityContext.appArmorProfile", string(p.Type), p.LocalhostProfile); err != nil {
			return err
		}
	}
	if sc.ProcMount != nil && *sc.ProcMount != v1.DefaultProcMount && *sc.ProcMount != v1.UnmaskedProcMount {
		return fmt.Errorf("%s.securityContext.procMount: %q is neither Default nor Unmasked", at, *sc.ProcMount)
	}
	if c.Lifecycle != nil && c.Lifecycle.StopSignal != nil {
		if _, known := cri.Signal_value["SIGNAL_"+string(*c.Lifecycle.StopSignal)]; !known {
			return fmt.Errorf("%s.lifecycle.stopSignal: %q is no signal", at, *c.Lifecycle.StopSignal)
		}
	}
	return validateMounts(at, c)
}

func validateProfile(at, kind string, localhost *string) error {
	if _, known := cri.SecurityProfile_ProfileType_value[kind]; !known {
		return fmt.Errorf("%s.type: %q is none of RuntimeDefault, Unconfined, Localhost", at, kind)
	}
	if kind == "Localhost" && localhost == nil {
		return fmt.Errorf("%s.localhostProfile: is needed with type Localhost", at)
	}
	return nil
}
