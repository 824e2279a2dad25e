package main

import (
	"fmt"
	"path"
	"strconv"

	v1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// imageFacts are what a container's configuration takes from its image.
type imageFacts struct {
	ID       string
	UID      *int64 // when the image names its user by number
	Username string // when by name
}

// place is what is known of the pod once its sandbox is up.
type place struct {
	dir    podDir
	ips    []string
	images map[string]imageFacts // by the name in the manifest
}

// containerConfig is one attempt of a container as CRI sees it. It decides only: volumes are made by prepareVolumes.
func containerConfig(pod *v1.Pod, c *v1.Container, attempt uint32, at place) (*cri.ContainerConfig, error) {
	envs, values, err := environment(c, fields{pod, at.ips})
	if err != nil {
		return nil, err
	}
	image := at.images[c.Image]
	security, err := containerSecurity(pod, c, image)
	if err != nil {
		return nil, err
	}
	return &cri.ContainerConfig{
		Metadata:    &cri.ContainerMetadata{Name: c.Name, Attempt: attempt},
		Image:       &cri.ImageSpec{Image: image.ID, UserSpecifiedImage: c.Image},
		Command:     expandAll(c.Command, values),
		Args:        expandAll(c.Args, values),
		WorkingDir:  c.WorkingDir,
		Envs:        envs,
		Mounts:      mounts(pod, c, at.dir),
		Labels:      containerLabels(pod, c),
		Annotations: containerAnnotations(pod, c, attempt),
		LogPath:     path.Join(c.Name, fmt.Sprintf("%d.log", attempt)),
		Stdin:       c.Stdin,
		StdinOnce:   c.StdinOnce,
		Tty:         c.TTY,
		StopSignal:  stopSignal(c),
		Linux:       &cri.LinuxContainerConfig{Resources: resources(c), SecurityContext: security},
	}, nil
}

func containerLabels(pod *v1.Pod, c *v1.Container) map[string]string {
	return map[string]string{
		podNameLabel:       pod.Name,
		podNamespaceLabel:  pod.Namespace,
		podUIDLabel:        string(pod.UID),
		containerNameLabel: c.Name,
	}
}

func containerAnnotations(pod *v1.Pod, c *v1.Container, attempt uint32) map[string]string {
	annotations := map[string]string{
		restartAnnotation: strconv.FormatUint(uint64(attempt), 10),
		graceAnnotation:   strconv.FormatInt(*pod.Spec.TerminationGracePeriodSeconds, 10),
	}
	for i := range pod.Spec.InitContainers {
		if init := &pod.Spec.InitContainers[i]; init.Name == c.Name && isSidecar(init) {
			annotations[sidecarAnnotation] = strconv.Itoa(i + 1)
		}
	}
	return annotations
}

// isSidecar tells an init container that runs beside the others instead of before them.
func isSidecar(c *v1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == v1.ContainerRestartPolicyAlways
}

// stopSignal is SIGNAL_RUNTIME_DEFAULT, the image's choice, unless the manifest names one.
func stopSignal(c *v1.Container) cri.Signal {
	if c.Lifecycle == nil || c.Lifecycle.StopSignal == nil {
		return 0
	}
	return cri.Signal(cri.Signal_value["SIGNAL_"+string(*c.Lifecycle.StopSignal)])
}
