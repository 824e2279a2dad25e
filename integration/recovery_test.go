package integration

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/integration/engine"
)

// counting writes 0, 1, 2, … to its log, and ends when told.
const counting = `trap 'exit 0' TERM; i=0; while :; do echo $i; i=$((i+1)); usleep 20000; done`

// TestKillNineWithTwentyPods is guarantee 5: a restart is invisible to workloads.
func TestKillNineWithTwentyPods(t *testing.T) {
	n := start(t, "builtin")
	const pods = 20
	type running struct{ pod, container, log string }
	all := make([]running, pods)
	var g errgroup.Group
	g.SetLimit(4)
	for i := range pods {
		g.Go(func() error {
			cfg := n.Pod(fmt.Sprintf("p%d", i))
			c := engine.Container("main", busybox, "sh", "-c", counting)
			pod := n.runPod(cfg)
			all[i] = running{pod, n.run(pod, cfg, c), n.logPath(cfg, c)}
			return nil
		})
	}
	must(t, g.Wait())
	if t.Failed() {
		t.FailNow()
	}
	volume := filepath.Join(n.Base, "volume")
	must(t, os.Mkdir(volume, 0o755))
	c := engine.Container("leaving", busybox, "sh", "-c", "until test -e /v/go; do usleep 10000; done; echo leaving; exit 23")
	c.Mounts = []*cri.Mount{{HostPath: volume, ContainerPath: "/v"}}
	leaving := n.run(all[0].pod, n.Pod("p0"), c)
	before := map[string]*cri.ContainerStatus{}
	for _, r := range all {
		before[r.container] = n.status(r.container)
	}

	must(t, n.Kill())
	must(t, os.WriteFile(filepath.Join(volume, "go"), nil, 0o644))
	time.Sleep(500 * time.Millisecond) // the daemon is away while 20 containers write and one ends
	begin := time.Now()
	must(t, n.Start())
	list, err := n.Runtime.ListContainers(n.ctx(), &cri.ListContainersRequest{})
	must(t, err)
	back := time.Since(begin)
	measured(t, "kill -9 and restart with %d pods: listens after %s, lists %d containers after %s", pods, n.Ready.Round(time.Millisecond), len(list.Containers), back.Round(time.Millisecond))
	limit := 300 * time.Millisecond
	if engine.Slow() { // a speed of an emulated processor is no goal, but the daemon has to come back
		limit = engine.Patience(3 * time.Second)
	}
	if back > limit {
		t.Errorf("the daemon is back after %s, want %s", back, limit)
	}

	for _, r := range all {
		if s := n.podStatus(r.pod); s.State != cri.PodSandboxState_SANDBOX_READY {
			t.Errorf("pod %s is %s", r.pod, s.State)
		}
		s := n.status(r.container)
		if s.State != cri.ContainerState_CONTAINER_RUNNING || s.StartedAt != before[r.container].StartedAt || s.CreatedAt != before[r.container].CreatedAt {
			t.Errorf("container %s: before %v, after %v", r.container, before[r.container], s)
		}
	}
	if s := n.awaitState(leaving, cri.ContainerState_CONTAINER_EXITED); s.ExitCode != 23 {
		t.Errorf("the container that ended meanwhile has exit code %d (%s), want 23", s.ExitCode, s.Reason)
	}
	time.Sleep(engine.Patience(200 * time.Millisecond))
	for _, r := range all {
		n.stop(r.container, 5)
		n.exactCount(r.log, 20)
	}
}

// exactCount checks that a counting container's log holds 0, 1, 2, … without a gap or a double.
func (n *node) exactCount(path string, least int) {
	n.t.Helper()
	lines := n.log(path)
	for i, l := range lines {
		if l.Text != strconv.Itoa(i) || l.Tag != "F" {
			n.t.Errorf("%s: record %d is %v", path, i, l)
			return
		}
	}
	if len(lines) < least {
		n.t.Errorf("%s has %d records, want at least %d", path, len(lines), least)
	}
}

// shim reads the pid of a pod's shim.
func (n *node) shim(pod string) int {
	n.t.Helper()
	data, err := os.ReadFile(filepath.Join(n.State, "pods", pod, "shim.pid"))
	must(n.t, err)
	pid, err := strconv.Atoi(strings.Fields(string(data))[0])
	must(n.t, err)
	return pid
}

