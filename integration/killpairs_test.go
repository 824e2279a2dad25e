package integration

import (
	"context"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/integration/engine"
	"github.com/evenkeel/evenkeel/integration/registry"
	"github.com/evenkeel/evenkeel/internal/effect"
)

// seedEnv repeats what a failing TestKillPairs printed.
const seedEnv = "EVENKEEL_TEST_SEED"

// A pair of requests is sent at once, and the daemon is killed in the middle of both.
type pair struct {
	name    string
	network string // empty: builtin
	prepare func(*pairWorld)
	first   asked
	second  asked
	check   func(*pairWorld) // after both were repeated
}

// asked is one request of a pair.
type asked struct {
	send func(context.Context, *pairWorld) error
	// refusals are the codes that a repeated request may be answered with, where the other one has made it pointless. The
	// first answers are not looked at: they came before the daemon died, or never.
	refusals []codes.Code
}

// A pairWorld is what the requests of a pair are about.
type pairWorld struct {
	*world
	other         *cri.PodSandboxConfig // asks for the same host port
	sharing       string                // an image that shares a layer with world.image
	podIDs        sync.Map              // by the name of the pod: what RunPodSandbox was answered last
	layersAtStart []string
}

var (
	createRequest = asked{func(ctx context.Context, w *pairWorld) error {
		_, err := sendCreate(ctx, w.world)
		return err
	}, []codes.Code{codes.FailedPrecondition, codes.NotFound}}
	createNeighbour = asked{func(ctx context.Context, w *pairWorld) error {
		c := engine.Sleeper("neighbour", busybox)
		_, err := w.Runtime.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: w.pod, Config: c, SandboxConfig: w.podConfig})
		return err
	}, nil}
	createFromImage = asked{func(ctx context.Context, w *pairWorld) error {
		c := engine.Container("main", w.image, "sh")
		r, err := w.Runtime.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: w.pod, Config: c, SandboxConfig: w.podConfig})
		if err == nil {
			w.container = r.ContainerId
		}
		return err
	}, []codes.Code{codes.NotFound}}
	startRequest = asked{func(ctx context.Context, w *pairWorld) error {
		_, err := w.Runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: w.container})
		return err
	}, []codes.Code{codes.FailedPrecondition, codes.NotFound}}
	execRequest = asked{func(ctx context.Context, w *pairWorld) error {
		_, err := w.Runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: w.container, Cmd: []string{"sh", "-c", "sleep 0.05 & wait"}, Timeout: engine.Seconds(20)})
		return err
	}, []codes.Code{codes.FailedPrecondition, codes.NotFound}}
	updateRequest = asked{func(ctx context.Context, w *pairWorld) error {
		_, err := w.Runtime.UpdateContainerResources(ctx, &cri.UpdateContainerResourcesRequest{ContainerId: w.container, Linux: &cri.LinuxContainerResources{CpuShares: 77}})
		return err
	}, []codes.Code{codes.FailedPrecondition, codes.NotFound}}
	stopContainerRequest = asked{send: func(ctx context.Context, w *pairWorld) error {
		_, err := w.Runtime.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: w.container, Timeout: engine.Seconds(10)})
		return err
	}}
	removeContainerRequest = asked{send: func(ctx context.Context, w *pairWorld) error {
		_, err := w.Runtime.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: w.container})
		return err
	}}
	stopPodRequest = asked{send: func(ctx context.Context, w *pairWorld) error {
		_, err := w.Runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: w.pod})
		return err
	}}
	removePodRequest = asked{send: func(ctx context.Context, w *pairWorld) error {
		_, err := w.Runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: w.pod})
		return err
	}}
	pullRequest        = pulls(func(w *pairWorld) string { return w.image })
	pullSharingRequest = pulls(func(w *pairWorld) string { return w.sharing })
	removeImageRequest = asked{send: func(ctx context.Context, w *pairWorld) error {
		_, err := w.Images.RemoveImage(ctx, &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: w.image}})
		return err
	}}
)

