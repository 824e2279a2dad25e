package main

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"math"
	"net/netip"
	"os"
	"path"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// readManifest reads one Pod from a file, or from in when the name is "-".
func readManifest(name string, in io.Reader) (*v1.Pod, error) {
	var raw []byte
	var err error
	if name == "-" {
		raw, err = io.ReadAll(in)
	} else {
		raw, err = os.ReadFile(name)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read the manifest: %w", err)
	}
	pod, err := parseManifest(raw)
	if err != nil {
		return nil, fmt.Errorf("manifest %s: %w", name, err)
	}
	return pod, nil
}

// parseManifest is strict: a field that Kubernetes does not know, or that would change what the pod does and is not
// supported here, is an error that names it. Defaults are filled in as the API server does.
func parseManifest(raw []byte) (*v1.Pod, error) {
	pod := &v1.Pod{}
	document, err := onlyDocument(raw)
	if err != nil {
		return nil, err
	}
	unknown, err := json.UnmarshalStrict(document, pod)
	if err != nil {
		return nil, err
	}
	if pod.APIVersion != "v1" || pod.Kind != "Pod" {
		return nil, fmt.Errorf("this is apiVersion %q, kind %q: only a v1 Pod can be run", pod.APIVersion, pod.Kind)
	}
	if err := errors.Join(unknown...); err != nil {
		return nil, err
	}
	if err := unsupportedFields(pod); err != nil {
		return nil, err
	}
	setDefaults(pod)
	return pod, validatePod(pod)
}

// onlyDocument is the manifest as JSON. The parser reads the first document of a file and says nothing of others.
func onlyDocument(raw []byte) ([]byte, error) {
	var found [][]byte
	for _, text := range documents(raw) {
		document, err := yaml.YAMLToJSONStrict(text)
		if err != nil {
			return nil, err
		}
		if string(document) != "null" {
			found = append(found, document)
		}
	}
	switch len(found) {
	case 0:
		return nil, errors.New("it is empty")
	case 1:
		return found[0], nil
	}
	var titles []string
	for _, document := range found {
		var of struct {
			Kind     string `json:"kind"`
			Metadata struct {
				Name string `json:"name"`
			} `json:"metadata"`
		}
		json.UnmarshalCaseSensitivePreserveInts(document, &of) // what is no object has no title
		titles = append(titles, of.Kind+"/"+of.Metadata.Name)
	}
	return nil, fmt.Errorf("it holds %d documents (%s): only a single Pod can be run, so give each a file of its own", len(found), strings.Join(titles, ", "))
}

// documents parts a YAML stream at its marks. Each part keeps its place in the file by empty lines, so that errors name the
// lines that a reader sees.
func documents(raw []byte) (parts [][]byte) {
	var part []byte
	lines := 0
	for line := range bytes.Lines(raw) {
		if bytes.HasPrefix(line, []byte("---")) || bytes.HasPrefix(line, []byte("...")) {
			if rest := line[3:]; len(rest) == 0 || bytes.IndexByte([]byte(" \t\r\n"), rest[0]) >= 0 {
				parts = append(parts, part)
				part, line = bytes.Repeat([]byte("\n"), lines), append([]byte("   "), rest...)
			}
		}
		part = append(part, line...)
		lines++
	}
	return append(parts, part)
}

func setDefaults(pod *v1.Pod) {
	if pod.Namespace == "" {
		pod.Namespace = "default"
	}
	if pod.Spec.RestartPolicy == "" {
		pod.Spec.RestartPolicy = v1.RestartPolicyAlways
	}
	if pod.Spec.TerminationGracePeriodSeconds == nil {
		seconds := int64(defaultGrace.Seconds())
		pod.Spec.TerminationGracePeriodSeconds = &seconds
	}
	if pod.Spec.SecurityContext == nil {
		pod.Spec.SecurityContext = &v1.PodSecurityContext{}
	}
	for i := range pod.Spec.Volumes {
		// A volume without a source is an emptyDir (k8s.io/kubernetes/pkg/apis/core/v1/defaults.go).
		if pod.Spec.Volumes[i].VolumeSource == (v1.VolumeSource{}) {
			pod.Spec.Volumes[i].EmptyDir = &v1.EmptyDirVolumeSource{}
		}
	}
	for _, list := range [][]v1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			setContainerDefaults(&list[i])
		}
	}
}

func setContainerDefaults(c *v1.Container) {
	if c.SecurityContext == nil {
		c.SecurityContext = &v1.SecurityContext{}
	}
	for i := range c.Ports {
		if c.Ports[i].Protocol == "" {
			c.Ports[i].Protocol = v1.ProtocolTCP
		}
	}
	// A limit without a request is the request, too.
	for name, limit := range c.Resources.Limits {
		if _, set := c.Resources.Requests[name]; !set {
			if c.Resources.Requests == nil {
				c.Resources.Requests = v1.ResourceList{}
			}
			c.Resources.Requests[name] = limit
		}
	}
}

// newUID is a random UUID, version 4.
func newUID() types.UID {
	var b [16]byte
	rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return types.UID(fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:]))
}

