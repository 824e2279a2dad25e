package oci

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Resources turns CRI resources into the runtime's, for UpdateContainerResources. What the request leaves at its zero
// value stays as it is, so the parts are nil where nothing is asked.
func Resources(r *cri.LinuxContainerResources, h Host) (*specs.LinuxResources, error) {
	if err := checkRanges(r); err != nil {
		return nil, err
	}
	huge, err := hugepages(r.GetHugepageLimits(), h)
	if err != nil {
		return nil, err
	}
	files, err := unified(r.GetUnified(), h)
	if err != nil {
		return nil, err
	}
	memory, err := memory(r, h)
	if err != nil {
		return nil, err
	}
	return &specs.LinuxResources{CPU: cpu(r), Memory: memory, HugepageLimits: huge, Unified: files}, nil
}

func (in *Input) resources(spec *specs.Spec) error {
	limits, err := Resources(in.Container.GetLinux().GetResources(), in.Host)
	if err != nil {
		return fmt.Errorf("linux.resources.%w", err)
	}
	spec.Linux.Resources = limits
	return nil
}

// checkRanges refuses negative numbers that the kernel would read as something else; -1 means unlimited where it is allowed.
func checkRanges(r *cri.LinuxContainerResources) error {
	for _, field := range []struct {
		name          string
		value, lowest int64
	}{
		{"cpu_shares", r.GetCpuShares(), 0},
		{"cpu_period", r.GetCpuPeriod(), 0},
		{"cpu_quota", r.GetCpuQuota(), -1},
		{"memory_limit_in_bytes", r.GetMemoryLimitInBytes(), -1},
		{"memory_swap_limit_in_bytes", r.GetMemorySwapLimitInBytes(), -1},
	} {
		if field.value < field.lowest {
			return fmt.Errorf("%s: %d is below %d", field.name, field.value, field.lowest)
		}
	}
	return nil
}

func cpu(r *cri.LinuxContainerResources) *specs.LinuxCPU {
	limits := specs.LinuxCPU{Cpus: r.GetCpusetCpus(), Mems: r.GetCpusetMems()}
	if shares := uint64(r.GetCpuShares()); shares != 0 {
		limits.Shares = &shares
	}
	if period := uint64(r.GetCpuPeriod()); period != 0 {
		limits.Period = &period
	}
	if quota := r.GetCpuQuota(); quota != 0 {
		limits.Quota = &quota
	}
	if limits == (specs.LinuxCPU{}) {
		return nil
	}
	return &limits
}

// memory sets the swap limit, which is memory plus swap in the CRI as in the runtime-spec. A request that limits memory
// and is silent about swap gets no swap, as peers do: the limit means what it says.
func memory(r *cri.LinuxContainerResources, h Host) (*specs.LinuxMemory, error) {
	limit, swap := r.GetMemoryLimitInBytes(), r.GetMemorySwapLimitInBytes()
	if swap == 0 {
		swap = limit
	}
	if !h.Swap {
		swap = 0
	}
	switch {
	case swap > 0 && limit <= 0:
		return nil, fmt.Errorf("memory_swap_limit_in_bytes: %d needs a memory_limit_in_bytes, since it is the sum of memory and swap", swap)
	case swap > 0 && swap < limit:
		return nil, fmt.Errorf("memory_swap_limit_in_bytes: %d is below memory_limit_in_bytes %d, and it is the sum of memory and swap", swap, limit)
	}
	var limits specs.LinuxMemory
	if limit != 0 {
		limits.Limit = &limit
	}
	if swap != 0 {
		limits.Swap = &swap
	}
	if limits == (specs.LinuxMemory{}) {
		return nil, nil
	}
	return &limits, nil
}

// hugepages drops limits of 0 where the controller is missing: the kubelet sends them with every container.
func hugepages(asked []*cri.HugepageLimit, h Host) ([]specs.LinuxHugepageLimit, error) {
	var limits []specs.LinuxHugepageLimit
	for _, l := range asked {
		switch {
		case h.Hugetlb:
			limits = append(limits, specs.LinuxHugepageLimit{Pagesize: l.GetPageSize(), Limit: l.GetLimit()})
		case l.GetLimit() > 0:
			return nil, fmt.Errorf("hugepage_limits: %d bytes of %s pages cannot be granted, because containers here have no hugetlb controller", l.GetLimit(), l.GetPageSize())
		}
	}
	return limits, nil
}

// unified passes cgroup v2 files on. On v1 memory.oom.group is dropped: the kubelet wants it where it exists and cannot
// harm where it does not; any other file is a limit that would be silently missing.
func unified(files map[string]string, h Host) (map[string]string, error) {
	kept := map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		switch {
		case name == "" || strings.Contains(name, "/"):
			return nil, fmt.Errorf("unified: %q is not the name of a cgroup file", name)
		case h.CgroupV2:
			kept[name] = files[name]
		case name != "memory.oom.group":
			return nil, fmt.Errorf("unified: %s needs cgroup v2, and this machine has v1", name)
		}
	}
	if len(kept) == 0 {
		return nil, nil
	}
	return kept, nil
}

// oomScore is always set: a container that asked for nothing must not inherit the protection of the process that starts it.
func (in *Input) oomScore() (int, error) {
	asked := in.Container.GetLinux().GetResources().GetOomScoreAdj()
	if asked < -1000 || asked > 1000 {
		return 0, fmt.Errorf("linux.resources.oom_score_adj: %d is not between -1000 and 1000", asked)
	}
	return max(int(asked), in.Host.OOMScoreFloor), nil
}
