package integration

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/integration/engine"
	"github.com/evenkeel/evenkeel/internal/effect"
)

const (
	firstID = 200000 // of the pods here, as the host sees them
	manyIDs = 65536
)

func podMapping() []*cri.IDMapping { return []*cri.IDMapping{{HostId: firstID, Length: manyIDs}} }

func userNamespace() *cri.UserNamespace {
	return &cri.UserNamespace{Mode: cri.NamespaceMode_POD, Uids: podMapping(), Gids: podMapping()}
}

// usernsPod asks for a pod in a user namespace, as the kubelet does for hostUsers: false.
func (n *node) usernsPod(name string) *cri.PodSandboxConfig {
	cfg := n.Pod(name)
	cfg.Linux.SecurityContext.NamespaceOptions.UsernsOptions = userNamespace()
	return cfg
}

// usernsContainer runs a script in such a pod.
func usernsContainer(pod *cri.PodSandboxConfig, name, script string) *cri.ContainerConfig {
	c := engine.Container(name, busybox, "sh", "-c", script)
	c.Linux.SecurityContext.NamespaceOptions = pod.Linux.SecurityContext.NamespaceOptions
	return c
}

const stay = "trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done"

func wantOwner(t *testing.T, path string, uid, gid uint32) {
	t.Helper()
	info, err := os.Lstat(path)
	must(t, err)
	if s := info.Sys().(*syscall.Stat_t); s.Uid != uid || s.Gid != gid {
		t.Errorf("%s belongs to %d:%d on the host, want %d:%d", path, s.Uid, s.Gid, uid, gid)
	}
}

func (n *node) wantOutput(id, want string, script string) {
	n.t.Helper()
	if got := strings.TrimSpace(n.output(id, "sh", "-ec", script)); got != want {
		n.t.Errorf("%s: %q, want %q", script, got, want)
	}
}

func TestUserNamespace(t *testing.T) {
	for _, network := range []string{"builtin", "cni"} {
		t.Run(network, func(t *testing.T) { inUserNamespace(t, start(t, network)) })
	}
}

