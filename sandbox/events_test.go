package sandbox

import (
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/shim"
)

const (
	created = cri.ContainerEventType_CONTAINER_CREATED_EVENT
	started = cri.ContainerEventType_CONTAINER_STARTED_EVENT
	stopped = cri.ContainerEventType_CONTAINER_STOPPED_EVENT
	deleted = cri.ContainerEventType_CONTAINER_DELETED_EVENT
)

func TestEventsFollowFromFacts(t *testing.T) {
	at := time.Now()
	for what, c := range map[string]struct {
		got, want []cri.ContainerEventType
	}{
		"a pod comes up":                     {podEvents(&podRecord{}, &podRecord{ReadyAt: at}), []cri.ContainerEventType{created, started}},
		"a pod is asked to stop":             {podEvents(&podRecord{ReadyAt: at}, &podRecord{ReadyAt: at, StoppingAt: at}), []cri.ContainerEventType{stopped}},
		"a READY pod is removed":             {podEvents(&podRecord{ReadyAt: at}, &podRecord{ReadyAt: at, Doomed: true}), []cri.ContainerEventType{stopped}},
		"the stop is complete":               {podEvents(&podRecord{ReadyAt: at, StoppingAt: at}, &podRecord{ReadyAt: at, StoppingAt: at, StoppedAt: at}), nil},
		"a stopped pod is removed":           {podEvents(&podRecord{ReadyAt: at, StoppingAt: at}, &podRecord{ReadyAt: at, StoppingAt: at, Doomed: true}), nil},
		"a pod that never was READY":         {podEvents(&podRecord{}, &podRecord{Doomed: true}), nil},
		"a container is made":                {containerEvents(&containerRecord{}, &containerRecord{CreatedAt: at}), []cri.ContainerEventType{created}},
		"it starts":                          {containerEvents(&containerRecord{CreatedAt: at}, &containerRecord{CreatedAt: at, StartedAt: at}), []cri.ContainerEventType{started}},
		"it ends":                            {containerEvents(&containerRecord{StartedAt: at}, &containerRecord{StartedAt: at, FinishedAt: at}), []cri.ContainerEventType{stopped}},
		"start and end are recorded at once": {containerEvents(&containerRecord{CreatedAt: at}, &containerRecord{CreatedAt: at, StartedAt: at, FinishedAt: at}), []cri.ContainerEventType{started, stopped}},
		"what it held is released":           {containerEvents(&containerRecord{FinishedAt: at}, &containerRecord{FinishedAt: at, Released: true}), nil},
		"a container that was not made":      {containerEvents(&containerRecord{}, &containerRecord{Doomed: true}), nil},
	} {
		if !slices.Equal(c.got, c.want) {
			t.Errorf("%s: %v, want %v", what, c.got, c.want)
		}
	}
}

