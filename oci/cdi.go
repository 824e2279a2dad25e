package oci

import (
	"fmt"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	cdi "tags.cncf.io/container-device-interface/specs-go"
)

// cdi makes the edits that the vendors of the requested devices want (CNCF Container Device Interface, SPEC.md,
// "OCI Edits"). They come last but for the confinement: a vendor's word on its device counts more than a default.
func (in *Input) cdi(spec *specs.Spec) error {
	if asked := in.Container.GetCDIDevices(); len(asked) > 0 && len(in.CDI) == 0 {
		return fmt.Errorf("CDI_devices: %s: no specification was found for it", asked[0].GetName())
	}
	for i := range in.CDI {
		e := &in.CDI[i]
		editEnvironment(spec, e.Env)
		in.editDevices(spec, e.DeviceNodes)
		in.editMounts(spec, e.Mounts)
		if err := editHooks(spec, e.Hooks); err != nil {
			return fmt.Errorf("CDI_devices: %w", err)
		}
		editNetDevices(spec, e.NetDevices)
		if r := e.IntelRdt; r != nil {
			spec.Linux.IntelRdt = &specs.LinuxIntelRdt{ClosID: r.ClosID, L3CacheSchema: r.L3CacheSchema, MemBwSchema: r.MemBwSchema, Schemata: slices.Clone(r.Schemata), EnableMonitoring: r.EnableMonitoring}
		}
		for _, gid := range e.AdditionalGIDs {
			if groups := &spec.Process.User.AdditionalGids; gid != 0 && !slices.Contains(*groups, gid) { // root's group is no device's
				*groups = append(*groups, gid)
			}
		}
	}
	return nil
}

func editEnvironment(spec *specs.Spec, variables []string) {
	var e environment
	for _, variable := range slices.Concat(spec.Process.Env, variables) {
		key, value, _ := strings.Cut(variable, "=")
		e.set(key, value)
	}
	spec.Process.Env = e.list()
}

// editDevices expects nodes whose numbers are known: the caller has looked at those that the specification leaves open.
func (in *Input) editDevices(spec *specs.Spec, nodes []*cdi.DeviceNode) {
	for _, n := range nodes {
		d := specs.LinuxDevice{Path: n.Path, Type: n.Type, Major: n.Major, Minor: n.Minor, FileMode: n.FileMode, UID: n.UID, GID: n.GID}
		if uid := in.User.UID; d.UID == nil && uid != 0 {
			d.UID = &uid
		}
		if gid := in.User.GID; d.GID == nil && gid != 0 {
			d.GID = &gid
		}
		spec.Linux.Devices = slices.DeleteFunc(spec.Linux.Devices, func(other specs.LinuxDevice) bool { return path.Clean(other.Path) == path.Clean(d.Path) })
		spec.Linux.Devices = append(spec.Linux.Devices, d)
		if n.Type != "p" && n.Permissions != "none" && !in.security().GetPrivileged() {
			spec.Linux.Resources.Devices = append(spec.Linux.Resources.Devices, deviceRule(n.Type, n.Major, n.Minor, n.Permissions))
		}
	}
}

// editMounts replaces what is mounted at the same place. A mount goes before those that lie below it.
func (in *Input) editMounts(spec *specs.Spec, mounts []*cdi.Mount) {
	for _, m := range mounts {
		added := specs.Mount{Source: m.HostPath, Destination: m.ContainerPath, Type: m.Type, Options: slices.Clone(m.Options)}
		if bound := slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind"); bound && in.hasUserNamespace() {
			added.Options = append(added.Options, "idmap") // with the container's own mappings
		}
		spec.Mounts = slices.DeleteFunc(spec.Mounts, func(other specs.Mount) bool { return path.Clean(other.Destination) == path.Clean(m.ContainerPath) })
		at := slices.IndexFunc(spec.Mounts, func(other specs.Mount) bool { return within(other.Destination, m.ContainerPath) })
		if at < 0 {
			at = len(spec.Mounts)
		}
		spec.Mounts = slices.Insert(spec.Mounts, at, added)
	}
}

func editHooks(spec *specs.Spec, hooks []*cdi.Hook) error {
	for _, h := range hooks {
		if spec.Hooks == nil {
			spec.Hooks = &specs.Hooks{}
		}
		list, ok := map[string]*[]specs.Hook{
			"prestart": &spec.Hooks.Prestart, "createRuntime": &spec.Hooks.CreateRuntime, "createContainer": &spec.Hooks.CreateContainer, //nolint:staticcheck // vendors still use prestart
			"startContainer": &spec.Hooks.StartContainer, "poststart": &spec.Hooks.Poststart, "poststop": &spec.Hooks.Poststop,
		}[h.HookName]
		if !ok {
			return fmt.Errorf("there is no hook %q", h.HookName)
		}
		*list = append(*list, specs.Hook{Path: h.Path, Args: slices.Clone(h.Args), Env: slices.Clone(h.Env), Timeout: h.Timeout})
	}
	return nil
}

func editNetDevices(spec *specs.Spec, devices []*cdi.LinuxNetDevice) {
	for _, d := range devices {
		if spec.Linux.NetDevices == nil {
			spec.Linux.NetDevices = map[string]specs.LinuxNetDevice{}
		}
		spec.Linux.NetDevices[d.HostInterfaceName] = specs.LinuxNetDevice{Name: d.Name}
	}
}
