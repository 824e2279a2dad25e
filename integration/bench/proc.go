package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// pss is a process's proportional set size in MiB (proc_pid_smaps_rollup), or 0 when it is gone.
func pss(pid int) float64 { return field(fmt.Sprintf("/proc/%d/smaps_rollup", pid), "Pss:") / 1024 }

func pssOf(pids []int) (total float64) {
	for _, pid := range pids {
		total += pss(pid)
	}
	return total
}

// peak is the highest resident set size since resetPeak, in MiB.
func peak(pid int) float64 { return field(fmt.Sprintf("/proc/%d/status", pid), "VmHWM:") / 1024 }

func resetPeak(pid int) { os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0) }

// field reads the number behind a name at the start of a line.
func field(path, name string) float64 {
	data, _ := os.ReadFile(path)
	for _, line := range strings.Split(string(data), "\n") {
		if rest, ok := strings.CutPrefix(line, name); ok {
			value, _ := strconv.ParseFloat(strings.Fields(rest)[0], 64)
			return value
		}
	}
	return 0
}

// cpuOf is the CPU time that processes used so far, with the threads they had: the clock of a process (clock_getres(2)).
func cpuOf(pids []int) (total time.Duration) {
	for _, pid := range pids {
		var t unix.Timespec
		if unix.ClockGettime(int32(^pid<<3|2), &t) == nil {
			total += time.Duration(t.Nano())
		}
	}
	return total
}

// account moves a process into a cgroup that counts its CPU time and that of all its children, dead ones included. On
// v1 it is the accounting hierarchy alone, so that nobody's share of the processors changes.
func account(group string, pid int) error {
	dir := accounting(group)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0o644)
}

func accounting(group string) string {
	if _, err := os.Stat("/sys/fs/cgroup/cpuacct"); err == nil {
		return filepath.Join("/sys/fs/cgroup/cpuacct", group)
	}
	return filepath.Join("/sys/fs/cgroup", group)
}

// cpuOfGroup is the CPU time of everything that ever ran in a cgroup or below it, also in cgroups that are gone.
func cpuOfGroup(group string) time.Duration {
	dir := accounting(group)
	if data, err := os.ReadFile(filepath.Join(dir, "cpuacct.usage")); err == nil {
		ns, _ := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64)
		return time.Duration(ns)
	}
	return time.Duration(field(filepath.Join(dir, "cpu.stat"), "usage_usec")) * time.Microsecond
}

func containsAll(text []byte, words ...string) bool {
	for _, w := range words {
		if !bytes.Contains(text, []byte(w)) {
			return false
		}
	}
	return true
}
