// Package nri lets plugins of the Node Resource Interface (github.com/containerd/nri) hear of pods and containers and
// change them: it turns what the engine knows into NRI's terms, and what plugins want back into a runtime-spec.
//
// The library speaks with the plugins, puts their wishes together and finds the conflicts between them. It asks one
// plugin at a time, and every question ends after RequestTimeout: a plugin that does not answer is disconnected, unless it
// asked to be kept, and the request goes on without it.
//
// A plugin that comes, or comes back after the engine was restarted, is told of all that lives before anything else
// (Synchronize). What is being made meanwhile waits, so that it is told of everything exactly once.
package nri

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/containerd/nri/pkg/adaptation"
	"github.com/containerd/nri/pkg/api"
	nrilog "github.com/containerd/nri/pkg/log"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/sandbox"
)

// Plugins is sandbox.Plugins over the Node Resource Interface. Fill in the fields, hand it to the Pods, then Start it.
type Plugins struct {
	Socket    string // where plugins connect
	PluginDir string // programs in it are started as plugins, and end with this process; empty: none
	ConfigDir string // holds <index>-<name>.conf or <name>.conf for those programs
	Release   string // the engine's version, told to plugins

	RegisterTimeout time.Duration // how long a plugin may take to introduce itself
	RequestTimeout  time.Duration // how long it may take to answer

	Pods *sandbox.Pods
	Log  *slog.Logger

	nri     *adaptation.Adaptation
	started chan struct{} // closed when plugins can be asked
	failed  error         // why they never can; valid once started is closed
	blame   blame

	mu    sync.Mutex
	asked map[string]bool // pods and containers that plugins were asked about, and that may not be made yet
}

var _ sandbox.Plugins = (*Plugins)(nil)

// Open prepares for Start. Requests that come before it wait for it.
func (p *Plugins) Open() error {
	nrilog.Set(logger{p.Log})
	adaptation.SetPluginRegistrationTimeout(p.RegisterTimeout)
	adaptation.SetPluginRequestTimeout(p.RequestTimeout)
	p.started, p.asked = make(chan struct{}), map[string]bool{}
	var err error
	p.nri, err = adaptation.New("evenkeel", p.Release, p.synchronize, p.update,
		adaptation.WithSocketPath(p.Socket), adaptation.WithPluginPath(p.PluginDir),
		adaptation.WithPluginConfigPath(p.ConfigDir), adaptation.WithMetrics(&p.blame))
	if err != nil {
		return fmt.Errorf("cannot use the Node Resource Interface: %w", err)
	}
	return nil
}

// Start starts the programs in PluginDir and listens. It waits for neither. Where it fails, pods and containers are
// refused: running them without the plugins that the node is configured to have would be a surprise.
func (p *Plugins) Start() {
	go func() {
		defer close(p.started)
		if err := p.nri.Start(); err != nil {
			p.failed = fmt.Errorf("the Node Resource Interface could not be started: %w", err)
			p.Log.Error("NRI plugins cannot be used; pods and containers will be refused", "socket", p.Socket, "error", err)
		}
	}()
}

// Stop ends the programs that were started as plugins, and listens no longer.
func (p *Plugins) Stop() {
	<-p.started
	p.nri.Stop()
}

func (p *Plugins) ready(ctx context.Context) error {
	select {
	case <-p.started:
		return p.failed
	case <-ctx.Done():
		return fmt.Errorf("NRI plugins have not been started yet: %w", context.Cause(ctx))
	}
}

// TellPod implements sandbox.Plugins.
func (p *Plugins) TellPod(ctx context.Context, what sandbox.PodEvent, pod sandbox.PodView) (err error) {
	defer survive(&err)
	if err := p.ready(ctx); err != nil {
		return err
	}
	about := podOf(pod)
	switch what {
	case sandbox.PodRun:
		defer p.settle()()
		p.remember(pod.ID)
		return p.name(p.nri.RunPodSandbox(ctx, &api.RunPodSandboxRequest{Pod: about}))
	case sandbox.PodUpdated:
		return p.name(p.nri.PostUpdatePodSandbox(ctx, &api.PostUpdatePodSandboxRequest{Pod: about}))
	case sandbox.PodStopped:
		return p.name(p.nri.StopPodSandbox(ctx, &api.StopPodSandboxRequest{Pod: about}))
	case sandbox.PodRemoved:
		p.forget(pod.ID)
		return p.name(p.nri.RemovePodSandbox(ctx, &api.RemovePodSandboxRequest{Pod: about}))
	}
	return fmt.Errorf("pod event %d is not known", what)
}

