package integration

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	core "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// kubeletEnv names the kubelet to test with: the one client that matters.
const kubeletEnv = "EVENKEEL_TEST_KUBELET"

// A kubelet runs static pods on a node's engine, without an API server.
type kubelet struct {
	*node
	base   string // its directory
	url    string
	client http.Client
}

// TestKubelet lets the real kubelet run pods on the engine: what it makes of our answers is what its users see.
func TestKubelet(t *testing.T) {
	if os.Getenv(kubeletEnv) == "" {
		t.Skip("no kubelet: `make test-kubelet` builds one and runs this test with it")
	}
	n := start(t, "builtin")
	k := n.kubelet(os.Getenv(kubeletEnv))
	k.manifest("web", webManifest)
	k.manifest("crash", crashManifest)
	k.manifest("once", onceManifest)
	k.webIsReady()
	k.crashIsExplained()
	k.onceEndsWell()
	k.killedEngineIsInvisible()
	k.podsEnd()
}

const webManifest = `
spec:
  terminationGracePeriodSeconds: 20
  initContainers:
  - {name: init, image: IMAGE, command: [sh, -c, "echo made by init > /data/file"], volumeMounts: [{name: data, mountPath: /data}]}
  - {name: sidecar, image: IMAGE, restartPolicy: Always, command: [sh, -c, "trap 'exit 0' TERM; while :; do sleep 1000 & wait $!; done"]}
  containers:
  - name: main
    image: IMAGE
    command: [sh, -c, "trap 'echo term >> /host/order; exit 0' TERM; cat /data/file; echo $IP; httpd -p 8080 -h /data; while :; do sleep 1000 & wait $!; done"]
    env: [{name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}]
    resources: {requests: {cpu: 10m, memory: 16Mi}, limits: {cpu: 500m, memory: 64Mi}}
    startupProbe: {tcpSocket: {port: 8080}, periodSeconds: 1, failureThreshold: 60, timeoutSeconds: 10}
    readinessProbe: {httpGet: {path: /file, port: 8080}, periodSeconds: 1, timeoutSeconds: 10}
    livenessProbe: {exec: {command: [cat, /data/file]}, periodSeconds: 1, timeoutSeconds: 10, failureThreshold: 6}
    lifecycle: {postStart: {exec: {command: [touch, /data/started]}}, preStop: {exec: {command: [sh, -c, "echo prestop >> /host/order"]}}}
    ports: [{containerPort: 8080, hostPort: PORT, hostIP: 127.0.0.1}]
    volumeMounts: [{name: data, mountPath: /data}, {name: info, mountPath: /info}, {name: host, mountPath: /host}]
  volumes:
  - {name: data, emptyDir: {medium: Memory}}
  - {name: info, downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}}
  - {name: host, hostPath: {path: BASE/host, type: DirectoryOrCreate}}
`

const crashManifest = `
spec:
  terminationGracePeriodSeconds: 1
  hostNetwork: true
  containers:
  - {name: crash, image: IMAGE, command: [sh, -c, "echo why > /dev/termination-log; exit 3"]}
  - {name: oom, image: IMAGE, command: [sh, -c, "tail /dev/zero"], resources: {limits: {memory: 16Mi}}}
  - {name: ok, image: IMAGE, command: [sleep, "100000"]}
`

const onceManifest = `
spec:
  hostUsers: false
  shareProcessNamespace: true
  restartPolicy: Never
  securityContext: {runAsUser: 1000, fsGroup: 2000, seccompProfile: {type: RuntimeDefault}}
  containers:
  - {name: once, image: IMAGE, command: [sh, -c, "id; cat /proc/self/uid_map; touch /data/x; stat -c %u:%g /data/x"], volumeMounts: [{name: data, mountPath: /data}]}
  volumes: [{name: data, emptyDir: {}}]
`

