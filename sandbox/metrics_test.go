package sandbox

import (
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/internal/cgroup"
)

// all is a container of which everything is known.
func all() *observed {
	pages := uint64(2)
	o := &observed{
		record: &containerRecord{Resources: document[*cri.LinuxContainerResources]{&cri.LinuxContainerResources{CpuQuota: -1, CpuShares: 512}}, StartedAt: time.Unix(7, 0)},
		now:    time.Unix(9, 0), layer: layerCount{at: time.Unix(8, 0), bytes: 77}, root: &fileSystem{device: "/dev/vda"}, devices: deviceNames{"253:0": "/dev/vda"},
		processes: []int{1, 2},
	}
	o.Details = cgroup.Details{
		CPUUser: 3e9, Devices: []cgroup.Device{{Major: 253, ReadBytes: 1, WriteBytes: 2, Reads: 3, Writes: 4}},
		HugePages: []cgroup.HugePages{{Size: "2MB", Usage: 1, Max: &pages}},
	}
	p := &cgroup.Pressure{Full: cgroup.Stall{Total: 2_000_000}, Some: cgroup.Stall{Total: 5_000_000}}
	o.CPUPressure, o.MemoryPressure, o.IOPressure = p, p, p
	o.record.Process.PID = os.Getpid()
	return o
}

// TestEveryMetricIsDescribed: values stand in the order of the described labels, names are there once.
func TestEveryMetricIsDescribed(t *testing.T) {
	described := map[string]*cri.MetricDescriptor{}
	for _, d := range MetricDescriptors() {
		if described[d.Name] != nil || d.Help == "" || !slices.Equal(d.LabelKeys[:5], []string{"pod", "namespace", "container", "id", "image"}) {
			t.Errorf("descriptor %v", d)
		}
		described[d.Name] = d
	}
	base := []string{"p", "n", "c", "i", "m"}
	var list []*cri.Metric
	for _, m := range containerMetrics {
		before := len(list)
		if list = m.appendTo(list, base, all()); len(list) == before && m.name != "container_ulimits_soft" {
			t.Errorf("%s has no value", m.name)
		}
	}
	for _, m := range podMetrics {
		list = m.appendTo(list, base, []interfaceCounters{{name: "eth0"}})
	}
	for _, m := range list {
		if d := described[m.Name]; d == nil || len(d.LabelKeys) != len(m.LabelValues) {
			t.Errorf("%v does not fit %v", m, d)
		}
		counts := strings.HasSuffix(m.Name, "_total") && m.Name != "container_fs_inodes_total" || m.Name == "container_memory_failcnt"
		if counts != (m.MetricType == cri.MetricType_COUNTER) {
			t.Errorf("%s is a %s", m.Name, m.MetricType)
		}
	}
	if len(base) != 5 {
		t.Error("the labels of one metric run into another's")
	}
}

func TestMetricValues(t *testing.T) {
	got := map[string][]*cri.Metric{}
	for _, m := range containerMetrics {
		got[m.name] = m.appendTo(nil, []string{"p", "n", "c", "i", "m"}, all())
	}
	for name, want := range map[string]uint64{
		"container_cpu_user_seconds_total": 3, "container_fs_writes_total": 4, "container_pressure_io_stalled_seconds_total": 2,
		"container_pressure_cpu_waiting_seconds_total": 5, "container_spec_cpu_quota": 0, "container_spec_cpu_shares": 512, "container_processes": 2,
		"container_start_time_seconds": 7, "container_last_seen": 9, "container_fs_usage_bytes": 77, "container_hugetlb_max_usage_bytes": 2,
	} {
		if m := got[name]; len(m) != 1 || m[0].Value.Value != want {
			t.Errorf("%s: %v, want %d", name, m, want)
		}
	}
	if m := got["container_fs_usage_bytes"][0]; m.Timestamp != 8e9 || m.LabelValues[5] != "/dev/vda" {
		t.Errorf("a counted layer tells when it was counted, and where: %v", m)
	}
	if m := got["container_blkio_device_usage_total"]; len(m) != 2 || !slices.Equal(m[1].LabelValues[5:], []string{"/dev/vda", "253", "0", "Write"}) {
		t.Errorf("devices: %v", m)
	}
}
