package integration

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/integration/engine"
	"github.com/evenkeel/evenkeel/integration/registry"
	"github.com/evenkeel/evenkeel/internal/effect"
)

// A request whose every effect is a place to kill the daemon.
type attacked struct {
	name    string
	prepare func(*world)                                  // what must exist before; no fault is set yet
	send    func(context.Context, *world) (string, error) // the request; returns the id it gave, if it gives one
	check   func(*world, string)                          // after the retry succeeded
	find    func(*world) []string                         // lists the objects that the request makes; nil: it makes none
	fact    string                                        // the effect after which the object is made, so that the retry must answer with it
}

// A world is the one pod with the one container that requests are attacked on.
type world struct {
	*node
	podConfig       *cri.PodSandboxConfig
	containerConfig *cri.ContainerConfig
	pod, container  string
	image           string
	failing         bool // effects fail, instead of ending the daemon
}

var requests = []attacked{
	{
		name:    "RunPodSandbox",
		prepare: func(*world) {},
		send:    sendRunPod,
		find:    (*world).pods,
		fact:    "pod.ready",
		check: func(w *world, id string) {
			w.pod = id
			if s := w.podStatus(id); s.State != cri.PodSandboxState_SANDBOX_READY || s.Network.GetIp() == "" {
				w.t.Errorf("the retry answered with a pod that is %s at %q", s.State, s.Network.GetIp())
			}
		},
	},
	{
		name:    "CreateContainer",
		prepare: (*world).preparePod,
		send:    sendCreate,
		find:    (*world).containers,
		fact:    "container.created",
		check: func(w *world, id string) {
			w.container = id
			if s := w.status(id); s.State != cri.ContainerState_CONTAINER_CREATED {
				w.t.Errorf("the retry answered with a container that is %s", s.State)
			}
			w.startContainer(id)
			w.output(id, "true")
		},
	},
	{
		name:    "StartContainer",
		prepare: (*world).prepareContainer,
		send: func(ctx context.Context, w *world) (string, error) {
			_, err := w.Runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: w.container})
			return "", w.startedBefore(err)
		},
		check: func(w *world, _ string) {
			s := w.status(w.container)
			if s.State == cri.ContainerState_CONTAINER_EXITED && w.failing && s.ExitCode == 128 {
				return // a start that failed is final, so that the kubelet backs off and makes a new container
			}
			if s.State != cri.ContainerState_CONTAINER_RUNNING {
				w.t.Errorf("the container is %s", s.State)
			}
			w.output(w.container, "true")
		},
	},
	{
		name:    "StopPodSandbox",
		prepare: (*world).prepareRunning,
		send: func(ctx context.Context, w *world) (string, error) {
			_, err := w.Runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: w.pod})
			return "", err
		},
		check: func(w *world, _ string) {
			if s := w.podStatus(w.pod); s.State != cri.PodSandboxState_SANDBOX_NOTREADY {
				w.t.Errorf("a stopped pod is %s", s.State)
			}
			if s := w.status(w.container); s.State != cri.ContainerState_CONTAINER_EXITED {
				w.t.Errorf("the container of a stopped pod is %s", s.State)
			}
		},
	},
	{
		name:    "RemovePodSandbox",
		prepare: (*world).prepareRunning,
		send: func(ctx context.Context, w *world) (string, error) {
			_, err := w.Runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: w.pod})
			return "", err
		},
		check: func(w *world, _ string) {
			if left := slices.Concat(w.pods(), w.containers()); len(left) > 0 {
				w.t.Errorf("a removed pod is still listed: %v", left)
			}
		},
	},
	{
		name:    "StopContainer",
		prepare: (*world).prepareRunning,
		send: func(ctx context.Context, w *world) (string, error) {
			_, err := w.Runtime.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: w.container, Timeout: 10})
			return "", err
		},
		check: func(w *world, _ string) { w.awaitState(w.container, cri.ContainerState_CONTAINER_EXITED) },
	},
	{
		name:    "RemoveContainer",
		prepare: (*world).prepareRunning,
		send: func(ctx context.Context, w *world) (string, error) {
			_, err := w.Runtime.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: w.container})
			return "", err
		},
		check: func(w *world, _ string) {
			if left := w.containers(); len(left) > 0 {
				w.t.Errorf("a removed container is still listed: %v", left)
			}
		},
	},
	{
		name:    "UpdateContainerResources",
		prepare: (*world).prepareRunning,
		send: func(ctx context.Context, w *world) (string, error) {
			_, err := w.Runtime.UpdateContainerResources(ctx, &cri.UpdateContainerResourcesRequest{ContainerId: w.container, Linux: &cri.LinuxContainerResources{CpuShares: 77}})
			return "", err
		},
		check: func(w *world, _ string) {
			if s := w.status(w.container); s.Resources.GetLinux().GetCpuShares() != 77 || s.State != cri.ContainerState_CONTAINER_RUNNING {
				w.t.Errorf("an updated container: %v", s)
			}
		},
	},
	{
		name:    "UpdatePodSandboxResources",
		prepare: (*world).preparePod,
		send: func(ctx context.Context, w *world) (string, error) {
			_, err := w.Runtime.UpdatePodSandboxResources(ctx, &cri.UpdatePodSandboxResourcesRequest{PodSandboxId: w.pod, Resources: &cri.LinuxContainerResources{CpuShares: 77}})
			return "", err
		},
		check: func(w *world, _ string) {
			r, err := w.Runtime.PodSandboxStatus(w.ctx(), &cri.PodSandboxStatusRequest{PodSandboxId: w.pod, Verbose: true})
			must(w.t, err)
			if !strings.Contains(r.Info["info"], `"77"`) {
				w.t.Errorf("the pod's new resources are not in its status: %s", r.Info["info"])
			}
		},
	},
	{
		name: "PullImage",
		prepare: func(w *world) {
			_, err := w.Images.RemoveImage(w.ctx(), &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: w.image}})
			must(w.t, err)
		},
		send: func(ctx context.Context, w *world) (string, error) {
			r, err := w.Images.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: w.image}})
			return r.GetImageRef(), err
		},
		check: func(w *world, id string) {
			r, err := w.Images.ImageStatus(w.ctx(), &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: w.image}})
			must(w.t, err)
			if r.Image.GetId() != id || r.Image.GetSize() == 0 {
				w.t.Errorf("after the pull of %s: %v", id, r.Image)
			}
		},
	},
}

