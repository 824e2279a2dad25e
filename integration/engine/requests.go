package engine

import (
	"os"
	"path/filepath"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Pod is the smallest request for a pod that a kubelet would send: private namespaces, a log directory, labels.
//
// The kubelet makes the log directory itself, and so does Pod.
func (e *Engine) Pod(name string) *cri.PodSandboxConfig {
	os.MkdirAll(filepath.Join(e.LogDir(), name), 0o755) // a failure shows in CreateContainer, with the path
	return &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: name, Namespace: "default", Uid: "uid-" + name},
		Hostname:     name,
		LogDirectory: filepath.Join(e.LogDir(), name),
		Labels: map[string]string{
			"io.kubernetes.pod.name": name, "io.kubernetes.pod.namespace": "default", "io.kubernetes.pod.uid": "uid-" + name,
		},
		Annotations: map[string]string{"example.org/note": "kept byte for byte"},
		Linux: &cri.LinuxPodSandboxConfig{
			SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: namespaces()},
		},
	}
}

func namespaces() *cri.NamespaceOption {
	return &cri.NamespaceOption{Network: cri.NamespaceMode_POD, Pid: cri.NamespaceMode_CONTAINER, Ipc: cri.NamespaceMode_POD}
}

// Container asks for a container that runs argv in an image.
func Container(name, image string, argv ...string) *cri.ContainerConfig {
	return &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: name},
		Image:    &cri.ImageSpec{Image: image},
		Command:  argv,
		LogPath:  name + ".log",
		Labels:   map[string]string{"io.kubernetes.container.name": name},
		Linux: &cri.LinuxContainerConfig{
			Resources:       &cri.LinuxContainerResources{},
			SecurityContext: &cri.LinuxContainerSecurityContext{NamespaceOptions: namespaces()},
		},
	}
}

// Sleeper stays until it is told to go, and goes at once when told.
func Sleeper(name, image string) *cri.ContainerConfig {
	return Container(name, image, "sh", "-c", "trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done")
}