// TestSilentShimIsUnknown is guarantee 3: silence is not death.
func TestSilentShimIsUnknown(t *testing.T) {
	n := start(t, "builtin")
	cfg := n.Pod("silent")
	c := engine.Container("main", busybox, "sh", "-c", counting)
	pod := n.runPod(cfg)
	id := n.run(pod, cfg, c)
	other, otherContainer := n.up("other")
	pid := n.shim(pod)
	startedAt := n.status(id).StartedAt

	must(t, syscall.Kill(pid, syscall.SIGSTOP))
	t.Cleanup(func() { syscall.Kill(pid, syscall.SIGCONT) })
	must(t, n.Kill())
	begin := time.Now()
	must(t, n.Start())
	measured(t, "a start beside a silent shim took %s", time.Since(begin).Round(time.Millisecond))
	if s := n.status(id); s.State != cri.ContainerState_CONTAINER_UNKNOWN {
		t.Errorf("the container of a silent shim is %s, want UNKNOWN", s.State)
	}
	if s := n.podStatus(other); s.State != cri.PodSandboxState_SANDBOX_READY {
		t.Errorf("the pod beside it is %s", s.State)
	}
	n.output(otherContainer, "true")

	must(t, syscall.Kill(pid, syscall.SIGCONT))
	s := n.awaitState(id, cri.ContainerState_CONTAINER_RUNNING)
	if s.StartedAt != startedAt || n.shim(pod) != pid {
		t.Errorf("the shim was not adopted: %v", s)
	}
	n.output(id, "true")
	n.stop(id, 5)
	n.exactCount(n.logPath(cfg, c), 1)
}

// TestSilentShimKeepsNobodyAlive: a shim that falls silent while the daemon runs, also in the middle of a call, can neither save a
// container from the end of its grace period nor keep its pod from being stopped.
func TestSilentShimKeepsNobodyAlive(t *testing.T) {
	waits(t)
	if testing.Short() {
		t.Skip("a shim is given 20 s in all to answer")
	}
	n := start(t, "builtin")
	cfg := n.Pod("silent")
	pod := n.runPod(cfg)
	id := n.run(pod, cfg, engine.Sleeper("main", busybox))
	late := n.create(pod, cfg, engine.Sleeper("late", busybox))
	pid := n.containerPID(id)
	shim := n.shim(pod)
	must(t, syscall.Kill(shim, syscall.SIGSTOP))
	t.Cleanup(func() { syscall.Kill(shim, syscall.SIGCONT) })

	n.stop(id, 1)
	if s := n.status(id); s.State != cri.ContainerState_CONTAINER_EXITED || s.ExitCode == 0 {
		t.Errorf("the stopped container: %v", s)
	}
	if stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err == nil && !strings.Contains(string(stat), ") Z ") {
		t.Errorf("its process: %s", stat)
	}
	starting, giveUp := context.WithTimeout(t.Context(), time.Second)
	defer giveUp()
	if _, err := n.Runtime.StartContainer(starting, &cri.StartContainerRequest{ContainerId: late}); err == nil {
		t.Error("a silent shim started a container")
	}
	n.stopPod(pod)
	if s := n.status(late); s.State != cri.ContainerState_CONTAINER_EXITED || s.ExitCode == 0 {
		t.Errorf("the container that was being started: %v", s)
	}
	n.removePod(pod)
}

// TestStopMeetsStart: who asks for a container's end while it is being started gets it, within the grace period.
func TestStopMeetsStart(t *testing.T) {
	waits(t)
	n := start(t, "builtin")
	cfg := n.Pod("meeting")
	pod := n.runPod(cfg)
	joined, ended := n.create(pod, cfg, engine.Sleeper("joined", busybox)), n.create(pod, cfg, engine.Sleeper("ended", busybox))
	shim := n.shim(pod)
	t.Cleanup(func() { syscall.Kill(shim, syscall.SIGCONT) })
	for id, wakes := range map[string]time.Duration{joined: time.Second, ended: 20 * time.Second} {
		must(t, syscall.Kill(shim, syscall.SIGSTOP))
		started := make(chan error, 1)
		go func() {
			_, err := n.Runtime.StartContainer(n.ctx(), &cri.StartContainerRequest{ContainerId: id})
			started <- err
		}()
		time.Sleep(engine.Patience(200 * time.Millisecond)) // the start waits for the shim
		wake := time.AfterFunc(wakes, func() { syscall.Kill(shim, syscall.SIGCONT) })
		grace := int64(wakes/time.Second) + 2
		if id == ended {
			grace = 1
		}
		n.stop(id, grace)
		if s := n.status(id); s.State != cri.ContainerState_CONTAINER_EXITED {
			t.Errorf("after a stop with %d s of grace the container is %s", grace, s.State)
		}
		if err := <-started; (err == nil) != (id == joined) {
			t.Errorf("the start under a stop with %d s of grace: %v", grace, err)
		}
		wake.Stop()
		must(t, syscall.Kill(shim, syscall.SIGCONT))
	}
}

