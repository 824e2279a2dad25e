package main

import (
	"context"
	"fmt"
	"sort"
	"strings"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// world is what the engine listed at one moment.
type world struct {
	pods       []*cri.PodSandbox
	containers []*cri.Container
}

// look lists all pods and containers. A pod that appears between the two lists is harmless: its containers are found
// without it.
func (e *engine) look(ctx context.Context) (*world, error) {
	containers, err := e.pods.ListContainers(ctx, &cri.ListContainersRequest{})
	if err != nil {
		return nil, fmt.Errorf("cannot list containers: %w", err)
	}
	pods, err := e.pods.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
	if err != nil {
		return nil, fmt.Errorf("cannot list pods: %w", err)
	}
	return &world{pods.Items, containers.Containers}, nil
}

// target is one pod or one container; exactly one of the two is set.
type target struct {
	pod       *cri.PodSandbox
	container *cri.Container
}

func (t target) id() string {
	if t.pod != nil {
		return t.pod.Id
	}
	return t.container.Id
}

func (t target) kind() string {
	if t.pod != nil {
		return "pod"
	}
	return "container"
}

func (t target) name() string {
	if t.pod != nil {
		return podName(t.pod)
	}
	return t.container.GetMetadata().GetName()
}

func podName(p *cri.PodSandbox) string {
	return p.GetMetadata().GetNamespace() + "/" + p.GetMetadata().GetName()
}

// notFound is what an operator typed and nothing fits to.
type notFound string

func (ref notFound) Error() string {
	return fmt.Sprintf("no pod or container is called %q and no id starts with it", string(ref))
}

// find resolves what an operator typed: a full id, a pod's name (web or default/web), a container's name, or the start of
// an id, in this order. Of several attempts of one container, or of one pod, the newest is meant. A pod wins over its own
// container of the same name. Anything else that fits twice is an error that lists the candidates.
func (w *world) find(ref string) (target, error) {
	for _, match := range []func(string) []target{w.byID, w.byName, w.byPrefix} {
		switch found := match(ref); len(found) {
		case 0:
		case 1:
			return found[0], nil
		default:
			return target{}, w.ambiguous(ref, found)
		}
	}
	return target{}, notFound(ref)
}

func (w *world) byID(ref string) []target {
	return w.all(func(t target) bool { return t.id() == ref })
}

func (w *world) byPrefix(ref string) []target {
	return w.all(func(t target) bool { return ref != "" && strings.HasPrefix(t.id(), ref) })
}

func (w *world) all(match func(target) bool) (found []target) {
	for _, p := range w.pods {
		if t := (target{pod: p}); match(t) {
			found = append(found, t)
		}
	}
	for _, c := range w.containers {
		if t := (target{container: c}); match(t) {
			found = append(found, t)
		}
	}
	return found
}

func (w *world) byName(ref string) (found []target) {
	pods := newest(w.pods, func(p *cri.PodSandbox) (string, uint32) {
		return podName(p) + "/" + p.GetMetadata().GetUid(), p.GetMetadata().GetAttempt()
	})
	owners := map[string]bool{}
	for _, p := range pods {
		if ref == p.GetMetadata().GetName() || ref == podName(p) {
			found = append(found, target{pod: p})
			owners[p.Id] = true
		}
	}
	for _, c := range w.newestContainers() {
		if ref == c.GetMetadata().GetName() && !owners[c.PodSandboxId] {
			found = append(found, target{container: c})
		}
	}
	return found
}

func (w *world) newestContainers() []*cri.Container {
	return newest(w.containers, func(c *cri.Container) (string, uint32) {
		return c.PodSandboxId + "/" + c.GetMetadata().GetName(), c.GetMetadata().GetAttempt()
	})
}

// newest keeps the highest attempt of each identity, in the order of the list.
func newest[T any](list []T, identity func(T) (key string, attempt uint32)) (kept []T) {
	at := map[string]int{}
	for _, item := range list {
		key, attempt := identity(item)
		i, seen := at[key]
		if !seen {
			at[key] = len(kept)
			kept = append(kept, item)
		} else if _, old := identity(kept[i]); attempt > old {
			kept[i] = item
		}
	}
	return kept
}

func (w *world) ambiguous(ref string, found []target) error {
	lines := make([]string, len(found))
	for i, t := range found {
		lines[i] = fmt.Sprintf("  %s %s %s", t.kind(), shortID(t.id()), w.fullName(t))
	}
	sort.Strings(lines)
	return fmt.Errorf("%q could be any of these, give more of the id:\n%s", ref, strings.Join(lines, "\n"))
}

func (w *world) fullName(t target) string {
	if t.pod != nil {
		return t.name()
	}
	return t.name() + " of pod " + w.podOf(t.container)
}

// podOf is the name of the container's pod, or its short id when the pod is not listed.
func (w *world) podOf(c *cri.Container) string {
	for _, p := range w.pods {
		if p.Id == c.PodSandboxId {
			return podName(p)
		}
	}
	return shortID(c.PodSandboxId)
}

// containersOf lists the newest attempt of each container of a pod, oldest container first.
func (w *world) containersOf(podID string) (list []*cri.Container) {
	for _, c := range w.newestContainers() {
		if c.PodSandboxId == podID {
			list = append(list, c)
		}
	}
	sort.Slice(list, func(i, j int) bool { return list[i].CreatedAt < list[j].CreatedAt })
	return list
}

// pick resolves a reference to containers: the one named, or those of the pod, narrowed by name when one is given.
func (w *world) pick(ref, name string) ([]*cri.Container, error) {
	t, err := w.find(ref)
	if err != nil {
		return nil, err
	}
	if t.container != nil {
		if name != "" && t.name() != name {
			return nil, fmt.Errorf("%s is container %s itself; -c %s does not fit it", ref, t.name(), name)
		}
		return []*cri.Container{t.container}, nil
	}
	list := w.containersOf(t.pod.Id)
	if name == "" {
		if len(list) == 0 {
			return nil, fmt.Errorf("pod %s has no container", t.name())
		}
		return list, nil
	}
	for _, c := range list {
		if c.GetMetadata().GetName() == name {
			return []*cri.Container{c}, nil
		}
	}
	return nil, fmt.Errorf("pod %s has no container %q; it has: %s", t.name(), name, containerNames(list))
}

// pickRunning is pick for commands that need exactly one running container.
func (w *world) pickRunning(ref, name string) (*cri.Container, error) {
	list, err := w.pick(ref, name)
	if err != nil {
		return nil, err
	}
	var running []*cri.Container
	for _, c := range list {
		if c.State == cri.ContainerState_CONTAINER_RUNNING {
			running = append(running, c)
		}
	}
	switch {
	case len(running) == 1:
		return running[0], nil
	case len(running) > 1:
		return nil, fmt.Errorf("%s has several containers, choose one with -c: %s", ref, containerNames(running))
	case len(list) == 1:
		return nil, fmt.Errorf("container %s is %s, not running", list[0].GetMetadata().GetName(), containerState(list[0].State))
	}
	return nil, fmt.Errorf("no container of %s is running; it has: %s", ref, containerNames(list))
}

func containerNames(list []*cri.Container) string {
	names := make([]string, len(list))
	for i, c := range list {
		names[i] = c.GetMetadata().GetName()
	}
	return strings.Join(names, ", ")
}

// containerState is the last word of the CRI's name, in lower case: created, running, exited, unknown.
func containerState(s cri.ContainerState) string {
	return strings.ToLower(strings.TrimPrefix(s.String(), "CONTAINER_"))
}

// podState is ready or notready.
func podState(s cri.PodSandboxState) string {
	return strings.ToLower(strings.TrimPrefix(s.String(), "SANDBOX_"))
}
