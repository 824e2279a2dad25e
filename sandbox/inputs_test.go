package sandbox

import (
	"bytes"
	"errors"
	"os"
	"strconv"
	"strings"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/image"
	"github.com/evenkeel/evenkeel/network"
	"github.com/evenkeel/evenkeel/shim"
)

func TestEverySignalOfTheCRIHasANumber(t *testing.T) {
	for value, name := range cri.Signal_name {
		if value == 0 {
			continue
		}
		short := strings.TrimPrefix(name, "SIGNAL_")
		if n, ok := signalNumber(short); !ok || n < 1 || n > 64 {
			t.Errorf("%s: %d, %v", short, n, ok)
		}
	}
	for text, want := range map[string]int{
		"SIGTERM": 15, "term": 15, "9": 9, "SIGRTMIN": 34, "SIGRTMIN+3": 37, "RTMAX-1": 63, "SIGRTMINPLUS15": 49, "SIGRTMAXMINUS14": 50, "SIGPOLL": 29,
	} {
		if n, ok := signalNumber(text); !ok || n != want {
			t.Errorf("%q is %d (%v), want %d", text, n, ok, want)
		}
	}
	for _, text := range []string{"", "SIGNOPE", "0", "65", "-1", "SIGRTMIN+31", "SIGRTMIN+x"} {
		if n, ok := signalNumber(text); ok {
			t.Errorf("%q is taken for %d", text, n)
		}
	}
}

func TestStopSignal(t *testing.T) {
	img := &image.Image{}
	if n := stopSignal(&cri.ContainerConfig{}, img); n != 15 {
		t.Errorf("default is %d", n)
	}
	img.Config.Config.StopSignal = "SIGQUIT"
	if n := stopSignal(&cri.ContainerConfig{}, img); n != 3 {
		t.Errorf("image's is %d", n)
	}
	if n := stopSignal(&cri.ContainerConfig{StopSignal: cri.Signal_SIGNAL_SIGUSR1}, img); n != 10 {
		t.Errorf("request's is %d", n)
	}
	if s := criSignal(10); s != cri.Signal_SIGNAL_SIGUSR1 {
		t.Errorf("10 is %s", s)
	}
}

func TestAnUnknownStopSignalIsRefused(t *testing.T) {
	pod, containers := enter(t, emptyPods(t), "p", 1)
	containers[0].facts().Config.Message.StopSignal = 99
	if err := pod.creation(containers[0]).check(t.Context()); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "config.stop_signal: 99") {
		t.Errorf("got %v", err)
	}
	containers[0].facts().Config.Message.StopSignal = cri.Signal_SIGNAL_SIGRTMAX
	if err := pod.creation(containers[0]).check(t.Context()); err != nil {
		t.Errorf("a signal of the CRI's: %v", err)
	}
}

func TestATargetWhosePidIsAnothersIsRefused(t *testing.T) {
	pod, containers := enter(t, emptyPods(t), "p", 2)
	c, target := containers[0], containers[1]
	c.facts().Config.Message.Linux = &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{
		NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_TARGET, TargetId: target.id}}}
	stat, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		t.Fatal(err)
	}
	start, err := strconv.ParseUint(strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))[19], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	target.facts().Process = shim.Process{PID: os.Getpid(), Start: start}
	if err := pod.creation(c).checkTarget(t.Context()); err != nil {
		t.Errorf("a target that lives: %v", err)
	}
	target.facts().Process.Start++
	if err := pod.creation(c).checkTarget(t.Context()); !errors.Is(err, ErrState) || !strings.Contains(err.Error(), target.id) {
		t.Errorf("got %v", err)
	}
}

func TestResolvConf(t *testing.T) {
	got, err := resolvConf(&cri.DNSConfig{Servers: []string{"10.0.0.10", "fd00::10"}, Searches: []string{"a.b", "b"}, Options: []string{"ndots:5"}}, network.DNS{Servers: []string{"1.1.1.1"}})
	want := "search a.b b\nnameserver 10.0.0.10\nnameserver fd00::10\noptions ndots:5\n"
	if err != nil || string(got) != want {
		t.Errorf("request: %q, %v", got, err)
	}
	if got, _ = resolvConf(nil, network.DNS{Servers: []string{"1.1.1.1"}}); string(got) != "nameserver 1.1.1.1\n" {
		t.Errorf("plugin: %q", got)
	}
}

