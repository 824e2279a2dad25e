package sandbox

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// podKey is what the kubelet means by "the same pod": a repeated request carries the same key.
type podKey struct {
	namespace, name, uid string
	attempt              uint32
}

func keyOfPod(m *cri.PodSandboxMetadata) podKey {
	return podKey{m.GetNamespace(), m.GetName(), m.GetUid(), m.GetAttempt()}
}

func (k podKey) String() string {
	return fmt.Sprintf("%s/%s (uid %s, attempt %d)", k.namespace, k.name, k.uid, k.attempt)
}

// containerKey is what the kubelet means by "the same container".
type containerKey struct {
	podID, name string
	attempt     uint32
}

func keyOfContainer(podID string, m *cri.ContainerMetadata) containerKey {
	return containerKey{podID, m.GetName(), m.GetAttempt()}
}

// index finds objects by id and by key, from their first record on. Its lock is held for map accesses only.
type index struct {
	mu            sync.RWMutex
	pods          map[string]*pod
	podKeys       map[podKey]*pod
	containers    map[string]*container
	containerKeys map[containerKey]*container
}

func newIndex() *index {
	return &index{
		pods: map[string]*pod{}, podKeys: map[podKey]*pod{},
		containers: map[string]*container{}, containerKeys: map[containerKey]*container{},
	}
}

// claimPod returns the pod that already has fresh's key, or enters fresh.
func (x *index) claimPod(fresh *pod) (existing *pod) {
	x.mu.Lock()
	defer x.mu.Unlock()
	key := keyOfPod(fresh.facts().Config.Message.GetMetadata())
	if old := x.podKeys[key]; old != nil {
		return old
	}
	x.podKeys[key], x.pods[fresh.id] = fresh, fresh
	return nil
}

// claimContainer returns the container that already has fresh's key, or enters fresh.
func (x *index) claimContainer(fresh *container) (existing *container) {
	x.mu.Lock()
	defer x.mu.Unlock()
	r := fresh.facts()
	key := keyOfContainer(r.PodID, r.Config.Message.GetMetadata())
	if old := x.containerKeys[key]; old != nil {
		return old
	}
	x.containerKeys[key], x.containers[fresh.id] = fresh, fresh
	return nil
}

func (x *index) dropPod(p *pod) {
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.pods, p.id)
	if key := keyOfPod(p.facts().Config.Message.GetMetadata()); x.podKeys[key] == p {
		delete(x.podKeys, key)
	}
}

func (x *index) dropContainer(c *container) {
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.containers, c.id)
	r := c.facts()
	if key := keyOfContainer(r.PodID, r.Config.Message.GetMetadata()); x.containerKeys[key] == c {
		delete(x.containerKeys, key)
	}
}

// pod finds a pod by id or unambiguous prefix.
func (x *index) pod(id string) (*pod, error) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return find(x.pods, "pod sandbox", id)
}

// container finds a container by id or unambiguous prefix.
func (x *index) container(id string) (*container, error) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return find(x.containers, "container", id)
}

func find[T any](all map[string]*T, kind, id string) (*T, error) {
	if found := all[id]; found != nil {
		return found, nil
	}
	var found *T
	for full, object := range all {
		if id == "" || !strings.HasPrefix(full, id) {
			continue
		}
		if found != nil {
			return nil, fmt.Errorf("%s id %q fits several: give more of it: %w", kind, id, ErrInvalid)
		}
		found = object
	}
	if found == nil {
		return nil, fmt.Errorf("%s %q: %w", kind, id, ErrNotFound)
	}
	return found, nil
}

// allPods lists the pods, newest first.
func (x *index) allPods() []*pod {
	x.mu.RLock()
	all := make([]aged[*pod], 0, len(x.pods))
	for _, p := range x.pods {
		all = append(all, aged[*pod]{p.facts().CreatedAt, p})
	}
	x.mu.RUnlock()
	return newestFirst(all)
}

// allContainers lists the containers, newest first, of one pod or (podID "") of all.
func (x *index) allContainers(podID string) []*container {
	x.mu.RLock()
	all := make([]aged[*container], 0, len(x.containers))
	for _, c := range x.containers {
		if podID == "" || c.podID == podID {
			all = append(all, aged[*container]{c.facts().CreatedAt, c})
		}
	}
	x.mu.RUnlock()
	return newestFirst(all)
}

// aged is an object with the time of its making, which is read once: lists are sorted every second.
type aged[T any] struct {
	at time.Time
	of T
}

func newestFirst[T any](all []aged[T]) []T {
	slices.SortFunc(all, func(a, b aged[T]) int { return b.at.Compare(a.at) })
	sorted := make([]T, len(all))
	for i, a := range all {
		sorted[i] = a.of
	}
	return sorted
}
