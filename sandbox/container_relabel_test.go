package sandbox

import (
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestWhichVolumesAreRelabelled(t *testing.T) {
	paths := map[string]string{"/vol/asked": "/vol/asked", "/vol/link": "/mnt/behind", "/vol/plain": "/vol/plain", "/vol/etc": "/etc", "/dirty": "/var/lib/"}
	mount := func(from string, relabel bool) *cri.Mount {
		return &cri.Mount{ContainerPath: "/in" + from, HostPath: from, SelinuxRelabel: relabel}
	}
	image := &cri.Mount{ContainerPath: "/image", Image: &cri.ImageSpec{Image: "example.org/data"}, SelinuxRelabel: true}
	got, err := toRelabel(&cri.ContainerConfig{Mounts: []*cri.Mount{mount("/vol/asked", true), mount("/vol/plain", false), mount("/vol/link", true), image}}, paths)
	if want := []string{"/vol/asked", "/mnt/behind"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
	for _, from := range []string{"/vol/etc", "/dirty"} { // a link to it, and one written otherwise
		got, err := toRelabel(&cri.ContainerConfig{Mounts: []*cri.Mount{mount("/vol/asked", true), mount(from, true)}}, paths)
		if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "selinux_relabel") || !strings.Contains(err.Error(), paths[from]) || got != nil {
			t.Errorf("%s: got %q, %v", from, got, err)
		}
	}
}

// Where SELinux is off there is no label to give, and a request is not looked at: it may name what would be refused elsewhere.
func TestNothingIsRelabelledWithoutALabel(t *testing.T) {
	c := &creation{
		container: &container{Pods: &Pods{}}, hostPaths: map[string]string{"/etc": "/etc"}, spec: &specs.Spec{Linux: &specs.Linux{}},
		config: &cri.ContainerConfig{Mounts: []*cri.Mount{{ContainerPath: "/e", HostPath: "/etc", SelinuxRelabel: true}}},
	}
	if err := c.relabel(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestSELinuxIsOffWithoutItsFileSystem(t *testing.T) {
	if _, err := os.Stat("/sys/fs/selinux/context"); errors.Is(err, fs.ErrNotExist) && selinuxKnowsContainers() {
		t.Error("containers would get labels that no kernel checks")
	}
}
