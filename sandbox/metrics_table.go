package sandbox

import (
	"strconv"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/internal/cgroup"
)

// The names are cAdvisor's, since dashboards ask for them (cadvisor metrics/prometheus.go); the labels are those of
// the other runtimes. The CRI's values are whole numbers, so that times are whole seconds.

// baseLabels begin the labels of every metric. What a pod as a whole has is told with empty container and image.
var baseLabels = []string{"pod", "namespace", "container", "id", "image"}

// metric is one row: what it is called, which labels follow the base, and how it is read.
type metric[S any] struct {
	name   string
	kind   cri.MetricType
	labels []string
	help   string
	read   func(S) []sample
}

// sample is one value with the values of the row's labels.
type sample struct {
	value  uint64
	labels []string
	at     int64 // ns since 1970 of an older observation; 0: now
}

const (
	counter = cri.MetricType_COUNTER
	gauge   = cri.MetricType_GAUGE
	second  = 1_000_000_000 // ns
)

// one reads a metric that always has exactly one value.
func one(f func(o *observed) uint64) func(*observed) []sample {
	return func(o *observed) []sample { return []sample{{value: f(o)}} }
}

// perInterface reads a metric of each network interface.
func perInterface(f func(i *interfaceCounters) uint64) func([]interfaceCounters) []sample {
	return func(network []interfaceCounters) (list []sample) {
		for _, i := range network {
			list = append(list, sample{value: f(&i), labels: []string{i.name}})
		}
		return list
	}
}

// perDevice reads a metric of each block device that the container used.
func perDevice(f func(d *cgroup.Device) uint64) func(*observed) []sample {
	return func(o *observed) (list []sample) {
		for _, d := range o.Devices {
			list = append(list, sample{value: f(&d), labels: []string{o.devices.name(d.Major, d.Minor)}})
		}
		return list
	}
}

// onRoot reads a metric of the file system of the writable layer.
func onRoot(f func(o *observed) uint64) func(*observed) []sample {
	return func(o *observed) []sample { return []sample{{value: f(o), labels: []string{o.root.device}}} }
}

// stalled reads a total of pressure; there is none where the kernel does not measure it.
func stalled(of func(o *observed) *cgroup.Pressure, line func(p *cgroup.Pressure) cgroup.Stall) func(*observed) []sample {
	return func(o *observed) []sample {
		if p := of(o); p != nil {
			return []sample{{value: line(p).Total / 1_000_000}}
		}
		return nil
	}
}

func full(p *cgroup.Pressure) cgroup.Stall { return p.Full }
func some(p *cgroup.Pressure) cgroup.Stall { return p.Some }

// limit reads what was asked for; 0 says that there is no limit.
func limit(f func(r *cri.LinuxContainerResources) int64) func(*observed) []sample {
	return one(func(o *observed) uint64 { return uint64(max(0, f(o.record.Resources.Message))) })
}

func faults(o *observed) []sample {
	return []sample{
		{value: o.LocalFaults, labels: []string{"pgfault", "container"}},
		{value: o.LocalMajorFaults, labels: []string{"pgmajfault", "container"}},
		{value: o.Memory.PageFaults, labels: []string{"pgfault", "hierarchy"}},
		{value: o.Memory.MajorPageFaults, labels: []string{"pgmajfault", "hierarchy"}},
	}
}

func blockUsage(o *observed) (list []sample) {
	for _, d := range o.Devices {
		labels := func(operation string) []string {
			return []string{o.devices.name(d.Major, d.Minor), strconv.Itoa(int(d.Major)), strconv.Itoa(int(d.Minor)), operation}
		}
		list = append(list, sample{value: d.ReadBytes, labels: labels("Read")}, sample{value: d.WriteBytes, labels: labels("Write")})
	}
	return list
}

func hugePages(value func(h cgroup.HugePages) *uint64) func(*observed) []sample {
	return func(o *observed) (list []sample) {
		for _, h := range o.HugePages {
			if v := value(h); v != nil {
				list = append(list, sample{value: *v, labels: []string{h.Size}})
			}
		}
		return list
	}
}

func layerBytes(o *observed) []sample {
	return []sample{{value: o.layer.bytes, labels: []string{o.root.device}, at: o.layer.at.UnixNano()}}
}

func swapped(o *observed) uint64 {
	if o.Memory.SwapUsage == nil {
		return 0
	}
	return *o.Memory.SwapUsage
}

var (
	byInterface = []string{"interface"}
	byDevice    = []string{"device"}
)

