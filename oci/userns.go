package oci

import (
	"errors"
	"fmt"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// UserNamespace returns the one mapping, of users and groups alike, of a pod that has a user namespace of its own, or nil.
// The rules are the CRI's (UserNamespace) as the kubelet and peers keep them; an error names the field.
func UserNamespace(pod *cri.PodSandboxConfig) (*specs.LinuxIDMapping, error) {
	options := pod.GetLinux().GetSecurityContext().GetNamespaceOptions()
	mapping, err := userMapping(options.GetUsernsOptions())
	switch {
	case err != nil:
		return nil, fmt.Errorf("namespace_options.userns_options.%w", err)
	case mapping == nil:
		return nil, nil
	case options.GetPid() == cri.NamespaceMode_NODE:
		return nil, errors.New("namespace_options.pid: NODE and a user namespace exclude each other, because the node's /proc is not the namespace's to mount")
	case options.GetIpc() == cri.NamespaceMode_NODE:
		return nil, errors.New("namespace_options.ipc: NODE and a user namespace exclude each other, because the node's message queues are not the namespace's to mount")
	}
	return mapping, nil
}

func userMapping(u *cri.UserNamespace) (*specs.LinuxIDMapping, error) {
	switch mode := u.GetMode(); {
	case u == nil:
		return nil, nil
	case mode == cri.NamespaceMode_NODE && len(u.GetUids())+len(u.GetGids()) > 0:
		return nil, errors.New("uids: mappings are given, but mode is NODE")
	case mode == cri.NamespaceMode_NODE:
		return nil, nil
	case mode != cri.NamespaceMode_POD:
		return nil, fmt.Errorf("mode: %s is not possible, only POD and NODE are", mode)
	case len(u.GetUids()) != 1:
		return nil, fmt.Errorf("uids: %d mappings are given, and it must be exactly one", len(u.GetUids()))
	case len(u.GetGids()) != 1:
		return nil, fmt.Errorf("gids: %d mappings are given, and it must be exactly one", len(u.GetGids()))
	case !proto.Equal(u.GetUids()[0], u.GetGids()[0]):
		return nil, errors.New("gids: the mapping differs from that of uids, and they must be the same")
	}
	return rootMapping(u.GetUids()[0])
}

func rootMapping(m *cri.IDMapping) (*specs.LinuxIDMapping, error) {
	switch {
	case m.GetContainerId() != 0:
		return nil, fmt.Errorf("uids: the mapping begins at container_id %d, so the root of the container is not mapped", m.GetContainerId())
	case m.GetLength() == 0:
		return nil, errors.New("uids: the mapping has length 0")
	}
	if err := checkRange(m); err != nil {
		return nil, fmt.Errorf("uids: %w", err)
	}
	return &specs.LinuxIDMapping{HostID: m.GetHostId(), Size: m.GetLength()}, nil
}

// checkRange: the last id, 2^32-1, means "no id" to the kernel.
func checkRange(m *cri.IDMapping) error {
	const ids = 1<<32 - 1
	for name, first := range map[string]uint32{"host_id": m.GetHostId(), "container_id": m.GetContainerId()} {
		if uint64(first)+uint64(m.GetLength()) > ids {
			return fmt.Errorf("%s %d and length %d go beyond the last id", name, first, m.GetLength())
		}
	}
	return nil
}

// userNamespace lets the container join its pod's. Which ids the namespace has is said again, as runtimes older than the
// rule that a joined namespace needs no mapping want it (runc 1.1, crun).
func (in *Input) userNamespace(spec *specs.Spec) error {
	pod, err := UserNamespace(in.Pod)
	if err != nil {
		return err
	}
	if err := in.sameAsPod(pod); err != nil {
		return err
	}
	if pod == nil {
		return nil
	}
	path := in.Namespaces[specs.UserNamespace]
	if path == "" {
		return errors.New("namespace_options.userns_options: the pod has no user namespace")
	}
	spec.Linux.Namespaces = append(spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace, Path: path})
	spec.Linux.UIDMappings, spec.Linux.GIDMappings = []specs.LinuxIDMapping{*pod}, []specs.LinuxIDMapping{*pod}
	return in.checkUser(pod.Size)
}

