package integration

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/integration/engine"
)

// A caller is a client that does not know that the daemon restarts: it calls every 10 ms, mostly on the connection it has, as the
// kubelet does, and now and then on a new one, as crictl does. No call may fail.
type caller struct {
	socket string
	stop   chan struct{}
	done   sync.WaitGroup

	called chan struct{} // after each call, if somebody waits

	mu    sync.Mutex // guards what follows
	calls int
	errs  []error
}

func callEvery10ms(socket string) *caller {
	c := &caller{socket: socket, stop: make(chan struct{}), called: make(chan struct{})}
	for _, fresh := range []bool{false, true} {
		c.done.Go(func() { c.run(fresh) })
	}
	return c
}

func (c *caller) run(fresh bool) {
	conn, err := engine.Dial(c.socket)
	for n := 0; err == nil; n++ {
		if fresh {
			conn.Close()
			if conn, err = engine.Dial(c.socket); err != nil {
				break
			}
		}
		ctx, end := context.WithTimeout(context.Background(), engine.Patience(20*time.Second))
		_, failed := cri.NewRuntimeServiceClient(conn).ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
		end()
		c.note(failed)
		select {
		case <-c.stop:
			conn.Close()
			return
		case <-time.After(10 * time.Millisecond):
		}
	}
	c.note(err)
}

func (c *caller) note(err error) {
	select {
	case c.called <- struct{}{}:
	default:
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls++
	if err != nil {
		c.errs = append(c.errs, err)
	}
}

// some returns after a few calls more.
func (c *caller) some() {
	for range 4 {
		<-c.called
	}
}

// finish ends the calls and tells how many there were, and which failed.
func (c *caller) finish(t *testing.T) int {
	t.Helper()
	close(c.stop)
	c.done.Wait()
	for _, err := range c.errs[:min(len(c.errs), 5)] {
		t.Errorf("a call failed: %v", err)
	}
	if len(c.errs) > 0 {
		t.Errorf("%d of %d calls failed", len(c.errs), c.calls)
	}
	return c.calls
}

// handOver makes the socket of an engine as its service manager would, and hears what the daemon tells that.
func (n *node) handOver() (told *net.UnixConn) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: n.Socket(), Net: "unix"})
	must(n.t, err)
	l.SetUnlinkOnClose(false)
	n.Handover, err = l.File()
	must(n.t, err)
	l.Close()
	n.t.Cleanup(func() { n.Handover.Close() })
	address := filepath.Join(n.State, "notify")
	told, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: address, Net: "unixgram"})
	must(n.t, err)
	n.t.Cleanup(func() { told.Close() })
	n.Env = []string{"NOTIFY_SOCKET=" + address, "WATCHDOG_USEC=1000000"}
	return told
}

// hear waits until the daemon has told its manager something.
func (n *node) hear(told *net.UnixConn, want string) {
	n.t.Helper()
	told.SetReadDeadline(time.Now().Add(engine.Patience(20 * time.Second)))
	for {
		buffer := make([]byte, 100)
		size, err := told.Read(buffer)
		if err != nil {
			n.t.Fatalf("the daemon does not say %s: %v", want, err)
		}
		if string(buffer[:size]) == want {
			return
		}
	}
}

// TestRestartsRefuseNobody is guarantee 5 for any service manager that hands over its socket.
func TestRestartsRefuseNobody(t *testing.T) {
	n := prepareNode(t, "builtin")
	told := n.handOver()
	must(t, n.Start())
	n.hear(told, "READY=1")
	n.hear(told, "WATCHDOG=1")
	n.pull(busybox)
	cfg := n.Pod("untouched")
	id := n.run(n.runPod(cfg), cfg, engine.Container("main", busybox, "sh", "-c", "echo ${NOTIFY_SOCKET-none}; exec sleep 3600"))
	before := n.status(id)
	client := callEvery10ms(n.Socket())
	const restarts = 20
	for range restarts {
		must(t, n.Stop())
		n.hear(told, "STOPPING=1")
		must(t, n.Start())
		n.hear(told, "READY=1")
		client.some()
	}
	measured(t, "%d restarts under %d calls: none refused", restarts, client.finish(t))
	if s := n.status(id); s.State != before.State || s.StartedAt != before.StartedAt {
		t.Errorf("the container was touched: before %v, after %v", before, s)
	}
	data, err := os.ReadFile(n.logPath(cfg, engine.Container("main", busybox)))
	if err != nil || !strings.Contains(string(data), " none\n") {
		t.Errorf("the container was told of the daemon's service manager: %s (%v)", data, err)
	}
}

