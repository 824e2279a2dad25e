package oci

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	cdi "tags.cncf.io/container-device-interface/specs-go"
)

// Revised checks a document that was decided by ContainerSpec and then changed by others, against the same rules, and
// brings it into the limits of this machine. before is the document as it was decided. Errors name the field of the spec.
func (in Input) Revised(spec, before *specs.Spec) error {
	for _, check := range []func(spec, before *specs.Spec) error{
		in.keepsItsPlace, in.revisedProcess, in.revisedMounts, in.revisedResources, in.revisedSeccomp,
	} {
		if err := check(spec, before); err != nil {
			return err
		}
	}
	return nil
}

// InjectCDI makes the edits of devices that were not in the request.
func (in Input) InjectCDI(spec *specs.Spec, edits []cdi.ContainerEdits) error {
	in.CDI = edits
	return in.cdi(spec)
}

// keepsItsPlace: undo finds everything of a container by names that follow from its id.
func (in *Input) keepsItsPlace(spec, before *specs.Spec) error {
	if spec.Linux.CgroupsPath != before.Linux.CgroupsPath {
		return fmt.Errorf("linux.cgroupsPath: %s: a container of this engine cannot leave its cgroup %s", spec.Linux.CgroupsPath, before.Linux.CgroupsPath)
	}
	for _, ns := range before.Linux.Namespaces {
		if ns.Type == specs.UserNamespace && !slices.Contains(spec.Linux.Namespaces, ns) {
			return errors.New("linux.namespaces: the user namespace is the pod's and cannot be changed")
		}
		if ns.Type == specs.MountNamespace && !slices.Contains(spec.Linux.Namespaces, ns) {
			return errors.New("linux.namespaces: the mount namespace is the container's own and cannot be changed")
		}
	}
	return nil
}

func (in *Input) revisedProcess(spec, _ *specs.Spec) error {
	if len(spec.Process.Args) == 0 {
		return errors.New("process.args: empty")
	}
	if score := spec.Process.OOMScoreAdj; score != nil {
		if *score < -1000 || *score > 1000 {
			return fmt.Errorf("process.oomScoreAdj: %d is not between -1000 and 1000", *score)
		}
		raised := max(*score, in.Host.OOMScoreFloor)
		spec.Process.OOMScoreAdj = &raised
	}
	var limits []specs.POSIXRlimit
	for _, l := range spec.Process.Rlimits {
		if !strings.HasPrefix(l.Type, "RLIMIT_") || l.Soft > l.Hard {
			return fmt.Errorf("process.rlimits: %s with soft %d and hard %d is no limit", l.Type, l.Soft, l.Hard)
		}
		limits = slices.DeleteFunc(limits, func(other specs.POSIXRlimit) bool { return other.Type == l.Type }) // the later one counts
		limits = append(limits, l)
	}
	spec.Process.Rlimits = limits
	return nil
}

// revisedMounts lets new bind mounts show their files with the owners that the pod's user namespace gives them, as
// mounts of the request do.
func (in *Input) revisedMounts(spec, before *specs.Spec) error {
	for i := range spec.Mounts {
		m := &spec.Mounts[i]
		if !path.IsAbs(m.Destination) || path.Clean(m.Destination) == "/" {
			return fmt.Errorf("mounts: %q is not a place for a mount", m.Destination)
		}
		if !Bound(*m) || HasMount(before, *m) {
			continue
		}
		if !path.IsAbs(m.Source) {
			return fmt.Errorf("mounts: %s: source %q is not absolute", m.Destination, m.Source)
		}
		if in.hasUserNamespace() && !slices.Contains(m.Options, "idmap") && !slices.Contains(m.Options, "ridmap") {
			m.Options = append(m.Options, "idmap")
		}
	}
	return nil
}

// Bound reports whether a mount shows a path of the host.
func Bound(m specs.Mount) bool {
	return m.Type == "bind" || slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind")
}

// HasMount reports whether spec mounts the same source at the same place.
func HasMount(spec *specs.Spec, m specs.Mount) bool {
	return slices.ContainsFunc(spec.Mounts, func(other specs.Mount) bool {
		return other.Destination == m.Destination && other.Source == m.Source
	})
}

func (in *Input) revisedResources(spec, _ *specs.Spec) error {
	r := spec.Linux.Resources
	if r == nil {
		return nil
	}
	files, err := unified(r.Unified, in.Host)
	if err != nil {
		return fmt.Errorf("linux.resources.%w", err)
	}
	r.Unified = files
	if m := r.Memory; m != nil && !in.Host.Swap {
		m.Swap = nil
	}
	if m := r.Memory; m != nil && m.Swap != nil && *m.Swap > 0 && (m.Limit == nil || *m.Swap < *m.Limit) {
		return fmt.Errorf("linux.resources.memory.swap: %d is below the memory limit, and it is the sum of memory and swap", *m.Swap)
	}
	if in.Host.Hugetlb {
		return nil
	}
	for _, l := range r.HugepageLimits {
		if l.Limit > 0 {
			return fmt.Errorf("linux.resources.hugepageLimits: %d bytes of %s pages cannot be granted, because containers here have no hugetlb controller", l.Limit, l.Pagesize)
		}
	}
	r.HugepageLimits = nil
	return nil
}

func (in *Input) revisedSeccomp(spec, _ *specs.Spec) error {
	if spec.Linux.Seccomp != nil && !in.Host.Seccomp {
		return errors.New("linux.seccomp: the kernel or the runtime handler has no seccomp")
	}
	return nil
}
