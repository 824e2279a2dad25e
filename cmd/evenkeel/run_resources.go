package main

import (
	"fmt"

	v1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The kubelet's arithmetic (k8s.io/kubernetes/pkg/kubelet/cm/helpers_linux.go), so that a pod gets here what it gets in a cluster.
const (
	cpuPeriod      = 100_000 // microseconds
	minCPUQuota    = 1_000   // microseconds in a period; the kernel refuses less
	minCPUShares   = 2
	maxCPUShares   = 262_144
	sharesPerCPU   = 1024
	thousandsOfCPU = 1000
)

func resources(c *v1.Container) *cri.LinuxContainerResources {
	r := &cri.LinuxContainerResources{
		CpuPeriod: cpuPeriod,
		CpuQuota:  cpuQuota(c.Resources.Limits.Cpu().MilliValue()),
		CpuShares: cpuShares(c.Resources.Requests.Cpu().MilliValue()),
	}
	if limit := c.Resources.Limits.Memory().Value(); limit > 0 {
		// Equal limits of memory and of memory with swap mean: no swap.
		r.MemoryLimitInBytes, r.MemorySwapLimitInBytes = limit, limit
	}
	return r
}

func validateResources(at string, c *v1.Container) error {
	for _, name := range []v1.ResourceName{v1.ResourceCPU, v1.ResourceMemory} {
		limit, limited := c.Resources.Limits[name]
		request := c.Resources.Requests[name]
		switch {
		case limit.Sign() < 0:
			return fmt.Errorf("%s.resources.limits.%s: %s is negative", at, name, &limit)
		case request.Sign() < 0:
			return fmt.Errorf("%s.resources.requests.%s: %s is negative", at, name, &request)
		case limited && request.Cmp(limit) > 0:
			return fmt.Errorf("%s.resources.requests.%s: %s is more than the limit, %s", at, name, &request, &limit)
		}
	}
	return nil
}

func cpuShares(milli int64) int64 {
	return min(max(milli*sharesPerCPU/thousandsOfCPU, minCPUShares), maxCPUShares)
}

// cpuQuota is 0, no limit, when the manifest sets none.
func cpuQuota(milli int64) int64 {
	if milli == 0 {
		return 0
	}
	return max(milli*cpuPeriod/thousandsOfCPU, minCPUQuota)
}

// podResources sums up the containers that run at the same time. A limit that one of them lacks, the pod lacks, too.
func podResources(pod *v1.Pod) *cri.LinuxContainerResources {
	var requests, limits, memory int64
	cpuLimited, memoryLimited := true, true
	for _, c := range longRunning(pod) {
		requests += c.Resources.Requests.Cpu().MilliValue()
		limits += c.Resources.Limits.Cpu().MilliValue()
		memory += c.Resources.Limits.Memory().Value()
		cpuLimited = cpuLimited && !c.Resources.Limits.Cpu().IsZero()
		memoryLimited = memoryLimited && !c.Resources.Limits.Memory().IsZero()
	}
	r := &cri.LinuxContainerResources{CpuPeriod: cpuPeriod, CpuShares: cpuShares(requests)}
	if cpuLimited {
		r.CpuQuota = cpuQuota(limits)
	}
	if memoryLimited {
		r.MemoryLimitInBytes = memory
	}
	return r
}

// longRunning are the containers proper and the sidecars.
func longRunning(pod *v1.Pod) (list []*v1.Container) {
	for i := range pod.Spec.InitContainers {
		if isSidecar(&pod.Spec.InitContainers[i]) {
			list = append(list, &pod.Spec.InitContainers[i])
		}
	}
	for i := range pod.Spec.Containers {
		list = append(list, &pod.Spec.Containers[i])
	}
	return list
}
