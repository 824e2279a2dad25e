package oci

import (
	"encoding/json"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// An update says nothing about what the request leaves at zero, so that the runtime leaves it alone.
func TestResourcesOfAnUpdate(t *testing.T) {
	v2 := Host{CgroupV2: true, Swap: true, Hugetlb: true}
	for _, c := range []struct {
		name string
		r    *cri.LinuxContainerResources
		h    Host
		want string
	}{
		{"nothing", nil, v2, `{}`},
		{"zero values", &cri.LinuxContainerResources{}, v2, `{}`},
		{"shares only", &cri.LinuxContainerResources{CpuShares: 7}, v2, `{"cpu":{"shares":7}}`},
		{"quota is lifted", &cri.LinuxContainerResources{CpuQuota: -1, CpuPeriod: 100000}, v2, `{"cpu":{"quota":-1,"period":100000}}`},
		{"memory is lifted", &cri.LinuxContainerResources{MemoryLimitInBytes: -1}, v2, `{"memory":{"limit":-1,"swap":-1}}`},
		{"swap is unlimited", &cri.LinuxContainerResources{MemoryLimitInBytes: 9, MemorySwapLimitInBytes: -1}, v2, `{"memory":{"limit":9,"swap":-1}}`},
		{"no swap accounting", &cri.LinuxContainerResources{MemoryLimitInBytes: 9, MemorySwapLimitInBytes: 9}, Host{}, `{"memory":{"limit":9}}`},
		{"only swap, without accounting", &cri.LinuxContainerResources{MemorySwapLimitInBytes: 9}, Host{}, `{}`},
		{"cpuset", &cri.LinuxContainerResources{CpusetCpus: "0-3,5", CpusetMems: "0"}, v2, `{"cpu":{"cpus":"0-3,5","mems":"0"}}`},
		{"oom group on v1", &cri.LinuxContainerResources{Unified: map[string]string{"memory.oom.group": "1"}}, Host{}, `{}`},
		{"oom score is no cgroup's", &cri.LinuxContainerResources{OomScoreAdj: 5}, v2, `{}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			limits, err := Resources(c.r, c.h)
			must(t, err)
			got, err := json.Marshal(limits)
			must(t, err)
			if string(got) != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
}