// validatePod checks what later steps rely on; the rest is the engine's to refuse.
func validatePod(pod *v1.Pod) error {
	for field, problems := range map[string][]string{
		"metadata.name":      validation.IsDNS1123Subdomain(pod.Name),
		"metadata.namespace": validation.IsDNS1123Label(pod.Namespace),
		"spec.hostname":      optional(pod.Spec.Hostname, validation.IsDNS1123Label),
		// The uid names a directory.
		"metadata.uid": optional(string(pod.UID), validation.IsDNS1123Subdomain),
	} {
		if len(problems) > 0 {
			return fmt.Errorf("%s: %s", field, problems[0])
		}
	}
	if len(pod.Spec.Containers) == 0 {
		return fmt.Errorf("spec.containers: a pod has at least one")
	}
	if err := validateWords(pod); err != nil {
		return err
	}
	if err := validateVolumes(pod); err != nil {
		return err
	}
	return validateContainers(pod)
}

func optional(value string, check func(string) []string) []string {
	if value == "" {
		return nil
	}
	return check(value)
}

// validateWords checks the fields that take one of a few words.
func validateWords(pod *v1.Pod) error {
	switch pod.Spec.RestartPolicy {
	case v1.RestartPolicyAlways, v1.RestartPolicyOnFailure, v1.RestartPolicyNever:
	default:
		return fmt.Errorf("spec.restartPolicy: %q is none of Always, OnFailure, Never", pod.Spec.RestartPolicy)
	}
	switch pod.Spec.DNSPolicy {
	case "", v1.DNSDefault, v1.DNSClusterFirst, v1.DNSClusterFirstWithHostNet:
	case v1.DNSNone:
		if pod.Spec.DNSConfig == nil || len(pod.Spec.DNSConfig.Nameservers) == 0 {
			return fmt.Errorf("spec.dnsConfig.nameservers: needed with dnsPolicy None")
		}
	default:
		return fmt.Errorf("spec.dnsPolicy: %q is none of Default, ClusterFirst, ClusterFirstWithHostNet, None", pod.Spec.DNSPolicy)
	}
	if s := *pod.Spec.TerminationGracePeriodSeconds; s < 0 || s > math.MaxInt32 {
		return fmt.Errorf("spec.terminationGracePeriodSeconds: %d is none of 0 to %d", s, math.MaxInt32)
	}
	if p := pod.Spec.SecurityContext.SupplementalGroupsPolicy; p != nil && *p != v1.SupplementalGroupsPolicyMerge && *p != v1.SupplementalGroupsPolicyStrict {
		return fmt.Errorf("spec.securityContext.supplementalGroupsPolicy: %q is neither Merge nor Strict", *p)
	}
	if pod.Spec.OS != nil && pod.Spec.OS.Name != v1.Linux {
		return fmt.Errorf("spec.os.name: %q does not run here, only linux", pod.Spec.OS.Name)
	}
	for i, alias := range pod.Spec.HostAliases {
		if _, err := netip.ParseAddr(alias.IP); err != nil {
			return fmt.Errorf("spec.hostAliases[%d].ip: %q is no address", i, alias.IP)
		}
	}
	if pod.Spec.HostPID && pod.Spec.ShareProcessNamespace != nil && *pod.Spec.ShareProcessNamespace {
		return fmt.Errorf("spec.shareProcessNamespace: excludes hostPID")
	}
	return nil
}

func validateVolumes(pod *v1.Pod) error {
	seen := map[string]bool{}
	for i, v := range pod.Spec.Volumes {
		at := fmt.Sprintf("spec.volumes[%d]", i)
		if problems := validation.IsDNS1123Label(v.Name); len(problems) > 0 {
			return fmt.Errorf("%s.name: %s", at, problems[0])
		}
		switch {
		case seen[v.Name]:
			return fmt.Errorf("%s.name: %q is there twice", at, v.Name)
		case v.EmptyDir != nil && v.HostPath != nil:
			return fmt.Errorf("%s: a volume has one source", at)
		case v.HostPath != nil && !path.IsAbs(v.HostPath.Path):
			return fmt.Errorf("%s.hostPath.path: %q is not absolute", at, v.HostPath.Path)
		case v.EmptyDir != nil && v.EmptyDir.SizeLimit != nil && v.EmptyDir.Medium != v1.StorageMediumMemory:
			return fmt.Errorf("%s.emptyDir.sizeLimit: can be kept with medium Memory only", at)
		case v.EmptyDir != nil && v.EmptyDir.Medium != "" && v.EmptyDir.Medium != v1.StorageMediumMemory:
			return fmt.Errorf("%s.emptyDir.medium: %q is not supported, only Memory", at, v.EmptyDir.Medium)
		}
		seen[v.Name] = true
	}
	return nil
}