func (k *kubelet) webIsReady() {
	pod := k.await("web", func(p *core.Pod) error {
		if len(p.Status.ContainerStatuses) != 1 || !p.Status.ContainerStatuses[0].Ready || len(p.Status.InitContainerStatuses) != 2 {
			return errors.New("not ready")
		}
		return nil
	})
	if s := pod.Status.InitContainerStatuses[0].State.Terminated; s == nil || s.ExitCode != 0 || s.Reason != "Completed" {
		k.t.Errorf("the init container: %+v", pod.Status.InitContainerStatuses[0].State)
	}
	if !strings.HasPrefix(pod.Status.ContainerStatuses[0].ContainerID, "evenkeel://") {
		k.t.Errorf("container id %q", pod.Status.ContainerStatuses[0].ContainerID)
	}
	if got := k.log("web", "main"); got != "made by init\n"+pod.Status.PodIP+"\n" {
		k.t.Errorf("the log, through the kubelet: %q", got)
	}
	if got := k.exec("web", "main", "ls /data"); got != "file\nstarted\n" {
		k.t.Errorf("an exec through the kubelet: %q", got)
	}
	if got := k.exec("web", "main", "cat /info/labels"); got != `app="web"` {
		k.t.Errorf("the downward API's volume: %q", got)
	}
	must(k.t, fetch(k.ctx(), "http://127.0.0.1:"+hostPortOf(pod)+"/file"))
}

func (k *kubelet) crashIsExplained() {
	last := func(p *core.Pod, name string) *core.ContainerStateTerminated {
		for _, c := range p.Status.ContainerStatuses {
			if c.Name == name && c.RestartCount > 0 {
				return c.LastTerminationState.Terminated
			}
		}
		return nil
	}
	pod := k.await("crash", func(p *core.Pod) error {
		if last(p, "crash") == nil || last(p, "oom") == nil {
			return errors.New("not restarted")
		}
		return nil
	})
	if s := last(pod, "crash"); s.ExitCode != 3 || s.Reason != "Error" || s.Message != "why\n" {
		k.t.Errorf("what the kubelet says of the crash: %+v", s)
	}
	if s := last(pod, "oom"); s.ExitCode != 137 || s.Reason != "OOMKilled" || !strings.Contains(s.Message, "16777216 bytes") {
		k.t.Errorf("what the kubelet says of the OOM kill: %+v", s)
	}
}

func (k *kubelet) onceEndsWell() {
	k.await("once", func(p *core.Pod) error {
		if p.Status.Phase != core.PodSucceeded {
			return fmt.Errorf("phase %s", p.Status.Phase)
		}
		return nil
	})
	lines := strings.Split(k.log("once", "once"), "\n")
	if len(lines) < 3 || !strings.HasPrefix(lines[0], "uid=1000 ") || !strings.HasSuffix(lines[0], ",2000") || lines[2] != "1000:2000" {
		k.t.Fatalf("ids: %q", lines)
	}
	var inside, outside, size int
	if fmt.Sscan(lines[1], &inside, &outside, &size); inside != 0 || outside < 65536 || size != 65536 {
		k.t.Errorf("the kubelet's mapping was not used: %q", lines[1])
	}
}

// killedEngineIsInvisible waits for a pod that comes after the restart: by then the kubelet has listed everything anew.
func (k *kubelet) killedEngineIsInvisible() {
	before := k.pods()["web"]
	must(k.t, k.Kill())
	must(k.t, k.Start())
	k.manifest("later", strings.Replace(onceManifest, "hostUsers: false", "hostUsers: true", 1))
	k.await("later", func(p *core.Pod) error {
		if p.Status.Phase != core.PodSucceeded {
			return fmt.Errorf("phase %s", p.Status.Phase)
		}
		return nil
	})
	after := k.pods()["web"]
	for i, b := range before.Status.ContainerStatuses {
		if a := after.Status.ContainerStatuses[i]; a.ContainerID != b.ContainerID || a.RestartCount != b.RestartCount || !a.Ready {
			k.t.Errorf("container %s: before the kill %+v, after it %+v", b.Name, b, a)
		}
	}
	if after.Status.PodIP != before.Status.PodIP {
		k.t.Errorf("the address went from %s to %s", before.Status.PodIP, after.Status.PodIP)
	}
}

