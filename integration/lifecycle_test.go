package integration

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/integration/engine"
)

func TestVersionAndStatus(t *testing.T) {
	n := start(t, "builtin")
	v, err := n.Runtime.Version(n.ctx(), &cri.VersionRequest{})
	must(t, err)
	if v.Version != "0.1.0" || v.RuntimeName != "evenkeel" || v.RuntimeVersion == "" || v.RuntimeApiVersion != "v1" {
		t.Errorf("the kubelet rejects this version: %v", v)
	}
	s, err := n.Runtime.Status(n.ctx(), &cri.StatusRequest{Verbose: true})
	must(t, err)
	ready := map[string]bool{}
	for _, c := range s.Status.Conditions {
		ready[c.Type] = c.Status
	}
	if !ready["RuntimeReady"] || !ready["NetworkReady"] {
		t.Errorf("conditions %v", s.Status.Conditions)
	}
	var handlers []string
	for _, h := range s.RuntimeHandlers {
		handlers = append(handlers, h.Name)
	}
	if !slices.Contains(handlers, "") {
		t.Errorf("the default handler \"\" is missing from %q", handlers)
	}
	c, err := n.Runtime.RuntimeConfig(n.ctx(), &cri.RuntimeConfigRequest{})
	must(t, err)
	if c.Linux == nil {
		t.Error("RuntimeConfig without linux means the systemd driver to a kubelet")
	}
	_, err = n.Runtime.UpdateRuntimeConfig(n.ctx(), &cri.UpdateRuntimeConfigRequest{RuntimeConfig: &cri.RuntimeConfig{}})
	must(t, err)
}

func TestLifeOfAPod(t *testing.T) {
	for _, network := range []string{"builtin", "cni"} {
		t.Run(network, func(t *testing.T) { lifeOfAPod(t, start(t, network)) })
	}
}

func lifeOfAPod(t *testing.T, n *node) {
	cfg := n.Pod("life")
	pod := n.runPod(cfg)
	s := n.podStatus(pod)
	if s.State != cri.PodSandboxState_SANDBOX_READY || s.CreatedAt <= 0 || s.Metadata.GetUid() != cfg.Metadata.Uid {
		t.Errorf("status of a new pod: %v", s)
	}
	if !reflect.DeepEqual(s.Labels, cfg.Labels) || !reflect.DeepEqual(s.Annotations, cfg.Annotations) {
		t.Errorf("labels and annotations are not echoed: %v %v", s.Labels, s.Annotations)
	}
	if len(pod) != 64 || strings.Trim(pod, "0123456789abcdef") != "" {
		t.Errorf("id %q is not 64 hex digits", pod)
	}
	ip := n.ip(pod)

	c := engine.Container("main", busybox, "sh", "-c", "trap 'echo bye; exit 7' TERM; hostname; ip -4 -o addr show eth0; echo oops >&2; while :; do sleep 1000 & wait $!; done")
	id := n.create(pod, cfg, c)
	if got := n.status(id); got.State != cri.ContainerState_CONTAINER_CREATED || got.StartedAt != 0 || got.CreatedAt <= 0 {
		t.Errorf("status of a created container: %v", got)
	}
	n.startContainer(id)
	got := n.status(id)
	if got.State != cri.ContainerState_CONTAINER_RUNNING || got.StartedAt < got.CreatedAt || got.LogPath != n.logPath(cfg, c) {
		t.Errorf("status of a running container: %v", got)
	}
	if got.Image.GetImage() == "" || got.ImageRef == "" || got.ImageId == "" {
		t.Errorf("a status without image is an error to the kubelet: %v", got)
	}

	if out := n.output(id, "hostname"); out != "life\n" {
		t.Errorf("hostname %q", out)
	}
	n.output(id, "ping", "-c", "1", "-w", "5", gateway(ip))
	n.output(id, "ping", "-c", "1", "-w", "5", "127.0.0.1")

	n.eventually(10*time.Second, func() error {
		if len(n.log(got.LogPath)) < 3 {
			return fmt.Errorf("log has not three lines yet")
		}
		return nil
	})
	n.stop(id, 10)
	got = n.status(id)
	if got.State != cri.ContainerState_CONTAINER_EXITED || got.ExitCode != 7 || got.Reason != "Error" || got.FinishedAt < got.StartedAt {
		t.Errorf("status after the stop: %v", got)
	}
	// The order within a stream is the container's; between the two there is none, since they are two pipes.
	lines := slices.DeleteFunc(n.log(got.LogPath), func(l logLine) bool { return l == logLine{"stderr", "F", "oops"} })
	if len(lines) != 3 || lines[0] != (logLine{"stdout", "F", "life"}) || !strings.Contains(lines[1].Text, ip) || lines[2].Text != "bye" {
		t.Errorf("log: %v", lines)
	}

	n.stop(id, 0)
	n.remove(id)
	n.remove(id)
	n.stopPod(pod)
	if s := n.podStatus(pod); s.State != cri.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("a stopped pod is %s", s.State)
	}
	n.stopPod(pod)
	n.removePod(pod)
	n.removePod(pod)
	_, err := n.Runtime.PodSandboxStatus(n.ctx(), &cri.PodSandboxStatusRequest{PodSandboxId: pod})
	refused(t, err, codes.NotFound)
	_, err = n.Runtime.ContainerStatus(n.ctx(), &cri.ContainerStatusRequest{ContainerId: id})
	refused(t, err, codes.NotFound)
}