var podMetrics = []*metric[[]interfaceCounters]{
	{"container_network_receive_bytes_total", counter, byInterface, "Bytes received.", perInterface(func(i *interfaceCounters) uint64 { return i.rxBytes })},
	{"container_network_receive_packets_total", counter, byInterface, "Packets received.", perInterface(func(i *interfaceCounters) uint64 { return i.rxPackets })},
	{"container_network_receive_packets_dropped_total", counter, byInterface, "Packets dropped while receiving.", perInterface(func(i *interfaceCounters) uint64 { return i.rxDropped })},
	{"container_network_receive_errors_total", counter, byInterface, "Errors while receiving.", perInterface(func(i *interfaceCounters) uint64 { return i.rxErrors })},
	{"container_network_transmit_bytes_total", counter, byInterface, "Bytes transmitted.", perInterface(func(i *interfaceCounters) uint64 { return i.txBytes })},
	{"container_network_transmit_packets_total", counter, byInterface, "Packets transmitted.", perInterface(func(i *interfaceCounters) uint64 { return i.txPackets })},
	{"container_network_transmit_packets_dropped_total", counter, byInterface, "Packets dropped while transmitting.", perInterface(func(i *interfaceCounters) uint64 { return i.txDropped })},
	{"container_network_transmit_errors_total", counter, byInterface, "Errors while transmitting.", perInterface(func(i *interfaceCounters) uint64 { return i.txErrors })},
}

