package oci

import (
	"cmp"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ErrRROUnsupported is in the error of a recursive read-only mount that the handler cannot make. Its text is the CRI's
// (k8s.io/cri-api/pkg/errors), and the error begins with it.
var ErrRROUnsupported = errors.New("RROUnsupported")

// mounts come in three ranks: the standard ones, then the engine's and the request's by depth, so that a mount below
// another's destination is made after it.
func (in *Input) mounts(spec *specs.Spec) error {
	requested, err := in.requestedMounts()
	if err != nil {
		return err
	}
	if in.Container.GetTty() && in.showsOnNode("/dev/console") {
		// The runtime does that in the container's mount namespace, and cannot be told not to (runc, setupConsole).
		return errors.New("tty: the runtime mounts the terminal on /dev/console, and a volume with PROPAGATION_BIDIRECTIONAL there would show it on the node, " +
			"which would lose its own console until it is unmounted: mount the volume with PROPAGATION_HOST_TO_CONTAINER, or do without a terminal")
	}
	extra := slices.Clone(requested)
	for _, m := range in.Mounts {
		if !mounted(requested, m.Destination) && !in.showsOnNode(m.Destination) {
			extra = append(extra, m)
		}
	}
	slices.SortStableFunc(extra, func(a, b specs.Mount) int { return cmp.Compare(depth(a.Destination), depth(b.Destination)) })
	for _, m := range in.inUserNamespace(in.standardMounts()) {
		if !mounted(extra, m.Destination) && !below(requested, m.Destination) {
			spec.Mounts = append(spec.Mounts, m)
		}
	}
	spec.Mounts = append(spec.Mounts, extra...)
	spec.Linux.RootfsPropagation = in.rootfsPropagation()
	return nil
}

func (in *Input) standardMounts() []specs.Mount {
	mode := "ro"
	if in.security().GetPrivileged() {
		mode = "rw"
	}
	return []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", mode}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", mode}},
	}
}

func mounted(list []specs.Mount, destination string) bool {
	return slices.ContainsFunc(list, func(m specs.Mount) bool { return path.Clean(m.Destination) == path.Clean(destination) })
}

// below reports whether one of the mounts covers destination: who brings the host's /dev or /sys wants what is in it.
func below(list []specs.Mount, destination string) bool {
	return slices.ContainsFunc(list, func(m specs.Mount) bool { return within(destination, m.Destination) })
}

// showsOnNode reports whether a mount at destination would be one of the node's as well, and stay there when the container is
// gone, since a volume that propagates both ways covers the place.
func (in *Input) showsOnNode(destination string) bool {
	return slices.ContainsFunc(in.Container.GetMounts(), func(m *cri.Mount) bool {
		return m.GetPropagation() == cri.MountPropagation_PROPAGATION_BIDIRECTIONAL && within(destination, path.Join("/", m.GetContainerPath()))
	})
}

func depth(destination string) int { return strings.Count(path.Clean(destination), "/") }

func (in *Input) requestedMounts() ([]specs.Mount, error) {
	var list []specs.Mount
	for _, asked := range in.Container.GetMounts() {
		m, err := in.requestedMount(asked)
		if errors.Is(err, ErrRROUnsupported) {
			return nil, err // the text must begin with the sentinel
		}
		if err != nil {
			return nil, fmt.Errorf("mounts: %s: %w", asked.GetContainerPath(), err)
		}
		list = append(list, m)
	}
	return list, nil
}

func (in *Input) requestedMount(asked *cri.Mount) (specs.Mount, error) {
	destination := asked.GetContainerPath()
	if !strings.HasPrefix(destination, "/") {
		destination = "/" + destination
	}
	if path.Clean(destination) == "/" {
		return specs.Mount{}, errors.New("container_path: a volume cannot replace the root file system")
	}
	source, err := in.mountSource(asked)
	if err != nil {
		return specs.Mount{}, err
	}
	options, err := in.mountOptions(asked)
	if err != nil {
		return specs.Mount{}, err
	}
	m := specs.Mount{Destination: destination, Type: "bind", Source: source, Options: options}
	return m, mapOwners(&m, asked)
}

func (in *Input) mountSource(asked *cri.Mount) (string, error) {
	switch {
	case asked.GetImage() != nil && asked.GetHostPath() != "":
		return "", errors.New("image: given together with host_path, but a volume has one source")
	case asked.GetImage() != nil:
		return in.imageVolume(asked)
	case asked.GetImageSubPath() != "":
		return "", errors.New("image_sub_path: given without an image")
	case asked.GetHostPath() == "":
		return "", errors.New("host_path: empty")
	}
	source, ok := in.HostPaths[asked.GetHostPath()]
	if !ok {
		return "", fmt.Errorf("host_path: %s was not found on the host", asked.GetHostPath())
	}
	return source, nil
}

// imageVolume is mounted by the caller, who says where.
func (in *Input) imageVolume(asked *cri.Mount) (string, error) {
	if !asked.GetReadonly() {
		return "", errors.New("image: an image volume is read-only, so readonly must be set")
	}
	source, ok := in.ImageVolumes[asked.GetContainerPath()]
	if !ok {
		return "", fmt.Errorf("image: %s was not mounted", asked.GetImage().GetImage())
	}
	return source, nil
}

var bindOptions = []string{"noexec", "nodev", "nosuid"}

func (in *Input) mountOptions(asked *cri.Mount) ([]string, error) {
	access, err := in.mountAccess(asked)
	if err != nil {
		return nil, err
	}
	options := []string{"rbind", "", access}
	switch propagation := asked.GetPropagation(); propagation {
	case cri.MountPropagation_PROPAGATION_PRIVATE:
		options[1] = "rprivate"
	case cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER:
		options[1] = "rslave"
	case cri.MountPropagation_PROPAGATION_BIDIRECTIONAL:
		options[1] = "rshared"
	default:
		return nil, fmt.Errorf("propagation: %d is not known", propagation)
	}
	for _, option := range asked.GetMountOptions() {
		if !slices.Contains(bindOptions, option) {
			return nil, fmt.Errorf("mount_options: %q is none of %s", option, strings.Join(bindOptions, ", "))
		}
		options = append(options, option)
	}
	return options, nil
}

func (in *Input) mountAccess(asked *cri.Mount) (string, error) {
	switch {
	case !asked.GetRecursiveReadOnly() && !asked.GetReadonly():
		return "rw", nil
	case !asked.GetRecursiveReadOnly():
		return "ro", nil
	case !asked.GetReadonly():
		return "", errors.New("recursive_read_only: needs readonly")
	case asked.GetPropagation() != cri.MountPropagation_PROPAGATION_PRIVATE:
		return "", fmt.Errorf("recursive_read_only: needs private propagation, not %s", asked.GetPropagation())
	case !in.Host.RecursiveReadOnly:
		return "", fmt.Errorf("%w: the runtime handler cannot make %s recursively read-only", ErrRROUnsupported, asked.GetContainerPath())
	}
	return "rro", nil
}

// rootfsPropagation lets mounts travel where a volume asks for it; a volume's propagation cannot exceed that of the root
// file system it is mounted in.
func (in *Input) rootfsPropagation() string {
	propagation := ""
	for _, asked := range in.Container.GetMounts() {
		switch asked.GetPropagation() {
		case cri.MountPropagation_PROPAGATION_BIDIRECTIONAL:
			return "rshared"
		case cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER:
			propagation = "rslave"
		}
	}
	return propagation
}
