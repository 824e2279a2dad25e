package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Labels and annotations of pods and containers. Those of io.kubernetes are the kubelet's
// (k8s.io/kubernetes/pkg/kubelet/kuberuntime/labels.go), so that node tools read these pods like any other.
const (
	podNameLabel       = "io.kubernetes.pod.name"
	podNamespaceLabel  = "io.kubernetes.pod.namespace"
	podUIDLabel        = "io.kubernetes.pod.uid"
	containerNameLabel = "io.kubernetes.container.name"
	restartAnnotation  = "io.kubernetes.container.restartCount"

	// directoryAnnotation is where `run` keeps the pod's volumes and logs; `rm` removes it.
	directoryAnnotation = "dev.evenkeel/directory"
	// sidecarAnnotation numbers the init containers that run on, from 1; they stop last, in reverse.
	sidecarAnnotation = "dev.evenkeel/sidecar"
)

// sandboxConfig is the pod as CRI sees it. resolvConf is the machine's own /etc/resolv.conf.
func sandboxConfig(pod *v1.Pod, dir podDir, resolvConf string) *cri.PodSandboxConfig {
	annotations := map[string]string{directoryAnnotation: dir.Path}
	maps.Copy(annotations, pod.Annotations)
	annotations[directoryAnnotation] = dir.Path
	config := &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: pod.Name, Namespace: pod.Namespace, Uid: string(pod.UID)},
		LogDirectory: dir.logs(),
		DnsConfig:    dnsConfig(pod, resolvConf),
		Labels:       podLabels(pod),
		Annotations:  annotations,
		Linux: &cri.LinuxPodSandboxConfig{
			SecurityContext: sandboxSecurity(pod),
			Sysctls:         sysctls(pod),
			Resources:       podResources(pod),
		},
	}
	if !pod.Spec.HostNetwork {
		config.Hostname = podHostname(pod)
		config.PortMappings = portMappings(pod)
	}
	return config
}

// podHostname is the name asked for, or the pod's, cut to what the kernel takes.
func podHostname(pod *v1.Pod) string {
	if pod.Spec.Hostname != "" {
		return pod.Spec.Hostname
	}
	return strings.TrimRight(pod.Name[:min(63, len(pod.Name))], "-.")
}

func podLabels(pod *v1.Pod) map[string]string {
	labels := maps.Clone(pod.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	labels[podNameLabel] = pod.Name
	labels[podNamespaceLabel] = pod.Namespace
	labels[podUIDLabel] = string(pod.UID)
	return labels
}

// portMappings are those of the containers that run at the same time: an init container may name the port of a later one.
func portMappings(pod *v1.Pod) (list []*cri.PortMapping) {
	for _, c := range longRunning(pod) {
		for _, p := range c.Ports {
			list = append(list, &cri.PortMapping{
				Protocol:      cri.Protocol(cri.Protocol_value[string(p.Protocol)]),
				ContainerPort: p.ContainerPort,
				HostPort:      p.HostPort,
				HostIp:        p.HostIP,
			})
		}
	}
	return list
}

func namespaceOptions(pod *v1.Pod) *cri.NamespaceOption {
	o := &cri.NamespaceOption{Network: cri.NamespaceMode_POD, Pid: cri.NamespaceMode_CONTAINER, Ipc: cri.NamespaceMode_POD}
	if pod.Spec.HostNetwork {
		o.Network = cri.NamespaceMode_NODE
	}
	if pod.Spec.ShareProcessNamespace != nil && *pod.Spec.ShareProcessNamespace {
		o.Pid = cri.NamespaceMode_POD
	}
	if pod.Spec.HostPID {
		o.Pid = cri.NamespaceMode_NODE
	}
	if pod.Spec.HostIPC {
		o.Ipc = cri.NamespaceMode_NODE
	}
	return o
}

func sysctls(pod *v1.Pod) map[string]string {
	m := map[string]string{}
	for _, s := range pod.Spec.SecurityContext.Sysctls {
		m[s.Name] = s.Value
	}
	return m
}

// dnsConfig is nil when the machine's resolv.conf is to be used as it is. ClusterFirst, the default in a cluster, means the
// same here: there is no cluster.
func dnsConfig(pod *v1.Pod, resolvConf string) *cri.DNSConfig {
	extra := pod.Spec.DNSConfig
	if extra == nil {
		return nil
	}
	config := &cri.DNSConfig{}
	if pod.Spec.DNSPolicy != v1.DNSNone {
		config = parseResolvConf(resolvConf)
	}
	config.Servers = appendNew(config.Servers, extra.Nameservers)
	config.Searches = appendNew(config.Searches, extra.Searches)
	for _, o := range extra.Options {
		option := o.Name
		if o.Value != nil {
			option += ":" + *o.Value
		}
		// An option of the manifest replaces the machine's of the same name.
		config.Options = slices.DeleteFunc(config.Options, func(have string) bool {
			name, _, _ := strings.Cut(have, ":")
			return name == o.Name
		})
		config.Options = append(config.Options, option)
	}
	return config
}

func appendNew(list, more []string) []string {
	for _, s := range more {
		if !slices.Contains(list, s) {
			list = append(list, s)
		}
	}
	return list
}

func parseResolvConf(text string) *cri.DNSConfig {
	config := &cri.DNSConfig{}
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) < 2 {
			continue
		}
		switch words[0] {
		case "nameserver":
			config.Servers = append(config.Servers, words[1])
		case "search": // the last one counts, resolv.conf(5)
			config.Searches = words[1:]
		case "options":
			config.Options = append(config.Options, words[1:]...)
		}
	}
	return config
}

// hostsFile is /etc/hosts of the pod's containers, in the form that the kubelet gives it. nodeHosts is the machine's own, which
// pods on the host's network see.
func hostsFile(pod *v1.Pod, ips []string, nodeHosts string) string {
	var b strings.Builder
	if pod.Spec.HostNetwork {
		b.WriteString(nodeHosts)
	} else {
		b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\nfe00::\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n")
		for _, ip := range ips {
			fmt.Fprintf(&b, "%s\t%s\n", ip, podHostname(pod))
		}
	}
	if len(pod.Spec.HostAliases) > 0 {
		b.WriteString("\n# From hostAliases of the manifest.\n")
		for _, alias := range pod.Spec.HostAliases {
			fmt.Fprintf(&b, "%s\t%s\n", alias.IP, strings.Join(alias.Hostnames, "\t"))
		}
	}
	return b.String()
}