// TestStartOutlivesItsEngine: the next engine learns how a start has ended that was under way when the last one died.
func TestStartOutlivesItsEngine(t *testing.T) {
	n := prepareNode(t, "builtin")
	slow, begun, outcome := filepath.Join(n.Base, "slow"), filepath.Join(n.Base, "begun"), filepath.Join(n.Base, "outcome")
	must(t, os.WriteFile(slow, []byte(fmt.Sprintf("#!/bin/sh\nfor a; do if [ \"$a\" = start ]; then touch %s; while ! [ -e %s ]; do sleep 0.05; done; . %s; fi; done\nexec %s \"$@\"\n",
		begun, outcome, outcome, filepath.Join(n.Bin, "runc"))), 0o755))
	n.Config = fmt.Sprintf("[runtimes.slow]\npath = %q\n", slow)
	must(t, n.Start())
	n.pull(busybox)
	cfg := n.Pod("slow")
	r, err := n.Runtime.RunPodSandbox(n.ctx(), &cri.RunPodSandboxRequest{Config: cfg, RuntimeHandler: "slow"})
	must(t, err)
	for _, c := range []struct {
		name, outcome string
		state         cri.ContainerState
		reason        string
	}{
		{"fails", "echo not today >&2; exit 1", cri.ContainerState_CONTAINER_EXITED, "StartError"},
		{"succeeds", "", cri.ContainerState_CONTAINER_RUNNING, ""},
	} {
		id := n.create(r.PodSandboxId, cfg, engine.Sleeper(c.name, busybox))
		go n.Runtime.StartContainer(n.ctx(), &cri.StartContainerRequest{ContainerId: id})
		n.eventually(10*time.Second, func() error { return os.Remove(begun) })
		must(t, n.Kill())
		must(t, n.Start())
		if s := n.status(id); s.State != cri.ContainerState_CONTAINER_CREATED {
			t.Errorf("a container that is being started is %s", s.State)
		}
		must(t, os.WriteFile(outcome, []byte(c.outcome+"\n"), 0o600))
		if s := n.awaitState(id, c.state); s.Reason != c.reason {
			t.Errorf("the container whose start %s: %v", c.name, s)
		}
		must(t, os.Remove(outcome))
	}
}

// TestLateExitFileIsNobodys: a shim that was silent tells of an end that is on record already. Leftovers are looked for at the end.
func TestLateExitFileIsNobodys(t *testing.T) {
	waits(t)
	if testing.Short() {
		t.Skip("a shim is given 10 s to answer")
	}
	n := start(t, "builtin")
	pod, id := n.up("late")
	shim := n.shim(pod)
	must(t, syscall.Kill(shim, syscall.SIGSTOP))
	t.Cleanup(func() { syscall.Kill(shim, syscall.SIGCONT) })
	n.stop(id, 0)
	n.remove(id)
	must(t, syscall.Kill(shim, syscall.SIGCONT))
	n.eventually(10*time.Second, func() error {
		log, err := os.ReadFile(n.LogFile())
		must(t, err)
		if !strings.Contains(string(log), `msg="container ended" container=`+id) {
			return fmt.Errorf("the shim has not told of the end")
		}
		return nil
	})
}