// sameAsPod refuses a container that asks for what only a pod can have: a user namespace of another kind than the pod's.
// A container that says nothing has the pod's.
func (in *Input) sameAsPod(pod *specs.LinuxIDMapping) error {
	options := in.security().GetNamespaceOptions()
	asked := options.GetUsernsOptions()
	own, err := userMapping(asked)
	switch {
	case err != nil && asked.GetMode() == cri.NamespaceMode_POD && len(asked.GetUids())+len(asked.GetGids()) == 0: // the pod's
	case err != nil:
		return fmt.Errorf("namespace_options.userns_options.%w", err)
	case asked != nil && (own == nil) != (pod == nil), own != nil && *own != *pod:
		return errors.New("namespace_options.userns_options: differs from the pod's, and the containers of a pod share its user namespace")
	}
	switch {
	case pod == nil:
	case options.GetPid() == cri.NamespaceMode_NODE:
		return errors.New("namespace_options.pid: NODE is not possible in a pod with a user namespace")
	case options.GetIpc() == cri.NamespaceMode_NODE:
		return errors.New("namespace_options.ipc: NODE is not possible in a pod with a user namespace")
	}
	return nil
}

// checkUser says what the kernel would only call an invalid argument.
func (in *Input) checkUser(ids uint32) error {
	if in.User.UID >= ids {
		return fmt.Errorf("security_context.run_as_user: the process would run as user %d, and the pod's user namespace has the ids below %d only", in.User.UID, ids)
	}
	if in.User.GID >= ids {
		return fmt.Errorf("security_context.run_as_group: the process would run as group %d, and the pod's user namespace has the ids below %d only", in.User.GID, ids)
	}
	if i := slices.IndexFunc(in.User.Groups, func(group uint32) bool { return group >= ids }); i >= 0 {
		return fmt.Errorf("security_context.supplemental_groups: group %d is not in the pod's user namespace, which has the ids below %d only", in.User.Groups[i], ids)
	}
	return nil
}

// inUserNamespace adapts the standard mounts. Only the owner of a network namespace may mount sysfs (fs/sysfs/mount.c), so a
// pod on the node's network sees the node's own; and the terminals' usual group must exist.
func (in *Input) inUserNamespace(mounts []specs.Mount) []specs.Mount {
	pod, _ := UserNamespace(in.Pod) // checked before
	if pod == nil {
		return mounts
	}
	for i := range mounts {
		m := &mounts[i]
		switch {
		case m.Destination == "/sys" && in.onHostNetwork():
			m.Type, m.Source = "bind", "/sys"
			m.Options = []string{"rbind", "rprivate", "nosuid", "noexec", "nodev", "ro"}
		case m.Destination == "/dev/pts" && pod.Size <= 5:
			m.Options = slices.DeleteFunc(m.Options, func(option string) bool { return option == "gid=5" })
		}
	}
	return mounts
}

func (in *Input) onHostNetwork() bool {
	return in.security().GetNamespaceOptions().GetNetwork() == cri.NamespaceMode_NODE ||
		in.podSecurity().GetNamespaceOptions().GetNetwork() == cri.NamespaceMode_NODE
}

func (in *Input) hasUserNamespace() bool {
	pod, _ := UserNamespace(in.Pod)
	return pod != nil
}

// mapOwners lets the runtime map the owners of a volume's files. An image volume is mapped already, by its layers.
func mapOwners(m *specs.Mount, asked *cri.Mount) error {
	uids, gids := asked.GetUidMappings(), asked.GetGidMappings()
	if len(uids)+len(gids) == 0 || asked.GetImage() != nil {
		return nil
	}
	if len(uids) == 0 || len(gids) == 0 {
		return errors.New("uidMappings: uidMappings and gidMappings must be given together")
	}
	var err error
	if m.UIDMappings, err = idMappings(uids); err != nil {
		return fmt.Errorf("uidMappings: %w", err)
	}
	if m.GIDMappings, err = idMappings(gids); err != nil {
		return fmt.Errorf("gidMappings: %w", err)
	}
	m.Options = append(m.Options, "idmap")
	return nil
}

func idMappings(list []*cri.IDMapping) (mappings []specs.LinuxIDMapping, err error) {
	for _, m := range list {
		if m.GetLength() == 0 {
			return nil, errors.New("a mapping has length 0")
		}
		if err := checkRange(m); err != nil {
			return nil, err
		}
		mappings = append(mappings, specs.LinuxIDMapping{ContainerID: m.GetContainerId(), HostID: m.GetHostId(), Size: m.GetLength()})
	}
	return mappings, nil
}
