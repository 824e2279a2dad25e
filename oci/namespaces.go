package oci

import (
	"errors"
	"fmt"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func (in *Input) namespaces(spec *specs.Spec) error {
	list := []specs.LinuxNamespace{{Type: specs.MountNamespace}}
	asked, pod := in.security().GetNamespaceOptions(), in.podSecurity().GetNamespaceOptions()
	onNode := func(container, pod cri.NamespaceMode) bool {
		return container == cri.NamespaceMode_NODE || pod == cri.NamespaceMode_NODE
	}
	hostNetwork := in.onHostNetwork()
	for _, ns := range []struct {
		kind specs.LinuxNamespaceType
		node bool
	}{
		{specs.NetworkNamespace, hostNetwork},
		{specs.IPCNamespace, onNode(asked.GetIpc(), pod.GetIpc())},
		{specs.UTSNamespace, hostNetwork}, // the CRI has no option for it; a node's address goes with a node's name
	} {
		path := in.Namespaces[ns.kind]
		if ns.node {
			continue
		}
		if path == "" { // falling back to the node's would hand out the node in silence
			return fmt.Errorf("namespace_options: the pod has no %s namespace, and the request does not ask for the node's", ns.kind)
		}
		list = append(list, specs.LinuxNamespace{Type: ns.kind, Path: path})
	}
	pid, err := in.pidNamespace(asked, pod)
	if err != nil {
		return err
	}
	list = append(list, pid...)
	// As peers do: on v1 a cgroup namespace breaks programs that look for their own cgroup below the controllers' mounts. On v2
	// only the owner of a cgroup namespace may mount its cgroups.
	if in.Host.CgroupV2 && (!in.security().GetPrivileged() || in.hasUserNamespace()) {
		list = append(list, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	}
	spec.Linux.Namespaces = list
	return in.userNamespace(spec)
}

// pidNamespace is empty for the node's.
func (in *Input) pidNamespace(asked, pod *cri.NamespaceOption) ([]specs.LinuxNamespace, error) {
	path := in.Namespaces[specs.PIDNamespace]
	switch mode := asked.GetPid(); {
	case mode == cri.NamespaceMode_NODE, mode == cri.NamespaceMode_POD && pod.GetPid() == cri.NamespaceMode_NODE:
		return nil, nil
	case mode == cri.NamespaceMode_TARGET && asked.GetTargetId() == "":
		return nil, errors.New("namespace_options.target_id: empty, but pid is TARGET")
	case mode == cri.NamespaceMode_TARGET && path == "":
		return nil, fmt.Errorf("namespace_options.target_id: container %s has no PID namespace to join", asked.GetTargetId())
	case mode == cri.NamespaceMode_CONTAINER:
		path = ""
	}
	return []specs.LinuxNamespace{{Type: specs.PIDNamespace, Path: path}}, nil
}
