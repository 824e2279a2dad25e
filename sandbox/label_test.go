package sandbox

import (
	"errors"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/oci"
	"github.com/evenkeel/evenkeel/shim"
)

// labelled is a pod at one level, with a container of its own options or none, on a machine with SELinux or without.
func labelled(t *testing.T, on bool, options *cri.SELinuxOption) (*pod, *container) {
	pods := &Pods{Host: oci.Host{SELinux: on}, State: t.TempDir()}
	p := &pod{Pods: pods, id: "p"}
	p.record.Store(&podRecord{Config: document[*cri.PodSandboxConfig]{&cri.PodSandboxConfig{Linux: &cri.LinuxPodSandboxConfig{
		SecurityContext: &cri.LinuxSandboxSecurityContext{SelinuxOptions: &cri.SELinuxOption{Level: "s0:c1,c2"}},
	}}}})
	c := &container{Pods: pods, id: "c"}
	c.record.Store(&containerRecord{Config: document[*cri.ContainerConfig]{&cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: "main"},
		Linux:    &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{SelinuxOptions: options}},
	}}})
	return p, c
}

func TestMountLabels(t *testing.T) {
	const files = "system_u:object_r:container_file_t:"
	for name, test := range map[string]struct {
		on             bool
		own            *cri.SELinuxOption
		pod, container string
		shm            string
	}{
		"off":                {own: &cri.SELinuxOption{Level: "s0:c9"}, shm: "mode=1777,size=67108864,uid=0,gid=0"},
		"the pod's":          {on: true, pod: files + "s0:c1,c2", container: files + "s0:c1,c2", shm: `mode=1777,size=67108864,uid=0,gid=0,context="` + files + `s0:c1,c2"`},
		"a level of its own": {on: true, own: &cri.SELinuxOption{Level: "s0:c9"}, pod: files + "s0:c1,c2", container: files + "s0:c9", shm: `mode=1777,size=67108864,uid=0,gid=0,context="` + files + `s0:c1,c2"`},
	} {
		p, c := labelled(t, test.on, test.own)
		got, err := p.creation(c).mountLabel()
		if err != nil || got != test.container || p.mountLabel() != test.pod {
			t.Errorf("%s: container %q (%v), pod %q", name, got, err, p.mountLabel())
		}
		if got := shmOptions(shim.Owner{}, p.mountLabel()); got != test.shm {
			t.Errorf("%s: /dev/shm has options %s, want %s", name, got, test.shm)
		}
	}
}

func TestLabelsThatNoMountTakesAreRefused(t *testing.T) {
	bad := &cri.SELinuxOption{Level: `s0",size=1`}
	for _, on := range []bool{true, false} {
		p, c := labelled(t, on, bad)
		_, ofContainer := p.creation(c).mountLabel()
		ofPod := p.checkLabel(&cri.PodSandboxConfig{Linux: &cri.LinuxPodSandboxConfig{SecurityContext: &cri.LinuxSandboxSecurityContext{SelinuxOptions: bad}}})
		for _, err := range []error{ofContainer, ofPod} {
			if refused := errors.Is(err, ErrInvalid) && strings.Contains(err.Error(), "selinux_options"); refused != on {
				t.Errorf("SELinux %v: %v", on, err)
			}
		}
	}
}

func TestFilesOfThePodAreLabelled(t *testing.T) {
	for _, on := range []bool{true, false} {
		p, _ := labelled(t, on, nil)
		if err := os.MkdirAll(p.podState(p.id), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p.file("hosts"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		want := labelOf(p.file("hosts"))
		if on {
			want = p.mountLabel()
		}
		if err := p.labelFiles("hosts"); err != nil {
			t.Fatal(err)
		}
		if got := labelOf(p.file("hosts")); got != want {
			t.Errorf("SELinux %v: label %q, want %q", on, got, want)
		}
		if err := p.labelFiles("hosts", "gone"); errors.Is(err, os.ErrNotExist) != on {
			t.Errorf("SELinux %v, missing file: %v", on, err)
		}
	}
}

func labelOf(file string) string {
	buf := make([]byte, 100)
	n, err := unix.Lgetxattr(file, "security.selinux", buf)
	if err != nil {
		return ""
	}
	return strings.TrimRight(string(buf[:n]), "\x00")
}
