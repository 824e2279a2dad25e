package sandbox

import (
	"errors"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/internal/systemd"
)

func podIn(p *Pods, parent string) *pod {
	cfg := &cri.PodSandboxConfig{Metadata: &cri.PodSandboxMetadata{Name: "p"}, Linux: &cri.LinuxPodSandboxConfig{CgroupParent: parent}}
	return p.newPod(podRecord{ID: strings.Repeat("a", 64), Config: document[*cri.PodSandboxConfig]{cfg}})
}

func TestCgroupsOfBothDrivers(t *testing.T) {
	const pod = "/kubepods.slice/kubepods-podx.slice"
	sandboxID, id := strings.Repeat("a", 64), strings.Repeat("b", 64)
	units := &systemd.Units{Prefix: "evenkeel"}
	for _, c := range []struct {
		pods                             *Pods
		parent, sandbox, container, spec string
	}{
		{&Pods{CgroupParent: "/evenkeel"}, "/kubepods/podx", "/kubepods/podx/" + sandboxID, "/kubepods/podx/" + id, "/kubepods/podx/" + id},
		{&Pods{CgroupParent: "/evenkeel"}, "", "/evenkeel/" + sandboxID, "/evenkeel/" + id, "/evenkeel/" + id},
		{&Pods{CgroupParent: "/evenkeel", Systemd: units}, "/kubepods/podx", "/kubepods/podx/" + sandboxID, "/kubepods/podx/" + id, "/kubepods/podx/" + id},
		{&Pods{CgroupParent: "/evenkeel.slice", Systemd: units, Scopes: true}, pod, pod + "/" + sandboxID, pod + "/evenkeel-" + id + ".scope", "kubepods-podx.slice:evenkeel:" + id},
		{&Pods{CgroupParent: "/evenkeel.slice", Systemd: units, Scopes: true}, "kubepods-podx.slice", pod + "/" + sandboxID, pod + "/evenkeel-" + id + ".scope", "kubepods-podx.slice:evenkeel:" + id},
		{&Pods{CgroupParent: "/evenkeel.slice", Systemd: units, Scopes: true}, "", "/evenkeel.slice/" + sandboxID, "/evenkeel.slice/evenkeel-" + id + ".scope", "evenkeel.slice:evenkeel:" + id},
	} {
		p := podIn(c.pods, c.parent)
		if got := p.facts().Cgroup; got != c.sandbox {
			t.Errorf("parent %q: the sandbox is in %s, want %s", c.parent, got, c.sandbox)
		}
		made := c.pods.newContainer(containerRecord{ID: id, Cgroup: p.containerCgroup(id)})
		if got := made.facts().Cgroup; got != c.container {
			t.Errorf("parent %q: the container is in %s, want %s", c.parent, got, c.container)
		}
		if got := p.creation(made).specCgroup(); got != c.spec {
			t.Errorf("parent %q: the spec says %s, want %s", c.parent, got, c.spec)
		}
		if scoped := made.scope() != ""; scoped != c.pods.Scopes {
			t.Errorf("parent %q: the unit is %q", c.parent, made.scope())
		}
	}
}

// TestPodKeepsItsDriver: the configuration may change while pods live.
func TestPodKeepsItsDriver(t *testing.T) {
	units := &systemd.Units{Prefix: "evenkeel"}
	old := podIn(&Pods{CgroupParent: "/evenkeel", Systemd: units}, "/kubepods/podx").facts()
	now := (&Pods{CgroupParent: "/evenkeel.slice", Systemd: units, Scopes: true}).newPod(*old)
	if r := now.facts(); r.Cgroup != old.Cgroup || r.Scopes {
		t.Errorf("the pod has moved to %s", r.Cgroup)
	}
	if got := now.containerCgroup("c"); got != "/kubepods/podx/c" {
		t.Errorf("its next container would be in %s", got)
	}
}

func TestParentMustBeASlice(t *testing.T) {
	p := &Pods{Scopes: true}
	for parent, good := range map[string]bool{"": true, "/a.slice/a-b.slice": true, "system.slice": true, "/kubepods/podx": false, "/a.slice/../b.slice": false} {
		if err := p.checkCgroupParent(parent); (err == nil) != good || !good && !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %v", parent, err)
		}
	}
}

func TestGraceAtShutdown(t *testing.T) {
	for text, want := range map[string]time.Duration{"": shutdownGrace, "5": 5 * time.Second, "0": shutdownGraceMin, "3600": shutdownGraceMax, "-1": shutdownGrace} {
		cfg := &cri.ContainerConfig{Annotations: map[string]string{gracePeriodKey: text}}
		if got := graceAtShutdown(cfg); got != want {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
}
