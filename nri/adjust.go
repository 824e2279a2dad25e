package nri

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/runtime-tools/generate"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// adjust makes the changes that plugins want in spec. CDI devices are the engine's to find; their names are returned.
func adjust(spec *specs.Spec, want *api.ContainerAdjustment) (devices []string, err error) {
	if want == nil {
		return nil, nil
	}
	if spec.Linux.Resources == nil {
		spec.Linux.Resources = &specs.LinuxResources{}
	}
	g := generate.SpecGenerator(document{spec},
		generate.WithCDIDeviceInjector(func(_ *specs.Spec, names []string) error { devices = names; return nil }),
		generate.WithBlockIOResolver(func(class string) (*specs.LinuxBlockIO, error) {
			return nil, fmt.Errorf("block I/O class %q is not known: this engine has none", class)
		}),
		generate.WithRdtResolver(func(class string) (*specs.LinuxIntelRdt, error) { return &specs.LinuxIntelRdt{ClosID: class}, nil }),
	)
	if err := g.Adjust(want); err != nil {
		return nil, err
	}
	return devices, adjustMemory(spec, want.GetLinux().GetResources().GetMemory())
}

// dropRemoved takes away the variables and devices that a plugin removed. The library takes them out of the request, which
// it shows to the next plugin, and leaves them out of what it answers.
func dropRemoved(spec *specs.Spec, left *api.Container) {
	spec.Process.Env = slices.DeleteFunc(spec.Process.Env, func(variable string) bool {
		name, _, _ := strings.Cut(variable, "=")
		return !slices.ContainsFunc(left.GetEnv(), func(kept string) bool { return strings.HasPrefix(kept, name+"=") })
	})
	spec.Linux.Devices = slices.DeleteFunc(spec.Linux.Devices, func(d specs.LinuxDevice) bool {
		return !slices.ContainsFunc(left.GetLinux().GetDevices(), func(kept *api.LinuxDevice) bool { return kept.GetPath() == d.Path })
	})
}

// adjustMemory sets what the library's generator leaves out.
func adjustMemory(spec *specs.Spec, want *api.LinuxMemory) error {
	if want.GetKernel() != nil || want.GetUseHierarchy() != nil {
		return errors.New("memory.kernel and memory.use_hierarchy: the kernel has neither any more")
	}
	if want.GetSwap() == nil && want.GetReservation() == nil && want.GetKernelTcp() == nil && want.GetSwappiness() == nil && want.GetDisableOomKiller() == nil {
		return nil
	}
	if spec.Linux.Resources.Memory == nil {
		spec.Linux.Resources.Memory = &specs.LinuxMemory{}
	}
	m := spec.Linux.Resources.Memory
	if v := want.GetSwap(); v != nil {
		m.Swap = v.Get()
	}
	if v := want.GetReservation(); v != nil {
		m.Reservation = v.Get()
	}
	if v := want.GetKernelTcp(); v != nil {
		m.KernelTCP = v.Get()
	}
	if v := want.GetSwappiness(); v != nil {
		m.Swappiness = v.Get()
	}
	if v := want.GetDisableOomKiller(); v != nil {
		m.DisableOOMKiller = v.Get()
	}
	return nil
}
