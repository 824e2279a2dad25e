package sandbox

import (
	"context"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Plugins hear of the life of pods and containers and may have a say in it (Node Resource Interface). Each call is
// bounded by the implementation, so that a plugin that hangs costs a pod a known time, and an error names the plugin.
type Plugins interface {
	// TellPod reports what becomes of a pod. An error before PodStopped refuses it.
	TellPod(ctx context.Context, what PodEvent, pod PodView) error
	// UpdatePod comes before new resources or overhead of a pod are recorded; nil stays as it is. An error refuses them.
	UpdatePod(ctx context.Context, pod PodView, overhead, resources *cri.LinuxContainerResources) error
	// Create comes before a container is made, and may change c.Spec. An error refuses the container.
	Create(ctx context.Context, pod PodView, c ContainerView) (Adjustment, error)
	// Update comes before a container is updated, and returns what to ask for instead. An error refuses the update.
	Update(ctx context.Context, pod PodView, c ContainerView, want *cri.LinuxContainerResources) (*cri.LinuxContainerResources, []ResourceUpdate, error)
	// Tell reports what becomes of a container. An error of ContainerStart refuses the start.
	Tell(ctx context.Context, what ContainerEvent, pod PodView, c ContainerView) ([]ResourceUpdate, error)
}

// A PodEvent is a moment in the life of a pod.
type PodEvent int

const (
	PodRun     PodEvent = iota // all of it is made; nobody sees it yet
	PodUpdated                 // new resources are recorded
	PodStopped                 // its containers have ended, its network is still there
	PodRemoved
)

// A ContainerEvent is a moment in the life of a container.
type ContainerEvent int

const (
	ContainerCreated ContainerEvent = iota
	ContainerStart                  // it is about to run
	ContainerStarted
	ContainerUpdated
	ContainerStopped // by whomever, or by itself
	ContainerRemoved
)

// Adjustment is what plugins want beyond the changes that they made to the spec.
type Adjustment struct {
	CDI       []string                     // names of devices
	Resources *cri.LinuxContainerResources // what the container has now, as far as the CRI can say it; nil: as asked
	Updates   []ResourceUpdate             // of other containers
}

// ResourceUpdate asks for a change of a container's resources. Zero fields stay as they are.
type ResourceUpdate struct {
	ContainerID string
	Resources   *cri.LinuxContainerResources
	// Tolerant updates may fail without anybody being told.
	Tolerant bool
}

// PodView is what plugins see of a pod. It must not be changed.
type PodView struct {
	ID, Handler string
	Made        bool // false while it is being made
	Config      *cri.PodSandboxConfig
	Cgroup      string
	IPs         []string // primary first
	Namespaces  map[specs.LinuxNamespaceType]string
	PID         int // of a process of the pod; 0: there is none
}

// ContainerView is what plugins see of a container. But for Spec, it must not be changed.
type ContainerView struct {
	ID, PodID string
	Made      bool // false while it is being made
	State     cri.ContainerState
	Config    *cri.ContainerConfig
	ImageID   string
	ImageRef  string
	Spec      *specs.Spec // nil once nothing of it lives any more
	PID       int         // 0: none
	Reason    string      // of its end
	Message   string
	ExitCode  int32

	CreatedAt, StartedAt, FinishedAt time.Time
}

// Alive lists what a plugin must know that has just come: every pod and container that is made, or being made, and has not ended.
func (p *Pods) Alive() (pods []PodView, containers []ContainerView) {
	for _, pod := range p.index.allPods() {
		if r := pod.facts(); !r.Doomed && r.StoppedAt.IsZero() {
			pods = append(pods, pod.view())
		}
	}
	for _, c := range p.index.allContainers("") {
		if r := c.facts(); !r.Doomed && r.FinishedAt.IsZero() {
			containers = append(containers, c.view(nil))
		}
	}
	return pods, containers
}

func (p *pod) view() PodView {
	r := p.facts()
	return PodView{
		ID: p.id, Handler: r.Handler, Made: !r.ReadyAt.IsZero(), Config: r.Config.Message, Cgroup: r.Cgroup, IPs: r.IPs,
		Namespaces: p.namespaces(), PID: p.process(),
	}
}

// view reads the spec from the bundle, where it is not given.
func (c *container) view(spec *specs.Spec) ContainerView {
	r := c.facts()
	v := ContainerView{
		ID: c.id, PodID: c.podID, Made: r.listed(), State: c.state(), Config: r.Config.Message, ImageID: r.ImageID, ImageRef: r.ImageRef,
		Spec: spec, Reason: r.Exit.Reason, Message: r.Exit.Message, ExitCode: r.Exit.Code,
		CreatedAt: r.CreatedAt, StartedAt: r.StartedAt, FinishedAt: r.FinishedAt,
	}
	if r.FinishedAt.IsZero() {
		v.PID = r.Process.PID
	}
	if spec == nil {
		v.Spec, _ = c.readBundle() // without it a plugin sees what the request says
	}
	return v
}
