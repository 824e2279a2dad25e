package cgroup

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Details is what the kernel counts beyond Stats, for those who watch containers closely. It takes twice as many files.
// A counter that this version of cgroups does not have is zero.
type Details struct {
	Stats

	CPUUser, CPUSystem uint64 // nanoseconds, cumulative
	Periods, Throttled uint64 // of the CPU quota, cumulative
	ThrottledTime      uint64 // nanoseconds, cumulative

	Cache, MappedFile, ActiveFile, InactiveFile uint64 // bytes
	KernelMemory, MaxUsage                      uint64 // bytes
	LimitHits, OOMKills                         uint64 // cumulative
	LocalFaults, LocalMajorFaults               uint64 // without the cgroups below; on v2 the same as with them

	ThreadsMax uint64 // 0: unlimited
	Devices    []Device
	HugePages  []HugePages
}

// Device is what went to and from one block device, cumulative.
type Device struct {
	Major, Minor          uint32
	ReadBytes, WriteBytes uint64
	Reads, Writes         uint64
}

// HugePages in bytes, by the size's name in file names, such as 2MB. Max is nil on v2, which keeps none.
type HugePages struct {
	Size  string
	Usage uint64
	Max   *uint64
}

// Details reads everything. A missing cgroup is ErrNotExist.
func (t *Tree) Details(path string) (Details, error) {
	stats, err := t.Stats(path)
	if err != nil {
		return Details{}, err
	}
	d := Details{Stats: stats}
	if t.V2 {
		t.detailsV2(path, &d)
	} else {
		t.detailsV1(path, &d)
	}
	if t.wentAway(path) {
		return Details{}, fmt.Errorf("cannot read statistics of cgroup %s: %w", path, ErrNotExist)
	}
	return d, nil
}

func (t *Tree) detailsV1(path string, d *Details) {
	reader := counters{}
	d.CPUUser, _ = reader.number(t.dir("cpuacct", path), "cpuacct.usage_user")
	d.CPUSystem, _ = reader.number(t.dir("cpuacct", path), "cpuacct.usage_sys")
	pick(&reader, t.dir("cpu", path), "cpu.stat", map[string]*uint64{
		"nr_periods": &d.Periods, "nr_throttled": &d.Throttled, "throttled_time": &d.ThrottledTime,
	})
	memory := t.dir("memory", path)
	pick(&reader, memory, "memory.stat", map[string]*uint64{
		"total_cache": &d.Cache, "total_mapped_file": &d.MappedFile, "total_active_file": &d.ActiveFile,
		"total_inactive_file": &d.InactiveFile, "pgfault": &d.LocalFaults, "pgmajfault": &d.LocalMajorFaults,
	})
	pick(&reader, memory, "memory.oom_control", map[string]*uint64{"oom_kill": &d.OOMKills})
	d.KernelMemory, _ = reader.number(memory, "memory.kmem.usage_in_bytes")
	d.MaxUsage, _ = reader.number(memory, "memory.max_usage_in_bytes")
	d.LimitHits, _ = reader.number(memory, "memory.failcnt")
	d.ThreadsMax, _ = reader.number(t.dir("pids", path), "pids.max")
	d.Devices = reader.blkio(t.dir("blkio", path))
	if hugetlb := t.dir("hugetlb", path); hugetlb != "" {
		d.HugePages = reader.hugePages(hugetlb, "usage_in_bytes", "max_usage_in_bytes")
	} else {
		d.HugePages = reader.hugePages(t.unifiedDir(path), "current", "")
	}
}

func (t *Tree) detailsV2(path string, d *Details) {
	reader, dir := counters{}, t.unifiedDir(path)
	pick(&reader, dir, "cpu.stat", map[string]*uint64{
		"user_usec": &d.CPUUser, "system_usec": &d.CPUSystem,
		"nr_periods": &d.Periods, "nr_throttled": &d.Throttled, "throttled_usec": &d.ThrottledTime,
	})
	for _, microseconds := range []*uint64{&d.CPUUser, &d.CPUSystem, &d.ThrottledTime} {
		*microseconds *= 1000
	}
	pick(&reader, dir, "memory.stat", map[string]*uint64{
		"file": &d.Cache, "file_mapped": &d.MappedFile, "active_file": &d.ActiveFile, "inactive_file": &d.InactiveFile,
		"kernel": &d.KernelMemory, "pgfault": &d.LocalFaults, "pgmajfault": &d.LocalMajorFaults,
	})
	pick(&reader, dir, "memory.events", map[string]*uint64{"max": &d.LimitHits, "oom_kill": &d.OOMKills})
	d.MaxUsage, _ = reader.number(dir, "memory.peak") // since Linux 5.19
	d.ThreadsMax, _ = reader.number(dir, "pids.max")
	d.Devices = parseIOStat(reader.read(dir, "io.stat"))
	d.HugePages = reader.hugePages(dir, "current", "")
}

