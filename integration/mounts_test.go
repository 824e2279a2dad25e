package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/integration/engine"
	"github.com/evenkeel/evenkeel/integration/registry"
)

// mountPoint is a tmpfs of the node's own with the given propagation.
func mountPoint(t *testing.T, propagation uintptr) string {
	t.Helper()
	dir := t.TempDir()
	must(t, unix.Mount("ektest", dir, "tmpfs", 0, ""))
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	must(t, unix.Mount("", dir, "", propagation, ""))
	return dir
}

func mountBelow(t *testing.T, dir string) {
	t.Helper()
	must(t, os.MkdirAll(dir, 0o755))
	must(t, unix.Mount("ektest", dir, "tmpfs", 0, ""))
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	must(t, os.WriteFile(filepath.Join(dir, "here"), nil, 0o644))
}

func TestMountsTravel(t *testing.T) {
	n := start(t, "builtin")
	cfg := n.Pod("p")
	cfg.Linux.SecurityContext.Privileged = true
	pod := n.runPod(cfg)
	shared, private := mountPoint(t, unix.MS_SHARED), mountPoint(t, unix.MS_PRIVATE)
	c := engine.Sleeper("main", busybox)
	c.Linux.SecurityContext.Privileged = true
	c.Mounts = []*cri.Mount{
		{HostPath: shared, ContainerPath: "/both", Propagation: cri.MountPropagation_PROPAGATION_BIDIRECTIONAL},
		{HostPath: shared, ContainerPath: "/in", Propagation: cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER},
		{HostPath: shared, ContainerPath: "/none"},
	}
	id := n.run(pod, cfg, c)
	mountBelow(t, shared+"/late")
	if got := n.output(id, "sh", "-c", "for d in both in none; do test -e /$d/late/here && echo $d; done; true"); got != "both\nin\n" {
		t.Errorf("a mount of the node shows in %q", got)
	}
	n.output(id, "sh", "-c", "mkdir /both/out && mount -t tmpfs x /both/out && touch /both/out/there")
	if _, err := os.Stat(shared + "/out/there"); err != nil {
		t.Errorf("a mount of the container does not show on the node: %v", err)
	}
	unix.Unmount(shared+"/out", unix.MNT_DETACH)

	for propagation, word := range map[cri.MountPropagation]string{
		cri.MountPropagation_PROPAGATION_BIDIRECTIONAL: "not shared", cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER: "neither shared nor a slave",
	} {
		c := engine.Sleeper("refused", busybox)
		c.Linux.SecurityContext.Privileged = true
		c.Mounts = []*cri.Mount{{HostPath: private, ContainerPath: "/x", Propagation: propagation}}
		_, err := n.Runtime.CreateContainer(n.ctx(), &cri.CreateContainerRequest{PodSandboxId: pod, Config: c, SandboxConfig: cfg})
		refused(t, err, codes.InvalidArgument, private, word, "--make-rshared")
	}
}

// What the engine mounts for a container below a volume that propagates both ways would become a mount of the node's, and stay.
func TestMountsOfTheEngineDoNotTravel(t *testing.T) {
	n := start(t, "builtin")
	cfg := n.Pod("p")
	cfg.Linux.SecurityContext.Privileged = true
	pod := n.runPod(cfg)
	shared := mountPoint(t, unix.MS_SHARED)
	must(t, os.MkdirAll(shared+"/shm", 0o755))
	t.Cleanup(func() { unix.Unmount(shared+"/shm", unix.MNT_DETACH) })
	c := engine.Sleeper("main", busybox)
	c.Linux.SecurityContext.Privileged = true
	c.Mounts = []*cri.Mount{{HostPath: shared, ContainerPath: "/dev", Propagation: cri.MountPropagation_PROPAGATION_BIDIRECTIONAL}}
	id := n.run(pod, cfg, c)
	n.stop(id, 0)
	n.remove(id)
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	if strings.Contains(string(mounts), " "+shared+"/shm ") {
		t.Errorf("/dev/shm of a container that is gone is mounted on the node")
	}
}

