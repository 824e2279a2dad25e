package sandbox

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// mistakes names the limits that this machine cannot grant. It is asked after the kernel has refused an update: a limit that
// is only likely to be the cause, such as a CPU that the pod's cgroup does not have, is not named.
func (c *container) mistakes(want *cri.LinuxContainerResources) error {
	var errs []error
	for _, set := range []struct{ field, asked, has, what string }{
		{"cpuset_cpus", want.GetCpusetCpus(), "/sys/devices/system/cpu/online", "CPUs"},
		{"cpuset_mems", want.GetCpusetMems(), "/sys/devices/system/node/online", "memory nodes"},
	} {
		online, err := os.ReadFile(set.has)
		if set.asked == "" || err != nil {
			continue
		}
		if wrong := wrongInSet(set.asked, string(online)); wrong != "" {
			errs = append(errs, fmt.Errorf("%s: %q: %s, and this machine has the %s %s: %w", set.field, set.asked, wrong, set.what, strings.TrimSpace(string(online)), ErrInvalid))
		}
	}
	// v2 takes any limit, and ends what is above it.
	if limit := want.GetMemoryLimitInBytes(); limit > 0 && !c.Host.CgroupV2 {
		if now, err := c.counted(); err == nil && now.Memory.WorkingSet > uint64(limit) {
			errs = append(errs, fmt.Errorf("memory_limit_in_bytes: %d is less than the %d bytes in use, which the kernel could not take back: %w", limit, now.Memory.WorkingSet, ErrInvalid))
		}
	}
	return errors.Join(errs...)
}

// wrongInSet says what is wrong with a list of ranges such as 0-3,7, if it is sure to be wrong. The kernel's grammar has more
// than that (bitmap_parselist in lib/bitmap-str.c).
func wrongInSet(asked, online string) string {
	if asked != "all" && strings.Trim(asked, "0123456789,-:/N \n") != "" {
		return "that is no list of numbers"
	}
	for _, item := range strings.FieldsFunc(asked, func(r rune) bool { return r == ',' || r == ' ' || r == '\n' }) {
		if first, last, ok := numberRange(item); ok && !covered(first, last, online) {
			return item + " is not there"
		}
	}
	return ""
}

func numberRange(text string) (first, last uint64, ok bool) {
	from, to, ranged := strings.Cut(text, "-")
	if !ranged {
		to = from
	}
	first, err := strconv.ParseUint(from, 10, 32)
	if err != nil {
		return 0, 0, false
	}
	last, err = strconv.ParseUint(to, 10, 32)
	return first, last, err == nil && first <= last
}

// covered looks for one range that holds the other whole: the kernel writes no two that touch.
func covered(first, last uint64, online string) bool {
	for _, item := range strings.Split(strings.TrimSpace(online), ",") {
		if from, to, ok := numberRange(item); ok && from <= first && last <= to {
			return true
		}
	}
	return false
}
