package cgroup

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// Stats is what the kernel counts for a cgroup. A counter the kernel does not offer is nil in Memory's pointers and zero elsewhere.
type Stats struct {
	CPUUsage  uint64 // nanoseconds, cumulative
	Memory    Memory
	Processes uint64 // tasks, as pids.max limits them
	// Pressure is nil where the kernel does not measure it.
	CPUPressure, MemoryPressure, IOPressure *Pressure
}

// Memory in bytes.
type Memory struct {
	Usage, WorkingSet, RSS, PageFaults, MajorPageFaults uint64
	Limit                                               *uint64 // nil: unlimited
	SwapUsage                                           *uint64
	SwapLimit                                           *uint64 // nil: unlimited
}

// Add sums up what several cgroups used. Limits, pressure and swap limits have no sum and are nil afterwards.
func (s *Stats) Add(other Stats) {
	s.CPUUsage += other.CPUUsage
	s.Processes += other.Processes
	s.CPUPressure, s.MemoryPressure, s.IOPressure = nil, nil, nil
	m, o := &s.Memory, other.Memory
	m.Limit, m.SwapLimit = nil, nil
	m.Usage += o.Usage
	m.WorkingSet += o.WorkingSet
	m.RSS += o.RSS
	m.PageFaults += o.PageFaults
	m.MajorPageFaults += o.MajorPageFaults
	if o.SwapUsage != nil {
		swap := *o.SwapUsage
		if m.SwapUsage != nil {
			swap += *m.SwapUsage
		}
		m.SwapUsage = &swap
	}
}

// unlimited is above every real limit of v1, whose "none" is the largest multiple of the page size in an int64.
const unlimited = 1 << 62

// Stats reads the counters. A missing cgroup is ErrNotExist.
func (t *Tree) Stats(path string) (Stats, error) {
	if err := check(path); err != nil {
		return Stats{}, fmt.Errorf("cannot read statistics: %w", err)
	}
	read := t.statsV1
	if t.V2 {
		read = t.statsV2
	}
	stats, found := read(path)
	if !found && !t.exists(path) || t.wentAway(path) {
		return Stats{}, fmt.Errorf("cannot read statistics of cgroup %s: %w", path, ErrNotExist)
	}
	return stats, nil
}

// wentAway is asked when all is read: what was removed meanwhile has left zeros, which would read as counters that went back.
// v1's hierarchies go one after the other.
func (t *Tree) wentAway(path string) bool {
	for _, controller := range []string{"cpuacct", "memory"} {
		if dir := t.dir(controller, path); dir != "" {
			if _, err := os.Lstat(dir); vanished(err) {
				return true
			}
		}
	}
	return false
}

func (t *Tree) exists(path string) bool {
	for _, dir := range t.Dirs(path) {
		if _, err := os.Lstat(dir); err == nil {
			return true
		}
	}
	return false
}

// statsV1 reads eight to ten files. Counts include the cgroups below ("total_"), as they do in v2. found says that any
// counter was there.
func (t *Tree) statsV1(path string) (s Stats, found bool) {
	reader := counters{}
	s.CPUUsage, _ = reader.number(t.dir("cpuacct", path), "cpuacct.usage")
	s.Processes, _ = reader.number(t.dir("pids", path), "pids.current")
	memory := t.dir("memory", path)
	s.Memory.Usage, _ = reader.number(memory, "memory.usage_in_bytes")
	s.Memory.Limit = limited(reader.number(memory, "memory.limit_in_bytes"))

	var inactive, swap uint64
	swapCounted := false
	for key, value := range reader.lines(memory, "memory.stat") {
		switch string(key) {
		case "total_inactive_file":
			inactive = value
		case "total_rss":
			s.Memory.RSS = value
		case "total_pgfault":
			s.Memory.PageFaults = value
		case "total_pgmajfault":
			s.Memory.MajorPageFaults = value
		case "total_swap": // absent where swap is not accounted
			swap, swapCounted = value, true
		}
	}
	s.Memory.setWorkingSet(inactive)
	if swapCounted {
		s.Memory.SwapUsage = &swap
		both := limited(reader.number(memory, "memory.memsw.limit_in_bytes"))
		if both != nil && s.Memory.Limit != nil {
			*both -= min(*both, *s.Memory.Limit)
			s.Memory.SwapLimit = both
		}
	}
	s.pressures(&reader, t.unifiedDir(path))
	return s, reader.found
}

func (t *Tree) statsV2(path string) (s Stats, found bool) {
	reader, dir := counters{}, t.unifiedDir(path)
	for key, value := range reader.lines(dir, "cpu.stat") {
		if string(key) == "usage_usec" {
			s.CPUUsage = value * 1000
		}
	}
	s.Processes, _ = reader.number(dir, "pids.current")
	s.Memory.Usage, _ = reader.number(dir, "memory.current")
	s.Memory.Limit = limited(reader.number(dir, "memory.max"))
	if swap, ok := reader.number(dir, "memory.swap.current"); ok {
		s.Memory.SwapUsage = &swap
		s.Memory.SwapLimit = limited(reader.number(dir, "memory.swap.max"))
	}
	var inactive uint64
	for key, value := range reader.lines(dir, "memory.stat") {
		switch string(key) {
		case "inactive_file":
			inactive = value
		case "anon":
			s.Memory.RSS = value
		case "pgfault":
			s.Memory.PageFaults = value
		case "pgmajfault":
			s.Memory.MajorPageFaults = value
		}
	}
	s.Memory.setWorkingSet(inactive)
	s.pressures(&reader, dir)
	return s, reader.found
}

// setWorkingSet follows cAdvisor, whose number the kubelet evicts by: what the kernel could not give back at once.
func (m *Memory) setWorkingSet(inactiveFile uint64) {
	m.WorkingSet = m.Usage - min(m.Usage, inactiveFile)
}

func limited(value uint64, ok bool) *uint64 {
	if !ok || value >= unlimited {
		return nil
	}
	return &value
}

// counters reads files of a cgroup into one buffer; memory.stat has about 2 KiB. A file that is not there is a counter
// that this kernel does not offer.
type counters struct {
	buffer [8 << 10]byte
	found  bool
}

func (c *counters) read(dir, name string) []byte {
	if dir == "" {
		return nil
	}
	path := filepath.Join(dir, name)
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	total := 0
	for total < len(c.buffer) {
		n, err := unix.Read(fd, c.buffer[total:])
		if err == unix.EINTR {
			continue
		}
		if n <= 0 || err != nil {
			break
		}
		total += n
	}
	c.found = c.found || total > 0
	if total == len(c.buffer) { // io.stat has a line for each of the machine's disks; a number that is cut off is a wrong one
		whole, _ := os.ReadFile(path)
		return whole
	}
	return c.buffer[:total]
}

// number reads a file of one number. "max" is none.
func (c *counters) number(dir, name string) (uint64, bool) {
	value, err := strconv.ParseUint(string(bytes.TrimSpace(c.read(dir, name))), 10, 64)
	return value, err == nil
}

// lines yields the keys and numbers of a file like memory.stat. The key is valid until the next step.
func (c *counters) lines(dir, name string) func(yield func(key []byte, value uint64) bool) {
	return func(yield func([]byte, uint64) bool) {
		for line := range bytes.Lines(c.read(dir, name)) {
			key, text, _ := bytes.Cut(bytes.TrimSpace(line), []byte{' '})
			value, err := strconv.ParseUint(string(text), 10, 64)
			if err == nil && !yield(key, value) {
				return
			}
		}
	}
}