func sendRunPod(ctx context.Context, w *world) (string, error) {
	r, err := w.Runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: w.podConfig})
	return r.GetPodSandboxId(), err
}

func sendCreate(ctx context.Context, w *world) (string, error) {
	r, err := w.Runtime.CreateContainer(ctx, &cri.CreateContainerRequest{
		PodSandboxId: w.pod, Config: w.containerConfig, SandboxConfig: w.podConfig})
	return r.GetContainerId(), err
}

// startedBefore lets a repeated start of a container pass that runs, or that a start failed on: the first request was
// finished, not undone, and the kubelet learns from the status what it came to.
func (w *world) startedBefore(err error) error {
	if err == nil {
		return nil
	}
	r, statusErr := w.Runtime.ContainerStatus(w.ctx(), &cri.ContainerStatusRequest{ContainerId: w.container})
	if statusErr == nil && r.Status.State != cri.ContainerState_CONTAINER_CREATED {
		return nil
	}
	return err
}

func (w *world) preparePod() { w.pod = w.runPod(w.podConfig) }
func (w *world) prepareContainer() {
	w.preparePod()
	w.container = w.create(w.pod, w.podConfig, w.containerConfig)
}
func (w *world) prepareRunning() { w.prepareContainer(); w.startContainer(w.container) }