func inUserNamespace(t *testing.T, n *node) {
	mapped, plain := filepath.Join(n.Base, "mapped"), filepath.Join(n.Base, "plain")
	for _, dir := range []string{mapped, plain} {
		must(t, os.Mkdir(dir, 0o755))
	}
	must(t, os.Chown(plain, firstID+1000, firstID+1000))
	must(t, os.WriteFile(filepath.Join(mapped, "old"), []byte("from the host"), 0o600))

	cfg := n.usernsPod("mapped")
	cfg.Linux.Sysctls = map[string]string{"net.ipv4.ip_unprivileged_port_start": "0", "kernel.shm_rmid_forced": "1"}
	c := usernsContainer(cfg, "main", "echo first; echo reopened > /dev/stdout; echo oops > /dev/stderr; mkdir /srv; httpd -p 8080 -h /srv; "+stay)
	c.Mounts = []*cri.Mount{
		{ContainerPath: "/mapped", HostPath: mapped, UidMappings: podMapping(), GidMappings: podMapping()},
		{ContainerPath: "/plain", HostPath: plain},
		{ContainerPath: "/image", Image: &cri.ImageSpec{Image: busybox}, Readonly: true, UidMappings: podMapping(), GidMappings: podMapping()},
	}
	c.Linux.SecurityContext.Capabilities = &cri.Capability{AddCapabilities: []string{"NET_ADMIN"}}
	pod := n.runPod(cfg)
	id := n.run(pod, cfg, c)

	// Who is who.
	n.wantOutput(id, "0 0", "echo $(id -u) $(id -g)")
	n.wantOutput(id, fmt.Sprint("0 ", firstID, " ", manyIDs), "echo $(cat /proc/self/uid_map)")
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", n.pid(id)))
	must(t, err)
	if !strings.Contains(string(status), fmt.Sprintf("Uid:\t%d\t%d\t", firstID, firstID)) {
		t.Errorf("the host does not see the container's root as user %d:\n%s", firstID, status)
	}
	n.wantOutput(id, "mapped", "hostname")

	// Files of the image, of the engine and of the container.
	n.wantOutput(id, "0:0 0:0 0:0 0:0 0:0", "echo $(stat -c %u:%g / /bin /etc/hosts /dev/shm /dev/mqueue)")
	n.wantOutput(id, "", "echo 192.0.2.1 friend >> /etc/hosts; echo x > /dev/shm/x; mkdir /made; touch /made/f; chown 1000:1001 /made/f; chmod u+s /made/f")
	upper := filepath.Join(n.Root(), "containers", id, "upper")
	wantOwner(t, upper, firstID, firstID)
	wantOwner(t, filepath.Join(upper, "made"), firstID, firstID)
	wantOwner(t, filepath.Join(upper, "made/f"), firstID+1000, firstID+1001)

	// Volumes: a mapped one has the ids of the container on disk, a plain one those of the host.
	n.wantOutput(id, "0:0 1000:1000 0:0", "echo $(stat -c %u:%g /mapped /plain /image/bin/busybox)")
	n.wantOutput(id, "from the host", "cat /mapped/old; touch /mapped/new; chown 7:8 /mapped/new")
	wantOwner(t, filepath.Join(mapped, "new"), 7, 8)
	n.wantOutput(id, "refused", "chown 1000 /mapped/old; touch /plain/new; chown 5:6 /plain/new; cat /proc/1/environ >/dev/null; echo 1 > /proc/sys/vm/swappiness 2>/dev/null || echo refused")
	wantOwner(t, filepath.Join(plain, "new"), firstID+5, firstID+6)

	// The network is the pod's own: its root rules it, and packets move both ways.
	n.wantOutput(id, "0 1", "echo $(cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced)")
	n.wantOutput(id, "", "ip link set lo mtu 4000; ip addr add 192.0.2.7/32 dev eth0")
	ip := n.ip(pod)
	n.output(id, "ping", "-c", "1", "-w", "5", gateway(ip))
	n.wantOutput(id, "host", fmt.Sprintf("wget -q -O - http://%s:%s/", gateway(ip), n.greeter()))
	n.wantOutput(id, "", "echo served > /srv/page")
	n.eventually(5*time.Second, func() error {
		answer, err := http.Get("http://" + net.JoinHostPort(ip, "8080") + "/page")
		if err != nil {
			return err
		}
		defer answer.Body.Close()
		if body, _ := io.ReadAll(answer.Body); string(body) != "served\n" {
			return fmt.Errorf("the pod served %q", body)
		}
		return nil
	})
	// Between the two streams there is no order.
	got := fmt.Sprint(n.log(n.logPath(cfg, c)))
	if stdout := strings.Replace(got, "{stderr F oops} ", "", 1); !strings.Contains(stdout, "{stdout F first} {stdout F reopened}") || !strings.Contains(got, "{stderr F oops}") {
		t.Errorf("log: %s", got)
	}

	// A daemon that comes later finds its way in as well.
	must(t, n.Restart())
	n.wantOutput(id, "0", "id -u")
	other := usernsContainer(cfg, "other", stay)
	other.Linux.SecurityContext.RunAsUser, other.Linux.SecurityContext.SupplementalGroups = &cri.Int64Value{Value: 1000}, []int64{2000}
	other.Tty = true
	second := n.run(pod, cfg, other)
	n.wantOutput(second, "1000 0 2000", "echo $(id -u) $(id -G)")
	n.wantOutput(second, "200", "touch /tmp/mine; stat -c %u /tmp/mine >/dev/null; echo 200 > /tmp/mine; cat /tmp/mine")
	wantOwner(t, filepath.Join(n.Root(), "containers", second, "upper/tmp/mine"), firstID+1000, firstID)
	n.stop(id, 5)
	if s := n.status(id); s.ExitCode != 0 {
		t.Errorf("the container ended with %d", s.ExitCode)
	}
}