func pulls(ref func(*pairWorld) string) asked {
	return asked{send: func(ctx context.Context, w *pairWorld) error {
		_, err := w.Images.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: ref(w)}})
		return err
	}}
}

// runs is RunPodSandbox of a pod whose host port another one may have.
func runs(cfg func(*pairWorld) *cri.PodSandboxConfig) asked {
	return asked{func(ctx context.Context, w *pairWorld) error {
		r, err := w.Runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: cfg(w)})
		if err == nil {
			w.podIDs.Store(cfg(w).Metadata.Name, r.PodSandboxId)
		} else {
			w.podIDs.Delete(cfg(w).Metadata.Name)
			if status.Code(err) == codes.Unknown && strings.Contains(err.Error(), "taken") {
				err = status.Error(codes.AlreadyExists, err.Error()) // the CRI has no code for it
			}
		}
		return err
	}, []codes.Code{codes.AlreadyExists}}
}

func ownPod(w *pairWorld) *cri.PodSandboxConfig   { return w.podConfig }
func otherPod(w *pairWorld) *cri.PodSandboxConfig { return w.other }

var pairs = []pair{
	{name: "CreateContainer and StopPodSandbox", prepare: (*pairWorld).onlyPod, first: createRequest, second: stopPodRequest, check: (*pairWorld).podStopped},
	{name: "CreateContainer and RemovePodSandbox", prepare: (*pairWorld).onlyPod, first: createRequest, second: removePodRequest, check: (*pairWorld).nothingThere},
	{name: "CreateContainer and CreateContainer", prepare: (*pairWorld).onlyPod, first: createRequest, second: createNeighbour, check: (*pairWorld).twoContainers},
	{name: "StartContainer and StopContainer", prepare: (*pairWorld).made, first: startRequest, second: stopContainerRequest, check: (*pairWorld).notRunning},
	{name: "StartContainer and RemovePodSandbox", prepare: (*pairWorld).made, first: startRequest, second: removePodRequest, check: (*pairWorld).nothingThere},
	{name: "RemoveContainer and StopPodSandbox", prepare: (*pairWorld).running, first: removeContainerRequest, second: stopPodRequest, check: (*pairWorld).podEmpty},
	{name: "StopContainer and RemoveContainer", prepare: (*pairWorld).running, first: stopContainerRequest, second: removeContainerRequest, check: (*pairWorld).podEmpty},
	{name: "StopPodSandbox and RemovePodSandbox", prepare: (*pairWorld).running, first: stopPodRequest, second: removePodRequest, check: (*pairWorld).nothingThere},
	{name: "ExecSync and StopContainer", prepare: (*pairWorld).running, first: execRequest, second: stopContainerRequest, check: (*pairWorld).notRunning},
	{name: "UpdateContainerResources and StopContainer", prepare: (*pairWorld).running, first: updateRequest, second: stopContainerRequest, check: (*pairWorld).notRunning},
	{name: "two pods with one host port", prepare: func(*pairWorld) {}, first: runs(ownPod), second: runs(otherPod), check: (*pairWorld).oneHasThePort},
	{name: "two pods on cni", network: "cni", prepare: func(*pairWorld) {}, first: runs(ownPod), second: runs(otherPod), check: func(w *pairWorld) { w.allReady() }},
	{name: "PullImage and RemoveImage", prepare: func(*pairWorld) {}, first: pullRequest, second: removeImageRequest, check: (*pairWorld).imagesAreWhole},
	{name: "PullImage and PullImage with a shared layer", prepare: func(*pairWorld) {}, first: pullRequest, second: pullSharingRequest, check: (*pairWorld).imagesAreWhole},
	{name: "PullImage and RemoveImage with a shared layer", prepare: (*pairWorld).pulled, first: pullSharingRequest, second: removeImageRequest, check: (*pairWorld).imagesAreWhole},
	{name: "CreateContainer and RemoveImage", prepare: func(w *pairWorld) { w.onlyPod(); w.pulled() }, first: createFromImage, second: removeImageRequest, check: (*pairWorld).imagesAreWhole},
}

