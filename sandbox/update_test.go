package sandbox

import (
	"maps"
	"testing"

	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/oci"
)

func TestMemoryAndSwapAreOneSum(t *testing.T) {
	type pair struct{ memory, swap int64 }
	for _, test := range []struct {
		name            string
		old, want, next pair
	}{
		{"nothing", pair{5, 5}, pair{}, pair{0, 0}},
		{"both", pair{5, 5}, pair{7, 9}, pair{7, 9}},
		{"memory, no swap before", pair{5, 5}, pair{7, 0}, pair{7, 7}},
		{"memory, nothing before", pair{0, 0}, pair{7, 0}, pair{7, 7}},
		{"memory, within the sum", pair{5, 9}, pair{7, 0}, pair{7, 9}},
		{"memory, beyond the sum", pair{5, 9}, pair{10, 0}, pair{10, 10}},
		{"memory, swap without a limit", pair{5, -1}, pair{7, 0}, pair{7, -1}},
		{"memory lifted", pair{5, 5}, pair{-1, 0}, pair{-1, 0}},
		{"swap alone", pair{5, 5}, pair{0, 8}, pair{5, 8}},
	} {
		got := completed(&cri.LinuxContainerResources{MemoryLimitInBytes: test.old.memory, MemorySwapLimitInBytes: test.old.swap},
			&cri.LinuxContainerResources{MemoryLimitInBytes: test.want.memory, MemorySwapLimitInBytes: test.want.swap})
		if (pair{got.MemoryLimitInBytes, got.MemorySwapLimitInBytes}) != test.next {
			t.Errorf("%s: %v", test.name, got)
		}
	}
}

// What an update reports is every field it set, beside those it left alone.
func TestMergedReportsEveryField(t *testing.T) {
	old := &cri.LinuxContainerResources{
		CpuPeriod: 1, CpuQuota: 2, CpuShares: 3, MemoryLimitInBytes: 4, OomScoreAdj: 5, CpusetCpus: "0", CpusetMems: "0", MemorySwapLimitInBytes: 4,
		HugepageLimits: []*cri.HugepageLimit{{PageSize: "2MB", Limit: 1}}, Unified: map[string]string{"memory.high": "1", "pids.max": "9"},
	}
	if got := merged(old, completed(old, &cri.LinuxContainerResources{})); !proto.Equal(got, old) {
		t.Errorf("nothing was asked: %v", got)
	}
	want := &cri.LinuxContainerResources{
		CpuPeriod: 11, CpuQuota: 12, CpuShares: 13, MemoryLimitInBytes: 14, CpusetCpus: "1", CpusetMems: "1", MemorySwapLimitInBytes: 14,
		HugepageLimits: []*cri.HugepageLimit{{PageSize: "2MB", Limit: 2}}, Unified: map[string]string{"memory.high": "2"},
	}
	got := merged(old, completed(old, want))
	want.OomScoreAdj, want.Unified["pids.max"] = 5, "9"
	if !proto.Equal(got, want) {
		t.Errorf("got %v\nwant %v", got, want)
	}
}

func TestLimitFiles(t *testing.T) {
	r := &cri.LinuxContainerResources{HugepageLimits: []*cri.HugepageLimit{{PageSize: "2MB", Limit: 4 << 20}}, Unified: map[string]string{"memory.high": "7"}}
	for _, test := range []struct {
		host oci.Host
		want map[string]string
	}{
		{oci.Host{CgroupV2: true, Hugetlb: true}, map[string]string{"memory.high": "7", "hugetlb.2MB.max": "4194304"}},
		{oci.Host{Hugetlb: true}, map[string]string{"hugetlb.2MB.limit_in_bytes": "4194304"}},
		{oci.Host{}, map[string]string{}},
	} {
		if got := limitFiles(r, test.host); !maps.Equal(got, test.want) {
			t.Errorf("%+v: %v", test.host, got)
		}
	}
}

func TestOnlySureMistakesAreNamed(t *testing.T) {
	for _, test := range []struct{ asked, online, wrong string }{
		{"0", "0-1\n", ""},
		{"0-1", "0-1\n", ""},
		{"0,2-3", "0,2-7", ""},
		{"1", "0,2-7", "1 is not there"},
		{"0,6-8", "0,2-7", "6-8 is not there"},
		{"0-4294967295", "0-1", "0-4294967295 is not there"},
		{"zero", "0-1", "that is no list of numbers"},
		{"0;1", "0-1", "that is no list of numbers"},
		{"all", "0-1", ""}, {"0-N", "0-1", ""}, {"0-31:2/4", "0-1", ""}, {"3-1", "0-1", ""}, {"99999999999999999999", "0-1", ""},
	} {
		if wrong := wrongInSet(test.asked, test.online); wrong != test.wrong {
			t.Errorf("%q of %q: %q, want %q", test.asked, test.online, wrong, test.wrong)
		}
	}
}