// pid of a container's first process, from the verbose status.
func (n *node) pid(id string) int {
	n.t.Helper()
	r, err := n.Runtime.ContainerStatus(n.ctx(), &cri.ContainerStatusRequest{ContainerId: id, Verbose: true})
	must(n.t, err)
	var info struct{ PID int }
	must(n.t, json.Unmarshal([]byte(r.Info["info"]), &info))
	return info.PID
}

func TestUserNamespaceWithSharedProcesses(t *testing.T) {
	n := start(t, "builtin")
	cfg := n.usernsPod("shared")
	cfg.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD
	cfg.Linux.Sysctls = map[string]string{"net.core.somaxconn": "77"}
	pod := n.runPod(cfg)
	first := n.run(pod, cfg, usernsContainer(cfg, "first", "exec sleep 3601"))
	second := n.run(pod, cfg, usernsContainer(cfg, "second", stay))
	n.wantOutput(second, "shared 77", "echo $(hostname) $(cat /proc/sys/net/core/somaxconn)")
	n.wantOutput(second, "evenkeel-init 0", "echo $(cat /proc/1/comm) $(stat -c %u /proc/1)")
	n.wantOutput(second, "1", "ps -o args | grep -c '^sleep 3601'")
	n.output(second, "ping", "-c", "1", "-w", "5", gateway(n.ip(pod)))
	n.output(second, "sh", "-ec", "kill $(ps -o pid,args | awk '$2 == \"sleep\" && $3 == 3601 {print $1}')") // the root of one container is root over the other
	n.awaitState(first, cri.ContainerState_CONTAINER_EXITED)
	must(t, n.Restart())
	n.run(pod, cfg, usernsContainer(cfg, "third", stay))
	n.wantOutput(second, "evenkeel-init", "cat /proc/1/comm")
}

func TestUserNamespaceOnHostNetwork(t *testing.T) {
	n := start(t, "builtin")
	status, err := n.Runtime.Status(n.ctx(), &cri.StatusRequest{})
	must(t, err)
	if !status.Features.GetUserNamespacesHostNetwork() {
		t.Fatal("the feature user_namespaces_host_network is not reported")
	}
	cfg := n.usernsPod("onhost")
	cfg.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_NODE
	pod := n.runPod(cfg)
	id := n.run(pod, cfg, usernsContainer(cfg, "main", stay))
	host, err := os.Hostname()
	must(t, err)
	n.wantOutput(id, host+" 0", "echo $(hostname) $(id -u)")
	n.wantOutput(id, "lo", "ls /sys/class/net | grep -x lo")
	n.wantOutput(id, "host", fmt.Sprintf("wget -q -O - http://127.0.0.1:%s/", n.greeter()))
	n.wantOutput(id, "refused", "ip link set lo mtu 4000 2>/dev/null || echo refused") // the node's network is not the pod's to rule
	n.wantOutput(id, "refused", "echo 1 2>/dev/null > /sys/class/net/lo/mtu || echo refused")
}