var containerMetrics = []*metric[*observed]{
	{"container_cpu_usage_seconds_total", counter, nil, "CPU time used, in seconds.", one(func(o *observed) uint64 { return o.CPUUsage / second })},
	{"container_cpu_user_seconds_total", counter, nil, "CPU time used in user mode, in seconds.", one(func(o *observed) uint64 { return o.CPUUser / second })},
	{"container_cpu_system_seconds_total", counter, nil, "CPU time used in the kernel, in seconds.", one(func(o *observed) uint64 { return o.CPUSystem / second })},
	{"container_cpu_cfs_periods_total", counter, nil, "Elapsed periods of the CPU quota.", one(func(o *observed) uint64 { return o.Periods })},
	{"container_cpu_cfs_throttled_periods_total", counter, nil, "Periods in which the CPU quota was used up.", one(func(o *observed) uint64 { return o.Throttled })},
	{"container_cpu_cfs_throttled_seconds_total", counter, nil, "Time held back by the CPU quota, in seconds.", one(func(o *observed) uint64 { return o.ThrottledTime / second })},

	{"container_memory_usage_bytes", gauge, nil, "Memory in use, whenever it was touched.", one(func(o *observed) uint64 { return o.Memory.Usage })},
	{"container_memory_working_set_bytes", gauge, nil, "Memory that could not be given back at once: usage without inactive files.", one(func(o *observed) uint64 { return o.Memory.WorkingSet })},
	{"container_memory_rss", gauge, nil, "Anonymous memory in bytes.", one(func(o *observed) uint64 { return o.Memory.RSS })},
	{"container_memory_cache", gauge, nil, "Page cache in bytes.", one(func(o *observed) uint64 { return o.Cache })},
	{"container_memory_mapped_file", gauge, nil, "Mapped files in bytes.", one(func(o *observed) uint64 { return o.MappedFile })},
	{"container_memory_total_active_file_bytes", gauge, nil, "Page cache in recent use.", one(func(o *observed) uint64 { return o.ActiveFile })},
	{"container_memory_total_inactive_file_bytes", gauge, nil, "Page cache not in recent use.", one(func(o *observed) uint64 { return o.InactiveFile })},
	{"container_memory_kernel_usage", gauge, nil, "Kernel memory in bytes.", one(func(o *observed) uint64 { return o.KernelMemory })},
	{"container_memory_max_usage_bytes", gauge, nil, "The most memory that was in use.", one(func(o *observed) uint64 { return o.MaxUsage })},
	{"container_memory_swap", gauge, nil, "Swap in use, in bytes.", one(swapped)},
	{"container_memory_failcnt", counter, nil, "How often the memory limit was hit.", one(func(o *observed) uint64 { return o.LimitHits })},
	{"container_memory_failures_total", counter, []string{"failure_type", "scope"}, "Page faults.", faults},
	{"container_oom_events_total", counter, nil, "Processes killed since the memory limit was reached.", one(func(o *observed) uint64 { return o.OOMKills })},

	{"container_fs_usage_bytes", gauge, byDevice, "Size of the writable layer.", layerBytes},
	{"container_fs_limit_bytes", gauge, byDevice, "Size of the file system of the writable layer.", onRoot(func(o *observed) uint64 { return o.root.bytes })},
	{"container_fs_inodes_total", gauge, byDevice, "Inodes of the file system of the writable layer.", onRoot(func(o *observed) uint64 { return o.root.inodes })},
	{"container_fs_inodes_free", gauge, byDevice, "Free inodes of the file system of the writable layer.", onRoot(func(o *observed) uint64 { return o.root.inodesFree })},
	{"container_fs_reads_bytes_total", counter, byDevice, "Bytes read.", perDevice(func(d *cgroup.Device) uint64 { return d.ReadBytes })},
	{"container_fs_reads_total", counter, byDevice, "Reads completed.", perDevice(func(d *cgroup.Device) uint64 { return d.Reads })},
	{"container_fs_writes_bytes_total", counter, byDevice, "Bytes written.", perDevice(func(d *cgroup.Device) uint64 { return d.WriteBytes })},
	{"container_fs_writes_total", counter, byDevice, "Writes completed.", perDevice(func(d *cgroup.Device) uint64 { return d.Writes })},
	{"container_blkio_device_usage_total", counter, []string{"device", "major", "minor", "operation"}, "Bytes read and written.", blockUsage},

	{"container_hugetlb_usage_bytes", gauge, []string{"pagesize"}, "Huge pages in use, in bytes.", hugePages(func(h cgroup.HugePages) *uint64 { return &h.Usage })},
	{"container_hugetlb_max_usage_bytes", gauge, []string{"pagesize"}, "The most huge pages that were in use, in bytes; kept by cgroup v1 only.", hugePages(func(h cgroup.HugePages) *uint64 { return h.Max })},

	{"container_pressure_cpu_stalled_seconds_total", counter, nil, "Time in which no task could run for want of CPU.", stalled(func(o *observed) *cgroup.Pressure { return o.CPUPressure }, full)},
	{"container_pressure_cpu_waiting_seconds_total", counter, nil, "Time in which tasks waited for CPU.", stalled(func(o *observed) *cgroup.Pressure { return o.CPUPressure }, some)},
	{"container_pressure_io_stalled_seconds_total", counter, nil, "Time in which no task could run for want of I/O.", stalled(func(o *observed) *cgroup.Pressure { return o.IOPressure }, full)},
	{"container_pressure_io_waiting_seconds_total", counter, nil, "Time in which tasks waited for I/O.", stalled(func(o *observed) *cgroup.Pressure { return o.IOPressure }, some)},
	{"container_pressure_memory_stalled_seconds_total", counter, nil, "Time in which no task could run for want of memory.", stalled(func(o *observed) *cgroup.Pressure { return o.MemoryPressure }, full)},
	{"container_pressure_memory_waiting_seconds_total", counter, nil, "Time in which tasks waited for memory.", stalled(func(o *observed) *cgroup.Pressure { return o.MemoryPressure }, some)},

	{"container_processes", gauge, nil, "Processes.", one(func(o *observed) uint64 { return uint64(len(o.processes)) })},
	{"container_threads", gauge, nil, "Threads.", one(func(o *observed) uint64 { return o.Processes })},
	{"container_threads_max", gauge, nil, "How many threads there may be; 0 says unlimited.", one(func(o *observed) uint64 { return o.ThreadsMax })},
	{"container_file_descriptors", gauge, nil, "Open file descriptors.", one(func(o *observed) uint64 { return o.descriptors })},
	{"container_sockets", gauge, nil, "Open sockets.", one(func(o *observed) uint64 { return o.sockets })},
	{"container_ulimits_soft", gauge, []string{"ulimit"}, "Soft limits of the container's first process.", (*observed).openFilesLimit},

	{"container_last_seen", gauge, nil, "When the container was seen last, in seconds since 1970.", one(func(o *observed) uint64 { return uint64(o.now.Unix()) })},
	{"container_start_time_seconds", gauge, nil, "When the container was started, in seconds since 1970.", one(func(o *observed) uint64 { return uint64(o.record.StartedAt.Unix()) })},
	{"container_spec_cpu_period", gauge, nil, "Period of the CPU quota in microseconds.", limit((*cri.LinuxContainerResources).GetCpuPeriod)},
	{"container_spec_cpu_quota", gauge, nil, "CPU quota in microseconds; 0 says none.", limit((*cri.LinuxContainerResources).GetCpuQuota)},
	{"container_spec_cpu_shares", gauge, nil, "CPU shares.", limit((*cri.LinuxContainerResources).GetCpuShares)},
	{"container_spec_memory_limit_bytes", gauge, nil, "Memory limit; 0 says none.", limit((*cri.LinuxContainerResources).GetMemoryLimitInBytes)},
	{"container_spec_memory_reservation_limit_bytes", gauge, nil, "Memory reservation; the CRI has none, so 0.", one(func(*observed) uint64 { return 0 })},
	{"container_spec_memory_swap_limit_bytes", gauge, nil, "Limit of memory and swap together; 0 says none.", limit((*cri.LinuxContainerResources).GetMemorySwapLimitInBytes)},
}