// gateway is the first address of the pod's /24.
func gateway(ip string) string { return ip[:strings.LastIndexByte(ip, '.')] + ".1" }

func TestExits(t *testing.T) {
	n := start(t, "builtin")
	cfg := n.Pod("exits")
	cfg.Linux.Resources = nil
	pod := n.runPod(cfg)
	for _, c := range []struct {
		name   string
		argv   []string
		code   int32
		reason string
	}{
		{"well", []string{"true"}, 0, "Completed"},
		{"badly", []string{"sh", "-c", "exit 42"}, 42, "Error"},
		{"killed", []string{"sh", "-c", "kill -9 $$"}, 137, "Error"},
		{"terminated", []string{"sh", "-c", "sleep 0.1; kill -15 $$; sleep 1"}, 143, "Error"},
	} {
		t.Run(c.name, func(t *testing.T) {
			id := n.run(pod, cfg, engine.Container(c.name, busybox, c.argv...))
			s := n.awaitState(id, cri.ContainerState_CONTAINER_EXITED)
			// The first process of a PID namespace ignores signals it has no handler for, SIGKILL from inside too.
			if c.name == "killed" || c.name == "terminated" {
				if s.ExitCode == 255 {
					t.Errorf("an exit that was seen is reported as unknown: %v", s)
				}
				return
			}
			if s.ExitCode != c.code || s.Reason != c.reason {
				t.Errorf("exit code %d reason %q, want %d %q", s.ExitCode, s.Reason, c.code, c.reason)
			}
		})
	}
	t.Run("stopped at once", func(t *testing.T) {
		id := n.run(pod, cfg, engine.Container("deaf", busybox, "sh", "-c", "trap '' TERM; while :; do sleep 1; done"))
		n.stop(id, 0)
		if s := n.status(id); s.ExitCode != 137 {
			t.Errorf("exit code %d, want 137", s.ExitCode)
		}
	})
	t.Run("grace runs out", func(t *testing.T) {
		c := engine.Container("deaf2", busybox, "sh", "-c", "trap '' TERM; echo deaf; while :; do sleep 1; done")
		id := n.run(pod, cfg, c)
		n.eventually(time.Minute, func() error {
			if len(n.log(n.logPath(cfg, c))) == 0 {
				return errors.New("the container is not deaf yet")
			}
			return nil
		})
		begin := time.Now()
		n.stop(id, 1)
		if took := time.Since(begin); took < time.Second || took > time.Second+engine.Patience(3*time.Second) {
			t.Errorf("a stop with 1 s grace took %s", took)
		}
	})
	t.Run("entrypoint missing", func(t *testing.T) {
		cc := engine.Container("nowhere", busybox, "/no/such/program")
		id := n.create(pod, cfg, cc)
		_, err := n.Runtime.StartContainer(n.ctx(), &cri.StartContainerRequest{ContainerId: id})
		if err == nil {
			t.Fatal("a container without a program started")
		}
		if !strings.Contains(err.Error(), "/no/such/program") {
			t.Errorf("the message does not name the program: %v", err)
		}
		if s := n.status(id); s.State != cri.ContainerState_CONTAINER_EXITED || s.ExitCode != 127 {
			t.Errorf("state %s code %d, want EXITED 127", s.State, s.ExitCode)
		}
	})
	t.Run("out of memory", func(t *testing.T) {
		cc := engine.Container("hungry", busybox, "sh", "-c", "x=a; while :; do x=$x$x; done")
		cc.Linux.Resources = &cri.LinuxContainerResources{MemoryLimitInBytes: 16 << 20, MemorySwapLimitInBytes: 16 << 20}
		id := n.run(pod, cfg, cc)
		if s := n.awaitState(id, cri.ContainerState_CONTAINER_EXITED); s.Reason != "OOMKilled" || s.ExitCode != 137 {
			t.Errorf("reason %q code %d, want OOMKilled 137", s.Reason, s.ExitCode)
		}
	})
}

