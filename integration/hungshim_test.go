package integration

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/integration/engine"
)

// gate is an OCI runtime that stands still at a verb while a file beside it is named after that. It does so in a child, as a
// runtime may that is a script around the real one.
const gate = `#!/bin/sh
case "$*" in *--help) exec "$(dirname "$0")/runc" "$@" ;; esac
for a; do
	case "$a" in
	create|start|exec)
		test -e "$0.$a" || break
		touch "$0.$a.begun"
		while test -e "$0.$a"; do sleep 0.05; done
		break ;;
	esac
done
exec "$(dirname "$0")/runc" "$@"
`

// reluctant is a shim that stops itself before its first word while a file is beside it.
const reluctant = `#!/bin/sh
test "$1" = serve && test -e "$0.stop" && kill -STOP $$
exec %s "$@"
`

// A hung is a node with a pod whose shim is about to hang, and with a pod beside it that must not notice.
type hung struct {
	*node
	gate, program string
	cfg           *cri.PodSandboxConfig
	pod, beside   string
}

func hangNode(t *testing.T) *hung {
	t.Helper()
	n := prepareNode(t, "builtin")
	h := &hung{node: n, gate: filepath.Join(n.Base, "gate"), program: filepath.Join(n.Base, "shim"), cfg: n.Pod("hung")}
	must(t, os.WriteFile(h.gate, []byte(gate), 0o755))
	must(t, os.Symlink(filepath.Join(n.Bin, "runc"), filepath.Join(n.Base, "runc")))
	must(t, os.WriteFile(h.program, fmt.Appendf(nil, reluctant, filepath.Join(n.Bin, "evenkeel-shim")), 0o755))
	n.Config = fmt.Sprintf("shim = %q\n[runtimes.gate]\npath = %q\n", h.program, h.gate)
	must(t, n.Start())
	n.pull(busybox)
	t.Cleanup(h.wake)
	h.beside, _ = n.up("beside")
	return h
}

// withPod is hangNode with the pod.
func withPod(t *testing.T) *hung {
	t.Helper()
	h := hangNode(t)
	r, err := h.Runtime.RunPodSandbox(h.ctx(), h.run())
	must(t, err)
	h.pod = r.PodSandboxId
	return h
}

func (h *hung) run() *cri.RunPodSandboxRequest {
	return &cri.RunPodSandboxRequest{Config: h.cfg, RuntimeHandler: "gate"}
}

// hold makes the runtime stand still at a verb; begun waits until it does.
func (h *hung) hold(verb string) { must(h.t, os.WriteFile(h.gate+"."+verb, nil, 0o644)) }
func (h *hung) begun(verb string) {
	h.t.Helper()
	h.eventually(20*time.Second, func() error { return os.Remove(h.gate + "." + verb + ".begun") })
}

// letGo lets the runtime go on.
func (h *hung) letGo() {
	held, _ := filepath.Glob(h.gate + ".*")
	for _, f := range held {
		os.Remove(f)
	}
}

// shims are the pids of the pod's shim, found from outside: there is one, or none.
func (h *hung) shims() (pids []int) {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		var pid int
		fmt.Sscanf(filepath.Base(dir), "%d", &pid)
		cwd, _ := os.Readlink(dir + "/cwd")
		if line := commandLine(dir); strings.HasPrefix(cwd, filepath.Join(h.State, "pods")) && !strings.Contains(cwd, h.beside) && strings.HasSuffix(line, " serve") {
			pids = append(pids, pid)
		}
	}
	return pids
}

func (h *hung) signal(s syscall.Signal) {
	for _, pid := range h.shims() {
		syscall.Kill(pid, s)
	}
}

// stopShim returns when the shim stands still: on a busy machine one of its threads may still answer after the signal was sent.
func (h *hung) stopShim() {
	h.t.Helper()
	h.signal(syscall.SIGSTOP)
	h.eventually(10*time.Second, func() error {
		for _, pid := range h.shims() {
			threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
			for _, thread := range threads {
				if stat, err := os.ReadFile(thread); err == nil && !strings.Contains(string(stat), ") T ") {
					return fmt.Errorf("the shim goes on: %s", stat)
				}
			}
		}
		return nil
	})
}

func (h *hung) wake() { h.letGo(); h.signal(syscall.SIGCONT) }

// commands are the runtime's, the gate's child included, that run on this engine's containers.
func (h *hung) commands() (found []string) {
	for _, pid := range h.Processes() {
		line := commandLine(filepath.Join("/proc", fmt.Sprint(pid)))
		if strings.Contains(line, "--root "+h.State) || strings.HasPrefix(line, "sleep 0.05") {
			found = append(found, fmt.Sprint(pid, " ", line))
		}
	}
	return found
}