func (w *pairWorld) onlyPod() { w.preparePod() }
func (w *pairWorld) made()    { w.prepareContainer() }
func (w *pairWorld) running() { w.prepareRunning() }
func (w *pairWorld) pulled()  { w.pull(w.image) }

func (w *pairWorld) podStopped() {
	w.t.Helper()
	if s := w.podStatus(w.pod); s.State != cri.PodSandboxState_SANDBOX_NOTREADY {
		w.t.Errorf("a stopped pod is %s", s.State)
	}
	for _, id := range w.containers() {
		if s := w.status(id); s.State != cri.ContainerState_CONTAINER_EXITED {
			w.t.Errorf("a container of a stopped pod is %s", s.State)
		}
	}
}

func (w *pairWorld) podEmpty() {
	w.t.Helper()
	if left := w.containers(); len(left) > 0 {
		w.t.Errorf("a removed container is still listed: %v", left)
	}
	w.podStatus(w.pod)
}

func (w *pairWorld) nothingThere() {
	w.t.Helper()
	if left := slices.Concat(w.pods(), w.containers()); len(left) > 0 {
		w.t.Errorf("a removed pod is still listed: %v", left)
	}
}

func (w *pairWorld) twoContainers() {
	w.t.Helper()
	list := w.containers()
	if len(list) != 2 {
		w.t.Errorf("two containers were made, listed are %v", list)
	}
	for _, id := range list {
		w.startContainer(id)
		w.output(id, "true")
	}
}

// notRunning: what was started after the first stop ends with another one.
func (w *pairWorld) notRunning() {
	w.t.Helper()
	w.stop(w.container, engine.Seconds(10))
	s := w.status(w.container)
	if s.State != cri.ContainerState_CONTAINER_EXITED && s.State != cri.ContainerState_CONTAINER_CREATED {
		w.t.Errorf("a stopped container is %s", s.State)
	}
}

func (w *pairWorld) allReady() (have []string) {
	w.t.Helper()
	w.podIDs.Range(func(name, id any) bool {
		have = append(have, name.(string))
		if s := w.podStatus(id.(string)); s.State != cri.PodSandboxState_SANDBOX_READY {
			w.t.Errorf("the pod that was answered with is %s", s.State)
		}
		return true
	})
	return have
}

func (w *pairWorld) oneHasThePort() {
	w.t.Helper()
	have := w.allReady()
	if list := w.pods(); len(have) != 1 || len(list) != 1 {
		w.t.Errorf("one host port, and %v were told that they have it; listed are %v", have, list)
	}
}

// imagesAreWhole reads every byte of every layer, and then takes both images away: nothing may be left of them.
func (w *pairWorld) imagesAreWhole() {
	w.t.Helper()
	w.says(" 0 damaged", "fsck")
	if w.container != "" {
		w.startContainer(w.container)
		w.remove(w.container)
		w.container = ""
	}
	for _, ref := range []string{w.image, w.sharing} {
		_, err := w.Images.RemoveImage(w.ctx(), &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: ref}})
		must(w.t, err)
	}
	must(w.t, w.Restart())                      // ends the leases of removed images
	w.eventually(10*time.Second, func() error { // layers are freed in the background
		if now := w.layerDirs(); !slices.Equal(now, w.layersAtStart) {
			return fmt.Errorf("layers %v, at the start there were %v", now, w.layersAtStart)
		}
		return nil
	})
}

func (w *pairWorld) layerDirs() []string {
	layers, _ := filepath.Glob(filepath.Join(w.Root(), "images/layers/*"))
	ingest, _ := filepath.Glob(filepath.Join(w.Root(), "images/ingest/*"))
	return append(layers, ingest...)
}

