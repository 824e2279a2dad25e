package nri

import (
	"errors"
	"fmt"
	"maps"
	"strings"

	"github.com/containerd/nri/pkg/api"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/sandbox"
)

// resourcesOf turns the CRI's resources into NRI's. What is zero in the CRI is not set.
func resourcesOf(r *cri.LinuxContainerResources) *api.LinuxResources {
	if r == nil {
		return nil
	}
	out := &api.LinuxResources{
		Memory: &api.LinuxMemory{}, Cpu: &api.LinuxCPU{Cpus: r.GetCpusetCpus(), Mems: r.GetCpusetMems()}, Unified: maps.Clone(r.GetUnified()),
	}
	if limit := r.GetMemoryLimitInBytes(); limit != 0 {
		out.Memory.Limit = api.Int64(limit)
	}
	if swap := r.GetMemorySwapLimitInBytes(); swap != 0 {
		out.Memory.Swap = api.Int64(swap)
	}
	if shares := r.GetCpuShares(); shares != 0 {
		out.Cpu.Shares = api.UInt64(uint64(shares))
	}
	if quota := r.GetCpuQuota(); quota != 0 {
		out.Cpu.Quota = api.Int64(quota)
	}
	if period := r.GetCpuPeriod(); period != 0 {
		out.Cpu.Period = api.UInt64(uint64(period))
	}
	for _, l := range r.GetHugepageLimits() {
		out.HugepageLimits = append(out.HugepageLimits, &api.HugepageLimit{PageSize: l.GetPageSize(), Limit: l.GetLimit()})
	}
	return out
}

// overlaid is base with what r sets, as far as the CRI can say it. A memory limit without one for swap means no swap, as
// in the CRI.
func overlaid(base *cri.LinuxContainerResources, r *api.LinuxResources) *cri.LinuxContainerResources {
	out := &cri.LinuxContainerResources{}
	if base != nil {
		out = proto.CloneOf(base)
	}
	memory, cpu := r.GetMemory(), r.GetCpu()
	if limit := memory.GetLimit(); limit != nil {
		out.MemoryLimitInBytes, out.MemorySwapLimitInBytes = limit.GetValue(), limit.GetValue()
	}
	if swap := memory.GetSwap(); swap != nil {
		out.MemorySwapLimitInBytes = swap.GetValue()
	}
	if shares := cpu.GetShares(); shares != nil {
		out.CpuShares = int64(shares.GetValue())
	}
	if quota := cpu.GetQuota(); quota != nil {
		out.CpuQuota = quota.GetValue()
	}
	if period := cpu.GetPeriod(); period != nil {
		out.CpuPeriod = int64(period.GetValue())
	}
	if cpu.GetCpus() != "" {
		out.CpusetCpus = cpu.GetCpus()
	}
	if cpu.GetMems() != "" {
		out.CpusetMems = cpu.GetMems()
	}
	for _, l := range r.GetHugepageLimits() {
		out.HugepageLimits = withLimit(out.HugepageLimits, l)
	}
	for name, value := range r.GetUnified() {
		if out.Unified == nil {
			out.Unified = map[string]string{}
		}
		out.Unified[name] = value
	}
	return out
}

func withLimit(limits []*cri.HugepageLimit, add *api.HugepageLimit) []*cri.HugepageLimit {
	for _, l := range limits {
		if l.GetPageSize() == add.GetPageSize() {
			l.Limit = add.GetLimit()
			return limits
		}
	}
	return append(limits, &cri.HugepageLimit{PageSize: add.GetPageSize(), Limit: add.GetLimit()})
}

// expressible refuses what a container that is there cannot be given through the CRI's update. A limit that is dropped in
// silence would be worse than an error.
func expressible(r *api.LinuxResources) error {
	memory, cpu := r.GetMemory(), r.GetCpu()
	var names []string
	for name, set := range map[string]bool{
		"memory.reservation": memory.GetReservation() != nil, "memory.kernel": memory.GetKernel() != nil, "memory.kernel_tcp": memory.GetKernelTcp() != nil,
		"memory.swappiness": memory.GetSwappiness() != nil, "memory.disable_oom_killer": memory.GetDisableOomKiller() != nil,
		"memory.use_hierarchy": memory.GetUseHierarchy() != nil, "cpu.realtime_runtime": cpu.GetRealtimeRuntime() != nil, "cpu.realtime_period": cpu.GetRealtimePeriod() != nil,
		"pids": r.GetPids() != nil, "devices": len(r.GetDevices()) > 0, "blockio_class": r.GetBlockioClass() != nil, "rdt_class": r.GetRdtClass() != nil,
	} {
		if set {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return nil
	}
	return fmt.Errorf("NRI: a container that is there cannot be given new %s", strings.Join(names, ", "))
}

// updatesOf turns NRI's updates into the engine's.
func updatesOf(wishes []*api.ContainerUpdate) (updates []sandbox.ResourceUpdate, err error) {
	var errs []error
	for _, w := range wishes {
		r := w.GetLinux().GetResources()
		if w == nil || r == nil {
			continue
		}
		if err := expressible(r); err != nil && !w.GetIgnoreFailure() {
			errs = append(errs, fmt.Errorf("container %s: %w", w.GetContainerId(), err))
			continue
		}
		updates = append(updates, sandbox.ResourceUpdate{ContainerID: w.GetContainerId(), Resources: overlaid(nil, r), Tolerant: w.GetIgnoreFailure()})
	}
	return updates, errors.Join(errs...)
}