func (h *hung) noCommands() {
	h.t.Helper()
	h.noneLeft("commands of the runtime", 10*time.Second, h.commands)
}

// stopWith sends a request that waits for the shim, and stops the shim when it is under way.
func (h *hung) stopWith(send func(context.Context) error, underWay func()) (answer chan error) {
	h.t.Helper()
	answer = make(chan error, 1)
	ctx := h.ctx()
	go func() { answer <- send(ctx) }()
	underWay()
	h.stopShim()
	return answer
}

// told checks that a request which waits for the shim is told so before its own deadline, and that nobody else waits. On every machine
// its caller loses its patience well before the engine does, which gives up a create a minute after its begin.
func (h *hung) told(send func(context.Context) error) {
	h.t.Helper()
	h.blamed(h.answer(min(engine.Patience(5*time.Second), 20*time.Second), send))
	h.othersGoOn()
}

// answer is that of a request which comes before the caller loses its patience.
func (h *hung) answer(patience time.Duration, send func(context.Context) error) error {
	h.t.Helper()
	ctx, stop := context.WithTimeout(h.ctx(), patience)
	defer stop()
	err := send(ctx)
	if ctx.Err() != nil {
		h.t.Errorf("the caller had lost its patience by then: %v", err)
	}
	return err
}

// blamed checks that an error names the one shim that the pod has.
func (h *hung) blamed(err error) {
	h.t.Helper()
	pids := h.shims()
	if len(pids) != 1 {
		h.t.Fatalf("the pod has the shims %v: %v", pids, err)
	}
	refused(h.t, err, codes.DeadlineExceeded, "shim", fmt.Sprintf("pid %d", pids[0]), "does not answer")
}

// othersGoOn makes a container beside the pod whose shim hangs.
func (h *hung) othersGoOn() {
	h.t.Helper()
	cfg := h.Pod("beside")
	begun := time.Now()
	id := h.node.run(h.beside, cfg, engine.Sleeper("next", busybox))
	h.output(id, "true")
	h.remove(id)
	if took := time.Since(begun); took > engine.Patience(5*time.Second) {
		h.t.Errorf("a container beside a shim that hangs took %s", took)
	}
}

func (h *hung) listed() (ids []string) {
	h.t.Helper()
	r, err := h.Runtime.ListContainers(h.ctx(), &cri.ListContainersRequest{Filter: &cri.ContainerFilter{PodSandboxId: h.pod}})
	must(h.t, err)
	for _, c := range r.Containers {
		ids = append(ids, c.Id)
	}
	return ids
}

// endPod stops and removes the pod in time, whatever its shim does, and nothing of it may be left.
func (h *hung) endPod() {
	h.t.Helper()
	begun := time.Now()
	h.stopPod(h.pod)
	h.removePod(h.pod)
	took := time.Since(begun)
	h.t.Logf("stopped and removed after %s", took.Round(time.Millisecond))
	if took > engine.Patience(25*time.Second) {
		h.t.Errorf("it took %s to stop and remove a pod whose shim hangs", took)
	}
	h.noCommands()
	if left := h.shims(); len(left) > 0 {
		h.t.Errorf("the shim is left: %v", left)
	}
	h.noLeftovers()
}

// fates are what can become of a shim that hangs, with a daemon that stays or is killed and started anew meanwhile.
func fates(t *testing.T, try func(t *testing.T, fate string, restart bool)) {
	waits(t)
	for _, fate := range []string{"wakes", "dies", "is removed"} {
		for _, restart := range []bool{false, true} {
			name := fate
			if restart {
				name += " after a restart"
			}
			t.Run(name, func(t *testing.T) {
				if testing.Short() && (restart || fate == "is removed") {
					t.Skip("a silent shim is given some time to answer")
				}
				t.Parallel()
				try(t, fate, restart)
			})
		}
	}
}