// underSystemd skips, with the reason, where systemd is not the init.
func underSystemd(t *testing.T) *node {
	t.Helper()
	if !engine.Systemd() {
		t.Skip("systemd is not this machine's init (/run/systemd/system is missing); make vm-test INIT=systemd")
	}
	n := prepareNode(t, "builtin")
	must(t, n.StartUnit())
	n.pull(busybox)
	return n
}

// cgroupOf is where a process is on cgroup v2, or in systemd's own hierarchy of v1.
func cgroupOf(t *testing.T, pid int) string {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	must(t, err)
	for line := range strings.Lines(string(data)) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if fields[0] == "0" && fields[2] != "/" || fields[1] == "name=systemd" {
			return fields[2]
		}
	}
	return ""
}

// A unitPod is a pod of an engine that runs under systemd.
type unitPod struct {
	pod, container string
	status         *cri.ContainerStatus
	shim, process  int
}

func (n *node) unitPods(count int) (pods []unitPod) {
	for i := range count {
		cfg := n.Pod(fmt.Sprintf("p%d", i))
		p := unitPod{pod: n.runPod(cfg)}
		p.container = n.run(p.pod, cfg, engine.Sleeper("main", busybox))
		p.status = n.status(p.container)
		p.shim, p.process = n.shim(p.pod), n.pid(p.container)
		pods = append(pods, p)
	}
	return pods
}

// untouched checks that everything lives where it lived.
func (n *node) untouched(pods []unitPod) {
	n.t.Helper()
	for _, p := range pods {
		if at := cgroupOf(n.t, p.shim); filepath.Base(at) != n.Instance().NFTable+"-shims.scope" {
			n.t.Errorf("the shim of pod %s is in %s", p.pod, at)
		}
		if at, want := cgroupOf(n.t, p.process), n.Instance().CgroupRoot+"/"+n.Instance().NFTable+"-"+p.container+".scope"; at != want {
			n.t.Errorf("the container is in %s, not in %s", at, want)
		}
	}
}

// adopted checks that a daemon knows its pods again.
func (n *node) adopted(pods []unitPod) {
	n.t.Helper()
	for _, p := range pods {
		if s := n.podStatus(p.pod); s.State != cri.PodSandboxState_SANDBOX_READY {
			n.t.Errorf("pod %s is %s", p.pod, s.State)
		}
		if s := n.status(p.container); s.State != p.status.State || s.StartedAt != p.status.StartedAt {
			n.t.Errorf("the container was touched: before %v, after %v", p.status, s)
		}
	}
}

// TestSystemdRestarts is guarantee 5 under the project's own units.
func TestSystemdRestarts(t *testing.T) {
	n := underSystemd(t)
	driver, err := n.Runtime.RuntimeConfig(n.ctx(), &cri.RuntimeConfigRequest{})
	must(t, err)
	if driver.Linux.GetCgroupDriver() != cri.CgroupDriver_SYSTEMD {
		t.Errorf("the cgroup driver is %s under systemd", driver.Linux.GetCgroupDriver())
	}
	pods := n.unitPods(3)
	n.untouched(pods)
	client := callEvery10ms(n.Socket())
	const restarts = 20
	for range restarts {
		must(t, n.Systemctl("restart"))
		client.some()
	}
	measured(t, "%d times systemctl restart under %d calls: none refused", restarts, client.finish(t))
	n.untouched(pods)
	n.adopted(pods)

	must(t, n.Systemctl("stop"))
	n.untouched(pods)
	must(t, n.Systemctl("start"))
	n.adopted(pods)
}

// TestLeftForShutdown leaves a daemon under systemd, and pods, for the machine's shutdown to end: among them one whose first process
// ignores SIGTERM, as every first process does that sets no handler.
func TestLeftForShutdown(t *testing.T) {
	if os.Getenv("EVENKEEL_TEST_LEAVE") == "" {
		t.Skip("it leaves pods for a machine that is turned off next; make vm-shutdown")
	}
	e, err := engine.New(bin, "builtin")
	must(t, err)
	n := &node{e, t}
	must(t, images.Hosts(e.HostsDir()))
	must(t, n.StartUnit())
	n.pull(busybox)
	n.unitPods(2)
	shared := n.Pod("shared")
	shared.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD
	n.run(n.runPod(shared), shared, engine.Container("deaf", busybox, "sleep", "3600"))
	deaf := n.Pod("deaf")
	c := engine.Container("deaf", busybox, "sleep", "3600")
	c.Annotations = map[string]string{"io.kubernetes.pod.terminationGracePeriod": "5"}
	n.run(n.runPod(deaf), deaf, c)
}