// The runtime mounts the terminal of a container on /dev/console, wherever that is.
func TestTerminalsDoNotTravel(t *testing.T) {
	n := start(t, "builtin")
	cfg := n.Pod("p")
	cfg.Linux.SecurityContext.Privileged = true
	pod := n.runPod(cfg)
	shared := mountPoint(t, unix.MS_SHARED) // stands for the node's /dev
	must(t, os.MkdirAll(shared+"/pts", 0o755))
	must(t, unix.Mount("devpts", shared+"/pts", "devpts", 0, "newinstance,ptmxmode=0666,mode=0620"))
	must(t, os.Symlink("pts/ptmx", shared+"/ptmx"))
	t.Cleanup(func() { unix.Unmount(shared+"/pts", unix.MNT_DETACH); unix.Unmount(shared+"/console", unix.MNT_DETACH) })
	c := engine.Sleeper("main", busybox)
	c.Tty = true
	c.Linux.SecurityContext.Privileged = true
	c.Mounts = []*cri.Mount{{HostPath: shared, ContainerPath: "/dev", Propagation: cri.MountPropagation_PROPAGATION_BIDIRECTIONAL}}
	_, err := n.Runtime.CreateContainer(n.ctx(), &cri.CreateContainerRequest{PodSandboxId: pod, Config: c, SandboxConfig: cfg})
	mounts, readErr := os.ReadFile("/proc/self/mountinfo")
	must(t, readErr)
	if strings.Contains(string(mounts), " "+shared+"/console ") {
		t.Errorf("the terminal of a container is mounted on the node's /dev/console")
	}
	refused(t, err, codes.InvalidArgument, "tty", "/dev/console", "PROPAGATION_BIDIRECTIONAL")
	c.Mounts[0].Propagation = cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER
	if out := n.output(n.run(pod, cfg, c), "sh", "-c", "test -c /dev/console && echo there"); out != "there\n" {
		t.Errorf("with mounts that travel one way: %q", out)
	}
}

// Neither does what hides the node from a container.
func TestMasksDoNotTravel(t *testing.T) {
	n := start(t, "builtin")
	cfg := n.Pod("p")
	pod := n.runPod(cfg)
	shared := mountPoint(t, unix.MS_SHARED)
	must(t, os.WriteFile(shared+"/file", []byte("of the node"), 0o644))
	must(t, os.MkdirAll(shared+"/dir", 0o755))
	t.Cleanup(func() { unix.Unmount(shared+"/file", unix.MNT_DETACH); unix.Unmount(shared+"/dir", unix.MNT_DETACH) })
	c := engine.Sleeper("main", busybox)
	c.Linux.SecurityContext.MaskedPaths, c.Linux.SecurityContext.ReadonlyPaths = []string{"/both/file", "/proc/kcore"}, []string{"/both/dir"}
	c.Mounts = []*cri.Mount{{HostPath: shared, ContainerPath: "/both", Propagation: cri.MountPropagation_PROPAGATION_BIDIRECTIONAL}}
	id := n.run(pod, cfg, c)
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	if strings.Contains(string(mounts), " "+shared+"/file ") || strings.Contains(string(mounts), " "+shared+"/dir ") {
		t.Errorf("what a container must not see or write is hidden from the node as well")
	}
	if out := n.output(id, "sh", "-c", "cat /both/file; head -c 1 /proc/kcore | wc -c"); out != "of the node0\n" {
		t.Errorf("got %q", out)
	}
}