func TestUserNamespaceRefusals(t *testing.T) {
	n := start(t, "builtin")
	for _, c := range []struct {
		name   string
		change func(*cri.NamespaceOption)
		words  []string
	}{
		{"two mappings", func(o *cri.NamespaceOption) { o.UsernsOptions.Uids = append(o.UsernsOptions.Uids, podMapping()...) }, []string{"userns_options.uids", "exactly one"}},
		{"no gids", func(o *cri.NamespaceOption) { o.UsernsOptions.Gids = nil }, []string{"userns_options.gids"}},
		{"root not mapped", func(o *cri.NamespaceOption) {
			o.UsernsOptions.Uids[0].ContainerId, o.UsernsOptions.Gids[0].ContainerId = 1, 1
		}, []string{"userns_options.uids", "root"}},
		{"other gids", func(o *cri.NamespaceOption) { o.UsernsOptions.Gids[0].HostId++ }, []string{"userns_options.gids", "differs"}},
		{"mode CONTAINER", func(o *cri.NamespaceOption) { o.UsernsOptions.Mode = cri.NamespaceMode_CONTAINER }, []string{"userns_options.mode", "CONTAINER"}},
		{"mode TARGET", func(o *cri.NamespaceOption) { o.UsernsOptions.Mode = cri.NamespaceMode_TARGET }, []string{"userns_options.mode", "TARGET"}},
		{"the node's processes", func(o *cri.NamespaceOption) { o.Pid = cri.NamespaceMode_NODE }, []string{"namespace_options.pid"}},
		{"the node's IPC", func(o *cri.NamespaceOption) { o.Ipc = cri.NamespaceMode_NODE }, []string{"namespace_options.ipc"}},
	} {
		cfg := n.usernsPod("refused")
		c.change(cfg.Linux.SecurityContext.NamespaceOptions)
		_, err := n.Runtime.RunPodSandbox(n.ctx(), &cri.RunPodSandboxRequest{Config: cfg})
		refused(t, err, codes.InvalidArgument, append(c.words, "config.linux.security_context")...)
	}
	cfg := n.usernsPod("accepted")
	pod := n.runPod(cfg)
	foreign := usernsContainer(cfg, "foreign", stay)
	foreign.Linux.SecurityContext.RunAsUser = &cri.Int64Value{Value: manyIDs}
	_, err := n.Runtime.CreateContainer(n.ctx(), &cri.CreateContainerRequest{PodSandboxId: pod, Config: foreign, SandboxConfig: cfg})
	refused(t, err, codes.InvalidArgument, "run_as_user", "65536")
	unmappable := usernsContainer(cfg, "unmappable", stay)
	unmappable.Mounts = []*cri.Mount{{ContainerPath: "/m", HostPath: "/proc/sys", UidMappings: podMapping(), GidMappings: podMapping()}}
	_, err = n.Runtime.CreateContainer(n.ctx(), &cri.CreateContainerRequest{PodSandboxId: pod, Config: unmappable, SandboxConfig: cfg})
	refused(t, err, anyCode, "/proc/sys", "idmap")
	n.noLeftovers()
}

// TestUserNamespaceKilled kills the daemon where a pod in a user namespace takes another way than others.
func TestUserNamespaceKilled(t *testing.T) {
	for _, fault := range []string{"kill-before:pod.namespaces", "kill-after:pod.namespaces", "kill-before:pod.init", "kill-after:pod.init", "kill-after:pod.shim", "kill-after:pod.shm", "kill-after:container.rootfs"} {
		for _, pid := range []cri.NamespaceMode{cri.NamespaceMode_CONTAINER, cri.NamespaceMode_POD} {
			t.Run(fmt.Sprint(fault, "/", pid), func(t *testing.T) {
				if pid == cri.NamespaceMode_CONTAINER && strings.HasSuffix(fault, ":pod.init") {
					return
				}
				n := start(t, "builtin")
				must(t, n.Restart(effect.FaultEnv+"="+fault))
				cfg := n.usernsPod("killed")
				cfg.Linux.SecurityContext.NamespaceOptions.Pid = pid
				r, err := n.Runtime.RunPodSandbox(n.ctx(), &cri.RunPodSandboxRequest{Config: cfg})
				if err == nil {
					_, err = n.Runtime.CreateContainer(n.ctx(), &cri.CreateContainerRequest{PodSandboxId: r.PodSandboxId, SandboxConfig: cfg, Config: usernsContainer(cfg, "main", stay)})
				}
				if err == nil {
					t.Fatal("the daemon was not killed")
				}
				must(t, n.AwaitEnd(n.ctx()))
				must(t, n.Restart())
				pod := n.runPod(cfg)
				n.wantOutput(n.run(pod, cfg, usernsContainer(cfg, "main", stay)), "0", "id -u")
			})
		}
	}
}