// emptyPods is an index without objects over real directories.
func emptyPods(t *testing.T) *Pods {
	t.Helper()
	dir := t.TempDir()
	p := &Pods{Root: filepath.Join(dir, "root"), State: filepath.Join(dir, "state"), Runtimes: map[string]*Runtime{"": {}}, Log: slog.New(slog.DiscardHandler)}
	if err := p.Load(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// enter puts a READY pod with n containers into the index, by records alone.
func enter(t *testing.T, p *Pods, name string, n int) (*pod, []*container) {
	t.Helper()
	pod := p.newPod(podRecord{ID: newID(), CreatedAt: time.Now(), ReadyAt: time.Now(), Config: document[*cri.PodSandboxConfig]{
		&cri.PodSandboxConfig{Metadata: &cri.PodSandboxMetadata{Name: name, Namespace: "default", Uid: name}}}})
	p.index.claimPod(pod)
	var containers []*container
	for range n {
		c := p.newContainer(containerRecord{ID: newID(), PodID: pod.id,
			Config:    document[*cri.ContainerConfig]{&cri.ContainerConfig{Metadata: &cri.ContainerMetadata{Name: newID()}}},
			Resources: document[*cri.LinuxContainerResources]{&cri.LinuxContainerResources{}}, User: document[*cri.ContainerUser]{&cri.ContainerUser{}}})
		p.index.claimContainer(c)
		containers = append(containers, c)
	}
	return pod, containers
}

// live goes through a container's life, by records alone.
func (c *container) live() {
	for _, change := range []func(*containerRecord){
		func(r *containerRecord) { r.CreatedAt = time.Now() },
		func(r *containerRecord) { r.StartedAt = time.Now() },
		func(r *containerRecord) { r.FinishedAt = time.Now() },
		func(r *containerRecord) { r.Released = true },
	} {
		r := *c.facts()
		change(&r)
		c.swap(&r)
	}
	c.forget()
}

// TestEventsAreCompleteAndInOrder: many objects change at once; each reader hears all of it, per object in the order of
// life, with rising times, and with statuses that fit.
func TestEventsAreCompleteAndInOrder(t *testing.T) {
	p := emptyPods(t)
	const pods, each = 5, 8
	readers := []*Subscription{p.Subscribe(), p.Subscribe()}
	var changing sync.WaitGroup
	for i := range pods {
		_, containers := enter(t, p, string(rune('a'+i)), each)
		for _, c := range containers {
			changing.Go(c.live)
		}
	}
	changing.Wait()
	for _, s := range readers {
		heard, last := map[string][]cri.ContainerEventType{}, int64(0)
		for range pods * each * 4 {
			e := <-s.Events()
			heard[e.ContainerId] = append(heard[e.ContainerId], e.ContainerEventType)
			if e.CreatedAt <= last {
				t.Fatalf("event at %d after one at %d", e.CreatedAt, last)
			}
			last = e.CreatedAt
			checkStatuses(t, e)
		}
		for id, kinds := range heard {
			if !slices.Equal(kinds, []cri.ContainerEventType{created, started, stopped, deleted}) {
				t.Errorf("%s: %v", id, kinds)
			}
		}
		if len(heard) != pods*each || len(s.Events()) != 0 {
			t.Errorf("heard of %d containers, %d events too many", len(heard), len(s.Events()))
		}
	}
}

// A pod whose shim was silent is told of when it answers: what runs in it has been seen as UNKNOWN.
func TestEventsOfALateAdoption(t *testing.T) {
	p := emptyPods(t)
	pod, containers := enter(t, p, "late", 4)
	pod.silent.Store(true)
	names, state := map[string]string{}, shim.State{}
	for i, name := range []string{"idle", "running", "started", "ended"} {
		c := containers[i]
		c.silent.Store(true)
		names[c.id] = name
		r, s := *c.facts(), shim.ContainerState{ID: c.id}
		r.CreatedAt = time.Now()
		if name == "running" {
			r.StartedAt = time.Now()
		}
		if name != "idle" {
			s.StartedAt = time.Now()
		}
		if name == "ended" {
			s.Exit = &shim.Exit{Known: true, At: time.Now()}
		}
		c.record.Store(&r)
		state.Containers = append(state.Containers, s)
	}
	start, _ := strconv.ParseUint(startOf(t, os.Getpid()), 10, 64)
	state.Process = shim.Process{PID: os.Getpid(), Start: start} // one that does not end meanwhile
	events := p.Subscribe()
	pod.adopt(t.Context(), state)
	events.Close()

	heard, last := map[string][]cri.ContainerEventType{}, map[string]cri.ContainerState{}
	for len(events.Events()) > 0 {
		e := <-events.Events()
		name := names[e.ContainerId]
		heard[name] = append(heard[name], e.ContainerEventType)
		for _, s := range e.ContainersStatuses {
			last[names[s.Id]] = s.State
			if s.Id == e.ContainerId && s.State == cri.ContainerState_CONTAINER_UNKNOWN {
				t.Errorf("an event of container %s has it as UNKNOWN", name)
			}
		}
	}
	if len(heard) != 3 || !slices.Equal(heard["running"], []cri.ContainerEventType{started}) || !slices.Equal(heard["started"], heard["running"]) ||
		!slices.Equal(heard["ended"], []cri.ContainerEventType{started, stopped}) {
		t.Errorf("heard %v", heard)
	}
	want := map[string]cri.ContainerState{"idle": cri.ContainerState_CONTAINER_CREATED, "running": cri.ContainerState_CONTAINER_RUNNING,
		"started": cri.ContainerState_CONTAINER_RUNNING, "ended": cri.ContainerState_CONTAINER_EXITED}
	if !maps.Equal(last, want) {
		t.Errorf("last told are %v", last)
	}
}

// checkStatuses: the event's own container is in the state that the event tells of, not in a later one.
func checkStatuses(t *testing.T, e *cri.ContainerEventResponse) {
	t.Helper()
	if e.PodSandboxStatus.GetMetadata().GetUid() == "" {
		t.Fatalf("no sandbox status: %v", e)
	}
	at := slices.IndexFunc(e.ContainersStatuses, func(s *cri.ContainerStatus) bool { return s.Id == e.ContainerId })
	if e.ContainerEventType == deleted {
		if at >= 0 {
			t.Errorf("a deleted container is still listed in its own event")
		}
		return
	}
	want := map[cri.ContainerEventType]cri.ContainerState{
		created: cri.ContainerState_CONTAINER_CREATED, started: cri.ContainerState_CONTAINER_RUNNING, stopped: cri.ContainerState_CONTAINER_EXITED,
	}[e.ContainerEventType]
	if at < 0 || e.ContainersStatuses[at].State != want {
		t.Errorf("%s: not with state %s in %v", e.ContainerEventType, want, e.ContainersStatuses)
	}
}

func TestASlowReaderIsDroppedAndNobodyWaits(t *testing.T) {
	p := emptyPods(t)
	slow, quick := p.Subscribe(), p.Subscribe()
	defer quick.Close()
	total, read := 0, 0
	for total <= eventBacklog {
		_, containers := enter(t, p, newID(), 8)
		for _, c := range containers {
			c.live()
			total += 4
		}
		for len(quick.Events()) > 0 {
			<-quick.Events()
			read++
		}
	}
	select {
	case <-slow.Ended():
	default:
		t.Fatal("a reader that reads nothing is kept")
	}
	if slow.Err() != ErrSlowReader || p.DroppedReaders() != 1 || read != total {
		t.Errorf("err %v, dropped %d, the quick reader got %d of %d", slow.Err(), p.DroppedReaders(), read, total)
	}
	p.EndEvents()
	<-quick.Ended()
	if late := p.Subscribe(); quick.Err() != ErrEnded || late.Err() != ErrEnded {
		t.Errorf("at the end: %v, %v", quick.Err(), late.Err())
	}
}

func TestARemovedPodIsShownOnceMore(t *testing.T) {
	p := emptyPods(t)
	pod, _ := enter(t, p, "web", 0)
	s := p.Subscribe()
	defer s.Close()
	next := *pod.facts()
	next.StoppingAt = time.Now()
	pod.swap(&next)
	pod.forget()
	for _, want := range []cri.ContainerEventType{stopped, deleted} {
		e := <-s.Events()
		if e.ContainerEventType != want || e.ContainerId != pod.id || e.PodSandboxStatus.GetId() != pod.id || e.PodSandboxStatus.State != cri.PodSandboxState_SANDBOX_NOTREADY {
			t.Errorf("got %v, want %s", e, want)
		}
	}
}