func TestExecSync(t *testing.T) {
	n := start(t, "builtin")
	_, id := n.up("exec")
	r, err := n.Runtime.ExecSync(n.ctx(), &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-c", "echo out; echo err >&2; exit 3"}, Timeout: engine.Seconds(10)})
	must(t, err)
	if string(r.Stdout) != "out\n" || string(r.Stderr) != "err\n" || r.ExitCode != 3 {
		t.Errorf("%q %q %d", r.Stdout, r.Stderr, r.ExitCode)
	}

	begin := time.Now()
	_, err = n.Runtime.ExecSync(n.ctx(), &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-c", "sleep 4711 & sleep 4711"}, Timeout: 1})
	refused(t, err, codes.DeadlineExceeded)
	if took := time.Since(begin); took > time.Second+engine.Patience(2*time.Second) {
		t.Errorf("a timeout of 1 s took %s", took)
	}
	n.eventually(3*time.Second, func() error {
		if out := n.output(id, "ps"); strings.Contains(out, "4711") {
			return fmt.Errorf("the timed-out exec left processes:\n%s", out)
		}
		return nil
	})

	r, err = n.Runtime.ExecSync(n.ctx(), &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-c", "head -c 20000000 /dev/zero"}, Timeout: engine.Seconds(30)})
	must(t, err)
	// The answer as a whole must fit into the 16 MiB that clients accept.
	if n := len(r.Stdout); n > 16<<20 || n < 16<<20-4096 || r.ExitCode != 0 {
		t.Errorf("%d bytes of output with code %d, want about 16 MiB and the rest discarded", n, r.ExitCode)
	}

	_, err = n.Runtime.ExecSync(n.ctx(), &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"no-such-program"}, Timeout: engine.Seconds(10)})
	if err == nil || !strings.Contains(err.Error(), "no-such-program") {
		t.Errorf("a missing program: %v", err)
	}
}

func TestListsAndFilters(t *testing.T) {
	n := start(t, "builtin")
	podA, a := n.up("a")
	podB, b := n.up("b")
	n.stop(b, 0)
	list := func(f *cri.ContainerFilter) (ids []string) {
		r, err := n.Runtime.ListContainers(n.ctx(), &cri.ListContainersRequest{Filter: f})
		must(t, err)
		for _, c := range r.Containers {
			ids = append(ids, c.Id)
		}
		return ids
	}
	running := &cri.ContainerStateValue{State: cri.ContainerState_CONTAINER_RUNNING}
	for _, c := range []struct {
		name string
		f    *cri.ContainerFilter
		want []string
	}{
		{"by id", &cri.ContainerFilter{Id: a}, []string{a}},
		{"by the start of an id", &cri.ContainerFilter{Id: a[:13]}, []string{a}},
		{"by state", &cri.ContainerFilter{State: running}, []string{a}},
		{"by pod", &cri.ContainerFilter{PodSandboxId: podB}, []string{b}},
		{"by pod and state", &cri.ContainerFilter{PodSandboxId: podB, State: running}, nil},
		{"by label", &cri.ContainerFilter{LabelSelector: map[string]string{"io.kubernetes.container.name": "other"}}, nil},
	} {
		if got := list(c.f); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
	if got := list(nil); len(got) != 2 {
		t.Errorf("no filter: %v", got)
	}
	r, err := n.Runtime.ListPodSandbox(n.ctx(), &cri.ListPodSandboxRequest{Filter: &cri.PodSandboxFilter{LabelSelector: map[string]string{"io.kubernetes.pod.name": "a"}}})
	must(t, err)
	if len(r.Items) != 1 || r.Items[0].Id != podA {
		t.Errorf("pods by label: %v", r.Items)
	}
}

func TestSharedProcessNamespace(t *testing.T) {
	n := start(t, "builtin")
	cfg := n.Pod("shared")
	cfg.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD
	pod := n.runPod(cfg)
	shared := func(name, script string) string {
		c := engine.Container(name, busybox, "sh", "-c", script)
		c.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD
		return n.run(pod, cfg, c)
	}
	shared("one", "exec sleep 4712")
	two := shared("two", "exec sleep 4713")
	if out := n.output(two, "ps"); !strings.Contains(out, "4712") || !strings.Contains(out, "4713") {
		t.Errorf("the containers do not see each other:\n%s", out)
	}
	n.output(two, "sh", "-c", "(sleep 0.1 &) ; true") // orphaned: the init reaps it
	n.eventually(5*time.Second, func() error {
		if out := n.output(two, "ps", "-o", "pid,stat,comm"); strings.Contains(out, "Z") && strings.Contains(out, "sleep") && strings.Contains(out, " Z ") {
			return fmt.Errorf("an orphan is not reaped:\n%s", out)
		}
		return nil
	})
}

// A container may end the first process that all share. Nothing can run in the pod then, and the kubelet makes another if it is told.
func TestEndOfTheSharedInit(t *testing.T) {
	waits(t)
	for _, daemon := range []string{"up", "down"} {
		t.Run("daemon "+daemon, func(t *testing.T) {
			n := start(t, "builtin")
			cfg := n.Pod("headless")
			cfg.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD
			pod := n.runPod(cfg)
			c := engine.Container("rude", busybox, "sh", "-c", "sleep 2; kill 1; sleep 1000")
			c.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD
			c.Linux.SecurityContext.Apparmor = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Unconfined} // or AppArmor keeps the signal from init
			id := n.run(pod, cfg, c)
			if daemon == "down" {
				must(t, n.Kill())
				time.Sleep(3 * time.Second)
				must(t, n.Start())
			}
			if s := n.awaitState(id, cri.ContainerState_CONTAINER_EXITED); s.ExitCode != 137 {
				t.Errorf("exit code %d, want 137", s.ExitCode)
			}
			n.eventually(10*time.Second, func() error {
				if s := n.podStatus(pod); s.State != cri.PodSandboxState_SANDBOX_NOTREADY {
					return fmt.Errorf("the pod without an init is %s", s.State)
				}
				return nil
			})
			n.stopPod(pod)
			n.removePod(pod)
		})
	}
}

// A debugging container, as kubectl debug --target asks for it.
func TestProcessNamespaceOfATarget(t *testing.T) {
	n := start(t, "builtin")
	cfg := n.Pod("p")
	pod := n.runPod(cfg)
	target := n.run(pod, cfg, engine.Container("main", busybox, "sleep", "4711"))
	beside := func(name string) *cri.ContainerConfig {
		c := engine.Sleeper(name, busybox)
		c.Linux.SecurityContext.NamespaceOptions.Pid, c.Linux.SecurityContext.NamespaceOptions.TargetId = cri.NamespaceMode_TARGET, target
		return c
	}
	if out := n.output(n.run(pod, cfg, beside("debug")), "ps"); !strings.Contains(out, "sleep 4711") {
		t.Errorf("the target is not seen:\n%s", out)
	}
	n.stop(target, 0)
	_, err := n.Runtime.CreateContainer(n.ctx(), &cri.CreateContainerRequest{PodSandboxId: pod, Config: beside("late"), SandboxConfig: cfg})
	refused(t, err, codes.FailedPrecondition, "target_id", target)
}

func TestHostNamespaces(t *testing.T) {
	n := start(t, "builtin")
	cfg := n.Pod("host")
	cfg.Hostname = ""
	cfg.Linux.SecurityContext.NamespaceOptions = &cri.NamespaceOption{Network: cri.NamespaceMode_NODE, Pid: cri.NamespaceMode_NODE, Ipc: cri.NamespaceMode_NODE}
	pod := n.runPod(cfg)
	c := engine.Sleeper("main", busybox)
	c.Linux.SecurityContext.NamespaceOptions = cfg.Linux.SecurityContext.NamespaceOptions
	id := n.run(pod, cfg, c)
	for _, ns := range []string{"net", "pid", "ipc"} {
		host, err := os.Readlink("/proc/self/ns/" + ns)
		must(t, err)
		if got := strings.TrimSpace(n.output(id, "readlink", "/proc/self/ns/"+ns)); got != host {
			t.Errorf("%s namespace %s, the host's is %s", ns, got, host)
		}
	}
}

func TestWhatAContainerSees(t *testing.T) {
	n := start(t, "builtin")
	cfg := n.Pod("sees")
	cfg.DnsConfig = &cri.DNSConfig{Servers: []string{"192.0.2.53"}, Searches: []string{"example.org"}, Options: []string{"ndots:5"}}
	cfg.Linux.Sysctls = map[string]string{"net.ipv4.ip_unprivileged_port_start": "80"}
	pod := n.runPod(cfg)
	volume := filepath.Join(n.Base, "volume")
	must(t, os.MkdirAll(volume, 0o755))
	must(t, os.WriteFile(filepath.Join(volume, "file"), []byte("from outside\n"), 0o644))

	c := engine.Sleeper("main", busybox)
	c.Envs = []*cri.KeyValue{{Key: "COLOUR", Value: []byte("blue")}, {Key: "COLOUR", Value: []byte("green")}}
	c.WorkingDir = "/tmp"
	c.Mounts = []*cri.Mount{{HostPath: volume, ContainerPath: "/volume", Readonly: true}}
	c.Linux.SecurityContext.ReadonlyRootfs = true
	c.Linux.SecurityContext.Seccomp = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}
	c.Linux.SecurityContext.RunAsUser = &cri.Int64Value{Value: 1234}
	c.Linux.SecurityContext.RunAsGroup = &cri.Int64Value{Value: 4321}
	id := n.run(pod, cfg, c)
	for _, c := range []struct{ script, want string }{
		{"echo $COLOUR", "green"},
		{"pwd", "/tmp"},
		{"id -u; id -g", "1234\n4321"},
		{"cat /volume/file", "from outside"},
		{"touch /volume/x 2>&1 | grep -o 'Read-only'", "Read-only"},
		{"touch /x 2>&1 | grep -o 'Read-only'", "Read-only"},
		{"cat /proc/sys/net/ipv4/ip_unprivileged_port_start", "80"},
		{"grep -c 192.0.2.53 /etc/resolv.conf; grep -c ndots:5 /etc/resolv.conf; grep -c example.org /etc/resolv.conf", "1\n1\n1"},
		{"cat /etc/hostname", "sees"},
		{"grep Seccomp: /proc/self/status | cut -f2", "2"},
	} {
		if got := strings.TrimSpace(n.output(id, "sh", "-c", c.script)); got != c.want {
			t.Errorf("%s: %q, want %q", c.script, got, c.want)
		}
	}
}