// pick reads the named numbers of a file of keys and numbers.
func pick(c *counters, dir, name string, want map[string]*uint64) {
	for key, value := range c.lines(dir, name) {
		if into := want[string(key)]; into != nil {
			*into = value
		}
	}
}

// blkio reads v1's counters, which count what the cgroup did itself and all below it.
func (c *counters) blkio(dir string) []Device {
	devices := map[string]*Device{}
	parseBlkio(devices, c.read(dir, "blkio.throttle.io_service_bytes_recursive"), func(d *Device) (read, write *uint64) { return &d.ReadBytes, &d.WriteBytes })
	parseBlkio(devices, c.read(dir, "blkio.throttle.io_serviced_recursive"), func(d *Device) (read, write *uint64) { return &d.Reads, &d.Writes })
	list := make([]Device, 0, len(devices))
	for _, name := range sortedKeys(keySet(devices)) {
		list = append(list, *devices[name])
	}
	return list
}

func keySet[V any](m map[string]V) map[string]bool {
	set := make(map[string]bool, len(m))
	for key := range m {
		set[key] = true
	}
	return set
}

// parseBlkio reads lines like "253:0 Read 4096".
func parseBlkio(devices map[string]*Device, data []byte, into func(*Device) (read, write *uint64)) {
	for line := range bytes.Lines(data) {
		fields := strings.Fields(string(line))
		if len(fields) != 3 {
			continue // the last line is the sum over all devices
		}
		device, ok := parseDevice(fields[0])
		value, err := strconv.ParseUint(fields[2], 10, 64)
		if !ok || err != nil {
			continue
		}
		if devices[fields[0]] == nil {
			devices[fields[0]] = &device
		}
		read, write := into(devices[fields[0]])
		switch fields[1] {
		case "Read":
			*read = value
		case "Write":
			*write = value
		}
	}
}

// parseIOStat reads v2's lines like "253:0 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=0 dios=0".
func parseIOStat(data []byte) (devices []Device) {
	for line := range bytes.Lines(data) {
		fields := strings.Fields(string(line))
		if len(fields) < 2 {
			continue
		}
		device, ok := parseDevice(fields[0])
		if !ok {
			continue
		}
		for _, field := range fields[1:] {
			key, text, _ := strings.Cut(field, "=")
			value, _ := strconv.ParseUint(text, 10, 64)
			switch key {
			case "rbytes":
				device.ReadBytes = value
			case "wbytes":
				device.WriteBytes = value
			case "rios":
				device.Reads = value
			case "wios":
				device.Writes = value
			}
		}
		devices = append(devices, device)
	}
	return devices
}

func parseDevice(text string) (Device, bool) {
	major, minor, ok := strings.Cut(text, ":")
	a, err1 := strconv.ParseUint(major, 10, 32)
	b, err2 := strconv.ParseUint(minor, 10, 32)
	return Device{Major: uint32(a), Minor: uint32(b)}, ok && err1 == nil && err2 == nil
}

// hugePages reads one file per page size that the kernel has; a size that the cgroup has no file for is left out.
func (c *counters) hugePages(dir, usage, peak string) (list []HugePages) {
	sizes, err := os.ReadDir("/sys/kernel/mm/hugepages")
	if dir == "" || err != nil {
		return nil
	}
	for _, entry := range sizes {
		size := hugePageSize(entry.Name())
		used, ok := c.number(dir, "hugetlb."+size+"."+usage)
		if !ok {
			continue
		}
		pages := HugePages{Size: size, Usage: used}
		if peak != "" {
			if highest, ok := c.number(dir, "hugetlb."+size+"."+peak); ok {
				pages.Max = &highest
			}
		}
		list = append(list, pages)
	}
	return list
}

// hugePageSize turns hugepages-2048kB into 2MB, as the names of the cgroup's files have it (mm/hugetlb_cgroup.c).
func hugePageSize(entry string) string {
	kib, _ := strconv.ParseUint(strings.TrimSuffix(strings.TrimPrefix(entry, "hugepages-"), "kB"), 10, 64)
	switch {
	case kib >= 1<<20:
		return fmt.Sprintf("%dGB", kib>>20)
	case kib >= 1<<10:
		return fmt.Sprintf("%dMB", kib>>10)
	}
	return fmt.Sprintf("%dKB", kib)
}