// scopes lists the engine's scopes that systemd knows, failed ones too.
func (n *node) scopes() []string {
	n.t.Helper()
	out, err := exec.Command("systemctl", "list-units", "--all", "--plain", "--no-legend", "--full", n.Instance().NFTable+"-*.scope").Output()
	must(n.t, err)
	var names []string
	for line := range strings.Lines(string(out)) {
		names = append(names, strings.Fields(line)[0])
	}
	return names
}

// TestScopesAreHealed: somebody stops a container's scope by hand, and another one fails for want of memory. Neither keeps a pod
// from going on, and nothing stays loaded.
func TestScopesAreHealed(t *testing.T) {
	n := underSystemd(t)
	cfg := n.Pod("healed")
	pod := n.runPod(cfg)
	stopped := n.run(pod, cfg, engine.Sleeper("stopped", busybox))
	must(t, exec.Command("systemctl", "stop", n.Instance().NFTable+"-"+stopped+".scope").Run())
	n.awaitState(stopped, cri.ContainerState_CONTAINER_EXITED)
	hungry := engine.Container("hungry", busybox, "sh", "-c", execHog)
	hungry.Linux.Resources.MemoryLimitInBytes = oomLimit
	if s := n.awaitState(n.run(pod, cfg, hungry), cri.ContainerState_CONTAINER_EXITED); s.Reason != "OOMKilled" {
		t.Errorf("it ended with %s: %s", s.Reason, s.Message)
	}
	n.remove(stopped)
	last := n.run(pod, cfg, engine.Sleeper("last", busybox))
	n.eventually(20*time.Second, func() error {
		if got := n.scopes(); len(got) != 2 { // the last container's and the shims'
			return fmt.Errorf("systemd knows %q", got)
		}
		return nil
	})
	n.remove(last)
	n.stopPod(pod)
	n.removePod(pod)
	n.eventually(20*time.Second, func() error {
		if got := n.scopes(); len(got) > 0 {
			return fmt.Errorf("systemd still knows %q", got)
		}
		return nil
	})
}

// strayScope makes a scope named as that of a container which no engine knows.
func (n *node) strayScope(properties ...string) string {
	n.t.Helper()
	id := make([]byte, 32)
	rand.Read(id)
	unit := fmt.Sprintf("%s-%x.scope", n.Instance().NFTable, id)
	args := append([]string{"--scope", "--quiet", "--unit", unit}, properties...)
	c := exec.Command("systemd-run", append(args, "sleep", "3600")...)
	must(n.t, c.Start())
	n.t.Cleanup(func() {
		c.Process.Kill()
		c.Wait()
		exec.Command("systemctl", "reset-failed", unit).Run() // there is none where the test passed
	})
	return unit
}

func (n *node) unitState(unit string) string {
	out, _ := exec.Command("systemctl", "is-active", unit).Output() // its exit code says the same
	return strings.TrimSpace(string(out))
}

// TestStrayUnits: the tools name units of no container with the cure, and the next start sweeps scopes away.
func TestStrayUnits(t *testing.T) {
	n := underSystemd(t)
	pods := n.unitPods(1)
	failed, active := n.strayScope("-p", "RuntimeMaxSec=1"), n.strayScope()
	slice := n.Instance().NFTable + "-stray.slice"
	must(t, exec.Command("systemctl", "start", slice).Run())
	t.Cleanup(func() { exec.Command("systemctl", "stop", slice).Run() })
	n.eventually(20*time.Second, func() error {
		if f, a := n.unitState(failed), n.unitState(active); f != "failed" || a != "active" {
			return fmt.Errorf("the scopes are %s and %s", f, a)
		}
		return nil
	})
	out, err := n.evenkeel("leftovers")
	for _, want := range []string{"systemctl reset-failed " + failed, "systemctl stop " + active, "systemctl stop " + slice} {
		if err == nil || !strings.Contains(out, want) {
			t.Errorf("leftovers (%v) does not say %q:\n%s", err, want, out)
		}
	}
	if strings.Contains(out, pods[0].container) || strings.Contains(out, "-shims.scope") {
		t.Errorf("leftovers accuses what is in use:\n%s", out)
	}
	if out, _ := n.evenkeel("check", "--state", n.State, "--root", n.Root()); !strings.Contains(out, "systemctl reset-failed "+failed) || strings.Contains(out, active) {
		t.Errorf("check does not name the failed scope alone:\n%s", out)
	}
	must(t, exec.Command("systemctl", "stop", slice).Run())
	must(t, n.Systemctl("restart"))
	n.eventually(20*time.Second, func() error {
		if out, err := n.evenkeel("leftovers"); err != nil {
			return fmt.Errorf("after a restart: %s", out)
		}
		return nil
	})
	n.untouched(pods)
}