// TestShimHangsInCreate: a shim that hangs while the runtime makes a container costs that request its time. Nothing is taken for
// made, nor destroyed on suspicion, and what was begun ends as soon as somebody wants that.
func TestShimHangsInCreate(t *testing.T) {
	fates(t, func(t *testing.T, fate string, restart bool) {
		h := withPod(t)
		h.hold("create")
		c := engine.Sleeper("main", busybox)
		request := &cri.CreateContainerRequest{PodSandboxId: h.pod, Config: c, SandboxConfig: h.cfg}
		create := func(ctx context.Context) error {
			_, err := h.Runtime.CreateContainer(ctx, request)
			return err
		}
		h.stopWith(create, func() { h.begun("create") })
		if !restart {
			h.told(create)
		}
		if restart {
			must(t, h.Restart())
			refused(t, create(h.ctx()), codes.Unavailable, "shim", "does not answer")
			h.othersGoOn()
		}
		if ids := h.listed(); len(ids) > 0 {
			t.Errorf("a container that is not made is listed: %v", ids)
		}
		if s := h.podStatus(h.pod); s.State != cri.PodSandboxState_SANDBOX_READY {
			t.Errorf("the pod of a silent shim is %s", s.State)
		}
		if len(h.shims()) != 1 || (!restart && len(h.commands()) == 0) {
			t.Errorf("something was destroyed on suspicion: shims %v, commands %v", h.shims(), h.commands())
		}
		joined := make([]string, 3)
		var all errgroup.Group
		if !restart {
			for i := range joined {
				all.Go(func() error {
					r, err := h.Runtime.CreateContainer(h.ctx(), request)
					joined[i] = r.GetContainerId()
					return err
				})
			}
			time.Sleep(100 * time.Millisecond) // they are likely waiting by then
		}
		switch fate {
		case "wakes":
			h.wake()
			must(t, all.Wait())
			var id string
			h.eventually(20*time.Second, func() error { // after a restart the shim is adopted first
				r, err := h.Runtime.CreateContainer(h.ctx(), request)
				id = r.GetContainerId()
				return err
			})
			if ids := h.listed(); !slices.Equal(ids, []string{id}) || !restart && !slices.Equal(joined, []string{id, id, id}) {
				t.Errorf("the requests were answered %q, the next one %s, and listed are %v", joined, id, ids)
			}
			h.startContainer(id)
			h.output(id, "true")
			h.noCommands()
		case "dies":
			h.signal(syscall.SIGKILL)
			if err := all.Wait(); err == nil && !restart {
				t.Errorf("a container was made without a shim: %v", joined)
			}
			h.noCommands()
			h.eventually(20*time.Second, func() error {
				if s := h.podStatus(h.pod); s.State != cri.PodSandboxState_SANDBOX_NOTREADY {
					return fmt.Errorf("the pod without a shim is %s", s.State)
				}
				return nil
			})
			if ids := h.listed(); len(ids) > 0 {
				t.Errorf("listed are %v", ids)
			}
			h.letGo()
		}
		h.endPod()
		if err := all.Wait(); err == nil && fate != "wakes" && !restart {
			t.Errorf("a container was made in a pod that was removed: %v", joined)
		}
	})
}

// TestShimHangsInStart: the same, while the runtime starts a container.
func TestShimHangsInStart(t *testing.T) {
	fates(t, func(t *testing.T, fate string, restart bool) {
		h := withPod(t)
		id := h.create(h.pod, h.cfg, engine.Sleeper("main", busybox))
		h.hold("start")
		start := func(ctx context.Context) error {
			_, err := h.Runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: id})
			return err
		}
		h.stopWith(start, func() { h.begun("start") })
		if !restart {
			h.told(start)
		}
		want := cri.ContainerState_CONTAINER_CREATED
		if restart {
			must(t, h.Restart())
			want = cri.ContainerState_CONTAINER_UNKNOWN
			refused(t, start(h.ctx()), codes.Unavailable, "shim", "does not answer")
			h.othersGoOn()
		}
		if s := h.status(id); s.State != want {
			t.Errorf("a container that is being started by a silent shim is %s, want %s", s.State, want)
		}
		switch fate {
		case "wakes":
			h.wake()
			h.awaitState(id, cri.ContainerState_CONTAINER_RUNNING)
			must(t, start(h.ctx()))
			h.output(id, "true")
		case "dies":
			h.signal(syscall.SIGKILL)
			if s := h.awaitState(id, cri.ContainerState_CONTAINER_EXITED); s.ExitCode == 0 {
				t.Errorf("the container whose shim died: %v", s)
			}
			h.noCommands()
			h.letGo()
		}
		h.endPod()
	})
}

// TestShimHangsInExec: the same, while the runtime runs a command in a container. A command that nobody waits for any more does not
// run later.
func TestShimHangsInExec(t *testing.T) {
	fates(t, func(t *testing.T, fate string, restart bool) {
		h := withPod(t)
		id := h.node.run(h.pod, h.cfg, engine.Sleeper("main", busybox))
		h.hold("exec")
		exec := func(ctx context.Context) error {
			_, err := h.Runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"touch", "/ran"}, Timeout: 3600})
			return err
		}
		timed := func(ctx context.Context) error {
			_, err := h.Runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"touch", "/ran"}, Timeout: engine.Seconds(4)})
			return err
		}
		answer := h.stopWith(timed, func() { h.begun("exec") })
		if !restart {
			h.told(exec) // the shim has not even taken this call
		}
		refused(t, <-answer, codes.DeadlineExceeded, "shim", "does not answer", "did not end within")
		if s := h.status(id); s.State != cri.ContainerState_CONTAINER_RUNNING {
			t.Errorf("the container is %s", s.State)
		}
		if restart {
			must(t, h.Restart())
			refused(t, exec(h.ctx()), codes.Unavailable, "shim", "does not answer")
			h.othersGoOn()
		}
		switch fate {
		case "wakes":
			h.signal(syscall.SIGCONT)
			h.noCommands()
			h.letGo()
			h.awaitState(id, cri.ContainerState_CONTAINER_RUNNING)
			if said := h.output(id, "sh", "-c", "test -e /ran || echo no"); said != "no\n" {
				t.Error("the command ran after its caller was told that it is given up")
			}
		case "dies":
			h.signal(syscall.SIGKILL)
			h.awaitState(id, cri.ContainerState_CONTAINER_EXITED)
			h.noCommands()
		}
		h.endPod()
	})
}