func TestUpdateResources(t *testing.T) {
	n := start(t, "builtin")
	cfg := n.Pod("resources")
	pod := n.runPod(cfg)
	c := engine.Sleeper("main", busybox)
	c.Linux.Resources = &cri.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, CpuShares: 512, CpuPeriod: 100000, CpuQuota: 50000}
	id := n.run(pod, cfg, c)
	for _, limit := range []int64{128 << 20, 32 << 20} {
		_, err := n.Runtime.UpdateContainerResources(n.ctx(), &cri.UpdateContainerResourcesRequest{ContainerId: id,
			Linux: &cri.LinuxContainerResources{MemoryLimitInBytes: limit, MemorySwapLimitInBytes: limit, CpuShares: 256, CpuPeriod: 100000, CpuQuota: 25000}})
		must(t, err)
		if r := n.status(id).GetResources().GetLinux(); r.GetMemoryLimitInBytes() != limit || r.GetCpuShares() != 256 {
			t.Errorf("resources after the update: %v", r)
		}
		file := "/sys/fs/cgroup/memory/memory.limit_in_bytes"
		if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
			file = "/sys/fs/cgroup/memory.max"
		}
		if got := strings.TrimSpace(n.output(id, "cat", file)); got != fmt.Sprint(limit) {
			t.Errorf("the kernel's limit is %s, want %d", got, limit)
		}
	}
}

func TestKubeletsCgroupParentStays(t *testing.T) {
	n := start(t, "builtin")
	cfg := n.Pod("parent")
	parent := n.PodCgroup()
	hierarchies := engine.CgroupDirs(parent)
	must(t, engine.MakeCgroup(parent))
	t.Cleanup(func() { engine.RemoveCgroup(filepath.Dir(parent)) })
	cfg.Linux.CgroupParent = parent
	pod := n.runPod(cfg)
	id := n.run(pod, cfg, engine.Sleeper("main", busybox))
	found := 0
	for _, dir := range hierarchies {
		children, _ := os.ReadDir(dir)
		for _, child := range children {
			if strings.Contains(child.Name(), pod) || strings.Contains(child.Name(), id) {
				found++
			}
		}
	}
	if found < 2 {
		t.Errorf("neither the sandbox's nor the container's cgroup stands below %s", parent)
	}
	n.stopPod(pod)
	n.removePod(pod)
	for _, dir := range hierarchies {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Errorf("the kubelet's cgroup is gone: %v", err)
		}
		for _, e := range entries {
			if e.IsDir() {
				t.Errorf("%s is left in %s", e.Name(), dir)
			}
		}
	}
}