func (k *kubelet) podsEnd() {
	for name := range k.pods() {
		must(k.t, os.Remove(filepath.Join(k.base, "manifests", name+".yaml")))
	}
	k.eventually(2*time.Minute, func() error {
		r, err := k.Runtime.ListContainers(k.ctx(), &cri.ListContainersRequest{Filter: &cri.ContainerFilter{State: &cri.ContainerStateValue{State: cri.ContainerState_CONTAINER_RUNNING}}})
		if err != nil || len(r.Containers) > 0 {
			return fmt.Errorf("%d containers run, %v", len(r.GetContainers()), err)
		}
		return nil
	})
	if order, err := os.ReadFile(filepath.Join(k.base, "host", "order")); err != nil || string(order) != "prestop\nterm\n" {
		k.t.Errorf("the pod's end: %q, %v", order, err)
	}
}

// kubelet starts a kubelet that keeps to a directory of its own, in a mount namespace of its own: what it would write
// elsewhere (the tunables of the kernel, /var/log/containers, its device plugins) it writes there.
func (n *node) kubelet(program string) *kubelet {
	n.t.Helper()
	k := &kubelet{node: n, base: filepath.Join(n.Base, "kubelet")}
	k.client.Transport = &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}} // its certificate is its own
	for _, dir := range []string{"manifests", "root", "fake", "host"} {
		must(n.t, os.MkdirAll(filepath.Join(k.base, dir), 0o755))
	}
	// What the kubelet mounts must be seen by the engine.
	must(n.t, unix.Mount(k.base, k.base, "", unix.MS_BIND, ""))
	n.t.Cleanup(func() { unix.Unmount(k.base, unix.MNT_DETACH) })
	must(n.t, unix.Mount("", k.base, "", unix.MS_SHARED, ""))
	port := freePort(n.t)
	k.url = fmt.Sprintf("https://127.0.0.1:%d", port)
	config := strings.NewReplacer("SOCKET", n.Socket(), "BASE", k.base, "PORT", fmt.Sprint(port)).Replace(kubeletConfig)
	must(n.t, os.WriteFile(filepath.Join(k.base, "config.yaml"), []byte(config), 0o644))
	k.spawn(program)
	return k
}

