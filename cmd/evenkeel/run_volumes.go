package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// mounts lists what a container sees of the pod's volumes, and its /etc/hosts unless the manifest mounts one.
func mounts(pod *v1.Pod, c *v1.Container, dir podDir) (list []*cri.Mount) {
	hosts := true
	for i, m := range c.VolumeMounts {
		source := volumePath(pod, dir, m.Name)
		if m.SubPath != "" {
			source = dir.subPath(c.Name, i)
		}
		list = append(list, &cri.Mount{
			ContainerPath:     m.MountPath,
			HostPath:          source,
			Readonly:          m.ReadOnly,
			RecursiveReadOnly: m.RecursiveReadOnly != nil && *m.RecursiveReadOnly == v1.RecursiveReadOnlyEnabled,
			Propagation:       propagation(m.MountPropagation),
			// A host path keeps its labels, as with the kubelet: they are not the pod's to change.
			SelinuxRelabel: !isHostPath(pod, m.Name),
		})
		hosts = hosts && path.Clean(m.MountPath) != "/etc/hosts"
	}
	if hosts {
		list = append(list, &cri.Mount{ContainerPath: "/etc/hosts", HostPath: dir.hosts(), SelinuxRelabel: true})
	}
	return list
}

func volumePath(pod *v1.Pod, dir podDir, name string) string {
	for _, v := range pod.Spec.Volumes {
		if v.Name == name && v.HostPath != nil {
			return v.HostPath.Path
		}
	}
	return dir.volume(name)
}

func isHostPath(pod *v1.Pod, name string) bool {
	return slices.ContainsFunc(pod.Spec.Volumes, func(v v1.Volume) bool { return v.Name == name && v.HostPath != nil })
}

func propagation(mode *v1.MountPropagationMode) cri.MountPropagation {
	switch {
	case mode != nil && *mode == v1.MountPropagationHostToContainer:
		return cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER
	case mode != nil && *mode == v1.MountPropagationBidirectional:
		return cri.MountPropagation_PROPAGATION_BIDIRECTIONAL
	}
	return cri.MountPropagation_PROPAGATION_PRIVATE
}

func validateMounts(at string, c *v1.Container) error {
	for i, m := range c.VolumeMounts {
		at := fmt.Sprintf("%s.volumeMounts[%d]", at, i)
		if p := m.MountPropagation; p != nil {
			switch *p {
			case v1.MountPropagationNone, v1.MountPropagationHostToContainer:
			case v1.MountPropagationBidirectional:
				if !isTrue(c.SecurityContext.Privileged) {
					return fmt.Errorf("%s.mountPropagation: Bidirectional is for privileged containers", at)
				}
			default:
				return fmt.Errorf("%s.mountPropagation: %q is none of None, HostToContainer, Bidirectional", at, *p)
			}
		}
		if r := m.RecursiveReadOnly; r != nil {
			switch {
			case *r != v1.RecursiveReadOnlyEnabled && *r != v1.RecursiveReadOnlyDisabled:
				return fmt.Errorf("%s.recursiveReadOnly: %q is neither Enabled nor Disabled", at, *r)
			case *r == v1.RecursiveReadOnlyEnabled && !m.ReadOnly:
				return fmt.Errorf("%s.recursiveReadOnly: needs readOnly", at)
			}
		}
	}
	return nil
}

// prepareVolumes makes the pod's emptyDirs and checks or makes its host paths. What it makes in the pod's own directory goes
// with it; a host path that it made stays, as in a cluster.
func prepareVolumes(pod *v1.Pod, dir podDir) error {
	for _, v := range pod.Spec.Volumes {
		var err error
		if v.HostPath != nil {
			err = prepareHostPath(v.HostPath)
		} else {
			err = prepareEmptyDir(v.EmptyDir, dir.volume(v.Name), pod.Spec.SecurityContext.FSGroup)
		}
		if err != nil {
			return fmt.Errorf("cannot prepare volume %s: %w", v.Name, err)
		}
	}
	return nil
}

// prepareEmptyDir makes a directory for everybody, or for a group when the pod has an fsGroup
// (k8s.io/kubernetes/pkg/volume/emptydir, pkg/volume/volume_linux.go).
func prepareEmptyDir(e *v1.EmptyDirVolumeSource, at string, group *int64) error {
	if err := os.Mkdir(at, 0o777); err != nil {
		return err
	}
	if e.Medium == v1.StorageMediumMemory {
		options := "mode=0777"
		if e.SizeLimit != nil {
			options += fmt.Sprintf(",size=%d", e.SizeLimit.Value())
		}
		if err := unix.Mount("tmpfs", at, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
			return fmt.Errorf("cannot mount tmpfs on %s: %w", at, err)
		}
	}
	mode := fs.FileMode(0o777)
	if group != nil {
		if err := os.Chown(at, -1, int(*group)); err != nil {
			return err
		}
		mode |= fs.ModeSetgid
	}
	// Past the umask.
	return os.Chmod(at, mode)
}

// prepareHostPath follows k8s.io/kubernetes/pkg/volume/hostpath.
func prepareHostPath(h *v1.HostPathVolumeSource) error {
	kind := v1.HostPathUnset
	if h.Type != nil {
		kind = *h.Type
	}
	switch kind {
	case v1.HostPathUnset:
		return nil
	case v1.HostPathDirectoryOrCreate:
		if _, err := os.Stat(h.Path); errors.Is(err, fs.ErrNotExist) {
			return os.MkdirAll(h.Path, 0o755)
		}
		return checkKind(h.Path, v1.HostPathDirectory)
	case v1.HostPathFileOrCreate:
		f, err := os.OpenFile(h.Path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
		if errors.Is(err, fs.ErrExist) {
			return checkKind(h.Path, v1.HostPathFile)
		}
		if err != nil {
			return err
		}
		return f.Close()
	}
	return checkKind(h.Path, kind)
}

func checkKind(name string, kind v1.HostPathType) error {
	wanted := map[v1.HostPathType]fs.FileMode{
		v1.HostPathDirectory: fs.ModeDir,
		v1.HostPathFile:      0,
		v1.HostPathSocket:    fs.ModeSocket,
		v1.HostPathCharDev:   fs.ModeDevice | fs.ModeCharDevice,
		v1.HostPathBlockDev:  fs.ModeDevice,
	}
	mode, known := wanted[kind]
	if !known {
		return fmt.Errorf("hostPath type %q is not known", kind)
	}
	info, err := os.Stat(name)
	if err != nil {
		return err
	}
	if info.Mode().Type() != mode {
		return fmt.Errorf("%s is not of type %s", name, kind)
	}
	return nil
}