// TestLostSocketOfAShim: a shim that lives and cannot be asked is asked again until it can.
func TestLostSocketOfAShim(t *testing.T) {
	n := start(t, "builtin")
	pod, id := n.up("deaf")
	gone, goneContainer := n.up("gone")
	socket := filepath.Join(n.State, "pods", pod, "shim.sock")
	must(t, n.Kill())
	must(t, os.Rename(socket, socket+".away"))
	must(t, os.Remove(filepath.Join(n.State, "pods", gone, "shim.sock")))
	must(t, n.Start())
	for _, c := range []string{id, goneContainer} {
		if s := n.status(c); s.State != cri.ContainerState_CONTAINER_UNKNOWN {
			t.Errorf("container %s is %s, want UNKNOWN", c, s.State)
		}
	}
	must(t, os.Rename(socket+".away", socket))
	must(t, syscall.Kill(n.shim(gone), syscall.SIGKILL))
	n.awaitState(id, cri.ContainerState_CONTAINER_RUNNING)
	n.output(id, "true")
	n.awaitState(goneContainer, cri.ContainerState_CONTAINER_EXITED)
	if s := n.podStatus(gone); s.State != cri.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("the pod whose shim is gone is %s", s.State)
	}
}

// TestKilledShimIsNotSuccess: nobody can tell how the container ended, and nobody pretends to.
func TestKilledShimIsNotSuccess(t *testing.T) {
	for _, daemon := range []string{"up", "down"} {
		t.Run("daemon "+daemon, func(t *testing.T) {
			n := start(t, "builtin")
			pod, id := n.up("orphan")
			if daemon == "down" {
				must(t, n.Kill())
			}
			must(t, syscall.Kill(n.shim(pod), syscall.SIGKILL))
			if daemon == "down" {
				must(t, n.Start())
				if s := n.podStatus(pod); s.State != cri.PodSandboxState_SANDBOX_NOTREADY && !engine.Slow() {
					t.Errorf("after the restart the pod without a shim is shown %s", s.State)
				}
			}
			s := n.awaitState(id, cri.ContainerState_CONTAINER_EXITED)
			if s.ExitCode != 255 || s.Reason == "Completed" {
				t.Errorf("exit code %d reason %q, want 255 and a reason", s.ExitCode, s.Reason)
			}
			n.eventually(10*time.Second, func() error {
				if s := n.podStatus(pod); s.State != cri.PodSandboxState_SANDBOX_NOTREADY {
					return fmt.Errorf("the pod without a shim is %s", s.State)
				}
				return nil
			})
			n.stopPod(pod)
			n.removePod(pod)
		})
	}
}

// TestTornRecordAfterAReboot: records are not synced, so a power cut may leave half of one. What it described is dead.
func TestTornRecordAfterAReboot(t *testing.T) {
	n := start(t, "builtin")
	pod, id := n.up("torn")
	healthy, _ := n.up("healthy")
	for _, p := range []string{pod, healthy} {
		n.stopPod(p)
	}
	must(t, n.Kill())
	for _, record := range []string{filepath.Join(n.Root(), "pods", pod, "record"), filepath.Join(n.Root(), "containers", id, "record")} {
		must(t, os.Truncate(record, 0))
	}
	must(t, os.WriteFile(filepath.Join(n.Root(), "boot"), []byte("another boot"), 0o600))
	must(t, n.Start())
	if known := n.known(); known[pod] || known[id] || !known[healthy] {
		t.Errorf("the engine knows %v", known)
	}
	n.noLeftovers()
}

// TestUnreadableRecordIsSetAside: what cannot be read is reported and nothing it might own is touched.
func TestUnreadableRecordIsSetAside(t *testing.T) {
	n := start(t, "builtin")
	pod, id := n.up("broken")
	healthy, _ := n.up("healthy")
	must(t, n.Kill())
	record := filepath.Join(n.Root(), "pods", pod, "record")
	good, err := os.ReadFile(record)
	must(t, err)
	must(t, os.WriteFile(record, good[:len(good)/2], 0o600))
	must(t, n.Start())
	if s := n.podStatus(healthy); s.State != cri.PodSandboxState_SANDBOX_READY {
		t.Errorf("the healthy pod is %s", s.State)
	}
	if syscall.Kill(n.shim(pod), 0) != nil {
		t.Error("the shim of a pod whose record is unreadable was destroyed")
	}
	must(t, n.Kill())
	must(t, os.MkdirAll(filepath.Dir(record), 0o700))
	must(t, os.WriteFile(record, good, 0o600))
	must(t, n.Start())
	if s := n.podStatus(pod); s.State != cri.PodSandboxState_SANDBOX_READY {
		t.Errorf("the pod is %s after its record was repaired", s.State)
	}
	n.awaitState(id, cri.ContainerState_CONTAINER_RUNNING)
}
