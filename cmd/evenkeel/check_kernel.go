package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/evenkeel/evenkeel/internal/systemd"
)

func checkRoot() checked {
	c := checked{Name: "root", Status: isOK, Detail: "this is root"}
	if os.Geteuid() != 0 {
		c.Status, c.Detail, c.Cure = isMissing, "this is not root", "run the engine, and this check, as root"
	}
	return c
}

// Capabilities by their number in linux/capability.h: those without which no pod starts, and those that only some need.
var neededCapabilities = map[string]uint{
	"CAP_SYS_ADMIN": unix.CAP_SYS_ADMIN, "CAP_NET_ADMIN": unix.CAP_NET_ADMIN, "CAP_CHOWN": unix.CAP_CHOWN,
	"CAP_DAC_OVERRIDE": unix.CAP_DAC_OVERRIDE, "CAP_SETUID": unix.CAP_SETUID, "CAP_SETGID": unix.CAP_SETGID,
	"CAP_MKNOD": unix.CAP_MKNOD, "CAP_KILL": unix.CAP_KILL,
}

var wantedCapabilities = map[string]uint{"CAP_SYS_RESOURCE": unix.CAP_SYS_RESOURCE, "CAP_SYS_PTRACE": unix.CAP_SYS_PTRACE}

func checkCapabilities() checked {
	c := checked{Name: "capabilities"}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		c.Status, c.Detail = isWarning, fmt.Sprintf("cannot be read: %v", err)
		return c
	}
	effective := uint64(data[0].Effective) | uint64(data[1].Effective)<<32
	if lacking := lacking(effective, neededCapabilities); lacking != "" {
		c.Status, c.Detail, c.Cure = isMissing, "lacks "+lacking, "give them to whatever starts the engine (a service's CapabilityBoundingSet, a container's privileges)"
		return c
	}
	if lacking := lacking(effective, wantedCapabilities); lacking != "" {
		c.Status, c.Detail, c.Cure = isWarning, "lacks "+lacking, "negative OOM score adjustments are clamped and rlimits cannot be raised; give them to whatever starts the engine"
		return c
	}
	c.Status, c.Detail = isOK, "all that are needed"
	return c
}

func lacking(effective uint64, wanted map[string]uint) string {
	var names []string
	for name, bit := range wanted {
		if effective&(1<<bit) == 0 {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// checkKernel asks for 5.4, below which pidfds and clone3 are missing or young.
func checkKernel() checked {
	c := checked{Name: "kernel", Status: isOK}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return checked{Name: c.Name, Status: isWarning, Detail: err.Error()}
	}
	c.Detail = unix.ByteSliceToString(u.Release[:]) + " " + unix.ByteSliceToString(u.Machine[:])
	var major, minor int
	if n, _ := fmt.Sscanf(c.Detail, "%d.%d", &major, &minor); n == 2 && (major < 5 || major == 5 && minor < 4) {
		c.Status, c.Cure = isMissing, "5.4 or newer is needed (pidfd_open)"
	}
	return c
}

func checkOverlay() checked {
	c := checked{Name: "overlay", Status: isOK, Detail: "the kernel has it"}
	if hasFilesystem("overlay") {
		return c
	}
	if moduleExists("overlay") {
		c.Detail = "a module that is loaded at need"
		return c
	}
	c.Status, c.Detail, c.Cure = isMissing, "the kernel has no overlay filesystem", "load it with `modprobe overlay`, or build the kernel with CONFIG_OVERLAY_FS"
	return c
}

func hasFilesystem(name string) bool {
	raw, _ := os.ReadFile("/proc/filesystems")
	for line := range bytes.Lines(raw) {
		if fields := bytes.Fields(line); len(fields) > 0 && string(fields[len(fields)-1]) == name {
			return true
		}
	}
	return false
}

// moduleExists tells whether the running kernel could load a module: depmod lists all of them.
func moduleExists(name string) bool {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return false
	}
	raw, _ := os.ReadFile("/lib/modules/" + unix.ByteSliceToString(u.Release[:]) + "/modules.dep")
	return bytes.Contains(raw, []byte("/"+name+".ko"))
}

// checkNewMountAPI matters for speed and for images of many layers only: mount(2) takes one page of options.
func checkNewMountAPI() checked {
	c := checked{Name: "new mount API", Status: isOK, Detail: "overlays are made with fsopen"}
	fd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err == nil {
		unix.Close(fd)
		return c
	}
	c.Status, c.Detail = isWarning, fmt.Sprintf("fsopen: %v", err)
	c.Cure = "mount(2) is used instead; images of more than about 30 layers may not fit"
	if errors.Is(err, unix.EPERM) {
		c.Cure = "run this check as root"
	}
	return c
}

func checkSeccomp() checked {
	raw, err := os.ReadFile("/proc/sys/kernel/seccomp/actions_avail")
	if err != nil {
		return checked{"seccomp", isWarning, "the kernel filters no system calls", "build it with CONFIG_SECCOMP_FILTER; until then only Unconfined pods run"}
	}
	return checked{Name: "seccomp", Status: isOK, Detail: strings.TrimSpace(string(raw))}
}

// checkCgroups looks at the controllers that resource limits need.
func checkCgroups() []checked {
	var fs unix.Statfs_t
	if err := unix.Statfs("/sys/fs/cgroup", &fs); err != nil {
		return []checked{{"cgroups", isMissing, "/sys/fs/cgroup is not there", "mount cgroup2 on /sys/fs/cgroup"}}
	}
	version, have := "v1", v1Controllers()
	if fs.Type == unix.CGROUP2_SUPER_MAGIC {
		raw, _ := os.ReadFile("/sys/fs/cgroup/cgroup.controllers")
		version, have = "v2", strings.Fields(string(raw))
	}
	if len(have) == 0 {
		return []checked{{"cgroups", isMissing, version + ", without any controller", "mount the controllers below /sys/fs/cgroup, or boot with systemd.unified_cgroup_hierarchy=1"}}
	}
	list := []checked{{Name: "cgroups", Status: isOK, Detail: version + ", " + strings.Join(have, " ")}}
	for _, wanted := range []string{"cpu", "memory", "pids"} {
		if !slices.Contains(have, wanted) {
			list = append(list, checked{"cgroup " + wanted, isWarning, "the controller is not available", "limits of it cannot be set; look at the kernel's command line (cgroup_enable=" + wanted + ") and at cgroup.subtree_control"})
		}
	}
	return list
}

// v1Controllers are those of which a hierarchy is mounted where runtimes look for it.
func v1Controllers() (have []string) {
	for _, name := range []string{"cpu", "cpuacct", "cpuset", "memory", "pids", "devices", "freezer", "blkio", "hugetlb"} {
		var fs unix.Statfs_t
		if unix.Statfs("/sys/fs/cgroup/"+name, &fs) == nil && fs.Type == unix.CGROUP_SUPER_MAGIC {
			have = append(have, name)
		}
	}
	return have
}

// checkUnits looks for units that stand in the way of new ones of their name.
func checkUnits(ctx context.Context, c config) []checked {
	if !systemd.Booted() {
		return nil
	}
	failed, err := instanceOf(c).FailedUnits(ctx)
	if err != nil {
		return []checked{{"systemd units", isWarning, err.Error(), "run this check as root"}}
	}
	if len(failed) == 0 {
		return []checked{{Name: "systemd units", Status: isOK, Detail: "none of this engine's failed"}}
	}
	var list []checked
	for _, u := range failed {
		list = append(list, checked{"systemd units", isWarning, u.Name + " failed", "the engine's next start forgets scopes of containers; or " + u.Detail})
	}
	return list
}