func (w *world) pods() (ids []string) {
	r, err := w.Runtime.ListPodSandbox(w.ctx(), &cri.ListPodSandboxRequest{})
	must(w.t, err)
	for _, p := range r.Items {
		ids = append(ids, p.Id)
	}
	return ids
}

func (w *world) containers() (ids []string) {
	r, err := w.Runtime.ListContainers(w.ctx(), &cri.ListContainersRequest{})
	must(w.t, err)
	for _, c := range r.Containers {
		ids = append(ids, c.Id)
	}
	return ids
}

// TestKillPoints kills the daemon before and after every named effect of every request that changes the world,
// restarts it, and sends the request again: it must succeed on the same object or on a new one, and nothing may leak.
func TestKillPoints(t *testing.T) {
	attack(t, []string{"kill-before", "kill-after"}, true)
}

// TestFailPoints lets every effect fail instead. The answer is an error, or the effect did not matter; the retry
// succeeds and nothing leaks.
func TestFailPoints(t *testing.T) {
	if testing.Short() {
		t.Skip("the kill points take the same ways, and they are in the quick tests")
	}
	attack(t, []string{"fail-before", "fail-after"}, false)
}

// everyPointEnv attacks every effect on the CNI network too, and not those alone that differ there. It takes two minutes more.
const everyPointEnv = "EVENKEEL_TEST_EVERY_POINT"

func attack(t *testing.T, actions []string, kills bool) {
	attackOn(t, "requests", "builtin", requests, actions, kills)
	onCNI := slices.DeleteFunc(slices.Clone(requests), func(r attacked) bool {
		return !slices.Contains([]string{"RunPodSandbox", "StopPodSandbox", "RemovePodSandbox"}, r.name)
	})
	attackOn(t, "requests on cni", "cni", onCNI, actions, kills)
}

// differ are the effects that are worth an attack on a network.
func (w *world) differ(effects []string) []string {
	if w.Network == "builtin" || os.Getenv(everyPointEnv) != "" {
		return effects
	}
	return slices.DeleteFunc(effects, func(effect string) bool { return !strings.Contains(effect, "network") })
}

func attackOn(t *testing.T, title, network string, requests []attacked, actions []string, kills bool) {
	tallies := make([]tally, len(requests))
	t.Run(title, func(t *testing.T) {
		for i, r := range requests {
			t.Run(r.name, func(t *testing.T) {
				t.Parallel()
				w := newWorldOn(t, start(t, network))
				w.failing = !kills
				tallies[i] = w.attackEach(r, w.differ(w.learn(r)), actions)
			})
		}
	})
	points, survived := 0, 0
	for i, r := range requests {
		measured(t, "%s: %d of %d points survived, %s x %d effects: %s", r.name, tallies[i].survived, tallies[i].points,
			strings.Join(actions, "|"), len(tallies[i].effects), strings.Join(tallies[i].effects, " "))
		points, survived = points+tallies[i].points, survived+tallies[i].survived
	}
	measured(t, "all %s: %d of %d %s points survived", title, survived, points, strings.Join(actions, "|"))
}

// A tally is what came of attacking one request.
type tally struct {
	effects          []string
	points, survived int
}

func (w *world) attackEach(r attacked, effects, actions []string) tally {
	t := w.t
	result := tally{effects: effects}
	for i, name := range result.effects {
		for _, action := range chosen(actions, i) {
			result.points++
			if t.Run(action+":"+name, func(point *testing.T) {
				w.t = point
				defer func() { w.t = t }()
				w.attack(r, action+":"+name)
			}) {
				result.survived++
			}
		}
	}
	return result
}

// chosen are the actions that are tried at the i-th effect: all of them, and on a slow machine one at every fourth
// effect, each in turn: which effects there are does not depend on the machine, and hosts try them all.
func chosen(actions []string, i int) []string {
	if !engine.Slow() {
		return actions
	}
	if i%4 != 0 {
		return nil
	}
	return actions[i/4%len(actions):][:1]
}