// TestShimHangsInStop: a shim that does not tell how a container ended is given some seconds. The container is dead long before.
func TestShimHangsInStop(t *testing.T) {
	fates(t, func(t *testing.T, fate string, restart bool) {
		h := withPod(t)
		id := h.node.run(h.pod, h.cfg, engine.Sleeper("main", busybox))
		pid := h.containerPID(id)
		h.stopShim()
		err := h.answer(engine.Patience(5*time.Second), func(ctx context.Context) error {
			_, err := h.Runtime.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: id, Timeout: engine.Seconds(1)})
			return err
		})
		// A caller that is more patient than the engine, as on an emulated machine, sees the stop done without the shim.
		stopped := err == nil
		if !stopped {
			h.blamed(err)
		} else if s := h.status(id); s.State != cri.ContainerState_CONTAINER_EXITED || s.ExitCode == 0 {
			t.Errorf("stopped, and %s with code %d", s.State, s.ExitCode)
		}
		h.othersGoOn()
		if stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err == nil && !strings.Contains(string(stat), ") Z ") {
			t.Errorf("the container's process: %s", stat)
		}
		if restart {
			must(t, h.Restart())
			if s := h.status(id); !stopped && s.State != cri.ContainerState_CONTAINER_UNKNOWN {
				t.Errorf("the container is %s", s.State)
			}
		}
		switch fate {
		case "wakes":
			h.wake()
			if s := h.awaitState(id, cri.ContainerState_CONTAINER_EXITED); s.ExitCode == 0 {
				t.Errorf("a container that was killed: %v", s)
			}
		case "dies":
			h.signal(syscall.SIGKILL)
			if s := h.awaitState(id, cri.ContainerState_CONTAINER_EXITED); s.ExitCode == 0 {
				t.Errorf("a container that was killed: %v", s)
			}
		}
		h.endPod()
	})
}

// TestShimHangsAsItComes: the same, of a shim that never comes as far as its first word. Only a pod with an init asks it for something
// before it is READY.
func TestShimHangsAsItComes(t *testing.T) {
	fates(t, func(t *testing.T, fate string, restart bool) {
		if fate == "is removed" && !restart {
			t.Skip("nobody has been told its id")
		}
		h := hangNode(t)
		h.cfg.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD
		h.cfg.PortMappings = []*cri.PortMapping{{HostPort: int32(freePort(t)), ContainerPort: 80}}
		must(t, os.WriteFile(h.program+".stop", nil, 0o644))
		send := func(ctx context.Context) error {
			r, err := h.Runtime.RunPodSandbox(ctx, h.run())
			h.pod = r.GetPodSandboxId()
			return err
		}
		h.stopWith(func(ctx context.Context) error {
			_, err := h.Runtime.RunPodSandbox(ctx, h.run())
			return err
		}, func() {
			h.eventually(20*time.Second, func() error {
				if len(h.shims()) == 0 {
					return fmt.Errorf("no shim yet")
				}
				return nil
			})
		})
		if !restart {
			h.told(send)
		}
		if pods := h.known(); len(pods) != 2 { // the one beside and its container
			t.Errorf("a pod that is not made is listed: %v", pods)
		}
		must(t, os.Remove(h.program+".stop"))
		if restart { // what was never more than an intention is undone
			must(t, h.Restart())
			h.othersGoOn()
		}
		first := h.shims()
		switch fate {
		case "wakes":
			h.wake()
		case "dies":
			h.signal(syscall.SIGKILL)
		}
		h.eventually(20*time.Second, func() error { return send(h.ctx()) })
		if now := h.shims(); len(now) != 1 || fate == "wakes" && !restart && !slices.Equal(now, first) {
			t.Errorf("the pod has the shims %v, it had %v", now, first)
		}
		h.node.run(h.pod, h.cfg, engine.Sleeper("main", busybox))
		h.endPod()
	})
}
