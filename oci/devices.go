package oci

import (
	"cmp"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// standardDevices may be used by every container; the runtime makes them (runtime-spec, config-linux.md, "Default Devices").
var standardDevices = []struct {
	major, minor int64 // minor -1: any
}{
	{1, 3}, {1, 5}, {1, 7}, {1, 8}, {1, 9}, // null, zero, full, random, urandom
	{5, 0}, {5, 1}, {5, 2}, // tty, console, ptmx
	{136, -1}, // ptys
}

// runtimeOwned are paths that the runtime makes anew; a node of the host there would shadow the container's terminal.
var runtimeOwned = []string{"/dev/console", "/dev/ptmx", "/dev/pts", "/dev/shm", "/dev/mqueue", "/dev/fd", "/dev/stdin", "/dev/stdout", "/dev/stderr"}

func (in *Input) devices(spec *specs.Spec) error {
	if err := in.checkDevices(); err != nil {
		return err
	}
	all := in.deviceNodes()
	for _, d := range all {
		spec.Linux.Devices = append(spec.Linux.Devices, d.LinuxDevice)
	}
	if in.security().GetPrivileged() {
		spec.Linux.Resources.Devices = []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}
		return nil
	}
	spec.Linux.Resources.Devices = deviceRules(all)
	return nil
}

// checkDevices refuses permissions that the device cgroup does not know, and a device that nobody looked up.
func (in *Input) checkDevices() error {
	for _, asked := range in.Container.GetDevices() {
		if strings.Trim(asked.GetPermissions(), "rwm") != "" {
			return fmt.Errorf("devices: %s: permissions %q are not made of r, w and m", asked.GetHostPath(), asked.GetPermissions())
		}
		if !slices.ContainsFunc(in.Devices, func(d Device) bool { return within(d.Path, deviceTarget(asked)) }) {
			return fmt.Errorf("devices: %s: no device was found for it", asked.GetHostPath())
		}
	}
	return nil
}

// deviceTarget is the path in the container, which the host's is when the request gives none.
func deviceTarget(asked *cri.Device) string {
	return cmp.Or(asked.GetContainerPath(), asked.GetHostPath())
}

// requested reports whether the request names the device or a directory it is in.
func (in *Input) requested(d Device) bool {
	return slices.ContainsFunc(in.Container.GetDevices(), func(asked *cri.Device) bool { return within(d.Path, deviceTarget(asked)) })
}

// within reports whether name is dir or lies below it.
func within(name, dir string) bool {
	name, dir = path.Clean(name), path.Clean(dir)
	return name == dir || dir == "/" || strings.HasPrefix(name, dir+"/")
}

// deviceNodes are the devices sorted by path, without doubles: the later one wins, which is the request's.
func (in *Input) deviceNodes() []Device {
	byPath := map[string]Device{}
	for _, d := range in.Devices {
		own := slices.ContainsFunc(runtimeOwned, func(p string) bool { return within(d.Path, p) })
		if !own || in.requested(d) {
			byPath[path.Clean(d.Path)] = d
		}
	}
	var kept []Device
	for _, name := range slices.Sorted(maps.Keys(byPath)) {
		kept = append(kept, byPath[name])
	}
	return kept
}

// deviceRules deny all but mknod, the standard devices and the given ones. mknod is harmless without access, and images
// are built and unpacked in containers.
func deviceRules(all []Device) []specs.LinuxDeviceCgroup {
	rules := []specs.LinuxDeviceCgroup{
		{Allow: false, Access: "rwm"},
		{Allow: true, Type: "c", Access: "m"},
		{Allow: true, Type: "b", Access: "m"},
	}
	for _, d := range standardDevices {
		rules = append(rules, deviceRule("c", d.major, d.minor, "rwm"))
	}
	for _, d := range all {
		if d.Type != "p" { // a FIFO is no device to the cgroup
			rules = append(rules, deviceRule(d.Type, d.Major, d.Minor, d.Access))
		}
	}
	return rules
}

func deviceRule(kind string, major, minor int64, access string) specs.LinuxDeviceCgroup {
	rule := specs.LinuxDeviceCgroup{Allow: true, Type: kind, Major: &major, Access: access}
	if minor >= 0 {
		rule.Minor = &minor
	}
	if access == "" {
		rule.Access = "rwm"
	}
	if kind == "u" { // mknod(1)'s name for an unbuffered character device; the cgroup knows c only
		rule.Type = "c"
	}
	return rule
}
