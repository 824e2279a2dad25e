package nri

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// document is a runtime-spec as the library's generator wants to edit it (generate.UnderlyingGenerator). Process, Linux
// and Linux.Resources must be there.
type document struct{ spec *specs.Spec }

func (d document) Spec() *specs.Spec { return d.spec }

func (d document) AddAnnotation(key, value string) { set(&d.spec.Annotations, key, value) }
func (d document) RemoveAnnotation(key string)     { delete(d.spec.Annotations, key) }
func (d document) AddLinuxSysctl(key, value string) {
	set(&d.spec.Linux.Sysctl, key, value)
}
func (d document) RemoveLinuxSysctl(key string) { delete(d.spec.Linux.Sysctl, key) }
func (d document) AddLinuxResourcesUnified(key, value string) {
	set(&d.spec.Linux.Resources.Unified, key, value)
}

// set does not change a map that somebody else may hold.
func set(m *map[string]string, key, value string) {
	next := maps.Clone(*m)
	if next == nil {
		next = map[string]string{}
	}
	next[key] = value
	*m = next
}

func (d document) ClearProcessEnv() { d.spec.Process.Env = nil }
func (d document) AddProcessEnv(name, value string) {
	prefix := name + "="
	at := slices.IndexFunc(d.spec.Process.Env, func(e string) bool { return strings.HasPrefix(e, prefix) })
	if at < 0 {
		d.spec.Process.Env = append(d.spec.Process.Env, prefix+value)
		return
	}
	d.spec.Process.Env[at] = prefix + value
}
func (d document) SetProcessArgs(args []string)     { d.spec.Process.Args = args }
func (d document) SetProcessOOMScoreAdj(score int)  { d.spec.Process.OOMScoreAdj = &score }
func (d document) SetLinuxCgroupsPath(place string) { d.spec.Linux.CgroupsPath = place }

func (d document) hooks() *specs.Hooks {
	if d.spec.Hooks == nil {
		d.spec.Hooks = &specs.Hooks{}
	}
	return d.spec.Hooks
}
func (d document) AddPreStartHook(h specs.Hook) {
	d.hooks().Prestart = append(d.hooks().Prestart, h) //nolint:staticcheck // plugins still use prestart
}
func (d document) AddPostStartHook(h specs.Hook) {
	d.hooks().Poststart = append(d.hooks().Poststart, h)
}
func (d document) AddPostStopHook(h specs.Hook) { d.hooks().Poststop = append(d.hooks().Poststop, h) }

func (d document) AddDevice(device specs.LinuxDevice) {
	d.RemoveDevice(device.Path)
	d.spec.Linux.Devices = append(d.spec.Linux.Devices, device)
}
func (d document) RemoveDevice(name string) {
	d.spec.Linux.Devices = slices.DeleteFunc(d.spec.Linux.Devices, func(other specs.LinuxDevice) bool { return path.Clean(other.Path) == path.Clean(name) })
}
func (d document) AddLinuxResourcesDevice(allow bool, kind string, major, minor *int64, access string) {
	d.spec.Linux.Resources.Devices = append(d.spec.Linux.Resources.Devices, specs.LinuxDeviceCgroup{Allow: allow, Type: kind, Major: major, Minor: minor, Access: access})
}

func (d document) Mounts() []specs.Mount  { return d.spec.Mounts }
func (d document) ClearMounts()           { d.spec.Mounts = nil }
func (d document) AddMount(m specs.Mount) { d.spec.Mounts = append(d.spec.Mounts, m) }
func (d document) RemoveMount(destination string) {
	d.spec.Mounts = slices.DeleteFunc(d.spec.Mounts, func(other specs.Mount) bool { return path.Clean(other.Destination) == path.Clean(destination) })
}

// AddOrReplaceLinuxNamespace knows the types by the runtime-spec's names, as plugins do.
func (d document) AddOrReplaceLinuxNamespace(kind, file string) error {
	if err := d.RemoveLinuxNamespace(kind); err != nil {
		return err
	}
	d.spec.Linux.Namespaces = append(d.spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.LinuxNamespaceType(kind), Path: file})
	return nil
}

var namespaceTypes = []specs.LinuxNamespaceType{
	specs.PIDNamespace, specs.NetworkNamespace, specs.MountNamespace, specs.IPCNamespace, specs.UTSNamespace,
	specs.UserNamespace, specs.CgroupNamespace, specs.TimeNamespace,
}

func (d document) RemoveLinuxNamespace(kind string) error {
	if !slices.Contains(namespaceTypes, specs.LinuxNamespaceType(kind)) {
		return fmt.Errorf("there is no namespace of type %q", kind)
	}
	d.spec.Linux.Namespaces = slices.DeleteFunc(d.spec.Linux.Namespaces, func(ns specs.LinuxNamespace) bool { return string(ns.Type) == kind })
	return nil
}

func (d document) SetLinuxRootPropagation(mode string) error {
	d.spec.Linux.RootfsPropagation = mode
	return nil
}

func (d document) cpu() *specs.LinuxCPU {
	if d.spec.Linux.Resources.CPU == nil {
		d.spec.Linux.Resources.CPU = &specs.LinuxCPU{}
	}
	return d.spec.Linux.Resources.CPU
}
func (d document) SetLinuxResourcesCPUCpus(cpus string)             { d.cpu().Cpus = cpus }
func (d document) SetLinuxResourcesCPUMems(mems string)             { d.cpu().Mems = mems }
func (d document) SetLinuxResourcesCPUPeriod(period uint64)         { d.cpu().Period = &period }
func (d document) SetLinuxResourcesCPUQuota(quota int64)            { d.cpu().Quota = &quota }
func (d document) SetLinuxResourcesCPUShares(shares uint64)         { d.cpu().Shares = &shares }
func (d document) SetLinuxResourcesCPURealtimePeriod(period uint64) { d.cpu().RealtimePeriod = &period }
func (d document) SetLinuxResourcesCPURealtimeRuntime(runtime int64) {
	d.cpu().RealtimeRuntime = &runtime
}

func (d document) memory() *specs.LinuxMemory {
	if d.spec.Linux.Resources.Memory == nil {
		d.spec.Linux.Resources.Memory = &specs.LinuxMemory{}
	}
	return d.spec.Linux.Resources.Memory
}
func (d document) SetLinuxResourcesMemoryLimit(limit int64) { d.memory().Limit = &limit }
func (d document) SetLinuxResourcesMemorySwap(swap int64)   { d.memory().Swap = &swap }

func (d document) AddLinuxResourcesHugepageLimit(size string, limit uint64) {
	r := d.spec.Linux.Resources
	r.HugepageLimits = slices.DeleteFunc(r.HugepageLimits, func(l specs.LinuxHugepageLimit) bool { return l.Pagesize == size })
	r.HugepageLimits = append(r.HugepageLimits, specs.LinuxHugepageLimit{Pagesize: size, Limit: limit})
}