func TestRequestsThatCannotWorkAreNamed(t *testing.T) {
	p := &Pods{Runtimes: map[string]*Runtime{"": {}, "runc": {}}}
	meta := &cri.PodSandboxMetadata{Name: "n", Namespace: "ns", Uid: "u"}
	security := func(sc *cri.LinuxSandboxSecurityContext) *cri.PodSandboxConfig {
		return &cri.PodSandboxConfig{Metadata: meta, Linux: &cri.LinuxPodSandboxConfig{SecurityContext: sc}}
	}
	for _, test := range []struct {
		name, handler, says string
		cfg                 *cri.PodSandboxConfig
		is                  error
	}{
		{"no metadata", "", "metadata", &cri.PodSandboxConfig{}, ErrInvalid},
		{"no handler", "kata", `"kata"`, &cri.PodSandboxConfig{Metadata: meta}, ErrInvalid},
		{"cgroup escape", "", "cgroup_parent", &cri.PodSandboxConfig{Metadata: meta, Linux: &cri.LinuxPodSandboxConfig{CgroupParent: "/a/../b"}}, ErrInvalid},
		{"group without user", "", "run_as_group", security(&cri.LinuxSandboxSecurityContext{RunAsGroup: &cri.Int64Value{Value: 1}}), ErrInvalid},
		{"network container", "", "network", security(&cri.LinuxSandboxSecurityContext{NamespaceOptions: &cri.NamespaceOption{Network: cri.NamespaceMode_CONTAINER}}), ErrInvalid},
		{"pid target", "", "pid", security(&cri.LinuxSandboxSecurityContext{NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_TARGET}}), ErrInvalid},
		{"host ip", "", "host_ip", &cri.PodSandboxConfig{Metadata: meta, PortMappings: []*cri.PortMapping{{HostIp: "nope", HostPort: 1}}}, ErrInvalid},
		{"port", "", "65535", &cri.PodSandboxConfig{Metadata: meta, PortMappings: []*cri.PortMapping{{HostPort: 70000}}}, ErrInvalid},
	} {
		err := p.checkPod(test.cfg, test.handler)
		if !errors.Is(err, test.is) || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: %v", test.name, err)
		}
	}
	if err := p.checkPod(&cri.PodSandboxConfig{Metadata: meta}, "runc"); err != nil {
		t.Errorf("a plain pod: %v", err)
	}
}

func TestIdsAndPrefixes(t *testing.T) {
	x := newIndex()
	x.pods["aabb"], x.pods["aacc"] = &pod{id: "aabb"}, &pod{id: "aacc"}
	if p, err := x.pod("aab"); err != nil || p.id != "aabb" {
		t.Errorf("unique prefix: %v %v", p, err)
	}
	if _, err := x.pod("aa"); !errors.Is(err, ErrInvalid) {
		t.Errorf("ambiguous prefix: %v", err)
	}
	for _, id := range []string{"", "b"} {
		if _, err := x.pod(id); !errors.Is(err, ErrNotFound) {
			t.Errorf("%q: %v", id, err)
		}
	}
}

// The kubelet asks for an image by its id; people know it by its name, which Kubernetes shows from the status.
func TestTheStatusNamesTheImage(t *testing.T) {
	const id, digest = "sha256:7f0c", "example.org/web@sha256:1111111111111111111111111111111111111111111111111111111111111111"
	whole := &image.Image{Tags: []string{"docker.io/library/web:1", "docker.io/library/web:latest"}, Digests: []string{digest}}
	for _, c := range []struct {
		asked *cri.ImageSpec
		img   *image.Image
		want  string
	}{
		{&cri.ImageSpec{Image: id, UserSpecifiedImage: "web"}, whole, "docker.io/library/web:latest"},
		{&cri.ImageSpec{Image: id, UserSpecifiedImage: digest}, whole, digest},
		{&cri.ImageSpec{Image: id, UserSpecifiedImage: "example.org/untagged-since:2"}, whole, "docker.io/library/web:1"},
		{&cri.ImageSpec{Image: "web:1"}, whole, "docker.io/library/web:1"},
		{&cri.ImageSpec{Image: id}, whole, "docker.io/library/web:1"},
		{&cri.ImageSpec{Image: id}, &image.Image{Digests: []string{digest}}, digest},
		{&cri.ImageSpec{Image: id, UserSpecifiedImage: "web"}, &image.Image{}, id},
	} {
		r := containerRecord{Config: document[*cri.ContainerConfig]{&cri.ContainerConfig{Image: c.asked}}, ImageName: imageName(c.asked, c.img)}
		got := (&Pods{}).newContainer(r).status().Image
		if got.Image != c.want || got.UserSpecifiedImage != c.asked.UserSpecifiedImage {
			t.Errorf("%v with the names %q %q: the status says %v, want %s", c.asked, c.img.Tags, c.img.Digests, got, c.want)
		}
	}
	old := containerRecord{Config: document[*cri.ContainerConfig]{&cri.ContainerConfig{Image: &cri.ImageSpec{Image: id}}}}
	if got := (&Pods{}).newContainer(old).status().Image; got.Image != id {
		t.Errorf("a record of an older release: %v", got)
	}
}

func TestPortsThatLeadElsewhere(t *testing.T) {
	for _, c := range []struct {
		a, b string
		same bool
	}{
		{"", "0.0.0.0", true}, {"::", "", true}, {"0.0.0.0", "::ffff:0.0.0.0", true}, {"", "", true}, {"10.0.0.1", "10.0.0.1", true},
		{"0.0.0.0", "::", false}, {"10.0.0.1", "", false}, {"10.0.0.1", "10.0.0.2", false},
	} {
		err := checkPorts([]*cri.PortMapping{{HostIp: c.a, HostPort: 80, ContainerPort: 1}, {HostIp: c.b, HostPort: 80, ContainerPort: 2}})
		if errors.Is(err, ErrInvalid) != c.same || c.same && !strings.Contains(err.Error(), "port_mappings[1].host_port 80 leads elsewhere in config.port_mappings[0]") {
			t.Errorf("%q and %q: %v", c.a, c.b, err)
		}
		if err := checkPorts([]*cri.PortMapping{{HostIp: c.a, HostPort: 80, ContainerPort: 1}, {HostIp: c.b, HostPort: 80, ContainerPort: 1}}); err != nil {
			t.Errorf("%q and %q to one port: %v", c.a, c.b, err)
		}
	}
}