// UpdatePod implements sandbox.Plugins.
func (p *Plugins) UpdatePod(ctx context.Context, pod sandbox.PodView, overhead, resources *cri.LinuxContainerResources) (err error) {
	defer survive(&err)
	if err := p.ready(ctx); err != nil {
		return err
	}
	_, err = p.nri.UpdatePodSandbox(ctx, &api.UpdatePodSandboxRequest{
		Pod: podOf(pod), OverheadLinuxResources: resourcesOf(overhead), LinuxResources: resourcesOf(resources),
	})
	return p.name(err)
}

// Create implements sandbox.Plugins.
func (p *Plugins) Create(ctx context.Context, pod sandbox.PodView, c sandbox.ContainerView) (wish sandbox.Adjustment, err error) {
	defer survive(&err)
	if err := p.ready(ctx); err != nil {
		return wish, err
	}
	request := &api.CreateContainerRequest{Pod: podOf(pod), Container: containerOf(c)}
	answer, err := p.create(ctx, request)
	if err != nil {
		return wish, p.name(err)
	}
	if wish.CDI, err = adjust(c.Spec, answer.GetAdjust()); err != nil {
		return wish, err
	}
	dropRemoved(c.Spec, request.Container)
	if r := answer.GetAdjust().GetLinux().GetResources(); r != nil {
		wish.Resources = overlaid(c.Config.GetLinux().GetResources(), r)
	}
	wish.Updates, err = updatesOf(answer.GetUpdate())
	return wish, err
}

func (p *Plugins) create(ctx context.Context, request *api.CreateContainerRequest) (*api.CreateContainerResponse, error) {
	defer p.settle()()
	p.remember(request.Container.Id)
	return p.nri.CreateContainer(ctx, request)
}

// Update implements sandbox.Plugins. The last update of the answer is that of the container itself.
func (p *Plugins) Update(ctx context.Context, pod sandbox.PodView, c sandbox.ContainerView, want *cri.LinuxContainerResources) (granted *cri.LinuxContainerResources, updates []sandbox.ResourceUpdate, err error) {
	defer survive(&err)
	if err := p.ready(ctx); err != nil {
		return nil, nil, err
	}
	answer, err := p.nri.UpdateContainer(ctx, &api.UpdateContainerRequest{Pod: podOf(pod), Container: containerOf(c), LinuxResources: resourcesOf(want)})
	if err != nil {
		return nil, nil, p.name(err)
	}
	var others []*api.ContainerUpdate
	for _, u := range answer.GetUpdate() {
		switch {
		case u == nil: // no plugin wants anything of it
		case u.GetContainerId() != c.ID:
			others = append(others, u)
		default:
			if err := expressible(u.GetLinux().GetResources()); err != nil {
				return nil, nil, err
			}
			want = overlaid(want, u.GetLinux().GetResources())
		}
	}
	updates, err = updatesOf(others)
	return want, updates, err
}

// Tell implements sandbox.Plugins.
func (p *Plugins) Tell(ctx context.Context, what sandbox.ContainerEvent, pod sandbox.PodView, c sandbox.ContainerView) (updates []sandbox.ResourceUpdate, err error) {
	defer survive(&err)
	if err := p.ready(ctx); err != nil {
		return nil, err
	}
	about, of := podOf(pod), containerOf(c)
	switch what {
	case sandbox.ContainerCreated:
		return nil, p.name(p.nri.PostCreateContainer(ctx, &api.PostCreateContainerRequest{Pod: about, Container: of}))
	case sandbox.ContainerStart:
		return nil, p.name(p.nri.StartContainer(ctx, &api.StartContainerRequest{Pod: about, Container: of}))
	case sandbox.ContainerStarted:
		return nil, p.name(p.nri.PostStartContainer(ctx, &api.PostStartContainerRequest{Pod: about, Container: of}))
	case sandbox.ContainerUpdated:
		return nil, p.name(p.nri.PostUpdateContainer(ctx, &api.PostUpdateContainerRequest{Pod: about, Container: of}))
	case sandbox.ContainerRemoved:
		p.forget(c.ID)
		return nil, p.name(p.nri.RemoveContainer(ctx, &api.RemoveContainerRequest{Pod: about, Container: of}))
	case sandbox.ContainerStopped:
		answer, err := p.nri.StopContainer(ctx, &api.StopContainerRequest{Pod: about, Container: of})
		if err != nil {
			return nil, p.name(err)
		}
		return updatesOf(answer.GetUpdate())
	}
	return nil, fmt.Errorf("container event %d is not known", what)
}