const kubeletConfig = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix://SOCKET
staticPodPath: BASE/manifests
podLogsDir: BASE/logs
volumePluginDir: BASE/plugins
address: 127.0.0.1
port: PORT
readOnlyPort: 0
healthzPort: 0
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
cgroupsPerQOS: false
enforceNodeAllocatable: []
failCgroupV1: false
failSwapOn: false
makeIPTablesUtilChains: false
localStorageCapacityIsolation: false
evictionHard: {}
imageGCHighThresholdPercent: 100
fileCheckFrequency: 1s
syncFrequency: 10s
`

// tunables are the files that a kubelet writes (pkg/kubelet/cm/container_manager_linux.go, setupKernelTunables).
var tunables = []string{"vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops", "kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes"}

func (k *kubelet) spawn(program string) {
	const devices = "/var/lib/kubelet"
	if os.Mkdir(devices, 0o755) == nil {
		k.t.Cleanup(func() { os.Remove(devices) })
	}
	script := "set -e\nmount --make-private /\nmount --make-rprivate /proc\nmount -t tmpfs tmpfs /var/log\nmount -t tmpfs tmpfs " + devices + "\n"
	for _, name := range tunables {
		value, err := os.ReadFile("/proc/sys/" + name)
		must(k.t, err)
		fake := filepath.Join(k.base, "fake", strings.ReplaceAll(name, "/", "_"))
		must(k.t, os.WriteFile(fake, value, 0o644))
		script += fmt.Sprintf("mount --bind %s /proc/sys/%s\n", fake, name)
	}
	script += fmt.Sprintf("exec %[1]s --config %[2]s/config.yaml --root-dir %[2]s/root --cert-dir %[2]s/pki --hostname-override node", program, k.base)
	cmd := exec.Command("unshare", "--mount", "--propagation", "unchanged", "sh", "-c", script)
	log, err := os.Create(filepath.Join(k.base, "log"))
	must(k.t, err)
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	must(k.t, cmd.Start())
	k.t.Cleanup(func() { k.end(cmd) })
}

func (k *kubelet) end(cmd *exec.Cmd) {
	cmd.Process.Signal(syscall.SIGTERM)
	late := time.AfterFunc(time.Minute, func() { cmd.Process.Kill() })
	cmd.Wait()
	late.Stop()
	k.unmountVolumes()
	if k.t.Failed() {
		text, _ := os.ReadFile(filepath.Join(k.base, "log"))
		k.t.Logf("the kubelet's last words:\n%s", text[max(0, len(text)-8000):])
	}
}

// unmountVolumes ends what a kubelet that was stopped early has mounted.
func (k *kubelet) unmountVolumes() {
	text, _ := os.ReadFile("/proc/self/mounts")
	for line := range strings.Lines(string(text)) {
		if at := strings.Fields(line)[1]; strings.HasPrefix(at, k.base+"/root/") {
			unix.Unmount(at, unix.MNT_DETACH)
		}
	}
}

// manifest gives the kubelet a static pod. The file appears whole, as the kubelet watches the directory.
func (k *kubelet) manifest(name, spec string) {
	head := fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: %[1]s, namespace: default, labels: {app: %[1]s}}", name)
	text := strings.NewReplacer("IMAGE", busybox, "BASE", k.base, "PORT", fmt.Sprint(freePort(k.t))).Replace(head + spec)
	whole := filepath.Join(k.base, name+".yaml")
	must(k.t, os.WriteFile(whole, []byte(text), 0o644))
	must(k.t, os.Rename(whole, filepath.Join(k.base, "manifests", name+".yaml")))
}

// pods are what the kubelet says, by the names of their manifests.
func (k *kubelet) pods() map[string]*core.Pod {
	k.t.Helper()
	var list core.PodList
	must(k.t, json.Unmarshal([]byte(k.ask(http.MethodGet, "/pods")), &list))
	pods := map[string]*core.Pod{}
	for i, p := range list.Items {
		pods[strings.TrimSuffix(p.Name, "-node")] = &list.Items[i]
	}
	return pods
}

// await asks until the pod is as it should be.
func (k *kubelet) await(name string, check func(*core.Pod) error) (found *core.Pod) {
	k.t.Helper()
	limit := time.Now().Add(3 * time.Minute)
	for {
		err := errors.New("not there")
		if found = k.pods()[name]; found != nil {
			if err = check(found); err == nil {
				return found
			}
		}
		if time.Now().After(limit) {
			status, _ := json.Marshal(found)
			k.t.Fatalf("pod %s: %v: %s", name, err, status)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func (k *kubelet) log(pod, container string) string {
	return k.ask(http.MethodGet, fmt.Sprintf("/containerLogs/default/%s-node/%s", pod, container))
}

func (k *kubelet) exec(pod, container, command string) string {
	return k.ask(http.MethodPost, fmt.Sprintf("/run/default/%s-node/%s?cmd=%s", pod, container, url.QueryEscape(command)))
}

// ask repeats while the kubelet's server is not up yet.
func (k *kubelet) ask(method, path string) (answer string) {
	k.t.Helper()
	k.eventually(2*time.Minute, func() error {
		q, err := http.NewRequestWithContext(k.ctx(), method, k.url+path, nil)
		if err != nil {
			return err
		}
		r, err := k.client.Do(q)
		if err != nil {
			return err
		}
		defer r.Body.Close()
		body, err := io.ReadAll(r.Body)
		if err == nil && r.StatusCode != http.StatusOK {
			err = fmt.Errorf("%s %s: %s: %s", method, path, r.Status, body)
		}
		answer = string(body)
		return err
	})
	return answer
}

func hostPortOf(pod *core.Pod) string {
	return fmt.Sprint(pod.Spec.Containers[0].Ports[0].HostPort)
}