func TestMountOptions(t *testing.T) {
	n := start(t, "builtin")
	cfg := n.Pod("p")
	pod := n.runPod(cfg)
	dir := mountPoint(t, unix.MS_PRIVATE)
	mountBelow(t, dir+"/below")
	must(t, os.Symlink("below", dir+"/link"))
	missing := filepath.Join(dir, "made/for/the/kubelet")
	c := engine.Sleeper("main", busybox)
	c.Mounts = []*cri.Mount{
		{HostPath: dir, ContainerPath: "/rro", Readonly: true, RecursiveReadOnly: true},
		{HostPath: dir, ContainerPath: "/ro", Readonly: true},
		{HostPath: dir + "/link", ContainerPath: "/link", MountOptions: []string{"noexec", "nodev", "nosuid"}},
		{HostPath: missing, ContainerPath: "/made"},
	}
	id := n.run(pod, cfg, c)
	got := n.output(id, "sh", "-c", `for f in /rro/x /rro/below/x /ro/x /ro/below/x /link/x /made/x; do (echo > $f) 2>/dev/null && echo $f; done
		cp /bin/busybox /link/run; /link/run true 2>/dev/null || echo noexec; grep -o ' /link [^ ]*' /proc/self/mountinfo`)
	for _, want := range []string{"/ro/below/x", "/link/x", "/made/x", "noexec", "nosuid,nodev,noexec"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q lacks %q", got, want)
		}
	}
	for _, line := range strings.Fields(got) {
		if strings.HasPrefix(line, "/rro/") || line == "/ro/x" {
			t.Errorf("%s could be written", line)
		}
	}
	if info, err := os.Stat(missing); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("%v, %v", info, err)
	}
	s, err := n.Runtime.Status(n.ctx(), &cri.StatusRequest{})
	must(t, err)
	if !s.Features.GetMountOptions() {
		t.Error("mount options work, and the status does not say so")
	}
}

// A program of another machine is named when the container is made, and nothing of the container stays.
func TestProgramOfAnotherMachine(t *testing.T) {
	n := start(t, "builtin")
	foreign := append([]byte("\x7fELF\x02\x01\x01"), make([]byte, 57)...)
	foreign[16], foreign[18], foreign[20], foreign[52], foreign[54] = 2, 8, 1, 64, 56 // an executable for MIPS
	ref := image(t, "foreign:latest", v1.Config{Entrypoint: []string{"/app"}}, registry.File{Name: "app", Mode: 0o755, Content: foreign})
	n.pull(ref)
	cfg := n.Pod("p")
	pod := n.runPod(cfg)
	_, err := n.Runtime.CreateContainer(n.ctx(), &cri.CreateContainerRequest{PodSandboxId: pod, Config: engine.Container("main", ref), SandboxConfig: cfg})
	refused(t, err, anyCode, "/app", "mips", "use an image built for linux/")
	list, err := n.Runtime.ListContainers(n.ctx(), &cri.ListContainersRequest{})
	must(t, err)
	if len(list.Containers) > 0 {
		t.Errorf("it is listed: %v", list.Containers)
	}
}

func TestCDIDevice(t *testing.T) {
	n := start(t, "builtin")
	file := fmt.Sprintf("/var/run/cdi/%s.json", n.Bridge)
	must(t, os.MkdirAll(filepath.Dir(file), 0o755))
	t.Cleanup(func() { os.Remove(file); os.Remove(filepath.Dir(file)) })
	kind := n.Bridge + ".test/thing"
	must(t, os.WriteFile(file, fmt.Appendf(nil, `{"cdiVersion": "0.7.0", "kind": %q, "containerEdits": {"env": ["VENDOR=1"]},
		"devices": [{"name": "a", "containerEdits": {"deviceNodes": [{"path": "/dev/thing", "hostPath": "/dev/zero"}],
		"mounts": [{"hostPath": %q, "containerPath": "/thing", "options": ["ro", "bind"]}], "additionalGids": [4711]}}]}`, kind, n.Base), 0o644))
	cfg := n.Pod("p")
	pod := n.runPod(cfg)
	c := engine.Sleeper("main", busybox)
	c.CDIDevices = []*cri.CDIDevice{{Name: kind + "=a"}}
	id := n.run(pod, cfg, c)
	if got := n.output(id, "sh", "-c", "head -c 4 /dev/thing | wc -c; echo $VENDOR; test -d /thing/root && echo mounted"); got != "4\n1\nmounted\n" {
		t.Errorf("%q", got)
	}
	if groups := n.status(id).GetUser().GetLinux().GetSupplementalGroups(); !slices.Contains(groups, 4711) {
		t.Errorf("the status leaves out the group of the device: %v", groups)
	}
	c = engine.Sleeper("other", busybox)
	c.CDIDevices = []*cri.CDIDevice{{Name: kind + "=b"}}
	_, err := n.Runtime.CreateContainer(n.ctx(), &cri.CreateContainerRequest{PodSandboxId: pod, Config: c, SandboxConfig: cfg})
	refused(t, err, codes.InvalidArgument, kind+"=b", "/var/run/cdi")
}