func validateContainers(pod *v1.Pod) error {
	volumes := map[string]bool{}
	for _, v := range pod.Spec.Volumes {
		volumes[v.Name] = true
	}
	seen := map[string]bool{}
	check := func(at string, c *v1.Container) error {
		if problems := validation.IsDNS1123Label(c.Name); len(problems) > 0 {
			return fmt.Errorf("%s.name: %s", at, problems[0])
		}
		if seen[c.Name] {
			return fmt.Errorf("%s.name: %q is there twice", at, c.Name)
		}
		seen[c.Name] = true
		return validateContainer(at, c, pod, volumes)
	}
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		if c.RestartPolicy != nil && *c.RestartPolicy != v1.ContainerRestartPolicyAlways {
			return fmt.Errorf("spec.initContainers[%d].restartPolicy: only Always is supported", i)
		}
		if err := check(fmt.Sprintf("spec.initContainers[%d]", i), c); err != nil {
			return err
		}
	}
	for i := range pod.Spec.Containers {
		at, c := fmt.Sprintf("spec.containers[%d]", i), &pod.Spec.Containers[i]
		if c.RestartPolicy != nil {
			return fmt.Errorf("%s.restartPolicy: is for init containers, or give spec.restartPolicy", at)
		}
		if err := check(at, c); err != nil {
			return err
		}
	}
	return validatePorts(pod)
}

func validateContainer(at string, c *v1.Container, pod *v1.Pod, volumes map[string]bool) error {
	if c.Image == "" {
		return fmt.Errorf("%s.image: is needed", at)
	}
	switch c.ImagePullPolicy {
	case "", v1.PullAlways, v1.PullIfNotPresent, v1.PullNever:
	default:
		return fmt.Errorf("%s.imagePullPolicy: %q is none of Always, IfNotPresent, Never", at, c.ImagePullPolicy)
	}
	mounted := map[string]bool{}
	for i, m := range c.VolumeMounts {
		at := fmt.Sprintf("%s.volumeMounts[%d]", at, i)
		switch {
		case !volumes[m.Name]:
			return fmt.Errorf("%s.name: the pod has no volume %q", at, m.Name)
		case !path.IsAbs(m.MountPath):
			return fmt.Errorf("%s.mountPath: %q is not absolute", at, m.MountPath)
		case mounted[path.Clean(m.MountPath)]:
			return fmt.Errorf("%s.mountPath: %s is there twice", at, m.MountPath)
		case path.IsAbs(m.SubPath) || hasDotDot(m.SubPath):
			return fmt.Errorf("%s.subPath: %q leaves the volume", at, m.SubPath)
		}
		mounted[path.Clean(m.MountPath)] = true
	}
	if err := validateEnv(at, c, pod); err != nil {
		return err
	}
	if err := validateResources(at, c); err != nil {
		return err
	}
	return validateSecurity(at, c, pod)
}

func hasDotDot(p string) bool {
	for part := range strings.SplitSeq(p, "/") {
		if part == ".." {
			return true
		}
	}
	return false
}

func validatePorts(pod *v1.Pod) error {
	taken := map[string]string{}
	for i := range pod.Spec.InitContainers {
		if err := validateContainerPorts(fmt.Sprintf("spec.initContainers[%d]", i), &pod.Spec.InitContainers[i], pod, taken); err != nil {
			return err
		}
	}
	for i := range pod.Spec.Containers {
		if err := validateContainerPorts(fmt.Sprintf("spec.containers[%d]", i), &pod.Spec.Containers[i], pod, taken); err != nil {
			return err
		}
	}
	return nil
}

// validateContainerPorts notes in taken which ports of the machine the container has.
func validateContainerPorts(at string, c *v1.Container, pod *v1.Pod, taken map[string]string) error {
	for i, p := range c.Ports {
		at := fmt.Sprintf("%s.ports[%d]", at, i)
		_, notAddress := netip.ParseAddr(p.HostIP)
		switch {
		case p.ContainerPort < 1 || p.ContainerPort > 65535:
			return fmt.Errorf("%s.containerPort: %d is no port", at, p.ContainerPort)
		case p.HostPort < 0 || p.HostPort > 65535:
			return fmt.Errorf("%s.hostPort: %d is no port", at, p.HostPort)
		case !slices.Contains([]v1.Protocol{v1.ProtocolTCP, v1.ProtocolUDP, v1.ProtocolSCTP}, p.Protocol):
			return fmt.Errorf("%s.protocol: %q is none of TCP, UDP, SCTP", at, p.Protocol)
		case p.HostIP != "" && notAddress != nil:
			return fmt.Errorf("%s.hostIP: %q is no address", at, p.HostIP)
		case pod.Spec.HostNetwork && p.HostPort != 0 && p.HostPort != p.ContainerPort:
			return fmt.Errorf("%s.hostPort: must equal containerPort with hostNetwork", at)
		case p.HostPort == 0 || !slices.Contains(longRunning(pod), c):
			continue
		}
		key := fmt.Sprintf("%s/%s/%d", p.Protocol, p.HostIP, p.HostPort)
		if other := taken[key]; other != "" {
			return fmt.Errorf("%s.hostPort: %d is taken by %s", at, p.HostPort, other)
		}
		taken[key] = at
	}
	return nil
}