// TestKillPairs kills the daemon while it works on two requests at once, at an effect of either or at any moment, starts it anew and
// sends both again: each is finished, or pointless because of the other one, and nothing leaks.
func TestKillPairs(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv(seedEnv); s != "" {
		var err error
		seed, err = strconv.ParseUint(s, 10, 64)
		must(t, err)
	}
	rounds := engine.Rounds(3, 1)
	if testing.Short() {
		rounds = 1
	}
	if *long {
		rounds = 20
	}
	measured(t, "%d pairs of requests, %d kills each: %s=%d", len(pairs), rounds, seedEnv, seed)
	for _, p := range pairs {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			hash := fnv.New64()
			hash.Write([]byte(p.name))
			a := &pairAttack{pair: p, w: newPairWorld(t, p), random: rand.New(rand.NewPCG(seed, hash.Sum64()))}
			t.Cleanup(func() {
				if t.Failed() {
					t.Logf("once more: %s=%d go test ./integration -run 'TestKillPairs/%s'", seedEnv, seed, strings.ReplaceAll(p.name, " ", "_"))
				}
			})
			a.learn()
			for range rounds {
				if !t.Failed() {
					a.strike()
				}
			}
		})
	}
}

// A pairAttack is what is known of a pair that is being attacked.
type pairAttack struct {
	pair
	w       *pairWorld
	random  *rand.Rand
	effects []string
	took    time.Duration // both of them, undisturbed
}

func newPairWorld(t *testing.T, p pair) *pairWorld {
	t.Helper()
	network := p.network
	if network == "" {
		network = "builtin"
	}
	w := &pairWorld{world: newWorldOn(t, start(t, network))}
	w.other = w.Pod("other")
	w.other.PortMappings = w.podConfig.PortMappings
	files, err := registry.BusyboxFiles()
	must(t, err)
	repository := "pair" + fmt.Sprint(slices.IndexFunc(pairs, func(q pair) bool { return q.name == p.name }))
	text := strings.Repeat(t.Name(), 20000)
	shared, err := registry.Layer(append(files, registry.File{Name: "shared", Mode: 0o644, Content: []byte(text)})...)
	must(t, err)
	for _, ref := range []*string{&w.image, &w.sharing} {
		own, err := registry.Layer(registry.File{Name: "own", Mode: 0o644, Content: []byte(repository + text)})
		must(t, err)
		img, err := registry.Image(v1.Config{}, shared, own)
		must(t, err)
		*ref, err = images.Push(repository, img)
		must(t, err)
		repository += "sharing"
	}
	w.layersAtStart = w.layerDirs()
	return w
}

// both sends the requests at once, the second a little later.
func (a *pairAttack) both(lag time.Duration) (errs [2]error) {
	var all sync.WaitGroup
	ctx := a.w.ctx()
	all.Go(func() { errs[0] = a.first.send(ctx, a.w) })
	all.Go(func() {
		time.Sleep(lag)
		errs[1] = a.second.send(ctx, a.w)
	})
	all.Wait()
	return errs
}

// learn sends both undisturbed, and keeps the effects that they went through.
func (a *pairAttack) learn() {
	w := a.w
	w.t.Helper()
	trace := filepath.Join(w.Base, "trace")
	must(w.t, w.Restart(effect.TraceEnv+"="+trace))
	a.prepare(w)
	must(w.t, os.WriteFile(trace, nil, 0o644))
	begun := time.Now()
	errs := a.both(0)
	a.took = time.Since(begun)
	data, err := os.ReadFile(trace)
	must(w.t, err)
	for _, name := range strings.Fields(string(data)) {
		if !slices.Contains(a.effects, name) {
			a.effects = append(a.effects, name)
		}
	}
	if len(a.effects) == 0 {
		w.t.Fatalf("no named effect in %v", errs)
	}
	a.settle("undisturbed")
}

