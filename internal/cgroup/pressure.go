package cgroup

import (
	"bytes"
	"strconv"
)

// Pressure tells how long tasks of a cgroup waited for a resource (kernel: accounting/psi.rst).
type Pressure struct {
	Some, Full Stall // at least one task waited; all that were not idle did
}

// Stall is one line of a pressure file.
type Stall struct {
	Avg10, Avg60, Avg300 float64 // percent of the last 10, 60 and 300 seconds
	Total                uint64  // microseconds, cumulative
}

// pressures fills in what the unified hierarchy counts; hybrid machines have it too, since runtimes put every container
// into both. A kernel without PSI, or booted with psi=0, leaves nil.
func (s *Stats) pressures(c *counters, dir string) {
	s.CPUPressure, s.MemoryPressure, s.IOPressure = c.pressure(dir, "cpu.pressure"), c.pressure(dir, "memory.pressure"), c.pressure(dir, "io.pressure")
}

func (c *counters) pressure(dir, name string) *Pressure {
	data := c.read(dir, name)
	if len(data) == 0 {
		return nil
	}
	p := &Pressure{}
	for line := range bytes.Lines(data) {
		kind, rest, _ := bytes.Cut(bytes.TrimSpace(line), []byte{' '})
		switch string(kind) {
		case "some":
			p.Some = parseStall(rest)
		case "full": // absent for cpu before Linux 5.13
			p.Full = parseStall(rest)
		}
	}
	return p
}

// parseStall reads avg10=0.12 avg60=0.05 avg300=0.01 total=12345.
func parseStall(fields []byte) (s Stall) {
	for field := range bytes.FieldsSeq(fields) {
		key, text, _ := bytes.Cut(field, []byte{'='})
		switch string(key) {
		case "avg10":
			s.Avg10, _ = strconv.ParseFloat(string(text), 64)
		case "avg60":
			s.Avg60, _ = strconv.ParseFloat(string(text), 64)
		case "avg300":
			s.Avg300, _ = strconv.ParseFloat(string(text), 64)
		case "total":
			s.Total, _ = strconv.ParseUint(string(text), 10, 64)
		}
	}
	return s
}