func newWorldOn(t *testing.T, n *node) *world {
	w := &world{node: n}
	w.podConfig = w.Pod("attacked")
	w.podConfig.PortMappings = []*cri.PortMapping{{HostPort: int32(freePort(t)), ContainerPort: 80}}
	w.podConfig.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD // more effects: the pod's own init
	w.containerConfig = engine.Sleeper("main", busybox)
	w.containerConfig.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD
	w.containerConfig.Mounts = []*cri.Mount{ // more effects: image volumes
		{HostPath: w.LogDir(), ContainerPath: "/host"},
		{ContainerPath: "/image", Image: &cri.ImageSpec{Image: busybox}, Readonly: true},
	}
	w.image = image(t, "killpoint"+strings.ToLower(filepath.Base(t.Name())), v1.Config{Cmd: []string{"sh"}},
		registry.File{Name: "a", Mode: 0o644, Content: []byte(strings.Repeat(t.Name(), 5000))})
	return w
}

// learn runs the request once undisturbed and returns the effects it went through.
func (w *world) learn(r attacked) []string {
	w.t.Helper()
	trace := filepath.Join(w.Base, "trace")
	must(w.t, w.Restart(effect.TraceEnv+"="+trace))
	r.prepare(w)
	must(w.t, os.WriteFile(trace, nil, 0o644))
	id, err := r.send(w.ctx(), w)
	must(w.t, err)
	data, err := os.ReadFile(trace)
	must(w.t, err)
	r.check(w, id)
	w.tearDown()
	var names []string
	for _, name := range strings.Fields(string(data)) {
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		w.t.Fatalf("%s has no named effect", r.name)
	}
	return names
}

// attack makes one fault happen, and leaves a clean world.
func (w *world) attack(r attacked, fault string) {
	w.t.Helper()
	must(w.t, w.Restart())
	r.prepare(w)
	must(w.t, w.Kill())
	w.Env = []string{effect.FaultEnv + "=" + fault}
	if err := w.Start(); err == nil {
		_, err = r.send(w.ctx(), w)
		w.struck(err)
	} else if w.failing {
		w.t.Errorf("the daemon does not start: %v", err)
	}
	must(w.t, w.Restart())
	var old []string
	if r.find != nil {
		old = r.find(w)
	}
	id, err := r.send(w.ctx(), w)
	if err != nil {
		w.t.Errorf("the retry fails: %v", err)
	} else {
		w.oneObject(r, fault, old, id)
		r.check(w, id)
	}
	w.tearDown()
}

// struck makes sure that the fault happened. An effect in the background may come after the answer.
func (w *world) struck(err error) {
	w.t.Helper()
	if w.failing {
		return
	}
	ctx, cancel := context.WithTimeout(w.ctx(), engine.Patience(5*time.Second))
	defer cancel()
	if w.AwaitEnd(ctx) != nil {
		w.t.Errorf("it never happened; the request came to: %v", err)
	}
}

// oneObject checks that the retry answered with the one object there is: the first request's, if it got as far as the
// fact, else that one or another, since recovery may have undone it.
func (w *world) oneObject(r attacked, fault string, old []string, id string) {
	w.t.Helper()
	if r.find == nil {
		return
	}
	if now := r.find(w); len(now) != 1 || now[0] != id {
		w.t.Errorf("the retry answered %s, listed are %v", id, now)
	}
	if fault == "kill-after:"+r.fact && !slices.Contains(old, id) {
		w.t.Errorf("after the restart there was %v, but the retry answered %s", old, id)
	}
}

func (w *world) tearDown() {
	w.t.Helper()
	if err := w.RemoveAll(w.ctx()); err != nil {
		w.t.Errorf("cannot remove all pods: %v", err)
	}
	w.pod, w.container = "", ""
	w.noLeftovers()
}