// strike kills the daemon once. Two times of three it dies at an effect, otherwise at any moment.
func (a *pairAttack) strike() {
	w := a.w
	w.t.Helper()
	lag := time.Duration(a.random.Int64N(int64(a.took)/2 + 1))
	moment := time.Duration(a.random.Int64N(int64(a.took) + 1))
	fault := []string{"kill-before:", "kill-after:"}[a.random.IntN(2)] + a.effects[a.random.IntN(len(a.effects))]
	if a.random.IntN(3) == 0 {
		fault = ""
	}
	must(w.t, w.Restart())
	a.prepare(w)
	if fault != "" {
		must(w.t, w.Kill())
		w.Env = []string{effect.FaultEnv + "=" + fault}
		if w.Start() != nil { // it was struck as it came
			a.again(fault, lag)
			return
		}
	}
	answered := make(chan [2]error, 1)
	go func() { answered <- a.both(lag) }()
	what := fault
	if fault == "" {
		what = fmt.Sprintf("killed after %s", moment)
		time.Sleep(moment)
	} else {
		select {
		case <-w.Exited():
		case errs := <-answered:
			answered <- errs
			select { // an effect in the background may come after the answers
			case <-w.Exited():
			case <-time.After(engine.Patience(200 * time.Millisecond)):
				what += fmt.Sprintf(" (not come by: %v)", errs)
			}
		}
	}
	must(w.t, w.Kill())
	<-answered
	a.again(fmt.Sprintf("%s, the second after %s", what, lag), lag)
}

// again starts the daemon anew and repeats both, at once and then one after the other.
func (a *pairAttack) again(what string, lag time.Duration) {
	a.w.t.Helper()
	must(a.w.t, a.w.Restart())
	for i, err := range a.both(lag) {
		if code := status.Code(err); code == codes.DeadlineExceeded || code == codes.Internal {
			a.w.t.Errorf("%s: request %d, repeated beside the other: %v", what, i+1, err)
		}
	}
	a.settle(what)
}

// settle repeats both until nothing more can come of them, looks at what is there, and takes it away.
func (a *pairAttack) settle(what string) {
	w := a.w
	w.t.Helper()
	failed := w.t.Failed()
	defer func() {
		if w.t.Failed() && !failed {
			w.t.Errorf("that was %s: %s", a.name, what)
		}
	}()
	for i, r := range []asked{a.second, a.first} {
		if err := r.send(w.ctx(), w); err != nil && !slices.Contains(r.refusals, status.Code(err)) {
			w.t.Errorf("repeat %d: %v", i+1, err)
		}
	}
	w.consistent()
	a.check(w)
	w.podIDs.Clear()
	w.tearDown()
	for _, ref := range []string{w.image, w.sharing} {
		_, err := w.Images.RemoveImage(w.ctx(), &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: ref}})
		must(w.t, err)
	}
}

// consistent: what is listed has a status, and a container's pod is listed.
func (w *pairWorld) consistent() {
	w.t.Helper()
	list, err := w.Runtime.ListContainers(w.ctx(), &cri.ListContainersRequest{})
	must(w.t, err)
	pods := w.pods()
	for _, id := range pods {
		w.podStatus(id)
	}
	names := map[string]bool{}
	for _, c := range list.Containers {
		if s := w.status(c.Id); s.State != c.State {
			w.t.Errorf("container %s is listed as %s, and its status is %s", c.Id, c.State, s.State)
		}
		if !slices.Contains(pods, c.PodSandboxId) {
			w.t.Errorf("container %s is listed, and its pod %s is not", c.Id, c.PodSandboxId)
		}
		key := c.PodSandboxId + c.Metadata.Name
		if names[key] {
			w.t.Errorf("container %s of the pod is listed twice", c.Metadata.Name)
		}
		names[key] = true
	}
}
